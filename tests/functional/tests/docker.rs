//! Real Docker containers: who they are, also when they live for a moment, and when Docker is ill.

#![allow(clippy::unwrap_used)]

mod containers;

use std::path::Path;
use std::time::{Duration, Instant};

use containers::{
    SOON, ask, list, name, network, of, serve_and_talk, ss, tell_of_a_live_connection, tell_of_a_page,
    tell_of_names, trace,
};
use functional::process::{running, wait_until};
use functional::runtime::{Containers, Docker, IMAGE};
use functional::workload::Counts;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[test]
fn connections_are_told_with_their_containers() {
    let docker = Docker::start().unwrap();
    tell_of_a_page(&docker, "docker", IMAGE);
    tell_of_a_live_connection(&docker, "docker", IMAGE);
    tell_of_names(&docker, "docker");
}

#[test]
fn a_container_of_a_moment_is_named() {
    let docker = Docker::start().unwrap();
    docker.run("server", &["workload", "serve", "--listen", "0.0.0.0:90"]).unwrap();
    let to = format!("{}:90", docker.address("server").unwrap());
    let trace = trace(&docker, &["--port", "90", "--peer", &network(&docker, "server")]);
    let names = ["moth-1", "moth-2", "moth-3"];
    for moth in names {
        let churn = ["workload", "churn", "--to", &to, "--rate", "100", "--seconds", "1", "--count", "1"];
        let words = [&["run", "--rm", "--name", moth, IMAGE] as &[&str], &churn].concat();
        let counts: Counts = serde_json::from_str(&docker.call(&words).unwrap()).unwrap();
        assert_eq!(counts.closed, 1, "{counts:?}");
        let close = trace.wait_for_json(SOON, |event| name(event) == moth).unwrap();
        let bytes = [&close["sent_bytes"], &close["received_bytes"]].map(|bytes| bytes.as_u64().unwrap());
        assert_eq!(bytes, [counts.bytes_sent, counts.bytes_received]);
        assert_eq!(close["container"]["image"], IMAGE);
    }
    let closes = trace.interrupt().unwrap().success().unwrap().json_lines().unwrap();
    let moths: Vec<_> = closes.iter().map(name).filter(|&name| name != "server").collect();
    assert_eq!(moths, names, "and nobody else connected");
}

#[test]
fn a_container_removed_with_its_connection_is_named_at_its_end() {
    let docker = Docker::start().unwrap();
    serve_and_talk(&docker);
    let id = docker.inspect("client").unwrap()["Id"].clone();
    let cgroup = docker.cgroup("client").unwrap();
    let trace = trace(&docker, &["--port", "90", "--peer", &network(&docker, "server")]);
    let before = ss(&docker, "client", &["state", "established"]).remove(0);
    docker.rm("client").unwrap();
    let mount = functional::cgroup::mount_point().unwrap();
    assert!(!mount.join(cgroup.strip_prefix("/").unwrap()).exists(), "the cgroup is gone");
    let close = trace.wait_for_json(Duration::from_secs(30), |event| name(event) != "server").unwrap();
    assert_eq!((name(&close), &close["container"]["id"]), ("client", &id), "{close:#}");
    assert_eq!(close["cookie"].as_u64(), before.cookie);
    let sent = close["sent_bytes"].as_u64().unwrap() + close["before"]["sent_bytes"].as_u64().unwrap();
    assert!(sent >= before.bytes_sent(), "{close:#}");
}

/// Stopped with SIGSTOP until dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.cast_signed()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The data is there, soon, with the beginning of the id for a name.
fn assert_nameless_but_there(docker: &Docker, network: &str, ids: &[String]) {
    // The best of three: the machine may be busy, but a stall would be in each.
    let look = || {
        let began = Instant::now();
        (list(docker, &["conns", "--port", "90", "--peer", network]), began.elapsed())
    };
    let (ends, took) = (0..3).map(|_| look()).min_by_key(|(_, took)| *took).unwrap();
    assert!(took < Duration::from_secs(2), "conns took {took:?}");
    for id in ids {
        let end = of(&ends, &id[..12]);
        assert_eq!(
            (&end["container"]["id"], &end["container"]["runtime"]),
            (&id.as_str().into(), &"docker".into())
        );
    }
    let containers = ask(docker, &["containers"]).success().unwrap();
    assert!(!containers.stderr.is_empty(), "says what is wrong");
}

#[test]
fn a_docker_that_hangs_or_is_dead_costs_names_and_nothing_else() {
    let docker = Docker::start().unwrap();
    serve_and_talk(&docker);
    let ids = ["client", "server"]
        .map(|container| docker.inspect(container).unwrap()["Id"].as_str().unwrap().to_owned());
    let network = network(&docker, "server");
    let to = format!("{}:90", docker.address("server").unwrap());
    let client = docker.pid("client").unwrap();
    let trace = trace(&docker, &["--port", "90", "--peer", &network]);
    let mut counts = Vec::new();
    let mut connect = || {
        // Docker cannot be asked to run it.
        let mut inside = std::process::Command::new("nsenter");
        inside.args([&format!("--net=/proc/{client}/ns/net"), "--"]);
        inside.arg(functional::workload::program().unwrap());
        inside.args(["churn", "--to", &to, "--rate", "1000", "--seconds", "5", "--count", "5"]);
        let text = functional::process::output(&mut inside).unwrap();
        counts.push(serde_json::from_str::<Counts>(&text).unwrap());
    };

    let daemon = docker.daemon_pid().unwrap();
    let hanging = Stopped::new(daemon);
    assert_nameless_but_there(&docker, &network, &ids);
    connect();
    drop(hanging);
    wait_until("names again", SOON, || {
        let ends = list(&docker, &["conns", "--port", "90", "--peer", &network]);
        Ok(ends.iter().any(|end| name(end) == "client").then_some(()))
    })
    .unwrap();

    kill_process(Pid::from_raw(daemon.cast_signed()).unwrap(), Signal::KILL).unwrap();
    wait_until("Docker's end", SOON, || Ok((!running(daemon.cast_signed())).then_some(()))).unwrap();
    assert!(Path::new("/proc").join(client.to_string()).exists(), "the containers live on");
    assert_nameless_but_there(&docker, &network, &ids);
    connect();

    // Who knew the names before keeps them.
    let is_server = |event: &Value| name(event) == "server";
    let mut seen = 0;
    trace
        .wait_for_json(SOON, |event| {
            seen += usize::from(is_server(event));
            seen == 10
        })
        .unwrap();
    let closes = trace.interrupt().unwrap().success().unwrap().json_lines().unwrap();
    let received: u64 = closes
        .iter()
        .filter(|event| is_server(event))
        .map(|event| event["received_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(received, counts.iter().map(|counts| counts.bytes_sent).sum::<u64>());
}
