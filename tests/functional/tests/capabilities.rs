//! What the agent's threads may still do once all is attached, and that it is enough.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::{Agent, Tcptide};
use functional::workload::{self, Running};

const SOON: Duration = Duration::from_secs(10);

fn agent(args: &[&str]) -> Agent {
    Tcptide::find().unwrap().agent(args).unwrap()
}

/// A thread of a process: its name, `main` of the first, and what `/proc` says of its privileges.
fn threads(pid: u32) -> Vec<(String, BTreeMap<String, u64>)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    // One may end meanwhile.
    let told = tasks.filter_map(|task| {
        let is_first = task.file_name().to_str() == Some(&pid.to_string());
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let name = if is_first { "main" } else { name.trim() };
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let sets = status.lines().filter_map(|line| line.split_once(":\t"));
        let sets = sets.filter(|(name, _)| name.starts_with("Cap") || *name == "NoNewPrivs");
        let sets = sets.map(|(name, value)| (name.to_owned(), u64::from_str_radix(value, 16).unwrap()));
        Some((name.to_owned(), sets.collect()))
    });
    told.collect()
}

const DAC_OVERRIDE: u64 = 1 << 1;
const SETPCAP: u64 = 1 << 8;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const BPF: u64 = 1 << 39;

#[test]
fn attached_it_keeps_few_capabilities_and_sees_what_comes_later() {
    let socket = tempfile::tempdir().unwrap().path().join("nobody.sock").to_string_lossy().into_owned();
    let dns = ["--edges", "--dns", "--runtime-socket", &socket];
    let (agent, other) = (agent(&dns), agent(&[]));
    let story = "later";
    let cgroup = Cgroup::unique(story).unwrap();
    let netns = Netns::new(story).unwrap();
    let serve = workload::command(["serve", "--listen", "127.0.0.1:0"]).unwrap();
    let server = Running::start(&mut netns.wrap(&cgroup.wrap(&serve))).unwrap();
    let to = server.listening().unwrap().to_string();
    let churn = ["churn", "--to", &to, "--rate", "500", "--seconds", "20", "--count", "50"];
    let client = Running::start(&mut netns.wrap(&cgroup.wrap(&workload::command(churn).unwrap()))).unwrap();
    assert_eq!(client.wait(SOON * 2).unwrap().closed, 50);
    let owner = cgroup.path().to_string_lossy().into_owned();
    let inode = fs::metadata(netns.path()).unwrap().ino().to_string();
    for agent in [&agent, &other] {
        let scrape = agent.scrape().unwrap();
        for direction in ["active", "passive"] {
            let opened =
                scrape.sum("tcptide_opened_total", &[("container", &owner), ("direction", direction)]);
            assert_eq!(opened, Some(50.0), "{direction}");
        }
        let labels = [("netns", inode.as_str()), ("event", "listen_drop"), ("container", &owner)];
        assert_eq!(scrape.sum("tcptide_namespace_events_total", &labels), Some(0.0));
    }
    server.finish().unwrap();

    let held = threads(std::process::id())[0].1["CapPrm"];
    let environment = ["DOCKER_HOST", "CONTAINER_RUNTIME_ENDPOINT", "XDG_RUNTIME_DIR"];
    let named = environment.iter().any(|name| std::env::var_os(name).is_some());
    for (agent, named) in [(&agent, true), (&other, named)] {
        let all = threads(agent.pid());
        let seen: BTreeSet<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert!(seen.is_superset(&["main", "gauge", "runtimes", "cgroup-walk"].into()), "{seen:?}");
        for (name, sets) in &all {
            let kept = match name.as_str() {
                "main" => 0,
                "gauge" => BPF | SYS_ADMIN | SYS_PTRACE,
                "hosts-files" => SYS_PTRACE,
                _ if named => DAC_OVERRIDE,
                _ => 0,
            };
            assert_eq!([sets["CapPrm"], sets["CapEff"]], [kept & held; 2], "{name}: {sets:x?}");
            assert_eq!([sets["CapInh"], sets["CapAmb"], sets["NoNewPrivs"]], [0, 0, 1], "{name}: {sets:x?}");
            assert!(sets["CapBnd"] == 0 || held & SETPCAP == 0, "{name}: {sets:x?}");
        }
    }
    // Run times are samples, the second of which begins 10 s after the first.
    let measured = || other.scrape().unwrap().sum("tcptide_program_measured_seconds_total", &[]).unwrap();
    thread::sleep(Duration::from_secs(2));
    let first = measured();
    wait_until("a second sample", SOON * 2, || Ok((measured() > first).then_some(()))).unwrap();
    for agent in [agent, other] {
        let said = agent.log().join("\n");
        assert!(!said.contains("WARN"), "{said}");
        agent.stop().unwrap();
    }
}
