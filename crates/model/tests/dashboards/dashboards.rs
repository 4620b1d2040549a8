//! The dashboards. In queries `{at}` selects the hosts, `{of}` the containers, `{edge}` the edges that are chosen, and
//! `[R]` is the range that Grafana finds right.

use crate::grafana::Shape::{Heatmap, Lines, Number, Stack, Table};
use crate::grafana::{Dashboard, Row, Variable, panel};

const AT: &str = r#"instance=~"$instance""#;
const OF: &str = r#"instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container""#;
const EDGE: &str =
    r#"instance=~"$instance", namespace=~"$namespace", container=~"$container", direction=~"$direction""#;

/// What stands for something else in a query, written out.
pub(crate) fn expand(query: &str) -> String {
    let query = query.replace("[R]", "[$__rate_interval]");
    [("{at", AT), ("{of", OF), ("{edge", EDGE)]
        .into_iter()
        .fold(query, |query, (short, long)| query.replace(short, &format!("{{{long}")))
}

/// Metrics that no dashboard shows.
pub(crate) const LEFT_OUT: &[(&str, &str)] = &[(
    "tcptide_acked_bytes_total",
    "what was sent, a round trip later; the two are apart only while a peer is silent, which the windows show",
)];

const INSTANCE: Variable = Variable { label: "instance", of: "tcptide_build_info" };

pub(crate) fn all() -> Vec<Dashboard> {
    vec![
        Dashboard {
            name: "host",
            title: "tcptide / Host",
            description: "What TCP does on hosts, and which containers stand out.",
            variables: &[INSTANCE],
            rows: host(),
        },
        Dashboard {
            name: "container",
            title: "tcptide / Container",
            description: "Everything that is measured of a container's connections.",
            variables: &[
                INSTANCE,
                Variable { label: "namespace", of: "tcptide_opened_total" },
                Variable { label: "pod", of: "tcptide_opened_total" },
                Variable { label: "container", of: "tcptide_opened_total" },
            ],
            rows: container(),
        },
        Dashboard {
            name: "edge",
            title: "tcptide / Edge",
            description: "Who talks to whom. Needs agents with --edges.",
            variables: &[
                INSTANCE,
                Variable { label: "namespace", of: "tcptide_edge_connections" },
                Variable { label: "container", of: "tcptide_edge_connections" },
                Variable { label: "direction", of: "tcptide_edge_connections" },
            ],
            rows: edge(),
        },
        Dashboard {
            name: "agent",
            title: "tcptide / Agent",
            description: "Whether the figures are whole, and what they cost.",
            variables: &[INSTANCE],
            rows: agent(),
        },
    ]
}

const BY_CONTAINER: &str = "{{namespace}} {{pod}} {{container}}";

