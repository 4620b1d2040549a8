//! The agent's metrics as a real Prometheus takes them: formats, native histograms, exemplars, the end of series, and what is
//! told when there is no room for all.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use functional::cgroup::Cgroup;
use functional::http;
use functional::netns::Netns;
use functional::process::{output_with_input, require, wait_until};
use functional::prometheus::{Prometheus, check_metrics};
use functional::samples::Scrape;
use functional::tcptide::{Agent, Tcptide};
use functional::workload::{Counts, Running};

const SOON: Duration = Duration::from_secs(30);

fn agent(args: &[&str]) -> Agent {
    Tcptide::find().unwrap().agent(args).unwrap()
}

/// GETs with these headers; returns the answer's headers and its body as bytes.
fn get(agent: &Agent, path: &str, headers: &str) -> (String, Vec<u8>) {
    let answer = http::get_bytes(agent.address(), path, headers).unwrap();
    (answer.headers, answer.body)
}

fn churn(cgroup: &Cgroup, netns: &Netns, to: &str, count: u64) -> Counts {
    let count = count.to_string();
    let args = ["churn", "--to", to, "--rate", "500", "--seconds", "20", "--count", &count, "--bytes", "100"];
    Running::inside(cgroup, netns, &args).unwrap().wait(SOON).unwrap()
}

fn name(cgroup: &Cgroup) -> &str {
    cgroup.path().to_str().unwrap()
}

#[test]
fn an_answer_is_compressed_for_who_asks() {
    let agent = agent(&[]);
    let (plain_head, plain) = get(&agent, "/metrics", "");
    let (head, packed) = get(&agent, "/metrics", "Accept-Encoding: gzip\r\n");
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(!plain_head.contains("content-encoding"), "{plain_head}");
    assert!(packed.len() * 4 < plain.len(), "{} of {}", packed.len(), plain.len());
    let gzip = require("gzip", "gzip").unwrap();
    let text = output_with_input(Command::new(gzip).arg("-dc"), &packed).unwrap();
    let names = |text: &str| -> BTreeSet<String> {
        Scrape::parse(text).unwrap().samples.into_iter().map(|sample| sample.name).collect()
    };
    let (plain_names, names) = (names(std::str::from_utf8(&plain).unwrap()), names(&text));
    assert!(names.is_superset(&plain_names), "{:?}", plain_names.difference(&names));
    let (head, _) = get(&agent, "/-/healthy", "Accept-Encoding: gzip\r\n");
    assert!(!head.contains("content-encoding"), "too short for that: {head}");

    // Those before this one.
    let scrape = agent.scrape().unwrap();
    for encoding in ["gzip", "identity"] {
        let labels = [("format", "prometheus"), ("encoding", encoding)];
        assert_eq!(scrape.sum("tcptide_scrapes_total", &labels), Some(1.0), "{encoding}");
    }
    let size = scrape.sum("tcptide_scrape_size_bytes", &[]).unwrap();
    assert!((size - plain.len() as f64).abs() < plain.len() as f64 / 10.0, "{size}, not {}", plain.len());
    let took = scrape.sum("tcptide_scrape_duration_seconds", &[]).unwrap();
    assert!(took > 0.0 && took < 10.0, "{took}");
}

