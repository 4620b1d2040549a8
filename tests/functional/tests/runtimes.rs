//! What a runtime says, and how: odd names leave every output whole, and a runtime that says nothing costs names only.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::docker_api::{Api, container};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::prometheus::{Prometheus, check_metrics};
use functional::samples::Scrape;
use functional::tcptide::{Agent, Tcptide};
use functional::workload::{self, Client, Held, Running};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

fn agent(args: &[&str]) -> Agent {
    Tcptide::find().unwrap().agent(args).unwrap()
}

#[test]
fn no_name_breaks_the_text() {
    let (id, cgroup) = container(0).unwrap();
    let name = format!("we\"b\n\\n\u{1b}[31m\u{7f}{{}}=,#|<b>'`🦀\u{202e}{}", "n".repeat(200));
    let name = name.as_str();
    let image = "i\"m\\a\nge ".repeat(400);
    let pod = "p".repeat(4096);
    // More than 4 KiB of a label are not kept.
    let labels = json!({ "io.kubernetes.pod.name": format!("{pod}more"), "io.kubernetes.pod.namespace": "a\u{0}b\rc" });
    let container = json!({ "Id": id, "Names": [format!("/{name}")], "Image": image, "Labels": labels, "State": "running" });
    let api = Api::telling_of(&json!([container])).unwrap();
    let netns = Netns::new("names").unwrap();
    let serve = workload::command(["serve", "--listen", "127.0.0.1:0"]).unwrap();
    let server = Running::start(&mut netns.wrap(&cgroup.wrap(&serve))).unwrap();
    let client = Client::new(server.listening().unwrap());
    let held = netns.enter(|| Held::open(&client, 3, SOON)).unwrap();
    assert_eq!(held.counts().opened, 3);

    let agent = agent(&["--runtime-socket", &api.socket().to_string_lossy()]);
    let is_ours = |sample: &&functional::samples::Sample| sample.label("id") == id;
    let info = wait_until("the container's name", SOON, || {
        let scrape = agent.scrape()?;
        Ok(scrape
            .select("tcptide_container_info", &[])
            .find(is_ours)
            .filter(|s| !s.label("image").is_empty())
            .cloned())
    })
    .unwrap();
    for (label, told) in [("container", name), ("image", &*image), ("pod", &*pod)] {
        assert_eq!(info.label(label), told, "{label}");
    }
    let text = agent.metrics().unwrap();
    check_metrics(&text).unwrap();
    let labels = [("container", info.label("container")), ("state", "established")];
    assert_eq!(Scrape::parse(&text).unwrap().sum("tcptide_connections", &labels), Some(3.0));
    let prometheus = Prometheus::scraping(agent.address()).unwrap();
    prometheus.wait_scraped().unwrap();
    let query = format!("tcptide_container_info{{id=\"{id}\"}}");
    let seen = prometheus.query(&query).unwrap();
    assert_eq!(seen[0]["metric"]["container"], info.label("container"));

    let socket = api.socket().to_string_lossy().into_owned();
    for command in ["conns", "states", "containers"] {
        let table =
            Tcptide::find().unwrap().run([command, "--runtime-socket", &socket]).unwrap().success().unwrap();
        assert!(table.stdout.iter().any(|line| line.contains("ppp")), "{command}: {:?}", table.stdout);
        assert!(!table.stdout.iter().any(|line| line.contains(char::is_control)), "{:?}", table.stdout);
    }

    let owner = cgroup.path().to_str().unwrap();
    let run = |args: &[&str]| {
        let args = [args, &["--cgroup", owner, "--runtime-socket", &socket]].concat();
        Tcptide::find().unwrap().run(args).unwrap().success().unwrap()
    };
    let all = run(&["conns", "-o", "json"]).json().unwrap();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 3, "{all:#?}");
    assert!(all.iter().all(|one| one["container"]["name"] == name), "{all:#?}");
    let yaml = run(&["conns", "-o", "yaml"]).stdout.join("\n");
    let yaml: Vec<Value> = serde_saphyr::from_str(&yaml).unwrap();
    assert!(yaml.len() == 3 && yaml.iter().all(|one| one["container"]["name"] == name), "{yaml:#?}");
    // A heading, and one line each; what is drawn has three lines of its own, two nodes and an edge, or one.
    for (args, lines) in [
        (&["conns"][..], 1 + 3),
        (&["conns", "-o", "wide"], 1 + 3),
        (&["map"], 1 + 1),
        (&["map", "--draw", "dot"], 3 + 2 + 1 + 1),
        (&["map", "--draw", "mermaid"], 1 + 2 + 1),
    ] {
        let text = run(args).stdout;
        assert_eq!(text.len(), lines, "{args:?}: {text:#?}");
        let is_odd = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!text.iter().any(|line| line.contains(is_odd)), "{args:?}: {text:#?}");
    }
    for quoted in run(&["map", "--draw", "dot"]).stdout.iter().filter(|line| line.contains("label=")) {
        let plain = quoted.replace(r"\\", "").replace(r#"\""#, "");
        assert_eq!(plain.matches('"').count(), 2, "{quoted}");
    }
}

/// Memory of a process, KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_runtime_that_never_answers_costs_names_and_nothing_else() {
    let (id, cgroup) = container(0).unwrap();
    let netns = Netns::new("silent").unwrap();
    let server = Cgroup::unique("silent-server").unwrap();
    let run = |cgroup: &Cgroup, args: &[&str]| {
        Running::start(&mut netns.wrap(&cgroup.wrap(&workload::command(args).unwrap()))).unwrap()
    };
    let serving = run(&server, &["serve", "--listen", "127.0.0.1:90"]);
    serving.listening().unwrap();
    let api = Api::silent().unwrap();
    let agent = agent(&["--runtime-socket", &api.socket().to_string_lossy(), "--metrics.grace", "1m"]);
    let churn = |count: &str| {
        let churn = "churn --to 127.0.0.1:90 --rate 5000 --seconds 30 --threads 2 --count";
        let args: Vec<_> = churn.split(' ').chain([count]).collect();
        let counts = run(&cgroup, &args).wait(Duration::from_secs(60)).unwrap();
        assert_eq!(counts.failures(), 0, "{counts:?}");
        counts
    };
    churn("2000");
    agent.scrape().unwrap();
    let before = resident(agent.pid());
    let counts = churn("10000");
    let after = resident(agent.pid());
    eprintln!(
        "{:.0} connections a second, {before} KiB before, {after} KiB after",
        counts.opened as f64 / counts.seconds
    );
    assert!(after < before + 8 * 1024, "{before} KiB before, {after} KiB after");
    let scrape = agent.scrape().unwrap();
    let sum = |name, labels: &[(&str, &str)]| {
        scrape.sum(name, &[&[("container", &id[..12])], labels].concat()).unwrap_or(0.0) as u64
    };
    assert_eq!(sum("tcptide_opened_total", &[("direction", "active")]), 12_000);
    assert_eq!(sum("tcptide_closed_total", &[("reason", "normal")]), 12_000);
    assert_eq!(sum("tcptide_sent_bytes_total", &[]), 12_000 * 64);
    assert_eq!(sum("tcptide_received_bytes_total", &[]), 12_000 * 64);
    let by_id = [("id", id.as_str())];
    let info = scrape.select("tcptide_container_info", &by_id).next().unwrap();
    assert_eq!((info.label("runtime"), info.label("container")), ("docker", &id[..12]));
}
