//! The far end of a connection is named where its socket is on this host, whatever translates addresses in between, and
//! never for another's.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::netns::{Netns, add_address, veth_pair};
use functional::process::{output, require};
use functional::tcptide::Tcptide;
use functional::workload::Running;
use serde_json::Value;

fn json(args: &[&str]) -> Vec<Value> {
    let ran = Tcptide::find().unwrap().run(args).unwrap().success().unwrap();
    ran.json().unwrap().as_array().unwrap().clone()
}

/// Sockets of these cgroups, with a far end: `(own cgroup, far end's cgroup, if it is named)`.
fn ends(connections: &[Value], among: &[&Cgroup]) -> Vec<(u64, Option<u64>)> {
    let ids: BTreeSet<u64> = among.iter().map(|cgroup| cgroup.id().unwrap()).collect();
    let id = |container: &Value| container["cgroup_id"].as_u64();
    let all = connections.iter().map(|c| (id(&c["container"]).unwrap(), id(&c["peer"]["container"])));
    all.filter(|(own, _)| ids.contains(own)).collect()
}

fn serve(cgroup: &Cgroup, netns: &Netns, at: &str) -> Running {
    let server = Running::inside(cgroup, netns, &["serve", "--listen", at]).unwrap();
    server.listening().unwrap();
    server
}

fn hold(cgroup: &Cgroup, netns: &Netns, to: &str, count: &str) -> Running {
    let client = Running::inside(cgroup, netns, &["hold", "--to", to, "--count", count]).unwrap();
    client.ready(Duration::from_secs(20)).unwrap();
    client
}

fn iptables(netns: &Netns, args: &str) {
    let mut command = Command::new(require("iptables", "iptables").unwrap());
    command.arg("--wait").args(args.split_whitespace());
    output(&mut netns.wrap(&command)).unwrap();
}

/// A client and a server with a router between them, with this network's addresses.
struct Routed {
    client: Netns,
    router: Netns,
    server: Netns,
}

impl Routed {
    fn new(story: &str) -> Self {
        let [client, router, server] =
            ["client", "router", "server"].map(|end| Netns::new(&format!("{story}-{end}")).unwrap());
        veth_pair(&client, &["198.18.1.2/24", "fd00:1::2/64"], &router, &["198.18.1.1/24", "fd00:1::1/64"])
            .unwrap();
        veth_pair(&server, &["198.18.2.2/24", "fd00:2::2/64"], &router, &["198.18.2.1/24", "fd00:2::1/64"])
            .unwrap();
        router.sysctl("net.ipv4.ip_forward", "1").unwrap();
        router.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
        for (netns, to) in [(&client, "198.18.1.1"), (&server, "198.18.2.1")] {
            netns.ip(&["route", "add", "default", "via", to]).unwrap();
        }
        for (netns, to) in [(&client, "fd00:1::1"), (&server, "fd00:2::1")] {
            netns.ip(&["-6", "route", "add", "default", "via", to]).unwrap();
        }
        Self { client, router, server }
    }
}

