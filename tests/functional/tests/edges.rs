//! The agent's metrics of edges: who talks to whom, and no byte more or less than the containers have.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::netns::{Netns, add_address};
use functional::process::wait_until;
use functional::prometheus::check_metrics;
use functional::samples::Scrape;
use functional::tcptide::Tcptide;
use functional::workload::{self, Running};

const SOON: Duration = Duration::from_secs(30);

fn churn(cgroup: &Cgroup, netns: &Netns, to: &str, count: &str) -> workload::Counts {
    let args = ["churn", "--to", to, "--rate", "200", "--seconds", "20", "--count", count, "--bytes", "100"];
    Running::inside(cgroup, netns, &args).unwrap().wait(SOON).unwrap()
}

fn name(cgroup: &Cgroup) -> &str {
    cgroup.path().to_str().unwrap()
}

/// What the edges of a container came to, and what the container itself did.
fn both(scrape: &Scrape, container: &str, what: &str) -> [u64; 2] {
    ["tcptide_edge_", "tcptide_"]
        .map(|prefix| scrape.sum(&format!("{prefix}{what}"), &[("container", container)]).unwrap() as u64)
}

const BOTH: [&str; 3] = ["sent_bytes_total", "received_bytes_total", "sent_segments_total"];

#[test]
fn edges_are_what_the_containers_counted() {
    let netns = Netns::new("edges").unwrap();
    let (web, app) = (Cgroup::unique("edges-web").unwrap(), Cgroup::unique("edges-app").unwrap());
    let _server =
        Running::inside(&app, &netns, &["serve", "--listen", "127.0.0.1:9600"]).unwrap().listening();
    let server = Running::inside(&app, &netns, &["serve", "--listen", "[::]:9601"]).unwrap();
    server.listening().unwrap();
    let held = Running::inside(&web, &netns, &["hold", "--to", "127.0.0.1:9601", "--count", "3"]).unwrap();
    held.ready(SOON).unwrap();
    let agent = Tcptide::find().unwrap().agent(["--edges"]).unwrap();
    assert_eq!(churn(&web, &netns, "127.0.0.1:9601", "25").failures(), 0);
    assert_eq!(churn(&web, &netns, "[::1]:9601", "5").failures(), 0);
    assert_eq!(churn(&web, &netns, "127.0.0.1:9602", "7").failures(), 7);

    let scrape = agent.scrape().unwrap();
    check_metrics(&agent.metrics().unwrap()).unwrap();
    let (w, a) = (name(&web), name(&app));
    let edge = |scrape: &Scrape, what: &str, labels: &[(&str, &str)]| {
        scrape.sum(&format!("tcptide_edge_{what}"), labels).map(|n| n as u64)
    };
    // One edge for both families of addresses: it is one container and one port.
    let to_app = [("container", w), ("peer_container", a), ("peer_port", "9601"), ("direction", "active")];
    let from_web = [("container", a), ("peer_container", w), ("peer_port", ""), ("direction", "passive")];
    let refused =
        [("container", w), ("peer_container", ""), ("peer_name", "127.0.0.1"), ("peer_port", "9602")];
    for (labels, connections, established, failed, sent) in
        [(to_app, 3, 30, 0, 3000), (from_web, 3, 30, 0, 3000), (refused, 0, 0, 7, 0)]
    {
        let of = ["connections", "established_total", "connect_failures_total", "sent_bytes_total"]
            .map(|what| edge(&scrape, what, &labels));
        assert_eq!(of, [connections, established, failed, sent].map(Some), "{labels:?}");
    }
    let series = |scrape: &Scrape, container: &str| {
        scrape.select("tcptide_edge_connections", &[("container", container)]).count()
    };
    assert_eq!((series(&scrape, w), series(&scrape, a)), (2, 1));
    for what in BOTH {
        for container in [w, a] {
            let [edges, all] = both(&scrape, container, what);
            assert!(edges == all && all > 0, "{container} {what}: {edges} by edges, {all} in all");
        }
    }
    for what in ["srtt_seconds", "min_rtt_seconds"] {
        let rtt = scrape.sum(&format!("tcptide_edge_{what}"), &to_app).unwrap();
        assert!(rtt > 0.0 && rtt < 1.0, "{what}: {rtt}");
        assert_eq!(scrape.sum(&format!("tcptide_edge_{what}"), &refused), None);
    }

    // The end of those that were there before belongs to the same edges.
    held.finish().unwrap();
    wait_until("the connections to be gone", SOON, || {
        let scrape = agent.scrape().unwrap();
        let gone = edge(&scrape, "connections", &to_app) == Some(0);
        Ok(gone.then(|| assert_eq!(edge(&scrape, "established_total", &to_app), Some(30))))
    })
    .unwrap();
    let scrape = agent.scrape().unwrap();
    assert_eq!((series(&scrape, w), series(&scrape, a)), (2, 1));
    for what in BOTH {
        for container in [w, a] {
            let [edges, all] = both(&scrape, container, what);
            assert_eq!(edges, all, "{container} {what}");
        }
    }
    agent.stop().unwrap();
}

#[test]
fn what_has_no_room_is_other() {
    let netns = Netns::new("edges-most").unwrap();
    add_address(&netns, "lo", "198.18.7.1/32").unwrap();
    let (web, app) = (Cgroup::unique("edges-most-web").unwrap(), Cgroup::unique("edges-most-app").unwrap());
    let servers: Vec<_> = (0..12)
        .map(|n| {
            let server =
                Running::inside(&app, &netns, &["serve", "--listen", &format!("198.18.7.1:{}", 9700 + n)])
                    .unwrap();
            server.listening().unwrap();
            server
        })
        .collect();
    let agent = Tcptide::find().unwrap().agent(["--edges", "--metrics.max-edges", "5"]).unwrap();
    for n in 0..servers.len() {
        assert_eq!(churn(&web, &netns, &format!("198.18.7.1:{}", 9700 + n), "4").failures(), 0);
    }
    let scrape = agent.scrape().unwrap();
    let (w, a) = (name(&web), name(&app));
    let all: Vec<_> = scrape.select("tcptide_edge_established_total", &[]).collect();
    let others = all.iter().filter(|sample| sample.label("peer_container") == "~other").count();
    assert!(all.len() - others <= 5, "{all:?}");
    assert!(scrape.sum("tcptide_edge_folded_connections_total", &[]).unwrap() >= 28.0);
    let of_web = scrape.sum("tcptide_edge_established_total", &[("container", w)]).unwrap();
    assert_eq!(of_web as u64, 48);
    for what in BOTH {
        for container in [w, a] {
            let [edges, all] = both(&scrape, container, what);
            assert!(edges == all && all > 0, "{container} {what}: {edges} by edges, {all} in all");
        }
    }
    agent.stop().unwrap();
}
