//! THE table of metrics: name, type, unit, labels, help, source, and how each is read.
//!
//! One more metric of a container is a field in `record.h`, a line in a hook, and a row here. Prometheus output and
//! `docs/metrics.md` follow. The table names every field of [`Totals`]: one without a row does not compile.

use std::fmt::Write as _;

use crate::{
    connection::{FAST_OPEN_NAMES, REASON_NAMES, RESET_STATE_NAMES, RETRANSMIT_NAMES, STATE_NAMES},
    drop,
    edge::{EDGE_LABELS, EDGE_METRICS, EdgeMetric},
    histogram::{Histogram, Scale},
    namespace::{NAMESPACE_EVENTS, NamespaceEvent},
    record::{Totals, congestion},
};

/// The Prometheus type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, while a container lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Its bounds are powers of two of a second.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label with its values, by the index of the reading; `None`: cannot occur.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: &'static [Option<&'static str>],
}

/// What a row reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A number.
    One(u64),
    /// A number for each value of the label.
    Each(Vec<u64>),
    /// As `Each`, for a label of many values: only those that were seen have a series.
    EachSeen(Vec<u64>),
    /// A time for each value of the label, in microseconds.
    EachMicroseconds(Vec<u64>),
    /// A distribution, in microseconds.
    Distribution(Histogram),
}

impl Reading {
    /// Those of a metric with labels.
    pub fn numbers(&self) -> Option<&[u64]> {
        match self {
            Self::Each(numbers) | Self::EachSeen(numbers) | Self::EachMicroseconds(numbers) => Some(numbers),
            Self::One(_) | Self::Distribution(_) => None,
        }
    }

    /// All its numbers; of a distribution the sum in microseconds, then the count of each slot.
    pub fn all(&self) -> impl Iterator<Item = u64> {
        let (first, rest) = match self {
            Self::One(number) => (Some(*number), &[][..]),
            Self::Each(numbers) | Self::EachSeen(numbers) | Self::EachMicroseconds(numbers) => {
                (None, &numbers[..])
            }
            Self::Distribution(histogram) => (Some(histogram.sum_us()), histogram.counts()),
        };
        first.into_iter().chain(rest.iter().copied())
    }

    /// The same metric's reading with other numbers, by their places in [`all`](Self::all); those that are not named are 0.
    #[must_use]
    pub fn with(&self, numbers: impl IntoIterator<Item = (usize, u64)>) -> Self {
        let mut all = vec![0; self.all().count()];
        for (place, n) in numbers {
            if let Some(number) = all.get_mut(place) {
                *number = n;
            }
        }
        match self {
            Self::One(_) => Self::One(all.iter().sum()),
            Self::Each(_) => Self::Each(all),
            Self::EachSeen(_) => Self::EachSeen(all),
            Self::EachMicroseconds(_) => Self::EachMicroseconds(all),
            Self::Distribution(histogram) => {
                let mut all = all.into_iter();
                let sum_us = all.next().unwrap_or(0);
                Self::Distribution(Histogram::from_counts(histogram.scale(), all, sum_us))
            }
        }
    }

    /// Adds the same metric's reading of another cgroup.
    pub fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::One(sum), Self::One(n)) => *sum += n,
            (Self::Each(sums), Self::Each(numbers))
            | (Self::EachSeen(sums), Self::EachSeen(numbers))
            | (Self::EachMicroseconds(sums), Self::EachMicroseconds(numbers)) => {
                sums.iter_mut().zip(numbers).for_each(|(sum, n)| *sum += n);
            }
            (Self::Distribution(sum), Self::Distribution(histogram)) => sum.merge(histogram),
            // Readings of one row are of one kind.
            _ => {}
        }
    }

    /// Takes off an earlier reading of the same growing counter.
    pub fn subtract(&mut self, earlier: &Self) {
        match (self, earlier) {
            (Self::One(now), Self::One(then)) => *now = now.saturating_sub(*then),
            (Self::Each(now), Self::Each(then))
            | (Self::EachSeen(now), Self::EachSeen(then))
            | (Self::EachMicroseconds(now), Self::EachMicroseconds(then)) => {
                now.iter_mut().zip(then).for_each(|(now, then)| *now = now.saturating_sub(*then));
            }
            (Self::Distribution(now), Self::Distribution(then)) => *now = now.minus(then),
            // Readings of one row are of one kind.
            _ => {}
        }
    }
}

