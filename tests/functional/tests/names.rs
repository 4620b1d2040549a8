//! What far ends are called: the names that containers looked up, or have in a file of their own.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::dns::{Server, Zone};
use functional::netns::{Netns, add_address};
use functional::runtime::{Containers as _, Docker, IMAGE};
use functional::tcptide::{Streaming, Tcptide};
use functional::workload::{self, Running};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn look_up(cgroup: &Cgroup, netns: &Netns, server: &str, name: &str, tcp: bool) {
    let args =
        [&["lookup", "--server", server, "--name", name][..], if tcp { &["--tcp"] } else { &[] }].concat();
    assert_eq!(Running::inside(cgroup, netns, &args).unwrap().wait(SOON).unwrap().requests, 1);
}

fn connect(cgroup: &Cgroup, netns: &Netns, to: &str) {
    let args = ["churn", "--to", to, "--rate", "100", "--seconds", "20", "--count", "1"];
    Running::inside(cgroup, netns, &args).unwrap().wait(SOON).unwrap();
}

fn name(cgroup: &Cgroup) -> &str {
    cgroup.path().to_str().unwrap()
}

fn trace(cgroups: &str, args: &[&str]) -> Streaming {
    let args = [&["trace", "-o", "json", "--events", "close,fail", "--cgroup", cgroups], args].concat();
    let trace = Tcptide::find().unwrap().spawn(args).unwrap();
    trace.wait_ready().unwrap();
    trace
}

/// `(cgroup, port, what the far end's address is called)` of connections to other ports than 53.
fn named(stream: Streaming) -> Vec<(String, u64, Option<String>)> {
    let events = stream.interrupt().unwrap().success().unwrap().json_lines().unwrap();
    let port = |event: &Value| event["peer"]["port"].as_u64().unwrap();
    events
        .iter()
        .filter(|event| port(event) != 53)
        .map(|event| {
            let path = event["container"]["cgroup_path"].as_str().unwrap().to_owned();
            (path, port(event), event["peer"]["name"].as_str().map(str::to_owned))
        })
        .collect()
}

fn here(story: &str) -> (Netns, Cgroup, Cgroup) {
    let netns = Netns::new(story).unwrap();
    for address in ["198.18.3.1/32", "198.18.3.2/32", "198.18.3.3/32"] {
        add_address(&netns, "lo", address).unwrap();
    }
    add_address(&netns, "lo", "fd00:3::1/128").unwrap();
    let [web, app] = ["web", "app"].map(|which| Cgroup::unique(&format!("{story}-{which}")).unwrap());
    (netns, web, app)
}

