//! Real pods of containerd, made and named over CRI.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use functional::netns::add_address;
use functional::process::{output, wait_until};
use functional::runtime::{Containerd, IMAGE, Pod};
use functional::tcptide::{Output, Tcptide};
use serde_json::Value;

/// How long something may take that should happen at once.
const SOON: Duration = Duration::from_secs(10);
/// The pods' address, which only they have.
const ADDRESS: &str = "198.18.99.1";
const SERVER: &str = "198.18.99.1:90";

fn ask(containerd: &Containerd, args: &[&str]) -> Output {
    let socket = containerd.socket().to_string_lossy();
    Tcptide::find().unwrap().run([args, &["--runtime-socket", &socket]].concat()).unwrap()
}

fn list(containerd: &Containerd, args: &[&str]) -> Vec<Value> {
    let answer = ask(containerd, &[args, &["-o", "json"]].concat()).success().unwrap().json().unwrap();
    answer.as_array().unwrap().clone()
}

fn ss(containerd: &Containerd, filter: &[&str]) -> Vec<String> {
    let mut ss = Command::new("ss");
    ss.arg("-tnHO").args(filter);
    output(&mut containerd.netns().wrap(&ss)).unwrap().lines().map(str::to_owned).collect()
}

/// containerd, a pod in it, and in that a server.
fn serve() -> (Containerd, Pod, String) {
    let containerd = Containerd::start().unwrap();
    add_address(containerd.netns(), "lo", &format!("{ADDRESS}/32")).unwrap();
    let pod = containerd.run_pod("shop-7d9f", "prod").unwrap();
    let server =
        containerd.run(&pod, "server", IMAGE, &["/bin/workload", "serve", "--listen", SERVER]).unwrap();
    wait_until("the server to listen", SOON, || {
        Ok((!ss(&containerd, &["state", "listening", "sport", "=", ":90"]).is_empty()).then_some(()))
    })
    .unwrap();
    (containerd, pod, server)
}

/// A client in the pod with one connection, that talks.
fn talk(containerd: &Containerd, pod: &Pod, image: &str) -> String {
    let talk = [
        "/bin/workload",
        "pingpong",
        "--to",
        SERVER,
        "--count",
        "100000",
        "--interval",
        "10",
        "--seconds",
        "300",
    ];
    let id = containerd.run(pod, "client", image, &talk).unwrap();
    wait_until("the client to talk", SOON, || {
        Ok((!ss(containerd, &["state", "established", "dport", "=", ":90"]).is_empty()).then_some(()))
    })
    .unwrap();
    id
}

fn assert_identity(container: &Value, pod: &Pod, name: &str, id: &str, image: &str) {
    let told = ["name", "pod", "namespace", "id", "image"].map(|key| container[key].as_str().unwrap_or("-"));
    assert_eq!(told, [name, "shop-7d9f", "prod", id, image], "{container:#}");
    assert_eq!(container["sandbox"], pod.id.as_str(), "{container:#}");
    assert_eq!(container["labels"]["story"], name, "{container:#}");
    assert!(container["annotations"].is_null(), "too long for each connection: {container:#}");
    let path = container["cgroup_path"].as_str().unwrap();
    assert!(path.ends_with(&format!("/kubepods/burstable/pod{}/{id}", pod.uid)), "{container:#}");
}

/// The two ends of the only connection: the client's, and the server's.
fn ends(containerd: &Containerd) -> [Value; 2] {
    let peer = format!("{ADDRESS}/32");
    let mut ends = list(containerd, &["conns", "--port", "90", "--peer", &peer]);
    ends.retain(|end| end["state"] == "established");
    assert_eq!(ends.len(), 2, "{ends:#?}");
    ends.sort_by_key(|end| end["container"]["name"].to_string());
    ends.try_into().unwrap()
}

#[test]
fn connections_are_told_with_their_pods() {
    let (containerd, pod, server) = serve();
    let client = talk(&containerd, &pod, IMAGE);
    let [of_client, of_server] = ends(&containerd);
    assert_identity(&of_client["container"], &pod, "client", &client, IMAGE);
    assert_identity(&of_server["container"], &pod, "server", &server, IMAGE);

    let found = list(&containerd, &["containers"]);
    let mut names: Vec<_> =
        found.iter().filter(|one| one["pod"] == "shop-7d9f").map(|one| &one["name"]).collect();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["POD", "client", "server"]);
    let found_client = found.iter().find(|one| one["name"] == "client").unwrap();
    let annotations = ["of", "pod"].map(|key| found_client["annotations"][key].as_str().unwrap_or("-"));
    assert_eq!(annotations, ["the container", "shop-7d9f"], "{found_client:#}");
    for command in ["containers", "doctor"] {
        let said = ask(&containerd, &[command]);
        let said = [said.stdout, said.stderr].concat().join("\n");
        assert!(said.contains("containerd 1.") && said.contains("3 containers"), "{command}: {said}");
    }

    // The same name again, of an image named by its id, as the kubelet names it.
    containerd.rm(&client).unwrap();
    wait_until("the connection to end", SOON, || {
        Ok(ss(&containerd, &["state", "established"]).is_empty().then_some(()))
    })
    .unwrap();
    let again = talk(&containerd, &pod, &containerd.image_id().unwrap());
    assert_ne!(again, client);
    let [of_client, _] = ends(&containerd);
    assert_identity(&of_client["container"], &pod, "client", &again, &format!("docker.io/library/{IMAGE}"));
}

#[test]
fn a_container_of_a_moment_is_named_without_events() {
    let (containerd, pod, _) = serve();
    let socket = containerd.socket().to_string_lossy();
    let peer = format!("{ADDRESS}/32");
    let args = ["trace", "-o", "json", "--events", "close", "--port", "90", "--peer", &peer];
    let trace =
        Tcptide::find().unwrap().spawn([&args as &[_], &["--runtime-socket", &socket]].concat()).unwrap();
    trace.wait_ready().unwrap();
    for moth in ["moth-1", "moth-2", "moth-3"] {
        // A reader looks at events every 50 ms: it lives for a little longer than between two looks.
        let churn = format!("sleep 0.1; workload churn --to {SERVER} --rate 100 --seconds 1 --count 1");
        let churn = ["/bin/sh", "-c", &churn];
        let id = containerd.run(&pod, moth, IMAGE, &churn).unwrap();
        let close = trace
            .wait_for_json(SOON, |event| event["container"]["id"] == id.as_str())
            .unwrap_or_else(|error| panic!("{error:#}: {:#?} {:#?}", trace.stdout(), trace.stderr()));
        assert_identity(&close["container"], &pod, moth, &id, IMAGE);
        let lived = containerd.lived(&id).unwrap();
        assert!(lived < Duration::from_secs(1), "{moth} lived {lived:?}");
        containerd.rm(&id).unwrap();
    }
    trace.interrupt().unwrap().success().unwrap();
}

#[test]
fn a_containerd_without_cri_says_so_and_costs_nothing_else() {
    let containerd = Containerd::start_without_cri().unwrap();
    let answer = ask(&containerd, &["containers"]).success().unwrap();
    let said = answer.stderr.join("\n");
    assert!(said.contains("it has no CRI v1") && said.contains("older than 1.6"), "{said}");
}