fn host() -> Vec<Row> {
    vec![
        (
            "Overview",
            vec![
                panel("Established connections", (4, Number, "short"), &[(
                    r#"sum(tcptide_connections{at, state="established"})"#,
                    "",
                )]),
                panel("Opened", (4, Number, "cps"), &[("sum(rate(tcptide_opened_total{at}[R]))", "")]),
                panel("Connects that fail", (4, Number, "percentunit"), &[(
                    r#"sum(rate(tcptide_connect_failures_total{at, reason!="canceled"}[R])) / sum(rate(tcptide_opened_total{at, direction="active"}[R]))"#,
                    "",
                )]),
                panel("Segments sent again", (4, Number, "percentunit"), &[(
                    "sum(rate(tcptide_retransmitted_segments_total{at}[R])) / sum(rate(tcptide_sent_segments_total{at}[R]))",
                    "",
                )]),
                panel("RTT, 99th percentile", (4, Number, "s"), &[(
                    "histogram_quantile(0.99, sum by (le) (rate(tcptide_rtt_seconds_bucket{at}[R])))",
                    "",
                )]),
                panel("Accept queue overflows", (4, Number, "cps"), &[(
                    r#"sum(rate(tcptide_namespace_events_total{at, event="listen_overflow"}[R]))"#,
                    "",
                )]),
            ],
        ),
        (
            "Connections",
            vec![
                panel("Connections by state", (8, Stack, "short"), &[(
                    "sum by (state) (tcptide_connections{at})",
                    "{{state}}",
                )]),
                panel("Opened and closed", (8, Lines, "cps"), &[
                    ("sum by (direction) (rate(tcptide_opened_total{at}[R]))", "opened, {{direction}}"),
                    ("sum(rate(tcptide_closed_total{at}[R]))", "closed"),
                ]),
                panel("Connects that fail, by reason", (8, Stack, "cps"), &[(
                    "sum by (reason) (rate(tcptide_connect_failures_total{at}[R]))",
                    "{{reason}}",
                )]),
            ],
        ),
        (
            "Round trips",
            vec![
                panel("Round-trip times", (12, Heatmap, "s"), &[(
                    "sum by (le) (increase(tcptide_rtt_seconds_bucket{at}[R]))",
                    "{{le}}",
                )]),
                panel("Queueing delay", (12, Heatmap, "s"), &[(
                    "sum by (le) (increase(tcptide_queueing_delay_seconds_bucket{at}[R]))",
                    "{{le}}",
                )]),
            ],
        ),
        (
            "Containers that stand out",
            vec![
                panel("Payload sent", (8, Lines, "Bps"), &[(
                    "topk(10, sum by (namespace, pod, container) (rate(tcptide_sent_bytes_total{at}[R])))",
                    BY_CONTAINER,
                )]),
                panel("Payload received", (8, Lines, "Bps"), &[(
                    "topk(10, sum by (namespace, pod, container) (rate(tcptide_received_bytes_total{at}[R])))",
                    BY_CONTAINER,
                )]),
                panel("Established connections", (8, Lines, "short"), &[(
                    r#"topk(10, sum by (namespace, pod, container) (tcptide_connections{at, state="established"}))"#,
                    BY_CONTAINER,
                )]),
                panel("Connects that fail", (8, Lines, "cps"), &[(
                    r#"topk(10, sum by (namespace, pod, container) (rate(tcptide_connect_failures_total{at, reason!="canceled"}[R])) > 0)"#,
                    BY_CONTAINER,
                )]),
                panel("Segments sent again", (8, Lines, "percentunit"), &[(
                    "topk(10, sum by (namespace, pod, container) (rate(tcptide_retransmitted_segments_total{at}[R])) / (sum by (namespace, pod, container) (rate(tcptide_sent_segments_total{at}[R])) > 1))",
                    BY_CONTAINER,
                )])
                .note("Of containers that send more than a segment a second."),
                panel("Own windows closed", (8, Lines, "percentunit"), &[(
                    r#"topk(10, sum by (namespace, pod, container) (rate(tcptide_zero_window_seconds_total{at, of="own"}[R])) > 0)"#,
                    BY_CONTAINER,
                )])
                .note("1 is one connection whose window is closed all the time: the application does not read."),
            ],
        ),
        (
            "What has no socket",
            vec![
                panel("Events in network namespaces", (12, Lines, "cps"), &[(
                    "sum by (netns, container, event) (rate(tcptide_namespace_events_total{at}[R])) > 0",
                    "{{event}} {{container}} {{netns}}",
                )]),
                panel("Dropped packets by reason", (12, Lines, "pps"), &[(
                    "sum by (reason) (rate(tcptide_dropped_packets_total{at}[R])) > 0",
                    "{{reason}}",
                )]),
            ],
        ),
    ]
}

