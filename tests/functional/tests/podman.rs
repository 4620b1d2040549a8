//! Real Podman containers, named by `podman system service`.

#![allow(clippy::unwrap_used)]

mod containers;

use containers::{
    SOON, list, network, tell_apart_in_one_network, tell_of_a_live_connection, tell_of_a_page,
    tell_of_another_name, tell_of_names, trace,
};
use functional::cgroup::Cgroup;
use functional::process::output;
use functional::runtime::{Containers, IMAGE, Podman};
use functional::workload;
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