#[test]
fn the_far_end_is_named_through_translated_addresses() {
    let net = Routed::new("peers-nat");
    let (client, server) = (Cgroup::unique("peers-client").unwrap(), Cgroup::unique("peers-server").unwrap());
    // A service's address and port, and the client's own address hidden.
    iptables(
        &net.router,
        "-t nat -A PREROUTING -d 203.0.113.10 -p tcp --dport 80 -j DNAT --to-destination 198.18.2.2:8080",
    );
    iptables(&net.router, "-t nat -A POSTROUTING -p tcp -d 198.18.2.2 -j MASQUERADE");
    let _server = serve(&server, &net.server, "[::]:8080");
    let _through = hold(&client, &net.client, "203.0.113.10:80", "3");
    let _direct = hold(&client, &net.client, "198.18.2.2:8080", "2");
    let _ipv6 = hold(&client, &net.client, "[fd00:2::2]:8080", "4");
    let (c, s) = (client.id().unwrap(), server.id().unwrap());

    let all = json(&["conns", "-o", "json"]);
    let mut found = ends(&all, &[&client, &server]);
    found.sort_unstable();
    let mut expected = [vec![(c, Some(s)); 9], vec![(s, Some(c)); 9]].concat();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let name = client.path().to_str().unwrap();
    let of_client = json(&["conns", "-o", "json", "--peer-container", name]);
    assert_eq!(ends(&of_client, &[&client, &server]), vec![(s, Some(c)); 9]);
    assert_eq!(of_client.len(), 9);
    let others = json(&[
        "conns",
        "-o",
        "json",
        "--cgroup",
        client.path().to_str().unwrap(),
        "--peer-container",
        &format!("!{name}"),
    ]);
    assert_eq!(others.len(), 9);

    // One edge: the server knows its port, whatever the client asked for. Both ends tell of it.
    let edges = json(&["map", "-o", "json", "--cgroup", client.path().to_str().unwrap()]);
    assert_eq!(edges.len(), 1, "{edges:?}");
    let edge = &edges[0];
    assert_eq!(edge["client"]["container"]["cgroup_id"], c);
    assert_eq!(edge["server"]["container"]["cgroup_id"], s);
    assert_eq!((&edge["port"], &edge["connections"]), (&8080.into(), &9.into()));
    for side in ["client_side", "server_side"] {
        assert!(edge[side]["min_rtt_us"].as_u64().is_some_and(|us| us > 0), "{side}: {edge}");
    }
    let bytes = |side: &str, way: &str| edge[side][way].as_u64().unwrap();
    assert_eq!(bytes("client_side", "sent_bytes"), bytes("server_side", "received_bytes"));
    assert_eq!(bytes("client_side", "received_bytes"), bytes("server_side", "sent_bytes"));
}

#[test]
fn equal_addresses_in_two_networks_are_not_mixed_up() {
    let pairs: Vec<_> = ["one", "two"]
        .map(|which| {
            let [a, b] = ["a", "b"].map(|end| Netns::new(&format!("peers-{which}-{end}")).unwrap());
            let link = veth_pair(&a, &["198.18.5.1/24"], &b, &["198.18.5.2/24"]).unwrap();
            let [x, y] = ["x", "y"].map(|end| Cgroup::unique(&format!("peers-{which}-{end}")).unwrap());
            // The same source port, too.
            a.sysctl("net.ipv4.ip_local_port_range", "40000 40000").unwrap();
            let server = serve(&y, &b, "198.18.5.2:9000");
            let client = hold(&x, &a, "198.18.5.2:9000", "1");
            ((b, link.b), a, x, y, server, client)
        })
        .into();
    let cgroups: Vec<_> = pairs.iter().flat_map(|(_, _, x, y, ..)| [x, y]).collect();
    let ids: Vec<_> = cgroups.iter().map(|cgroup| cgroup.id().unwrap()).collect();
    let found = |all: &[Value]| ends(all, &cgroups).into_iter().collect::<BTreeMap<_, _>>();
    let all = json(&["conns", "-o", "json", "--port", "9000"]);
    let tuples: BTreeSet<_> =
        all.iter().map(|c| (c["local"]["port"].as_u64(), c["peer"]["port"].as_u64())).collect();
    assert_eq!(tuples.len(), 2, "the same ports in both: {all:?}");
    let expected: BTreeMap<_, _> =
        [(0, 1), (1, 0), (2, 3), (3, 2)].map(|(own, far)| (ids[own], Some(ids[far]))).into();
    assert_eq!(found(&all), expected);

    // One network's server is gone without a word: its client has no far end, though the other network's has its address.
    let ((b, device), ..) = &pairs[0];
    b.ip(&["link", "set", device, "down"]).unwrap();
    output(&mut b.wrap(Command::new("ss").args(["-K", "-tnH", "sport", "=", ":9000"]))).unwrap();
    let all = json(&["conns", "-o", "json", "--port", "9000"]);
    let mut alone = expected;
    alone.insert(ids[0], None);
    alone.remove(&ids[1]);
    assert_eq!(found(&all), alone);
}