fn container() -> Vec<Row> {
    vec![
        (
            "Connections",
            vec![
                panel("By state", (8, Stack, "short"), &[(
                    "sum by (state) (tcptide_connections{of})",
                    "{{state}}",
                )]),
                panel("Opened", (8, Lines, "cps"), &[(
                    "sum by (direction) (rate(tcptide_opened_total{of}[R]))",
                    "{{direction}}",
                )]),
                panel("Ended, by reason", (8, Stack, "cps"), &[(
                    "sum by (reason) (rate(tcptide_closed_total{of}[R]))",
                    "{{reason}}",
                )]),
                panel("Connects that fail, by reason", (8, Stack, "cps"), &[(
                    "sum by (reason) (rate(tcptide_connect_failures_total{of}[R]))",
                    "{{reason}}",
                )]),
                panel("Lifetime", (8, Heatmap, "s"), &[(
                    "sum by (le) (increase(tcptide_connection_duration_seconds_bucket{of}[R]))",
                    "{{le}}",
                )]),
                panel("Fast Open", (8, Lines, "cps"), &[(
                    "sum by (result) (rate(tcptide_fast_open_total{of}[R]))",
                    "{{result}}",
                )]),
            ],
        ),
        (
            "Traffic",
            vec![
                panel("Payload", (8, Lines, "Bps"), &[
                    ("sum(rate(tcptide_sent_bytes_total{of}[R]))", "sent"),
                    ("sum(rate(tcptide_received_bytes_total{of}[R]))", "received"),
                ]),
                panel("Segments", (8, Lines, "pps"), &[
                    ("sum(rate(tcptide_sent_segments_total{of}[R]))", "sent"),
                    ("sum(rate(tcptide_received_segments_total{of}[R]))", "received"),
                ]),
                panel("What sending waits for", (8, Stack, "percentunit"), &[(
                    "sum by (by) (rate(tcptide_limited_seconds_total{of}[R]))",
                    "{{by}}",
                )])
                .note("1 is one connection that waits all the time."),
            ],
        ),
        (
            "Time",
            vec![
                panel("Round-trip times", (12, Heatmap, "s"), &[(
                    "sum by (le) (increase(tcptide_rtt_seconds_bucket{of}[R]))",
                    "{{le}}",
                )]),
                panel("Queueing delay", (12, Heatmap, "s"), &[(
                    "sum by (le) (increase(tcptide_queueing_delay_seconds_bucket{of}[R]))",
                    "{{le}}",
                )]),
                panel("Round-trip times", (8, Lines, "s"), &[
                    ("histogram_quantile(0.5, sum by (le) (rate(tcptide_rtt_seconds_bucket{of}[R])))", "p50"),
                    ("histogram_quantile(0.99, sum by (le) (rate(tcptide_rtt_seconds_bucket{of}[R])))", "p99"),
                ]),
                panel("Connect latency", (8, Lines, "s"), &[
                    (
                        "histogram_quantile(0.5, sum by (le) (rate(tcptide_connect_duration_seconds_bucket{of}[R])))",
                        "p50",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(tcptide_connect_duration_seconds_bucket{of}[R])))",
                        "p99",
                    ),
                ]),
                panel("Handshakes as a server", (8, Lines, "s"), &[(
                    "histogram_quantile(0.99, sum by (le) (rate(tcptide_handshake_duration_seconds_bucket{of}[R])))",
                    "p99",
                )]),
                panel("To the first byte", (8, Lines, "s"), &[
                    (
                        "histogram_quantile(0.5, sum by (le) (rate(tcptide_first_byte_seconds_bucket{of}[R])))",
                        "p50",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(tcptide_first_byte_seconds_bucket{of}[R])))",
                        "p99",
                    ),
                ]),
                panel("Answers", (8, Lines, "s"), &[
                    ("histogram_quantile(0.5, sum by (le) (rate(tcptide_response_seconds_bucket{of}[R])))", "p50"),
                    ("histogram_quantile(0.99, sum by (le) (rate(tcptide_response_seconds_bucket{of}[R])))", "p99"),
                ]),
            ],
        ),
        (
            "The path",
            vec![
                panel("Segments sent again, by kind", (8, Stack, "pps"), &[(
                    "sum by (kind) (rate(tcptide_retransmitted_segments_total{of}[R]))",
                    "{{kind}}",
                )]),
                panel("Loss and reordering", (8, Lines, "pps"), &[
                    ("sum(rate(tcptide_lost_segments_total{of}[R]))", "held for lost"),
                    ("sum(rate(tcptide_duplicate_segments_total{of}[R]))", "sent again without need"),
                    ("sum(rate(tcptide_reorderings_total{of}[R]))", "reordered"),
                    ("sum(rate(tcptide_ce_marked_segments_total{of}[R]))", "marked (ECN)"),
                ]),
                panel("Dropped packets, by reason", (8, Lines, "pps"), &[(
                    "sum by (reason) (rate(tcptide_dropped_packets_total{of}[R])) > 0",
                    "{{reason}}",
                )]),
                panel("Congestion states entered", (8, Lines, "cps"), &[(
                    "sum by (state) (rate(tcptide_congestion_entered_total{of}[R]))",
                    "{{state}}",
                )]),
                panel("Time in congestion states", (8, Stack, "percentunit"), &[(
                    "sum by (state) (rate(tcptide_congestion_seconds_total{of}[R]))",
                    "{{state}}",
                )])
                .note("1 is one connection that is in that state all the time."),
                panel("Resets", (8, Lines, "cps"), &[
                    ("sum by (direction) (rate(tcptide_resets_total{of}[R]))", "{{direction}}"),
                    (
                        "sum by (direction, state) (rate(tcptide_resets_by_state_total{of}[R])) > 0",
                        "{{direction}}, {{state}}",
                    ),
                ]),
            ],
        ),
        (
            "The application",
            vec![
                panel("Accept queues", (8, Lines, "short"), &[
                    ("sum(tcptide_accept_queue_connections{of})", "waiting"),
                    ("sum(tcptide_accept_queue_limit{of})", "limit"),
                ]),
                panel("Wait for accept()", (8, Lines, "s"), &[
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(tcptide_accept_wait_seconds_bucket{of}[R])))",
                        "p99",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(tcptide_accept_wait_bound_seconds_bucket{of}[R])))",
                        "p99, at most",
                    ),
                ]),
                panel("Turned away by listeners", (8, Lines, "pps"), &[
                    ("sum(rate(tcptide_listen_drops_total{of}[R]))", "packets dropped"),
                    ("sum(rate(tcptide_listen_overflows_total{of}[R]))", "accept queue full"),
                ]),
                panel("Closed windows", (8, Stack, "percentunit"), &[(
                    "sum by (of) (rate(tcptide_zero_window_seconds_total{of}[R]))",
                    "{{of}}",
                )])
                .note("own: this container does not read. peer: the far end does not. 1 is one connection all the time."),
                panel("Windows that closed", (8, Lines, "cps"), &[
                    ("sum by (of) (rate(tcptide_zero_windows_total{of}[R]))", "{{of}}"),
                    ("sum(rate(tcptide_receive_collapses_total{of}[R]))", "buffers squeezed"),
                ]),
                panel("Data waits to be read", (8, Lines, "s"), &[(
                    "histogram_quantile(0.99, sum by (le) (rate(tcptide_read_delay_seconds_bucket{of}[R])))",
                    "p99",
                )]),
            ],
        ),
        (
            "Identity",
            vec![panel("How it was identified", (24, Table, "none"), &[("tcptide_container_info{of}", "")])],
        ),
    ]
}