#[test]
fn native_and_classic_histograms_and_exemplars_are_what_was_counted() {
    let netns = Netns::new("native").unwrap();
    let (web, app) = (Cgroup::unique("native-web").unwrap(), Cgroup::unique("native-app").unwrap());
    let server = Running::inside(&app, &netns, &["serve", "--listen", "127.0.0.1:9650"]).unwrap();
    server.listening().unwrap();
    let agent = agent(&["--edges"]);
    let native = ["--enable-feature=native-histograms,exemplar-storage"];
    let native = Prometheus::with(agent.address(), &native).unwrap();
    let classic = Prometheus::with(agent.address(), &["--enable-feature=exemplar-storage"]).unwrap();
    let w = name(&web);
    // One before the others, so that rates have something to grow from.
    assert_eq!(churn(&web, &netns, "127.0.0.1:9650", 1).closed, 1);
    let one = format!("histogram_count(tcptide_connection_duration_seconds{{container=\"{w}\"}})");
    wait_until("the first one", SOON, || Ok((native.number(&one)? == Some(1.0)).then_some(()))).unwrap();
    let counts = churn(&web, &netns, "127.0.0.1:9650", 199);
    assert_eq!((counts.closed, counts.failures()), (199, 0));
    let (_, openmetrics) = get(&agent, "/metrics", "Accept: application/openmetrics-text;version=1.0.0\r\n");
    let openmetrics = String::from_utf8(openmetrics).unwrap();
    assert!(openmetrics.contains("# UNIT tcptide_rtt_seconds seconds\n"));
    assert!(openmetrics.contains("# UNIT tcptide_sent_bytes bytes\n"));
    check_metrics(&agent.metrics().unwrap()).unwrap();

    // The first bound is 2 to that power.
    for (metric, first, all) in [
        ("connect_duration_seconds", -17.0, Some(200.0)),
        ("connection_duration_seconds", -10.0, Some(200.0)),
        ("rtt_seconds", -17.0, None),
    ] {
        let series = format!("tcptide_{metric}{{container=\"{w}\"}}");
        let bucket = format!("tcptide_{metric}_bucket{{container=\"{w}\"}}");
        let expected = agent.scrape().unwrap().sum(&format!("tcptide_{metric}_count"), &[("container", w)]);
        assert!(
            expected.is_some_and(|n| n > 0.0) && all.is_none_or(|all| expected == Some(all)),
            "{expected:?}"
        );
        wait_until("both to have seen all", SOON, || {
            let is_there = native.number(&format!("histogram_count({series})"))? == expected
                && classic.number(&format!("tcptide_{metric}_count{{container=\"{w}\"}}"))? == expected;
            Ok(is_there.then_some(()))
        })
        .unwrap();
        let sums = [
            native.number(&format!("histogram_sum({series})")).unwrap(),
            classic.number(&format!("tcptide_{metric}_sum{{container=\"{w}\"}}")).unwrap(),
        ];
        assert_eq!(sums[0], sums[1], "{metric}");
        for q in [0.1, 0.5, 0.9, 0.99] {
            let of = |prometheus: &Prometheus, what: &str| {
                prometheus.number(&format!("histogram_quantile({q}, {what})")).unwrap().unwrap()
            };
            let (native, classic) = (of(&native, &series), of(&classic, &bucket));
            assert!(native > 0.0, "{metric} {q}: {native}");
            let octave = |seconds: f64| seconds.log2().ceil().max(first);
            let apart = octave(native) - octave(classic);
            assert!(apart.abs() <= 1.0, "{metric} {q}: {native} and {classic}");
        }
        let of_rate = format!("histogram_quantile(0.1, rate({series}[1m]))");
        let of_rate = native.number(&of_rate).unwrap();
        assert!(of_rate.is_some_and(|seconds| seconds > 0.0), "{metric}: {of_rate:?}");
        assert_eq!(native.number(&bucket).unwrap(), None, "it took the native one");
    }

    for (prometheus, metric) in
        [(&classic, "connect_duration_seconds_bucket"), (&native, "connect_duration_seconds")]
    {
        let query = http::encode(&format!("tcptide_{metric}{{container=\"{w}\"}}"));
        let path = format!("/api/v1/query_exemplars?query={query}&start=0&end=9999999999");
        let exemplar = wait_until("an exemplar", SOON, || {
            let answer: serde_json::Value =
                serde_json::from_str(&http::get(prometheus.address(), &path)?.ok()?)?;
            Ok(answer.pointer("/data/0/exemplars/0").cloned())
        })
        .unwrap();
        assert_eq!(exemplar["labels"]["peer"], "127.0.0.1:9650", "{exemplar}");
        let cookie: u64 = exemplar["labels"]["cookie"].as_str().unwrap().parse().unwrap();
        assert!(cookie > 0, "{exemplar}");
        let took: f64 = exemplar["value"].as_str().unwrap().parse().unwrap();
        assert!(took > 0.0 && took < 10.0, "{exemplar}");
    }
    server.finish().unwrap();
}

#[test]
fn series_of_what_is_gone_end_at_once() {
    let netns = Netns::new("stale").unwrap();
    let app = Cgroup::unique("stale-app").unwrap();
    let server = Running::inside(&app, &netns, &["serve", "--listen", "127.0.0.1:9651"]).unwrap();
    server.listening().unwrap();
    let agent = agent(&["--metrics.grace", "2s"]);
    let prometheus = Prometheus::scraping(agent.address()).unwrap();
    let web = Cgroup::unique("stale-web").unwrap();
    churn(&web, &netns, "127.0.0.1:9651", 10);
    let of = |container: &str| format!("tcptide_sent_bytes_total{{container=\"{container}\"}}");
    let (of_web, of_app) = (of(name(&web)), of(name(&app)));
    wait_until("the series to be there", SOON, || {
        Ok((prometheus.number(&of_web)? == Some(1000.0)).then_some(()))
    })
    .unwrap();
    drop(web);
    let is_told =
        || agent.metrics().unwrap().contains(&of_web[of_web.find('{').unwrap() + 1..of_web.len() - 1]);
    wait_until("the agent to tell of it no more", SOON, || Ok((!is_told()).then_some(()))).unwrap();
    let gone = Instant::now();
    // Without a mark Prometheus would go on for five minutes.
    wait_until("Prometheus to tell of it no more", SOON, || {
        Ok(prometheus.number(&of_web)?.is_none().then_some(()))
    })
    .unwrap();
    assert!(gone.elapsed() < Duration::from_secs(10), "{:?}", gone.elapsed());
    assert_eq!(prometheus.number(&of_app).unwrap(), Some(1000.0), "who is there is told of");
    server.finish().unwrap();
}