/// A [`Reading`] as the kernel keeps it.
#[derive(Clone, Copy, Debug)]
pub enum Kept<'a> {
    /// A number.
    One(u64),
    /// See [`Reading::Each`].
    Each(&'a [u64]),
    /// The same, of what is never many.
    EachOfFew(&'a [u32]),
    /// See [`Reading::EachSeen`].
    EachSeen(&'a [u64]),
    /// See [`Reading::EachMicroseconds`].
    EachMicroseconds(&'a [u64]),
    /// The count of each slot, and the sum in microseconds.
    Distribution(&'static Scale, &'a [u64], u64),
}

impl Kept<'_> {
    /// Adds all its numbers, as [`Reading::all`] tells them, to others.
    pub fn append_to(self, all: &mut Vec<u64>) {
        match self {
            Self::One(number) => all.push(number),
            Self::Each(numbers) | Self::EachSeen(numbers) | Self::EachMicroseconds(numbers) => {
                all.extend_from_slice(numbers);
            }
            Self::EachOfFew(numbers) => all.extend(numbers.iter().map(|&n| u64::from(n))),
            Self::Distribution(_, counts, sum_us) => {
                all.push(sum_us);
                all.extend_from_slice(counts);
            }
        }
    }
}

impl From<Kept<'_>> for Reading {
    fn from(kept: Kept<'_>) -> Self {
        match kept {
            Kept::One(number) => Self::One(number),
            Kept::Each(numbers) => Self::Each(numbers.to_vec()),
            Kept::EachOfFew(numbers) => Self::Each(numbers.iter().map(|&n| n.into()).collect()),
            Kept::EachSeen(numbers) => Self::EachSeen(numbers.to_vec()),
            Kept::EachMicroseconds(numbers) => Self::EachMicroseconds(numbers.to_vec()),
            Kept::Distribution(scale, counts, sum_us) => {
                Self::Distribution(Histogram::from_counts(scale, counts.iter().copied(), sum_us))
            }
        }
    }
}

/// A metric of a container.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its whole name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The labels that it has beside `container pod namespace`. With two, the readings of the second's values stand
    /// together for each of the first's.
    pub labels: &'static [Label],
    /// What it counts, and its unit.
    pub help: &'static str,
    /// Where the kernel keeps it.
    pub source: &'static str,
    /// The BPF program that feeds it: where that does not run, the metric is absent.
    pub program: &'static str,
    /// The BPF program that feeds a better one: where that runs, this metric is absent.
    pub unless: Option<&'static str>,
    /// Where it is. Connections by state hold for the walk with that number only.
    pub kept: fn(&Totals, walk: u32) -> Kept<'_>,
}

impl Metric {
    /// Reads it.
    pub fn read(&self, totals: &Totals, walk: u32) -> Reading {
        (self.kept)(totals, walk).into()
    }

    /// Its own labels of the `at`th of `of` numbers, unless it has no such combination.
    pub fn own_labels(&self, at: usize, of: usize) -> Option<Vec<(&'static str, &'static str)>> {
        let mut rest = of;
        let pair = |label: &Label| {
            rest /= label.values.len();
            Some((label.name, label.values.get(at / rest % label.values.len()).copied().flatten()?))
        };
        self.labels.iter().map(pair).collect()
    }
}

/// The labels that every metric of a container has.
pub const OWNER_LABELS: [&str; 3] = ["container", "pod", "namespace"];

macro_rules! table {
    ($($name:literal $kind:ident $([$($label:expr),+])? { help: $help:literal, source: $source:literal,
        program: $program:literal, $(unless: $unless:literal,)? fields: [$($field:ident),*], kept: $kept:expr })*) => {
        /// One row for each metric of a container.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name, kind: Kind::$kind, labels: &[$($($label),+)?], help: $help, source: $source,
            program: $program, unless: table!(@unless $($unless)?), kept: $kept,
        }),*];

        /// Fails to compile when a field of the record has no row.
        const _: fn(&Totals) = |totals| { let Totals { $($($field: _,)*)* } = totals; };
    };
    (@unless) => { None };
    (@unless $program:literal) => { Some($program) };
}

