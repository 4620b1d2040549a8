//! Real Podman containers, named by `podman system service`.

#![allow(clippy::unwrap_used)]

mod containers;

use containers::{
    SOON, list, network, tell_apart_in_one_network, tell_of_a_live_connection, tell_of_a_page,
    tell_of_another_name, tell_of_names, trace,
};
use std::fs;

use functional::cgroup::Cgroup;
use functional::process::output;
use functional::runtime::{Containers, IMAGE, Podman, Rootless};
use functional::tcptide::Tcptide;
use functional::workload::{self, Running};
use serde_json::Value;

#[test]
fn connections_are_told_with_their_containers_and_conmon_is_none() {
    let podman = Podman::start().unwrap();
    let image = format!("localhost/{IMAGE}");
    tell_of_a_page(&podman, "podman", &image);
    tell_of_a_live_connection(&podman, "podman", &image);
    tell_of_names(&podman, "podman");
    tell_of_another_name(&podman);
    conmon_is_no_container(&podman);
}

#[test]
fn containers_of_a_pod_are_told_apart() {
    let podman = Podman::start().unwrap();
    tell_apart_in_one_network(&podman, podman.netns(), &["--network", "container:net"]);
}

/// A container that its user made without root is in a cgroup that carries nothing but its id. The path is taken for
/// Podman's because it lies among the user's units, and the service that knows the id says so too.
#[test]
fn a_users_own_container_is_named_by_the_users_own_service() {
    let podman = Rootless::start().unwrap();
    let host = Cgroup::unique("rootless-host").unwrap();
    let server = Running::inside(&host, podman.netns(), &["serve", "--listen", "127.0.0.1:9700"]).unwrap();
    server.listening().unwrap();
    let wait =
        "until [ -e /tmp/go ]; do sleep 0.1; done; sleep 100 | workload hold --to 127.0.0.1:9700 --count 5";
    let (id, pid) = podman.run("shop", &["/bin/sh", "-c", wait]).unwrap();
    let path = podman.home().unwrap().join(&id);
    let ask = |args: &[&str]| {
        let answer = Tcptide::find().unwrap().run(args).unwrap().success().unwrap().json().unwrap();
        answer.as_array().unwrap().clone()
    };
    let all = ask(&["containers", "-o", "json"]);
    let unnamed = all.iter().find(|one| one["id"] == *id).expect("told by its path alone");
    assert_eq!((&unnamed["runtime"], &unnamed["name"]), (&"podman".into(), &id[..12].into()), "{unnamed:#}");
    let socket = podman.socket();
    let own = ["--container", "shop", "--runtime-socket", socket.to_str().unwrap(), "-o", "json"];
    let trace = Tcptide::find().unwrap().spawn(["trace"].iter().chain(&own)).unwrap();
    trace.wait_ready().unwrap();
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    let event = trace.wait_for_json(SOON, |event| event["event"] == "established").unwrap();
    let container = &event["container"];
    assert_eq!((&container["name"], &container["id"]), (&"shop".into(), &id.clone().into()), "{event:#}");
    assert_eq!(
        (&container["runtime"], &container["image"]),
        (&"podman".into(), &format!("localhost/{IMAGE}").into())
    );
    assert_eq!(container["cgroup_path"].as_str(), path.to_str());
    trace.interrupt().unwrap();
    let conns = ask(&[&["conns"], &own[..]].concat());
    let ends: Vec<_> = conns.iter().map(|one| &one["peer"]["container"]["name"]).collect();
    assert_eq!(ends, vec![&Value::from(host.path().to_str().unwrap()); 5]);
}

/// What connects from a cgroup such as systemd gives to conmon is not its container's.
fn conmon_is_no_container(podman: &Podman) {
    let id = podman.inspect("client").unwrap()["Id"].as_str().unwrap().to_owned();
    let cgroup = Cgroup::new(format!("machine.slice/libpod-conmon-{id}.scope")).unwrap();
    let to = format!("{}:90", podman.address("server").unwrap());
    let trace = trace(podman, &["--port", "90", "--peer", &network(podman, "server")]);
    let churn = ["churn", "--to", &to, "--rate", "10", "--seconds", "1", "--count", "1"];
    let mut churn = cgroup.wrap(&podman.netns().wrap(&workload::command(churn).unwrap()));
    output(&mut churn).unwrap();
    let close = trace.wait_for_json(SOON, |event| event["direction"] == "active").unwrap();
    let container = &close["container"];
    assert_eq!(container["cgroup_path"].as_str(), cgroup.path().to_str(), "{close:#}");
    assert!(container["runtime"] != "podman" && container.get("id").is_none(), "{close:#}");
    let is_conmon = |one: &Value| one["cgroup_path"].as_str().unwrap().contains("conmon");
    assert!(!list(podman, &["containers"]).iter().any(is_conmon));
    assert!(list(podman, &["containers", "--all"]).iter().any(is_conmon));
}