#[test]
fn a_budget_is_kept_and_nothing_is_lost() {
    const MOST: usize = 2500;
    let netns = Netns::new("budget").unwrap();
    let cgroups: Vec<_> = (0..12).map(|n| Cgroup::unique(&format!("budget-{n}")).unwrap()).collect();
    let server = Running::inside(&cgroups[0], &netns, &["serve", "--listen", "127.0.0.1:9652"]).unwrap();
    server.listening().unwrap();
    let limited = agent(&["--metrics.max-series", &MOST.to_string()]);
    let of_edges = agent(&["--edges", "--metrics.max-series", &MOST.to_string()]);
    let free = agent(&["--metrics.max-series", "1000000"]);
    let late = agent(&["--metrics.max-series", &MOST.to_string()]);
    let chosen = agent(&["--metrics.include-container", &format!("{}*", name(&cgroups[3]))]);
    let refused = |scrape: &Scrape, container: Option<&str>| {
        let labels: Vec<_> =
            [("reason", "refused")].into_iter().chain(container.map(|name| ("container", name))).collect();
        scrape.sum("tcptide_connect_failures_total", &labels).unwrap_or(0.0)
    };
    // Others on this host may be refused, too: what is told within the limit lies between what is told without one just
    // before and just after.
    let look = || {
        let before = free.scrape().unwrap();
        let text = limited.metrics().unwrap();
        (refused(&before, None), text, refused(&free.scrape().unwrap(), None))
    };
    let (least_begin, begin, most_begin) = look();
    let begin = refused(&Scrape::parse(&begin).unwrap(), None);
    let mut other = 0.0;
    for round in 1..=2_u64 {
        for (n, cgroup) in cgroups.iter().enumerate() {
            let n = n as u64;
            assert_eq!(churn(cgroup, &netns, "127.0.0.1:9653", n + 1).failures(), n + 1);
            if n == 11 {
                assert_eq!(churn(cgroup, &netns, "127.0.0.1:9652", 100).failures(), 0);
            }
        }
        let (least, with, most) = look();
        let lines = with.lines().filter(|line| !line.starts_with('#')).count();
        assert!(lines <= MOST, "{lines} series");
        let (with, without) = (Scrape::parse(&with).unwrap(), free.scrape().unwrap());
        let all = (round * 78) as f64;
        let (grown, range) = (refused(&with, None) - begin, least - most_begin..=most - least_begin);
        assert!(range.contains(&grown) && grown >= all, "{grown} is not in {range:?}, or below {all}");
        let edges = of_edges.metrics().unwrap();
        let lines = edges.lines().filter(|line| !line.starts_with('#')).count();
        assert!(lines <= MOST, "{lines} series");
        let edges = Scrape::parse(&edges).unwrap();
        let others = edges.sum("tcptide_edge_connect_failures_total", &[("peer_container", "~other")]);
        assert!(others.is_some_and(|n| n > 0.0), "{others:?}");
        let of_other = refused(&with, Some("~other"));
        assert!(of_other > other, "{of_other}, {other} before");
        other = of_other;
        assert!(with.sum("tcptide_folded_series", &[("reason", "no_room")]).unwrap() > 1000.0);
        assert!(with.sum("tcptide_series_folds_total", &[]).unwrap() > 1000.0);
        assert_eq!(without.sum("tcptide_folded_series", &[]), Some(0.0));
        assert!(!without.samples.iter().any(|sample| sample.label("container") == "~other"));
        check_metrics(&limited.metrics().unwrap()).unwrap();

        let scrape = chosen.scrape().unwrap();
        let names: Vec<_> = scrape
            .select("tcptide_sent_bytes_total", &[])
            .map(|sample| sample.label("container"))
            .filter(|name| !name.starts_with('~'))
            .collect();
        assert_eq!(names, [name(&cgroups[3])]);
        assert!(refused(&scrape, None) >= all);
    }
    // Who looks for the first time now finds the most active one among those that have their own, and not the least one.
    let scrape = late.scrape().unwrap();
    let [most, least] = [11, 1].map(|n: usize| refused(&scrape, Some(name(&cgroups[n]))) as u64);
    assert_eq!([most, least], [24, 0]);
    server.finish().unwrap();
}