table! {
    "tcptide_rtt_seconds" Histogram {
        help: "Round-trip times: at most one sample a round trip, and one a millisecond, of each connection.",
        source: "tcp_sock.rack.rtt_us (without SACK: srtt_us), when tcp_sock.rtt_seq moved",
        program: "rtt", fields: [rtt],
        kept: |t, _| Kept::Distribution(&Scale::RTT, &t.rtt.slots, t.rtt.sum_us)
    }
    "tcptide_connect_duration_seconds" Histogram {
        help: "From the first SYN to the completed handshake, of connections this container began.",
        source: "inet_sock_set_state: SYN_SENT to ESTABLISHED",
        program: "lifecycle", fields: [connect],
        kept: |t, _| Kept::Distribution(&Scale::CONNECT, &t.connect.slots, t.connect.sum_us)
    }
    "tcptide_first_byte_seconds" Histogram {
        help: "From the completed handshake to the first payload received, on connections this container began: request, path and answer.",
        source: "tcp_probe: first segment with payload",
        program: "rtt", fields: [first_byte],
        kept: |t, _| Kept::Distribution(&Scale::CONNECT, &t.first_byte.slots, t.first_byte.sum_us)
    }
    "tcptide_response_seconds" Histogram {
        help: "From the last data sent to the next data received, on connections this container began: at most one sample a millisecond of each connection.",
        source: "tcp_probe: segment with payload; tcp_sock.tcp_wstamp_ns",
        program: "rtt", fields: [response],
        kept: |t, _| Kept::Distribution(&Scale::CONNECT, &t.response.slots, t.response.sum_us)
    }
    "tcptide_handshake_duration_seconds" Histogram {
        help: "From the SYN received to the completed handshake, of connections to this container. Of those made by SYN cookies it is what the kernel reckons from time stamps: too long by some 60 ms at times.",
        source: "inet_sock_set_state: first tcp_sock.srtt_us; after a SYN-ACK sent again tcp_request_sock.snt_synack",
        program: "lifecycle", fields: [handshake],
        kept: |t, _| Kept::Distribution(&Scale::CONNECT, &t.handshake.slots, t.handshake.sum_us)
    }
    "tcptide_accept_wait_seconds" Histogram {
        help: "From the completed handshake to accept(), of connections to this container.",
        source: "inet_csk_accept",
        program: "accepted", fields: [accept_wait],
        kept: |t, _| Kept::Distribution(&Scale::CONNECT, &t.accept_wait.slots, t.accept_wait.sum_us)
    }
    "tcptide_accept_wait_bound_seconds" Histogram {
        help: "Instead of tcptide_accept_wait_seconds where the kernel takes no program at accept(): an upper bound, from the completed handshake to when the connection was first seen in use: data arriving or read, a look, its end.",
        source: "sock.sk_socket",
        program: "lifecycle", unless: "accepted", fields: [],
        kept: |t, _| Kept::Distribution(&Scale::CONNECT, &t.accept_wait.slots, t.accept_wait.sum_us)
    }
    "tcptide_read_delay_seconds" Histogram {
        help: "From data ready to be read to its being read: a slow application, not a slow network. Only with --read-delay.",
        source: "tcp_probe: segment with payload that nothing waits before; tcp_rcv_space_adjust",
        program: "used", fields: [read_delay],
        kept: |t, _| Kept::Distribution(&Scale::CONNECT, &t.read_delay.slots, t.read_delay.sum_us)
    }
    "tcptide_connection_duration_seconds" Histogram {
        help: "From opening to end, of connections that ended and were seen to open.",
        source: "inet_sock_set_state",
        program: "lifecycle", fields: [lifetime],
        kept: |t, _| Kept::Distribution(&Scale::LIFETIME, &t.lifetime.slots, t.lifetime.sum_us)
    }
    "tcptide_connections" Gauge [Label { name: "state", values: &COUNTED_STATES }] {
        help: "Sockets by TCP state; syn_recv is what waits half-open at listeners. TIME_WAIT has no owner.",
        source: "walk of the sockets; request_sock_queue.qlen",
        program: "walk", fields: [connections, walk],
        kept: |t, walk| Kept::EachOfFew(if t.walk == walk { &t.connections } else { &[0; COUNTED_STATES.len()] })
    }
    "tcptide_accept_queue_connections" Gauge {
        help: "Connections that wait for accept(), at all listeners together.",
        source: "walk of the sockets; sock.sk_ack_backlog",
        program: "walk", fields: [accept_queue],
        kept: |t, walk| Kept::One(if t.walk == walk { t.accept_queue.into() } else { 0 })
    }
    "tcptide_accept_queue_limit" Gauge {
        help: "How many connections the accept queues of all listeners together may hold.",
        source: "walk of the sockets; sock.sk_max_ack_backlog",
        program: "walk", fields: [accept_limit],
        kept: |t, walk| Kept::One(if t.walk == walk { t.accept_limit.into() } else { 0 })
    }
    "tcptide_listen_drops_total" Counter {
        help: "Packets that listeners turned away, most often for a full accept queue: SYNs, last segments of handshakes (each may count twice), and SYNs that came again. More than the kernel's ListenDrops.",
        source: "sock.sk_drops",
        program: "walk", fields: [listen_drops], kept: |t, _| Kept::One(t.listen_drops)
    }
    "tcptide_listen_overflows_total" Counter {
        help: "Times that an accept queue was full when somebody came: SYNs, and last segments of handshakes. As the kernel's ListenOverflows.",
        source: "tcp_conn_request, tcp_v4_syn_recv_sock, tcp_v6_syn_recv_sock",
        program: "overflow_syn", fields: [listen_overflows], kept: |t, _| Kept::One(t.listen_overflows)
    }
    "tcptide_opened_total" Counter [Label { name: "direction", values: &DIRECTIONS }] {
        help: "Connections opened: a connect begun (active), or a handshake completed at a listener (passive).",
        source: "inet_sock_set_state",
        program: "lifecycle", fields: [opened], kept: |t, _| Kept::Each(&t.opened)
    }
    "tcptide_closed_total" Counter [Label { name: "reason", values: &CLOSE_REASONS }] {
        help: "Established connections that ended.",
        source: "inet_sock_set_state: to CLOSE, with sock.sk_err",
        program: "lifecycle", fields: [closed], kept: |t, _| Kept::Each(&t.closed)
    }
    "tcptide_connect_failures_total" Counter [Label { name: "reason", values: &FAIL_REASONS }] {
        help: "Connects that ended without being established; canceled: closed by the application itself.",
        source: "inet_sock_set_state: SYN_SENT to CLOSE, with sock.sk_err",
        program: "lifecycle", fields: [connect_failures], kept: |t, _| Kept::Each(&t.connect_failures)
    }
    "tcptide_sent_bytes_total" Counter {
        help: "Payload bytes sent, each once: without retransmissions, SYN and FIN.",
        source: "tcp_sock.bytes_sent - bytes_retrans",
        program: "walk", fields: [sent_bytes], kept: |t, _| Kept::One(t.sent_bytes)
    }
    "tcptide_acked_bytes_total" Counter {
        help: "Payload bytes that peers acknowledged.",
        source: "tcp_sock.bytes_acked, without SYN and FIN",
        program: "walk", fields: [acked_bytes], kept: |t, _| Kept::One(t.acked_bytes)
    }
    "tcptide_received_bytes_total" Counter {
        help: "Payload bytes received in order, read by the application or not.",
        source: "tcp_sock.bytes_received, without the FIN",
        program: "walk", fields: [received_bytes], kept: |t, _| Kept::One(t.received_bytes)
    }
    "tcptide_sent_segments_total" Counter {
        help: "Segments sent, empty and repeated ones too.",
        source: "tcp_sock.segs_out",
        program: "walk", fields: [sent_segments], kept: |t, _| Kept::One(t.sent_segments)
    }
    "tcptide_received_segments_total" Counter {
        help: "Segments received.",
        source: "tcp_sock.segs_in",
        program: "walk", fields: [received_segments], kept: |t, _| Kept::One(t.received_segments)
    }
    "tcptide_retransmitted_segments_total" Counter [Label { name: "kind", values: &RETRANSMITS }] {
        help: "Segments sent again: timer (rto), tail loss probe (tlp), recovery (fast), handshake (syn, synack), or untold (other).",
        source: "tcp_retransmit_skb, tcp_retransmit_synack; tcp_sock.total_retrans",
        program: "retransmit", fields: [retransmitted_segments],
        kept: |t, _| Kept::Each(&t.retransmitted_segments)
    }
    "tcptide_lost_segments_total" Counter {
        help: "Segments that senders held for lost.",
        source: "tcp_sock.lost",
        program: "walk", fields: [lost_segments], kept: |t, _| Kept::One(t.lost_segments)
    }
    "tcptide_duplicate_segments_total" Counter {
        help: "Segments that arrived at the peer more than once, as it said (DSACK): sent again without need.",
        source: "tcp_sock.dsack_dups",
        program: "walk", fields: [duplicate_segments], kept: |t, _| Kept::One(t.duplicate_segments)
    }
    "tcptide_reorderings_total" Counter {
        help: "Times that segments were found to arrive at the peer in another order.",
        source: "tcp_sock.reord_seen",
        program: "walk", fields: [reorderings], kept: |t, _| Kept::One(t.reorderings)
    }
    "tcptide_ce_marked_segments_total" Counter {
        help: "Segments delivered with a congestion mark, on connections with ECN.",
        source: "tcp_sock.delivered_ce",
        program: "walk", fields: [ce_marked_segments], kept: |t, _| Kept::One(t.ce_marked_segments)
    }
    "tcptide_limited_seconds_total" Counter [Label { name: "by", values: &[Some("nothing"), Some("rwnd"), Some("sndbuf")] }] {
        help: "Time connections had data to send, by what they waited for: the peer's window (rwnd), room in the own send buffer (sndbuf), or no more than acknowledgements (nothing).",
        source: "tcp_sock.chrono_stat",
        program: "walk", fields: [limited_us], kept: |t, _| Kept::EachMicroseconds(&t.limited_us)
    }
    "tcptide_zero_windows_total" Counter [Label { name: "of", values: &[Some("peer"), Some("own")] }] {
        help: "Times that a receive window was seen closed: the peer's, or the own while a segment arrived or somebody looked.",
        source: "tcp_probe and walk: tcp_sock.snd_wnd, rcv_wnd",
        program: "rtt", fields: [zero_windows], kept: |t, _| Kept::Each(&t.zero_windows)
    }
    "tcptide_zero_window_seconds_total" Counter [Label { name: "of", values: &[Some("peer"), Some("own")] }] {
        help: "Time that receive windows were closed, to a tick of the kernel's clock.",
        source: "tcp_probe and walk: tcp_sock.rcv_tstamp, icsk_ack.lrcvtime, tcp_wstamp_ns",
        program: "rtt", fields: [zero_window_us], kept: |t, _| Kept::EachMicroseconds(&t.zero_window_us)
    }
    "tcptide_receive_collapses_total" Counter {
        help: "Times that segments in a receive buffer were squeezed together to save memory.",
        source: "tcp_collapse",
        program: "collapsed", fields: [receive_collapses], kept: |t, _| Kept::One(t.receive_collapses)
    }
    "tcptide_congestion_entered_total" Counter [Label { name: "state", values: &CONGESTION_STATES }] {
        help: "Times that connections entered congestion states other than open.",
        source: "tcp_cong_state_set",
        program: "congestion", fields: [congestion_entered], kept: |t, _| Kept::Each(&t.congestion_entered)
    }
    "tcptide_congestion_seconds_total" Counter [Label { name: "state", values: &CONGESTION_STATES }] {
        help: "Time that connections were in congestion states other than open, counted when they leave them.",
        source: "tcp_cong_state_set",
        program: "congestion", fields: [congestion_us], kept: |t, _| Kept::EachMicroseconds(&t.congestion_us)
    }
    "tcptide_fast_open_total" Counter [Label { name: "result", values: &FAST_OPEN_NAMES }] {
        help: "Ended connections that had tried TCP Fast Open: the data in the SYN was taken (used), there was no cookie yet (no_cookie), the peer did not take it (not_taken), or the SYN had to be sent again (syn_lost).",
        source: "tcp_sock.syn_data, syn_data_acked, fastopen_client_fail",
        program: "lifecycle", fields: [fast_open], kept: |t, _| Kept::EachSeen(&t.fast_open)
    }
    "tcptide_queueing_delay_seconds" Histogram {
        help: "How long segments wait on their way: smoothed RTT less the least one; acknowledgements that a receiver holds back count, too. A sample of each connection that moved since the last look, and one at its end.",
        source: "tcp_sock.srtt_us, rtt_min",
        program: "walk", fields: [queueing],
        kept: |t, _| Kept::Distribution(&Scale::RTT, &t.queueing.slots, t.queueing.sum_us)
    }
    "tcptide_dropped_packets_total" Counter [Label { name: "reason", values: &DROPS }] {
        help: "TCP packets that the kernel dropped, sent or received, by its own names of reasons. Those of no socket are of the container whose network namespace they were in, if it is one container's, else ~unattributed; before Linux 6.11 not_specified has what nobody read before a close, too.",
        source: "kfree_skb: enum skb_drop_reason",
        program: "drop", fields: [dropped_packets], kept: |t, _| Kept::EachSeen(&t.dropped_packets)
    }
    "tcptide_resets_total" Counter [Label { name: "direction", values: &[Some("sent"), Some("received")] }] {
        help: "RSTs sent and received. One sent for no socket, such as from a closed port, is of the container whose network namespace it left, if it is one container's, else ~unattributed.",
        source: "tcp_send_reset, tcp_receive_reset",
        program: "reset_sent", fields: [resets], kept: |t, _| Kept::Each(&t.resets)
    }
    "tcptide_resets_by_state_total" Counter [
        Label { name: "direction", values: &[Some("sent"), Some("received")] },
        Label { name: "state", values: &RESET_STATES }
    ] {
        help: "The same by the state that the connection was in. Sent: none is a refusal where nobody listens, listen turns away a half-open connection, the others are aborts. Received: syn_sent is a refusal.",
        source: "tcp_send_reset, tcp_receive_reset; sock.skc_state",
        program: "reset_sent", fields: [resets_by_state], kept: |t, _| Kept::EachSeen(&t.resets_by_state)
    }
}