const BY_EDGE: &str = "{{container}} {{direction}} {{peer_container}}{{peer_name}} {{peer_port}}";

fn edge() -> Vec<Row> {
    vec![
        (
            "Connections",
            vec![
                panel(
                    "There now",
                    (8, Lines, "short"),
                    &[("topk(20, sum without (instance, job) (tcptide_edge_connections{edge}))", BY_EDGE)],
                ),
                panel(
                    "Established",
                    (8, Lines, "cps"),
                    &[(
                        "topk(20, sum without (instance, job) (rate(tcptide_edge_established_total{edge}[R])))",
                        BY_EDGE,
                    )],
                ),
                panel(
                    "Connects that fail",
                    (8, Lines, "cps"),
                    &[(
                        "topk(20, sum without (instance, job) (rate(tcptide_edge_connect_failures_total{edge}[R])) > 0)",
                        BY_EDGE,
                    )],
                ),
            ],
        ),
        (
            "Traffic",
            vec![
                panel(
                    "Payload sent",
                    (8, Lines, "Bps"),
                    &[(
                        "topk(20, sum without (instance, job) (rate(tcptide_edge_sent_bytes_total{edge}[R])))",
                        BY_EDGE,
                    )],
                ),
                panel(
                    "Payload received",
                    (8, Lines, "Bps"),
                    &[(
                        "topk(20, sum without (instance, job) (rate(tcptide_edge_received_bytes_total{edge}[R])))",
                        BY_EDGE,
                    )],
                ),
                panel(
                    "Segments sent again",
                    (8, Lines, "percentunit"),
                    &[(
                        "topk(20, sum without (instance, job) (rate(tcptide_edge_retransmitted_segments_total{edge}[R])) / (sum without (instance, job) (rate(tcptide_edge_sent_segments_total{edge}[R])) > 0))",
                        BY_EDGE,
                    )],
                ),
            ],
        ),
        (
            "Round trips",
            vec![
                panel(
                    "Smoothed RTT",
                    (12, Lines, "s"),
                    &[("topk(20, max without (instance, job) (tcptide_edge_srtt_seconds{edge}))", BY_EDGE)],
                ),
                panel(
                    "Minimum RTT",
                    (12, Lines, "s"),
                    &[(
                        "topk(20, min without (instance, job) (tcptide_edge_min_rtt_seconds{edge}))",
                        BY_EDGE,
                    )],
                ),
            ],
        ),
        (
            "Now",
            vec![panel(
                "Edges",
                (24, Table, "short"),
                &[(
                    "sum by (container, direction, peer_namespace, peer_pod, peer_container, peer_name, peer_port) (tcptide_edge_connections{edge}) > 0",
                    "",
                )],
            )],
        ),
    ]
}