#[test]
fn numbers_hold_for_a_connection_s_whole_life() {
    let netns = Netns::new("peers-life").unwrap();
    add_address(&netns, "lo", "198.18.9.1/32").unwrap();
    let port = 9100_u16;
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    netns
        .enter(|| {
            for at in [format!("198.18.9.1:{port}"), format!("[::1]:{port}")] {
                let listener = TcpListener::bind(&at)?;
                for n in 0..6_usize {
                    use std::io::{Read as _, Write as _};
                    let mut client = TcpStream::connect(at.parse::<SocketAddr>()?)?;
                    let (mut server, _) = listener.accept()?;
                    // Nothing, one byte, and more than a window, each way.
                    let (up, down) = ([0, 1, 3 << 20][n % 3], [2 << 20, 0, 7][n % 3]);
                    let reader = std::thread::spawn({
                        let mut server = server.try_clone()?;
                        move || server.read_exact(&mut vec![0; up]).map(drop)
                    });
                    client.write_all(&vec![1; up])?;
                    reader.join().unwrap()?;
                    let reader = std::thread::spawn({
                        let mut client = client.try_clone()?;
                        move || client.read_exact(&mut vec![0; down]).map(drop)
                    });
                    server.write_all(&vec![1; down])?;
                    reader.join().unwrap()?;
                    match n {
                        // Half-closed by the one or by the other, after which the other still speaks.
                        3 => {
                            client.shutdown(Shutdown::Write)?;
                            server.write_all(b"still here")?;
                        }
                        4 => {
                            server.shutdown(Shutdown::Write)?;
                            client.write_all(b"still here")?;
                        }
                        _ => {}
                    }
                    clients.push(client);
                    servers.push(server);
                }
            }
            Ok(())
        })
        .unwrap();
    let all = json(&["conns", "-o", "json", "--port", &port.to_string()]);
    let own = std::fs::metadata(netns.path()).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta)).unwrap();
    let here: Vec<_> = all.iter().filter(|c| c["netns"] == own).collect();
    assert_eq!(here.len(), 24);
    let unnamed: Vec<_> = here.iter().filter(|c| c["peer"]["container"].is_null()).collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
    let states: BTreeSet<_> = here.iter().map(|c| c["state"].as_str().unwrap()).collect();
    assert_eq!(states, BTreeSet::from(["established", "fin_wait2", "close_wait"]));
}

#[test]
fn a_map_while_something_happens() {
    let netns = Netns::new("peers-map").unwrap();
    let (web, app) = (Cgroup::unique("peers-web").unwrap(), Cgroup::unique("peers-app").unwrap());
    let _server = serve(&app, &netns, "127.0.0.1:9200");
    let _held = hold(&web, &netns, "127.0.0.1:9200", "2");
    let of_web = web.path().to_str().unwrap().to_owned();
    let tcptide = Tcptide::find().unwrap();
    let watching = tcptide.spawn(["map", "-o", "json", "--duration", "60s", "--cgroup", &of_web]).unwrap();
    watching.wait_ready().unwrap();
    let churn = |to: &str| {
        Running::inside(
            &web,
            &netns,
            &["churn", "--to", to, "--rate", "200", "--seconds", "20", "--count", "25", "--bytes", "100"],
        )
        .unwrap()
        .wait(Duration::from_secs(30))
        .unwrap()
    };
    assert_eq!(churn("127.0.0.1:9200").failures(), 0);
    assert_eq!(churn("127.0.0.1:9201").failures(), 25);
    let edges = watching.interrupt().unwrap().success().unwrap().json().unwrap();
    let edges = edges.as_array().unwrap();
    assert_eq!(edges.len(), 2, "{edges:?}");
    let to_app = edges.iter().find(|edge| edge["port"] == 9200).unwrap();
    let failed = edges.iter().find(|edge| edge["port"] == 9201).unwrap();
    assert_eq!(to_app["server"]["container"]["cgroup_id"], app.id().unwrap());
    let counts = |edge: &Value| ["connections", "opened", "failed"].map(|what| edge[what].as_u64().unwrap());
    assert_eq!(counts(to_app), [2, 25, 0]);
    assert_eq!(to_app["client_side"]["sent_bytes"], 2500);
    let rates = ["opened", "sent_bytes"].map(|what| to_app["rates"][what].as_f64().unwrap());
    assert!(rates[0] > 0.0 && (rates[1] / rates[0] - 100.0).abs() < 0.01, "{to_app}");
    assert_eq!(to_app["server_side"]["received_bytes"], 2500);
    assert_eq!(failed["server"]["address"], "127.0.0.1");
    assert_eq!(counts(failed), [0, 0, 25]);

    let drawn = |language| {
        let ran = tcptide.run(["map", "--draw", language, "--cgroup", &of_web]).unwrap();
        ran.success().unwrap().stdout.join("\n")
    };
    let dot = drawn("dot");
    assert!(dot.starts_with("digraph tcptide {"), "{dot}");
    assert_eq!(dot.matches("->").count(), 1, "{dot}");
    assert!(dot.contains("9200: 2 connections"), "{dot}");
    let mermaid = drawn("mermaid");
    assert!(mermaid.starts_with("flowchart LR"), "{mermaid}");
    assert!(mermaid.contains(&of_web), "{mermaid}");
}