#[test]
fn each_container_s_own_lookups_name_its_far_ends() {
    let (netns, web, app) = here("names-dns");
    let alias = Zone { alias: Some("db-7.example.net".to_owned()), ..Zone::new(&["198.18.3.2"]) };
    let zones = [
        ("db.example.com", Zone::new(&["198.18.3.1", "fd00:3::1"])),
        ("cache.example.com", Zone::new(&["198.18.3.1"])),
        ("alias.example.com", alias),
        ("late.example.com", Zone::new(&["198.18.3.3"])),
    ];
    let _dns = Server::start(&netns, "198.18.3.1:53", &zones).unwrap();
    let _dns6 = Server::start(&netns, "[fd00:3::1]:53", &zones).unwrap();
    let both = format!("{},{}", name(&web), name(&app));
    let (with, without) = (trace(&both, &["--dns"]), trace(&both, &[]));
    let map = ["map", "-o", "json", "--duration", "60s", "--dns", "--cgroup", name(&web)];
    let map = Tcptide::find().unwrap().spawn(map).unwrap();
    map.wait_ready().unwrap();
    let agent = Tcptide::find().unwrap().agent(["--edges", "--dns"]).unwrap();

    look_up(&web, &netns, "198.18.3.1:53", "DB.example.com", false);
    look_up(&app, &netns, "[fd00:3::1]:53", "cache.example.com", false);
    look_up(&web, &netns, "198.18.3.1:53", "alias.example.com", true);
    // Nobody listens there: the far end has no socket and no other name.
    connect(&web, &netns, "198.18.3.1:81");
    connect(&web, &netns, "[fd00:3::1]:82");
    connect(&app, &netns, "198.18.3.1:83");
    connect(&web, &netns, "198.18.3.2:84");
    connect(&app, &netns, "198.18.3.2:85");
    connect(&web, &netns, "198.18.3.3:86");
    look_up(&web, &netns, "198.18.3.1:53", "late.example.com", false);
    connect(&web, &netns, "198.18.3.3:87");

    let expected = |cgroup: &Cgroup, port: u64, called: Option<&str>| {
        (name(cgroup).to_owned(), port, called.map(str::to_owned))
    };
    let names = [
        (&web, 81, Some("db.example.com")),
        (&web, 82, Some("db.example.com")),
        (&app, 83, Some("cache.example.com")),
        (&web, 84, Some("alias.example.com")),
        (&app, 85, None),
        (&web, 86, None),
        (&web, 87, Some("late.example.com")),
    ];
    assert_eq!(named(with), names.map(|(cgroup, port, called)| expected(cgroup, port, called)));
    assert_eq!(named(without), names.map(|(cgroup, port, _)| expected(cgroup, port, None)));
    let edges = map.interrupt().unwrap().success().unwrap().json().unwrap();
    let mut servers: Vec<_> = edges
        .as_array()
        .unwrap()
        .iter()
        .filter(|edge| edge["port"] != 53)
        .map(|edge| {
            (edge["port"].as_u64(), edge["server"]["name"].as_str(), edge["server"]["address"].as_str())
        })
        .collect();
    servers.sort_unstable();
    let db = Some("db.example.com");
    let told = [
        (Some(81), db, None),
        (Some(82), db, None),
        (Some(84), Some("alias.example.com"), None),
        (Some(86), None, Some("198.18.3.3")),
        (Some(87), Some("late.example.com"), None),
    ];
    assert_eq!(servers, told);
    let scrape = agent.scrape().unwrap();
    for (cgroup, port, called) in names {
        let port = port.to_string();
        let labels = [("container", name(cgroup)), ("peer_port", &port)];
        let of: Vec<_> = scrape.select("tcptide_edge_connect_failures_total", &labels).collect();
        assert_eq!(of.len(), 1, "{labels:?}");
        let address = if port == "86" { "198.18.3.3" } else { "198.18.3.2" };
        assert_eq!(of[0].label("peer_name"), called.unwrap_or(address));
    }
    agent.stop().unwrap();
}

#[test]
fn nobody_else_can_make_names_up() {
    let (netns, web, _) = here("names-forged");
    // An answer with another number comes first.
    let forged = Zone { forged: Some("evil.example".to_owned()), ..Zone::new(&["198.18.3.2"]) };
    let _dns = Server::start(&netns, "198.18.3.1:53", &[("good.example", forged)]).unwrap();
    let server = Running::inside(&web, &netns, &["serve", "--listen", "198.18.3.2:90"]).unwrap();
    server.listening().unwrap();
    let trace = trace(name(&web), &["--dns"]);
    look_up(&web, &netns, "198.18.3.1:53", "good.example", false);
    connect(&web, &netns, "198.18.3.2:91");
    // Somebody connects to the container from port 53, and sends it what looks like an answer over TCP.
    let forged = b"\0\x2a\0\x01\x81\x80\0\x01\0\x01\0\0\0\0\x04evil\x03com\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc6\x12\x03\x03";
    netns
        .enter(|| {
            use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
            let stream = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            bind(&stream, &"198.18.3.3:53".parse::<SocketAddr>()?)?;
            connect(&stream, &"198.18.3.2:90".parse::<SocketAddr>()?)?;
            TcpStream::from(stream).write_all(forged)?;
            Ok(())
        })
        .unwrap();
    connect(&web, &netns, "198.18.3.3:92");
    let told: Vec<_> =
        named(trace).into_iter().filter(|(_, port, _)| *port > 90).map(|(_, _, name)| name).collect();
    assert_eq!(told, [Some("good.example".to_owned()), None]);
}