const DIRECTIONS: [Option<&str>; 3] = [None, Some("active"), Some("passive")];

const COUNTED_STATES: [Option<&str>; STATE_NAMES.len()] = {
    let mut states = STATE_NAMES;
    states[6] = None; // TIME_WAIT: no full socket
    states[7] = None; // CLOSE: no connection
    states
};

const CLOSE_REASONS: [Option<&str>; REASON_NAMES.len()] = only(&[0, 1, 2, 3, 5, 8, 9]);
const FAIL_REASONS: [Option<&str>; REASON_NAMES.len()] = only(&[2, 3, 4, 5, 6, 7, 8]);

/// The reasons that can occur.
const fn only(which: &[usize]) -> [Option<&'static str>; REASON_NAMES.len()] {
    let mut reasons = [None; REASON_NAMES.len()];
    let mut i = 0;
    while i < which.len() {
        reasons[which[i]] = Some(REASON_NAMES[which[i]]);
        i += 1;
    }
    reasons
}

const CONGESTION_STATES: [Option<&str>; congestion::CONGESTIONS] =
    [Some("disorder"), Some("cwr"), Some("recovery"), Some("loss")];
const RESET_STATES: [Option<&str>; RESET_STATE_NAMES.len()] = all(&RESET_STATE_NAMES);
const RETRANSMITS: [Option<&str>; RETRANSMIT_NAMES.len()] = all(&RETRANSMIT_NAMES);
const DROPS: [Option<&str>; drop::NAMES.len()] = all(&drop::NAMES);

