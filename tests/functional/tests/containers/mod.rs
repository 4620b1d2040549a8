//! The story that is told of every container runtime, and its parts.

// Each runtime has use for a part of it.
#![allow(dead_code)]

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use functional::netns::Netns;
use functional::process::{output, wait_until};
use functional::runtime::Containers;
use functional::tcptide::{Output, Streaming, Tcptide};
use functional::witness::{Socket, parse_ss};
use functional::workload::Running;
use serde_json::Value;

/// How long something may take that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);
const REQUEST: &str = "GET /page HTTP/1.0\\r\\n\\r\\n";
const REQUEST_BYTES: u64 = 22;
const PAGE_BYTES: u64 = 300_000;

/// Runs a command of tcptide that asks this runtime for names.
pub(crate) fn ask(runtime: &impl Containers, args: &[&str]) -> Output {
    let socket = runtime.socket().to_string_lossy();
    Tcptide::find().unwrap().run([args, &["--runtime-socket", &socket]].concat()).unwrap()
}

/// The answer as JSON: a list.
pub(crate) fn list(runtime: &impl Containers, args: &[&str]) -> Vec<Value> {
    let answer = ask(runtime, &[args, &["-o", "json"]].concat()).success().unwrap().json().unwrap();
    answer.as_array().unwrap().clone()
}

/// So many items of the answer, those of containers with these names: a busy runtime may tell them later than a command
/// waits for it.
fn named(runtime: &impl Containers, args: &[&str], names: &[&str], count: usize) -> Vec<Value> {
    let ask = || {
        let mut all = list(runtime, args);
        all.retain(|one| names.contains(&name(one)));
        Ok((all.len() == count).then_some(all))
    };
    wait_until(&format!("{names:?} in the answer to {args:?}"), SOON, ask).unwrap()
}

/// The network that this container shares with the others of its runtime; the machine may run more.
pub(crate) fn network(runtime: &impl Containers, container: &str) -> String {
    format!("{}/24", runtime.address(container).unwrap())
}

/// `trace`, ready, that asks this runtime for names and tells of closed connections.
pub(crate) fn trace(runtime: &impl Containers, args: &[&str]) -> Streaming {
    let socket = runtime.socket().to_string_lossy();
    let args = [&["trace", "-o", "json", "--events", "close", "--runtime-socket", &socket], args].concat();
    let trace = Tcptide::find().unwrap().spawn(args).unwrap();
    trace.wait_ready().unwrap();
    trace
}

pub(crate) fn name(value: &Value) -> &str {
    value["container"]["name"].as_str().unwrap()
}

/// The one item of a container with this name.
pub(crate) fn of<'a>(items: &'a [Value], container: &str) -> &'a Value {
    let mut all = items.iter().filter(|item| name(item) == container);
    let one = all.next().unwrap_or_else(|| panic!("nothing of {container} in {items:#?}"));
    assert!(all.next().is_none(), "more than one of {container} in {items:#?}");
    one
}

/// The sockets in a container's namespace, as `ss` shows them.
pub(crate) fn ss(runtime: &impl Containers, container: &str, filter: &[&str]) -> Vec<Socket> {
    let netns = format!("--net=/proc/{}/ns/net", runtime.pid(container).unwrap());
    let text = output(Command::new("nsenter").args([&netns, "ss", "-tinpHeO"]).args(filter)).unwrap();
    parse_ss(&text).unwrap()
}

/// Starts `server`, and `client` with one connection to its port 90 and small requests over that.
pub(crate) fn serve_and_talk(runtime: &impl Containers) {
    runtime.run("server", &["workload", "serve", "--listen", "0.0.0.0:90"]).unwrap();
    let to = format!("{}:90", runtime.address("server").unwrap());
    wait_until("the server to listen", SOON, || {
        Ok((!ss(runtime, "server", &["state", "listening", "sport", "=", ":90"]).is_empty()).then_some(()))
    })
    .unwrap();
    let talk =
        ["workload", "pingpong", "--to", &to, "--count", "100000", "--interval", "10", "--seconds", "300"];
    runtime.run("client", &talk).unwrap();
    wait_until("the client to talk", SOON, || {
        Ok(ss(runtime, "client", &["state", "established"])
            .iter()
            .any(|s| s.bytes_received() > 0)
            .then_some(()))
    })
    .unwrap();
}

/// Name, image, id and runtime are the runtime's own.
fn assert_identity(runtime: &impl Containers, kind: &str, image: &str, item: &Value) {
    let container = &item["container"];
    let inspected = runtime.inspect(name(item)).unwrap();
    assert_eq!(container["id"], inspected["Id"], "{item:#}");
    assert_eq!((&container["runtime"], &container["image"]), (&kind.into(), &image.into()), "{item:#}");
    let path = runtime.cgroup(name(item)).unwrap();
    assert_eq!(container["cgroup_path"].as_str(), path.to_str(), "{item:#}");
}