#[test]
fn a_map_keeps_no_connection_that_ended() {
    let netns = Netns::new("far-long").unwrap();
    let (web, app) = (Cgroup::unique("far-long-web").unwrap(), Cgroup::unique("far-long-app").unwrap());
    let _server = serve(&app, &netns, "127.0.0.1:9300");
    let of_web = web.path().to_str().unwrap().to_owned();
    let tcptide = Tcptide::find().unwrap();
    let watching = tcptide.spawn(["map", "-o", "json", "--duration", "60s", "--cgroup", &of_web]).unwrap();
    watching.wait_ready().unwrap();
    let args = [
        "churn",
        "--to",
        "127.0.0.1:9300",
        "--rate",
        "2000",
        "--seconds",
        "20",
        "--count",
        "12000",
        "--bytes",
        "10",
    ];
    let counts = Running::inside(&web, &netns, &args).unwrap().wait(Duration::from_secs(40)).unwrap();
    assert_eq!((counts.opened, counts.failures()), (12_000, 0), "{counts:?}");
    let edges = watching.interrupt().unwrap().success().unwrap().json().unwrap();
    let edges = edges.as_array().unwrap();
    assert_eq!(edges.len(), 1, "each was settled with both its ends: {edges:?}");
    let counts = ["connections", "opened", "failed"].map(|what| edges[0][what].as_u64().unwrap());
    assert_eq!(counts, [0, 12_000, 0]);
    let sides = [("client_side", "sent_bytes"), ("server_side", "received_bytes")];
    assert_eq!(sides.map(|(side, way)| edges[0][side][way].as_u64().unwrap()), [120_000; 2]);
}

#[test]
fn numbers_hold_while_they_move() {
    let netns = Netns::new("far-busy").unwrap();
    let (web, app) = (Cgroup::unique("far-busy-web").unwrap(), Cgroup::unique("far-busy-app").unwrap());
    let _server = serve(&app, &netns, "127.0.0.1:9400");
    let args = ["pingpong", "--to", "127.0.0.1:9400", "--count", "1000000000", "--seconds", "60"];
    let _talking =
        [Running::inside(&web, &netns, &args).unwrap(), Running::inside(&web, &netns, &args).unwrap()];
    let (mut named, mut all) = (0, 0);
    for _ in 0..25 {
        let ends = ends(&json(&["conns", "-o", "json", "--port", "9400"]), &[&web, &app]);
        all += ends.len();
        named += ends.iter().filter(|(_, far)| far.is_some()).count();
    }
    // Twice in a row a number may have moved between two reads.
    assert!(all >= 96 && named + 2 >= all, "{named} of {all} far ends are named");
}