const fn all<const N: usize>(names: &[&'static str; N]) -> [Option<&'static str>; N] {
    let mut values = [None; N];
    let mut i = 0;
    while i < N {
        values[i] = Some(names[i]);
        i += 1;
    }
    values
}

/// A metric that is not of a container: of a network namespace, or of the agent itself.
#[derive(Clone, Copy, Debug)]
pub struct OwnMetric {
    /// Its whole name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says, and its unit.
    pub help: &'static str,
}

macro_rules! own {
    ($(#[$doc:meta])* $all:ident:
     $($id:ident $name:literal $kind:ident [$($label:literal),*] $help:literal)*) => {
        $(#[doc = $help]
        pub const $id: OwnMetric =
            OwnMetric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        $(#[$doc])*
        pub const $all: &[OwnMetric] = &[$($id),*];
    };
}

own! {
    /// One row for each metric of network namespaces.
    NAMESPACE_METRICS:
    NAMESPACE_EVENTS_TOTAL "tcptide_namespace_events_total" Counter
        ["netns", "container", "pod", "namespace", "event"]
        "What the kernel itself counts in each network namespace since that was made, also before the agent started; an event that never happened has no series, but for listen_overflow and listen_drop."
    NAMESPACES "tcptide_namespaces" Gauge ["status"]
        "Network namespaces that were found: read, unreadable (gone meanwhile, or not to be entered), left_out (see --metrics.max-namespaces)."
    NAMESPACES_SECONDS "tcptide_namespaces_duration_seconds" Gauge []
        "How long it took to find the network namespaces and to read what the kernel counts in them."
    RECONCILE_KERNEL "tcptide_reconcile_kernel_total" Counter ["netns", "counter"]
        "With --reconcile: what a counter of the kernel has grown by while it was compared; absent before it has moved."
    RECONCILE_COUNTED "tcptide_reconcile_counted_total" Counter ["netns", "counter"]
        "With --reconcile: what tcptide counted beside it."
    RECONCILE_UNEXPLAINED "tcptide_reconcile_unexplained" Gauge ["netns", "counter"]
        "With --reconcile: how far both are apart in the last interval beyond what there are reasons for (docs/reconcile.md); above 0 the kernel counted more; 0: nothing is unexplained."
}

own! {
    /// One row for each metric that the agent has of itself.
    OWN_METRICS:
    CONTAINER_INFO "tcptide_container_info" Gauge
        ["container", "pod", "namespace", "id", "runtime", "image", "cgroup_id", "cgroup_path"]
        "Always 1: how each cgroup with connections was identified."
    BUILD_INFO "tcptide_build_info" Gauge ["version", "kernel"]
        "Always 1: the version of tcptide, and the kernel it runs on."
    PROGRAM_STATUS "tcptide_program_status" Gauge ["program", "status"]
        "Always 1: what became of each BPF program: attached, unsupported, refused, standby, off."
    PROGRAM_RUN_SECONDS "tcptide_program_run_seconds_total" Counter ["program"]
        "Time spent in each BPF program while that was measured: a share of tcptide_program_measured_seconds_total; absent where it is not."
    PROGRAM_RUNS "tcptide_program_runs_total" Counter ["program"]
        "Runs of each BPF program while run times were measured; absent where they are not."
    PROGRAM_MEASURED "tcptide_program_measured_seconds_total" Counter []
        "For how long run times were measured: all the time, or moments as samples; absent where they are not."
    PROGRAM_MISSES "tcptide_program_misses_total" Counter ["program"]
        "Runs that the kernel left out because the program was running on that CPU already: lost, unless another program hangs on the same hook (lifecycle_nested for lifecycle)."
    EVENTS_LOST "tcptide_events_lost_total" Counter ["reason"]
        "Events that found no room: connection_buffer_full, cgroup_buffer_full, dns_buffer_full (names of far ends)."
    STORAGE_FAILURES "tcptide_storage_failures_total" Counter []
        "Sockets that could not be given a gauge, for want of room (see --max-sockets) or memory: they are in no figure."
    TOTALS_FAILURES "tcptide_totals_failures_total" Counter []
        "Updates that went to ~other for want of room: see --metrics.max-cgroups."
    UNATTRIBUTED "tcptide_unattributed_sockets_total" Counter []
        "Sockets whose owner could not be established: they are counted under ~unattributed."
    EDGES_FOLDED "tcptide_edge_folded_connections_total" Counter []
        "With --edges: connections that found no room for an edge of their own (see --metrics.max-edges): they are in ~other."
    FOLDED "tcptide_folded_series" Gauge ["reason"]
        "Series that containers and edges would have of their own, and that are in ~other instead: no_room (--metrics.max-series), not_wanted (--metrics.include-container, --metrics.exclude-container), too_young (--metrics.min-age). Without those that found no room in the kernel: see tcptide_totals_failures_total."
    FOLDED_TOTAL "tcptide_series_folds_total" Counter []
        "Series that went into ~other so far: of newcomers, and of those that lost their own to others."
    SCRAPES "tcptide_scrapes_total" Counter ["format", "encoding"]
        "Scrapes that were answered to the end before this one: openmetrics, prometheus (text) or protobuf; gzip or identity."
    SCRAPE_SECONDS "tcptide_scrape_duration_seconds" Gauge []
        "How long the last one took, from the question until all of the answer was taken."
    SCRAPE_BYTES "tcptide_scrape_size_bytes" Gauge []
        "How long its answer was, before gzip."
    WALK_SECONDS "tcptide_walk_duration_seconds" Gauge []
        "How long the kernel took for this scrape's walk over all sockets."
    WALK_SOCKETS "tcptide_walk_sockets" Gauge []
        "Sockets that this scrape's walk looked at."
    CPU_SECONDS "tcptide_process_cpu_seconds_total" Counter []
        "CPU time of the agent's process; that of its BPF programs belongs to whom they interrupt."
    RESIDENT_BYTES "tcptide_process_resident_memory_bytes" Gauge []
        "Resident memory of the agent's process, with the buffers of events and rows that it has mapped; all else that its BPF maps hold is the kernel's."
    HTTP_CONNECTIONS "tcptide_http_connections" Gauge []
        "Open connections to the agent itself, this scrape's too."
    HTTP_REJECTED "tcptide_http_rejected_total" Counter ["reason"]
        "Connections and requests to the agent that were turned away or cut off: connections (see --web.max-connections), read_timeout, write_timeout, idle_timeout (see the flags), head_size (more than 16 KiB or 64 headers), malformed, method (not GET or HEAD), tls (no agreement on TLS, or the client's certificate), unauthorized."
    WEB_CONFIG "tcptide_web_config_last_reload_successful" Gauge []
        "With --web.config.file: 1 while the web configuration and its certificates are in use as the files have them, 0 while an earlier version is, because the files cannot be used."
    RELOAD_SUCCESSFUL "tcptide_config_last_reload_successful" Gauge []
        "Whether the last reading of the file with settings was successful: 1 or 0; absent without --config.file."
    RELOAD_TIME "tcptide_config_last_reload_success_timestamp_seconds" Gauge []
        "When the file with settings was last read successfully: seconds since 1970; absent without --config.file."
}

/// `docs/metrics.md`.
pub fn document() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Generated from `crates/model/src/metrics.rs`. All are served by `tcptide agent` at `/metrics`.\n\n\
         A metric is absent where the BPF program that feeds it does not run: see `tcptide doctor`. Counters begin when \
         the agent starts, and end a grace period after their container is gone. Bounds of buckets are powers of two of \
         a second; where Prometheus asks for protobuf (`--enable-feature=native-histograms`) histograms are native ones, too, of \
         schema 1, of `tcptide_connection_duration_seconds` of schema 0, which are exactly what is counted; what is below \
         the first bound or above the last one stands in the bucket beside it.\n\n\
         With `--edges`, OpenMetrics and protobuf carry exemplars of `tcptide_rtt_seconds`, `tcptide_connect_duration_seconds` \
         and `tcptide_connection_duration_seconds`: the slowest connection that was seen in the last two minutes, by its \
         `cookie` (as in `tcptide conns -o wide` and `tcptide explain`) and `peer`.\n\n\
         An answer has `--metrics.max-series` series at most; those of network namespaces, of tcptide itself, of \
         `~unattributed` and `~other` come first. What finds no room has no series of its own and is added up \
         under the container `~other`, whose counters never fall: a container that gets series of its own later begins with \
         what it counts from then on. One that loses them to a more active one ends its series, as if it were gone, and goes \
         on from there if it gets them again; what grows meanwhile is in `~other`. So `rate()` and `increase()` over all \
         series are the same as without a limit.\n\n\
         ## Of containers\n\nEach has the labels `container`, `pod` and `namespace`; the last two are empty outside \
         Kubernetes.\n\n\
         | metric | type | further labels | meaning | read from |\n|---|---|---|---|---|\n",
    );
    for Metric { name, kind, labels, help, source, .. } in METRICS {
        let label = |label: &Label| {
            let values: Vec<_> = label.values.iter().flatten().copied().collect();
            format!("`{}`: {}", label.name, values.join(", "))
        };
        let labels = labels.iter().map(label).collect::<Vec<_>>().join("; ");
        let _ = writeln!(page, "| `{name}` | {} | {labels} | {help} | {source} |", kind.name());
    }
    page.push_str("\n## Of edges\n\n");
    let _ = write!(
        page,
        "Only with `tcptide agent --edges`: a container and whom it talks to. Each has the labels `{}`. `direction` is `active` \
         where the container is the client, `passive` where it is the server, and empty where nobody saw who began. The \
         `peer_container`, `peer_pod` and `peer_namespace` are those of a far end on this host; of others the last two are told if \
         Kubernetes tells the pod. `peer_name` is \
         the name of the far end's address ([attribution.md](attribution.md)), else the address itself; `~elsewhere` are all \
         clients on other hosts that have no name. `peer_port` is the server's port, and empty where the container is the server \
         itself. Edges beyond the most are each container's `~other`: the sum of a container's edges is what the container has \
         counted, but for connects that nobody has answered yet.\n\n\
         | metric | type | meaning |\n|---|---|---|\n",
        EDGE_LABELS.join(" ")
    );
    for EdgeMetric { name, kind, help, .. } in EDGE_METRICS {
        let _ = writeln!(page, "| `{name}` | {} | {help} |", kind.name());
    }
    page.push_str("\n## Of network namespaces\n\n");
    page.push_str(
        "What the kernel counts by network namespace alone, because no socket is there to tell of it, read from \
         `/proc/net/netstat` of each when the metrics are asked for, at most once a second. `netns` is the namespace's inode \
         number, as in `netns` of `tcptide conns -o json`. `container`, `pod` and `namespace` are filled when all sockets that \
         tcptide has seen in it were of one container, only the last two when all were of one pod, and none otherwise, as in \
         the host's own.\n\n",
    );
    table_of(&mut page, NAMESPACE_METRICS);
    page.push_str(
        "\nThe values of `event` in `tcptide_namespace_events_total`. One whose counter the kernel lacks is absent:\n\n\
         | event | the kernel's counter | what it counts |\n|---|---|---|\n",
    );
    for NamespaceEvent { name, section, counter, help, .. } in NAMESPACE_EVENTS {
        let _ = writeln!(page, "| `{name}` | {section} {counter} | {help} |");
    }
    page.push_str("\n## Of tcptide itself\n\n");
    table_of(&mut page, OWN_METRICS);
    page
}

fn table_of(page: &mut String, metrics: &[OwnMetric]) {
    page.push_str("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for OwnMetric { name, kind, labels, help } in metrics {
        let _ = writeln!(page, "| `{name}` | {} | {} | {help} |", kind.name(), labels.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reading_fits_its_label() {
        for metric in METRICS {
            let (totals, mut kept) = (Totals::default(), Vec::new());
            (metric.kept)(&totals, 0).append_to(&mut kept);
            let reading = metric.read(&totals, 0);
            assert_eq!(reading.all().count(), kept.len(), "{}", metric.name);
            match reading {
                Reading::Each(values) | Reading::EachSeen(values) | Reading::EachMicroseconds(values) => {
                    assert!(!metric.labels.is_empty(), "{}", metric.name);
                    let combinations =
                        metric.labels.iter().map(|label| label.values.len()).product::<usize>();
                    assert_eq!(values.len(), combinations, "{}", metric.name);
                }
                Reading::One(_) | Reading::Distribution(_) => {
                    assert!(metric.labels.is_empty(), "{}", metric.name);
                }
            }
        }
    }

    #[test]
    fn names_follow_the_conventions() {
        let own = NAMESPACE_METRICS.iter().chain(OWN_METRICS).map(|m| (m.name, m.kind));
        let edges = EDGE_METRICS.iter().map(|m| (m.name, m.kind));
        let mut families = BTreeSet::new();
        for (name, kind) in METRICS.iter().map(|m| (m.name, m.kind)).chain(own).chain(edges) {
            assert!(name.starts_with("tcptide_"), "{name}");
            // OpenMetrics calls a counter's family by its name without that.
            assert!(families.insert(name.trim_end_matches("_total")), "{name}: another metric has that name");
            assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        }
    }

    /// `make docs` writes it anew.
    #[test]
    fn the_document_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        if std::env::var_os("TCPTIDE_WRITE_DOCS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), document(), "run `make docs`");
    }
}