fn agent() -> Vec<Row> {
    vec![
        (
            "Whether the figures are whole",
            vec![
                panel("Up", (4, Number, "short"), &[(r#"sum(up{job="tcptide", instance=~"$instance"})"#, "")])
                    .note("Agents that answered the last scrape."),
                panel("Events lost", (4, Number, "short"), &[("sum(increase(tcptide_events_lost_total{at}[1h]))", "")])
                    .note("In an hour."),
                panel("Sockets in no figure", (4, Number, "short"), &[(
                    "sum(increase(tcptide_storage_failures_total{at}[1h]))",
                    "",
                )])
                .note("In an hour."),
                panel("Updates in ~other", (4, Number, "short"), &[(
                    "sum(increase(tcptide_totals_failures_total{at}[1h]))",
                    "",
                )])
                .note("In an hour."),
                panel("Sockets without owner", (4, Number, "short"), &[(
                    "sum(increase(tcptide_unattributed_sockets_total{at}[1h]))",
                    "",
                )])
                .note("In an hour."),
                panel("Series in ~other", (4, Number, "short"), &[("sum(tcptide_folded_series{at})", "")]),
                panel("Events lost", (8, Lines, "cps"), &[(
                    "sum by (instance, reason) (rate(tcptide_events_lost_total{at}[R]))",
                    "{{instance}} {{reason}}",
                )]),
                panel("Lost otherwise", (8, Lines, "cps"), &[
                    ("sum by (instance) (rate(tcptide_storage_failures_total{at}[R]))", "{{instance}} in no figure"),
                    ("sum by (instance) (rate(tcptide_totals_failures_total{at}[R]))", "{{instance}} in ~other"),
                    (
                        "sum by (instance) (rate(tcptide_edge_folded_connections_total{at}[R]))",
                        "{{instance}} edges in ~other",
                    ),
                    (
                        "sum by (instance) (rate(tcptide_unattributed_sockets_total{at}[R]))",
                        "{{instance}} without owner",
                    ),
                ]),
                panel("Series in ~other", (8, Lines, "short"), &[
                    ("sum by (instance, reason) (tcptide_folded_series{at})", "{{instance}} {{reason}}"),
                    ("sum by (instance) (increase(tcptide_series_folds_total{at}[1h]))", "{{instance}} in an hour"),
                ]),
                panel("Runs left out", (8, Lines, "cps"), &[(
                    "sum by (instance, program) (rate(tcptide_program_misses_total{at}[R]))",
                    "{{instance}} {{program}}",
                )]),
            ],
        ),
        (
            "Against the kernel's own counters",
            vec![
                panel("Unexplained", (12, Lines, "short"), &[(
                    "max by (instance, counter) (abs(tcptide_reconcile_unexplained{at}))",
                    "{{instance}} {{counter}}",
                )]),
                panel("Counted", (12, Lines, "cps"), &[
                    (
                        "sum by (counter) (rate(tcptide_reconcile_kernel_total{at}[R]))",
                        "{{counter}}, the kernel",
                    ),
                    ("sum by (counter) (rate(tcptide_reconcile_counted_total{at}[R]))", "{{counter}}, tcptide"),
                ]),
            ],
        ),
        (
            "What it costs",
            vec![
                panel("CPU of the agent", (8, Lines, "percentunit"), &[(
                    "rate(tcptide_process_cpu_seconds_total{at}[R])",
                    "{{instance}}",
                )])
                .note("1 is one CPU."),
                panel("CPU of BPF programs", (8, Stack, "percentunit"), &[(
                    "sum by (program) (rate(tcptide_program_run_seconds_total{at}[5m])) / on () group_left () sum(rate(tcptide_program_measured_seconds_total{at}[5m]))",
                    "{{program}}",
                )])
                .note("1 is one CPU of each host."),
                panel("Time of a run", (8, Lines, "s"), &[(
                    "sum by (program) (rate(tcptide_program_run_seconds_total{at}[5m])) / (sum by (program) (rate(tcptide_program_runs_total{at}[5m])) > 0)",
                    "{{program}}",
                )]),
                panel("Resident memory", (8, Lines, "bytes"), &[(
                    "tcptide_process_resident_memory_bytes{at}",
                    "{{instance}}",
                )]),
                panel("Time of a scrape", (8, Lines, "s"), &[
                    (r#"scrape_duration_seconds{job="tcptide", instance=~"$instance"}"#, "{{instance}} scrape"),
                    ("tcptide_scrape_duration_seconds{at}", "{{instance}} answer"),
                    ("tcptide_walk_duration_seconds{at}", "{{instance}} walk"),
                    ("tcptide_namespaces_duration_seconds{at}", "{{instance}} namespaces"),
                ]),
                panel("Size of a scrape", (8, Lines, "bytes"), &[("tcptide_scrape_size_bytes{at}", "{{instance}}")])
                    .note("Before gzip."),
                panel("Scrapes", (8, Lines, "cps"), &[(
                    "sum by (instance, format, encoding) (rate(tcptide_scrapes_total{at}[R]))",
                    "{{instance}} {{format}} {{encoding}}",
                )]),
                panel("Connections to the agent", (8, Lines, "short"), &[("tcptide_http_connections{at}", "{{instance}}")]),
                panel("Turned away", (8, Lines, "cps"), &[(
                    "sum by (instance, reason) (rate(tcptide_http_rejected_total{at}[R]))",
                    "{{instance}} {{reason}}",
                )]),
                panel("What a scrape looks at", (8, Lines, "short"), &[
                    ("tcptide_walk_sockets{at}", "{{instance}} sockets"),
                    ("sum by (instance, status) (tcptide_namespaces{at})", "{{instance}} namespaces {{status}}"),
                ]),
            ],
        ),
        (
            "Versions, settings and programs",
            vec![
                panel("Settings as the files have them", (6, Lines, "short"), &[
                    ("tcptide_config_last_reload_successful{at}", "{{instance}} settings"),
                    ("tcptide_web_config_last_reload_successful{at}", "{{instance}} endpoint"),
                ])
                .note("1: yes, 0: a file cannot be used, and an earlier version is."),
                panel("Age of the settings", (6, Lines, "s"), &[(
                    "time() - tcptide_config_last_reload_success_timestamp_seconds{at}",
                    "{{instance}}",
                )]),
                panel("Versions", (12, Table, "none"), &[("tcptide_build_info{at}", "")]),
                panel("Programs", (12, Table, "none"), &[(
                    "count by (program, status) (tcptide_program_status{at})",
                    "",
                )]),
            ],
        ),
    ]
}