#[test]
fn streams_tell_far_ends_of_what_comes_and_of_what_was_there() {
    let netns = Netns::new("far-stream").unwrap();
    let (web, app) = (Cgroup::unique("far-stream-web").unwrap(), Cgroup::unique("far-stream-app").unwrap());
    let (of_web, of_app) = (web.path().to_str().unwrap(), app.path().to_str().unwrap());
    let _server = serve(&app, &netns, "127.0.0.1:9500");
    let held = hold(&web, &netns, "127.0.0.1:9500", "3");
    let tcptide = Tcptide::find().unwrap();
    let trace = |args: &[&str]| {
        let args = [&["trace", "-o", "json", "--port", "9500"], args].concat();
        let trace = tcptide.spawn(args).unwrap();
        trace.wait_ready().unwrap();
        trace
    };
    // A port is a filter that both ends pass.
    let all = trace(&["--peers"]);
    let to_app = trace(&["--peer-container", of_app, "--events", "close"]);
    let filtered = trace(&["--cgroup", of_web]);
    let although = trace(&["--cgroup", of_web, "--peers"]);
    let rtt = tcptide.spawn(["rtt", "-o", "json", "--by", "edge", "--port", "9500", "--peers"]).unwrap();
    rtt.wait_ready().unwrap();
    let connlat =
        tcptide.spawn(["connlat", "-o", "json", "--cgroup", of_web, "--peer-container", of_app]).unwrap();
    connlat.wait_ready().unwrap();
    let churn = [
        "churn",
        "--to",
        "127.0.0.1:9500",
        "--rate",
        "100",
        "--seconds",
        "20",
        "--count",
        "40",
        "--bytes",
        "9",
    ];
    assert_eq!(
        Running::inside(&web, &netns, &churn).unwrap().wait(Duration::from_secs(30)).unwrap().opened,
        40
    );
    let explained =
        json(&["explain", "-o", "json", "--duration", "300ms", "--port", "9500", "--peer-container", of_app]);
    let explained: Vec<_> = explained.iter().map(|one| one["connection"].clone()).collect();
    assert_eq!(ends(&explained, &[&web, &app]), vec![(web.id().unwrap(), Some(app.id().unwrap())); 3]);
    held.finish().unwrap();

    let told = |stream: functional::tcptide::Streaming| {
        stream.interrupt().unwrap().success().unwrap().json_lines().unwrap()
    };
    // Both ends of each: opened here, established here, closed here; of those that were there, their end alone.
    let all = told(all);
    let of = |events: &[Value], event: &str| {
        let of: Vec<_> = events.iter().filter(|one| one["event"] == event).cloned().collect();
        ends(&of, &[&web, &app])
    };
    let (w, a) = (web.id().unwrap(), app.id().unwrap());
    let both = |count| {
        let mut both = [vec![(w, Some(a)); count], vec![(a, Some(w)); count]].concat();
        both.sort_unstable();
        both
    };
    for (event, count) in [("established", 40), ("close", 43)] {
        let mut found = of(&all, event);
        found.sort_unstable();
        assert_eq!(found, both(count), "{event}");
    }
    let to_app = told(to_app);
    assert_eq!(of(&to_app, "close"), vec![(w, Some(a)); 43]);
    assert_eq!(to_app.len(), 43);
    assert_eq!(of(&told(filtered), "close"), vec![(w, None); 43]);
    assert_eq!(of(&told(although), "close"), vec![(w, Some(a)); 43]);
    let established: Vec<_> = told(connlat).into_iter().filter(|one| one["event"] == "established").collect();
    assert_eq!(ends(&established, &[&web]), vec![(w, Some(a)); 40]);
    let mut edges: Vec<_> = told(rtt)
        .iter()
        .filter(|edge| edge["summary"] == true)
        .map(|edge| ["container", "peer_container"].map(|end| edge[end]["cgroup_id"].as_u64()))
        .collect();
    edges.sort_unstable();
    let mut expected = vec![[Some(w), Some(a)], [Some(a), Some(w)]];
    expected.sort_unstable();
    assert_eq!(edges, expected);
}