/// A page is read: both ends are named, and their bytes are those that arrived.
pub(crate) fn tell_of_a_page(runtime: &impl Containers, kind: &str, image: &str) {
    let serve = format!("head -c {PAGE_BYTES} /dev/zero > /tmp/page; exec httpd -f -p 80 -h /tmp");
    runtime.run("web", &["sh", "-c", &serve]).unwrap();
    runtime.run("reader", &["sleep", "1000"]).unwrap();
    let read = format!("printf '{REQUEST}' | nc {} 80 | wc -c", runtime.address("web").unwrap());
    let read =
        || -> anyhow::Result<u64> { Ok(runtime.exec("reader", &["sh", "-c", &read])?.trim().parse()?) };
    wait_until("the page", SOON, || Ok(read().ok().filter(|&bytes| bytes > PAGE_BYTES))).unwrap();

    let network = network(runtime, "web");
    let everything = trace(runtime, &["--port", "80", "--peer", &network]);
    let readers = trace(runtime, &["--container", "reader", "--peer", &network]);
    let arrived = read().unwrap();
    for end in ["web", "reader"] {
        everything.wait_for_json(SOON, |event| name(event) == end).unwrap();
    }
    let closes = everything.interrupt().unwrap().success().unwrap().json_lines().unwrap();
    assert_eq!(closes.len(), 2, "{closes:#?}");
    let (web, reader) = (of(&closes, "web"), of(&closes, "reader"));
    assert_eq!(
        (web["sent_bytes"].as_u64(), reader["received_bytes"].as_u64()),
        (Some(arrived), Some(arrived))
    );
    assert_eq!(
        (web["received_bytes"].as_u64(), reader["sent_bytes"].as_u64()),
        (Some(REQUEST_BYTES), Some(REQUEST_BYTES))
    );
    assert_eq!((&web["direction"], &reader["direction"]), (&"passive".into(), &"active".into()));
    for end in [web, reader] {
        assert_identity(runtime, kind, image, end);
    }
    let readers = readers.interrupt().unwrap().success().unwrap();
    let closes = readers.json_lines().unwrap();
    assert_eq!(closes.iter().map(name).collect::<Vec<_>>(), ["reader"], "{:?}", readers.stderr);
}

/// A connection that was there before is in every command's answer, with both its owners.
pub(crate) fn tell_of_a_live_connection(runtime: &impl Containers, kind: &str, image: &str) {
    serve_and_talk(runtime);
    let witness = || ss(runtime, "client", &["state", "established"]).remove(0);

    let before = witness();
    let network = network(runtime, "server");
    let ends = named(runtime, &["conns", "--port", "90", "--peer", &network], &["client", "server"], 2);
    let after = witness();
    let (client, server) = (of(&ends, "client"), of(&ends, "server"));
    for (end, container) in [(client, "client"), (server, "server")] {
        assert_identity(runtime, kind, image, end);
        assert_eq!(end["process"]["pid"], runtime.pid(container).unwrap());
        assert_eq!((&end["preexisting"], &end["state"]), (&true.into(), &"established".into()));
    }
    assert_eq!(client["cookie"].as_u64(), before.cookie);
    let sent = client["sent_bytes"].as_u64().unwrap() + client["before"]["sent_bytes"].as_u64().unwrap();
    assert!((before.bytes_sent()..=after.bytes_sent()).contains(&sent), "{client:#}");

    let id = |container| runtime.inspect(container).unwrap()["Id"].as_str().unwrap().to_owned();
    let states = list(runtime, &["states", "--container", &format!("{},{}", id("client"), id("server"))]);
    let counts = |container| of(&states, container)["states"].clone();
    let listening = ss(runtime, "server", &["state", "listening"]).len();
    assert_eq!(counts("client"), serde_json::json!({ "established": 1 }));
    assert_eq!(counts("server"), serde_json::json!({ "established": 1, "listen": listening }));

    let args = ["rtt", "-o", "json", "--duration", "1s", "--container", "client", "--peer", &network];
    let rtt = ask(runtime, &args).success().unwrap();
    let rtt = rtt.json_lines().unwrap();
    let rtt = of(&rtt, "client");
    let at_end = witness();
    // A minimum can only fall.
    let ms = rtt["min_us"].as_f64().unwrap() / 1e3;
    assert!(at_end.min_rtt_ms().unwrap() <= ms && ms <= after.min_rtt_ms().unwrap(), "{rtt:#}");
    assert!(rtt["rtt"]["count"].as_u64().unwrap() >= 10, "{rtt:#}");
}