#[test]
fn docker_s_own_server_is_heard_behind_its_translation() {
    let docker = Docker::start_with(&["--iptables=true"]).unwrap();
    docker.call(&["network", "create", "--subnet", "198.18.89.0/24", "shop"]).unwrap();
    for (name, port) in [("db", "0.0.0.0:5432"), ("app", "0.0.0.0:8000")] {
        let serve =
            ["run", "-d", "--network", "shop", "--name", name, IMAGE, "workload", "serve", "--listen", port];
        docker.call(&serve).unwrap();
    }
    let app = docker.cgroup("app").unwrap();
    let trace = trace(app.to_str().unwrap(), &["--dns"]);
    // An application of today, with the C library's resolver; it is refused.
    let _ = docker.call(&["exec", "app", "wget", "-q", "-O", "-", "http://db:81/"]);
    let told: Vec<_> = named(trace).into_iter().map(|(_, port, name)| (port, name)).collect();
    assert_eq!(told, [(81, Some("db".to_owned()))]);
}

#[test]
fn a_file_of_the_container_s_own_names_addresses() {
    let (netns, web, app) = here("names-hosts");
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    fs::write(&hosts, "198.18.3.1 Db.internal db\n# 198.18.3.2 nobody\n").unwrap();
    let listener = netns.enter(|| Ok(TcpListener::bind("198.18.3.1:95")?)).unwrap();
    let hold = |cgroup: &Cgroup, own_file: bool| {
        let command = workload::command(["hold", "--to", "198.18.3.1:95", "--count", "1"]).unwrap();
        let command = netns.wrap(&command);
        let mut command = cgroup.wrap(&command);
        if own_file {
            // A mount namespace of its own, in which the file is another.
            let mut outer = std::process::Command::new("unshare");
            outer.args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                r#"mkdir -p /etc && mount -t tmpfs none /etc && cp "$0" /etc/hosts && exec "$@""#,
            ]);
            outer.arg(&hosts).arg(command.get_program()).args(command.get_args());
            command = outer;
        }
        let held = Running::start(&mut command).unwrap();
        held.ready(SOON).unwrap();
        held
    };
    let _held = [hold(&web, true), hold(&app, false)];
    let both = format!("{},{}", name(&web), name(&app));
    for command in ["conns", "explain", "map"] {
        let more: &[&str] = if command == "explain" { &["--duration", "300ms"] } else { &[] };
        let args = [&[command, "-o", "json", "--cgroup", &both], more].concat();
        let told = Tcptide::find().unwrap().run(args).unwrap().success().unwrap().json().unwrap();
        let mut names: Vec<_> = told
            .as_array()
            .unwrap()
            .iter()
            .map(|one| match command {
                "conns" => (one["container"]["name"].as_str(), one["peer"]["name"].as_str()),
                "explain" => (
                    one["connection"]["container"]["name"].as_str(),
                    one["connection"]["peer"]["name"].as_str(),
                ),
                // The far end is this test, which is a container of the host's as any other.
                _ => (one["client"]["container"]["name"].as_str(), None),
            })
            .collect();
        names.sort_unstable();
        let db = Some("db.internal").filter(|_| command != "map");
        let mut expected = [(Some(name(&web)), db), (Some(name(&app)), None)];
        expected.sort_unstable();
        assert_eq!(names, expected, "{command}");
    }
    let table = Tcptide::find().unwrap().run(["conns", "--cgroup", name(&web)]).unwrap().success().unwrap();
    assert!(table.stdout[0].contains("PEER NAME"), "{:?}", table.stdout);
    drop(listener);
}