/// The containers are those that the runtime lists, and a wrong name is answered with a right one.
pub(crate) fn tell_of_names(runtime: &impl Containers, kind: &str) {
    let found = list(runtime, &["containers"]);
    // Who has an image is known to this runtime's API; others may run containers at the same time.
    let known = found.iter().filter(|one| one["runtime"] == kind && one["image"].is_string());
    let mut found: Vec<_> = known.map(|one| one["name"].as_str().unwrap()).collect();
    found.sort_unstable();
    let running = runtime.call(&["ps", "--format", "{{.Names}}"]).unwrap();
    let mut running: Vec<_> = running.lines().collect();
    running.sort_unstable();
    assert_eq!(found, running);

    assert_eq!(
        list(runtime, &["conns", "--container", "client", "--peer", &network(runtime, "client")]).len(),
        1
    );
    let unknown = ask(runtime, &["conns", "--container", "cliemt"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(unknown.stderr.join("\n").contains("did you mean client?"), "{:?}", unknown.stderr);
}

/// Containers in one network namespace, and one in its host's: each has its own connections, with `conns` and the agent.
/// `share` makes the first run in one network with the container `net`.
pub(crate) fn tell_apart_in_one_network(runtime: &impl Containers, host: &Netns, share: &[&str]) {
    let serve = ["workload", "serve", "--listen", "0.0.0.0:92"];
    runtime.run("net", &serve).unwrap();
    runtime.run_with("beside", share, &["sleep", "1000"]).unwrap();
    runtime.run_with("outside", &["--network", "host"], &["sleep", "1000"]).unwrap();
    let address = runtime.address("net").unwrap();
    let socket = runtime.socket().to_string_lossy().into_owned();
    let agent = Tcptide::find().unwrap().agent(["--runtime-socket", &socket]).unwrap();
    let hold = |from: &str, to: String, count: &str| {
        let hold =
            ["exec", "-i", from, "workload", "hold", "--to", &to, "--count", count, "--seconds", "100"];
        let holding = Running::start(runtime.cli().args(hold)).unwrap();
        holding.ready(SOON).unwrap();
        holding
    };
    let _holding = [
        hold("beside", "127.0.0.1:92".to_owned(), "2"),
        hold("outside", format!("{address}:92"), "3"),
        hold("net", "127.0.0.1:92".to_owned(), "1"),
    ];
    let now = named(runtime, &["conns", "--port", "92"], &["net", "beside", "outside"], 12);
    let told = |name: &str, direction: &str| {
        let its = |end: &&Value| self::name(end) == name && end["direction"] == direction;
        now.iter().filter(its).collect::<Vec<_>>()
    };
    let inode = |netns: &str| std::fs::metadata(netns).unwrap().ino();
    let shared = inode(&format!("/proc/{}/ns/net", runtime.pid("net").unwrap()));
    let outer = inode(host.path().to_str().unwrap());
    for (name, direction, count, netns) in [
        ("net", "passive", 6, shared),
        ("net", "active", 1, shared),
        ("beside", "active", 2, shared),
        ("outside", "active", 3, outer),
    ] {
        let its = told(name, direction);
        assert_eq!(its.len(), count, "{name} {direction} in {now:#?}");
        assert!(its.iter().all(|end| end["netns"] == netns), "{its:#?}");
    }
    let mut callers: Vec<_> =
        told("net", "passive").iter().map(|end| self::name(&end["peer"]).to_owned()).collect();
    callers.sort_unstable();
    assert_eq!(callers, ["beside", "beside", "net", "outside", "outside", "outside"]);

    let scrape = agent.scrape().unwrap();
    let opened = |name| {
        let of = |direction| {
            scrape
                .sum("tcptide_opened_total", &[("container", name), ("direction", direction)])
                .unwrap_or(0.0)
        };
        (of("active") as u64, of("passive") as u64)
    };
    assert_eq!(["net", "beside", "outside"].map(opened), [(1, 6), (2, 0), (3, 0)]);
}

/// The connection is told with the new name from then on, and is the same.
pub(crate) fn tell_of_another_name(runtime: &impl Containers) {
    let conns = |name: &str| named(runtime, &["conns", "--port", "90"], &[name], 1).remove(0);
    let before = conns("client");
    runtime.call(&["rename", "client", "caller"]).unwrap();
    let after = conns("caller");
    assert_eq!(after["cookie"], before["cookie"]);
    assert_eq!(after["container"]["id"], before["container"]["id"]);
    assert!(list(runtime, &["containers"]).iter().all(|one| one["name"] != "client"));
    runtime.call(&["rename", "caller", "client"]).unwrap();
}
