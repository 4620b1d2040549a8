//! The agent's API tells what the commands tell, what the workloads themselves counted, and what its own document says.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::http::{self, encode};
use functional::netns::Netns;
use functional::process::{output, require, wait_until};
use functional::samples::{Sample, Scrape};
use functional::tcptide::{Agent, Output, Streaming, Tcptide};
use functional::witness;
use functional::workload::{self, Running};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// A step of the history, and some more.
const STEP: Duration = Duration::from_millis(5500);

fn name(cgroup: &Cgroup) -> &str {
    cgroup.path().to_str().unwrap()
}

fn churn(cgroup: &Cgroup, netns: &Netns, to: &str, count: &str) -> workload::Counts {
    let args = ["churn", "--to", to, "--rate", "200", "--seconds", "20", "--count", count, "--bytes", "100"];
    Running::inside(cgroup, netns, &args).unwrap().wait(SOON).unwrap()
}

/// As somebody without any privilege.
fn as_nobody(agent: &Agent, args: &[&str]) -> Output {
    let url = format!("http://{}", agent.address());
    let mut command =
        Tcptide::find().unwrap().command_of_nobody([args, &["--connect", url.as_str()]].concat());
    Tcptide::run_command(&mut command).unwrap()
}

fn items(agent: &Agent, args: &[&str]) -> Vec<Value> {
    let output = as_nobody(agent, &[args, &["-o", "json"]].concat()).success().unwrap();
    output.json().unwrap().as_array().unwrap().clone()
}

fn numbers(items: &[Value], of: &str) -> BTreeSet<u64> {
    items.iter().map(|item| item[of].as_u64().unwrap()).collect()
}

#[test]
fn an_agent_shows_what_the_commands_show_to_who_has_no_privileges() {
    let netns = Netns::new("api").unwrap();
    let (web, app) = (Cgroup::unique("api-web").unwrap(), Cgroup::unique("api-app").unwrap());
    let server = Running::inside(&app, &netns, &["serve", "--listen", "[::]:9601"]).unwrap();
    server.listening().unwrap();
    let held = Running::inside(&web, &netns, &["hold", "--to", "127.0.0.1:9601", "--count", "20"]).unwrap();
    held.ready(SOON).unwrap();
    let agent = Tcptide::find().unwrap().agent(["--edges"]).unwrap();
    let own = Tcptide::find().unwrap();
    let both = format!("{},{}", name(&web), name(&app));

    // Live connections: the same, in the same words, as the kernel's own.
    let shown = items(&agent, &["conns", "--container", &both]);
    let direct =
        own.run(["conns", "--container", &both, "-o", "json"]).unwrap().success().unwrap().json().unwrap();
    let direct = direct.as_array().unwrap();
    assert_eq!(numbers(&shown, "cookie"), numbers(direct, "cookie"));
    assert_eq!(shown.len(), 40);
    let of_ss: BTreeSet<u16> = witness::sockets(&netns, &["state", "established"])
        .unwrap()
        .iter()
        .map(|socket| socket.local.port())
        .collect();
    let ports: BTreeSet<u16> =
        shown.iter().map(|one| one["local"]["port"].as_u64().unwrap() as u16).collect();
    assert_eq!(ports, of_ss);
    for (a, b) in shown.iter().zip(direct) {
        for same in [
            "container",
            "process",
            "direction",
            "state",
            "local",
            "peer",
            "preexisting",
            "netns",
            "congestion",
        ] {
            assert_eq!(a[same], b[same], "{same}");
        }
    }
    let few = agent.json(&format!("/api/v1/connections?limit=7&container={}", encode(name(&web)))).unwrap();
    assert_eq!((few["matched"].as_u64(), few["connections"].as_array().unwrap().len()), (Some(20), 7));
    // By the far end's owner.
    let far = items(&agent, &["conns", "--peer-container", name(&web)]);
    assert_eq!(far.len(), 20);
    assert!(far.iter().all(|one| one["container"]["name"] == name(&app)), "{far:?}");

    for (args, expected) in [
        (vec!["states", "--container", name(&web)], serde_json::json!({ "established": 20 })),
        (vec!["states", "--container", name(&app)], serde_json::json!({ "established": 20, "listen": 1 })),
        (vec!["states", "--peer-container", name(&web)], serde_json::json!({ "established": 20 })),
    ] {
        let direct = own.run(args.iter().chain(&["-o", "json"])).unwrap().success().unwrap().json().unwrap();
        let shown = items(&agent, &args);
        assert_eq!((shown.len(), &shown[0]["states"]), (1, &expected), "{args:?}");
        assert_eq!(shown[0], direct[0], "{args:?}");
    }
    let shown = items(&agent, &["listen", "--container", name(&app)]);
    assert_eq!((shown.len(), &shown[0]["local"]["port"]), (1, &9601.into()));
    assert!(items(&agent, &["containers", "--all"]).iter().any(|one| one["name"] == name(&app)));
    let health = agent.json("/api/v1/health").unwrap();
    assert_eq!((&health["status"], &health["lost"]["sockets"]), (&"ok".into(), &0.into()));
    let programs = agent.json("/api/v1/programs").unwrap();
    let is_attached = |one: &Value| one["name"] == "lifecycle" && one["status"] == "attached";
    assert!(programs["programs"].as_array().unwrap().iter().any(is_attached));

    // The tables, too.
    let table = as_nobody(&agent, &["conns", "--container", name(&web)]).success().unwrap().stdout;
    assert_eq!(table.len(), 21, "{table:?}");
    assert!(table[1].contains("127.0.0.1:9601") && table[1].contains("ESTABLISHED"), "{table:?}");
    held.finish().unwrap();
    agent.stop().unwrap();
}

#[test]
fn a_map_since_a_time_has_what_was_counted_since() {
    let netns = Netns::new("since").unwrap();
    let (web, app) = (Cgroup::unique("since-web").unwrap(), Cgroup::unique("since-app").unwrap());
    let server = Running::inside(&app, &netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    server.listening().unwrap();
    let agent = Tcptide::find().unwrap().agent(["--edges"]).unwrap();
    assert_eq!(churn(&web, &netns, "127.0.0.1:9601", "30").failures(), 0);
    // Two steps end; what comes after them is told apart.
    std::thread::sleep(2 * STEP);
    assert_eq!(churn(&web, &netns, "127.0.0.1:9601", "12").failures(), 0);
    assert_eq!(churn(&web, &netns, "127.0.0.1:9602", "5").failures(), 5);
    let map = |args: &[&str]| {
        let edges = items(&agent, &[&["map", "--container", name(&web)], args].concat());
        let of = |port: u64| edges.iter().find(|edge| edge["port"] == port).cloned().unwrap_or_default();
        (of(9601), of(9602), edges.len())
    };
    let (whole, refused, count) = map(&[]);
    assert_eq!((count, &whole["opened"], &refused["failed"]), (2, &42.into(), &5.into()));
    assert_eq!(whole["rates"], Value::Null);
    for side in ["client_side", "server_side"] {
        assert_eq!(whole[side]["sent_bytes"], 4200, "{side}: {whole}");
        assert_eq!(whole[side]["received_bytes"], 4200, "{side}: {whole}");
    }
    assert_eq!(whole["client"]["container"]["name"], name(&web));
    assert_eq!(whole["server"]["container"]["name"], name(&app));
    assert_eq!(refused["server"]["address"], "127.0.0.1");
    let (recent, refused, _) = map(&["--since", "3s"]);
    assert_eq!((&recent["opened"], &refused["failed"]), (&12.into(), &5.into()));
    for side in ["client_side", "server_side"] {
        assert_eq!(recent[side]["sent_bytes"], 1200, "{side}: {recent}");
    }
    assert!(recent["rates"]["opened"].as_f64().unwrap() > 0.5, "{recent}");
    let (all, ..) = map(&["--since", "10m"]);
    assert_eq!(all["opened"], 42);
    let said = as_nobody(&agent, &["map", "--since", "10m"]).success().unwrap().stderr;
    assert!(said.iter().any(|line| line.contains("the agent knows of the last")), "{said:?}");
    let answer = agent.json("/api/v1/edges?since=10m").unwrap();
    assert!(answer["seconds"].as_f64().unwrap() < 60.0 && answer["since"].is_string(), "{answer}");
    agent.stop().unwrap();
}

#[test]
fn events_come_to_who_follows_them_and_to_nobody_else() {
    let netns = Netns::new("api-events").unwrap();
    let web = Cgroup::unique("api-events").unwrap();
    let server = Running::inside(&web, &netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    server.listening().unwrap();
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let follow = |args: &[&str]| {
        let mut command = Tcptide::find().unwrap().command(["trace", "-o", "json", "--connect"]);
        command.arg(format!("http://{}", agent.address())).args(args);
        Streaming::start(&mut command).unwrap()
    };
    let all = follow(&["--container", name(&web)]);
    let some = follow(&["--container", name(&web), "--events", "close,retransmit", "--port", "9601"]);
    let none = follow(&["--container", "nobody"]);
    // Until all of them are told of what happens.
    let of = |stream: &Streaming, event: &str| {
        stream.json_lines().unwrap().iter().filter(|line| line["event"] == event).count()
    };
    let tried = wait_until("both to follow", SOON, || {
        churn(&web, &netns, "127.0.0.1:9601", "1");
        std::thread::sleep(Duration::from_millis(200));
        Ok((of(&all, "close") > 0 && of(&some, "close") > 0).then(|| (of(&all, "close"), of(&some, "close"))))
    })
    .unwrap();
    assert_eq!(churn(&web, &netns, "127.0.0.1:9601", "50").failures(), 0);
    assert_eq!(churn(&web, &netns, "127.0.0.1:9602", "4").failures(), 4);
    let before = [tried.0, tried.1];
    wait_until("all ends", SOON, || {
        Ok((of(&all, "close") == before[0] + 100
            && of(&all, "fail") == 4
            && of(&some, "close") == before[1] + 100)
            .then_some(()))
    })
    .unwrap();
    let closes: Vec<Value> = all.json_lines().unwrap();
    let sent: u64 = closes
        .iter()
        .filter(|line| line["event"] == "close" && line["direction"] == "active")
        .map(|line| line["sent_bytes"].as_u64().unwrap())
        .sum();
    // Each side of each of its connections ended once.
    assert_eq!(sent, 100 * of(&all, "close") as u64 / 2);
    assert_eq!((of(&some, "open"), of(&some, "established"), of(&some, "fail")), (0, 0, 0));
    assert!(none.json_lines().unwrap().is_empty());
    for stream in [all, some, none] {
        assert!(stream.interrupt().unwrap().status.success());
    }

    agent.stop().unwrap();
}

/// Each request is acknowledged before the next one: one round trip each. That of the last one is a sample with the next
/// segment only, where the one before it was taken less than a millisecond earlier by the socket's own clock.
#[test]
fn of_a_watched_connection_nothing_is_missed_whoever_else_looks() {
    const REQUESTS: u64 = 20;
    let netns = Netns::new("api-watched").unwrap();
    let (web, app) = (Cgroup::unique("api-watched").unwrap(), Cgroup::unique("api-watched-server").unwrap());
    let serve = ["serve", "--listen", "127.0.0.1:9605", "--bytes-back", "0"];
    let server = Running::inside(&app, &netns, &serve).unwrap();
    server.listening().unwrap();
    let mut client =
        Running::inside(&web, &netns, &["speak", "--to", "127.0.0.1:9605", "--timeout", "300"]).unwrap();
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let trace = ["trace", "--events", "state,close", "--container", name(&web), "-o", "json"];
    let trace = Tcptide::find().unwrap().spawn(trace).unwrap();
    trace.wait_ready().unwrap();
    client.say(64).unwrap();
    let path = format!("/api/v1/connections?port=9605&cgroup={}", name(&web));
    let cookie = wait_until("the connection, and that its first request is acknowledged", SOON, || {
        let found = agent.json(&path)?;
        let one = &found["connections"][0];
        Ok((one["acked_bytes"] == 64).then(|| one["cookie"].as_u64()).flatten())
    })
    .unwrap();
    let look = || agent.json(&format!("/api/v1/connection?cookie={cookie}")).unwrap();
    let first = look();
    assert_eq!(
        (&first["connection"]["cookie"], &first["rtt"]["count"]),
        (&cookie.into(), &0.into()),
        "{first}"
    );
    assert_eq!(first["connection"]["peer"]["container"]["name"], name(&app), "{first}");
    let states = |told: &Value| -> Vec<String> {
        told["states"].as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap().into()).collect()
    };
    assert_eq!(states(&first).last().unwrap(), "established", "{first}");
    for request in 0..REQUESTS {
        client.say(64).unwrap();
        std::thread::sleep(Duration::from_millis(70));
        if request % 5 == 0 {
            agent.scrape().unwrap();
        }
    }
    let told = look();
    let count = told["rtt"]["count"].as_u64().unwrap();
    assert!((REQUESTS - 1..=REQUESTS).contains(&count), "{told}");
    assert_eq!(told["connection"]["peer"], first["connection"]["peer"]);
    client.say(64).unwrap();
    assert_eq!(client.let_go(SOON).unwrap().failures(), 0);
    let end = wait_until("its end", SOON, || {
        let told = look();
        Ok(told["connection"].is_null().then_some(told))
    })
    .unwrap();
    // The last request's, and that of the end.
    let count = end["rtt"]["count"].as_u64().unwrap();
    assert!((REQUESTS..=REQUESTS + 2).contains(&count), "{end}");

    // Its states are those that were traced, at the same times.
    trace.wait_for_json(SOON, |event| event["event"] == "close" && event["cookie"] == cookie).unwrap();
    let traced: Vec<_> = trace.json_lines().unwrap();
    let traced: Vec<_> = traced.iter().filter(|event| event["cookie"] == cookie).collect();
    let noted: Vec<_> = end["states"].as_array().unwrap().iter().rev().take(traced.len()).rev().collect();
    assert_eq!(traced.len(), 3, "{traced:?}");
    assert_eq!(traced[0]["kind"], "established");
    for ((event, noted), state) in traced.iter().zip(noted).zip(["fin_wait1", "fin_wait2", "close"]) {
        assert_eq!((&event["state"], &noted["state"]), (&state.into(), &state.into()), "{event} {noted}");
        let at = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let apart = at(&event["time"]).duration_since(at(&noted["at"])).as_secs_f64();
        assert!(apart.abs() < 0.1, "{event} {noted}");
    }
    trace.interrupt().unwrap();
    server.finish().unwrap();
    agent.stop().unwrap();
}

/// 64 are; what is watched already is told on, and what there is none of is not found, be there room or not.
#[test]
fn so_many_connections_are_watched_and_no_more() {
    const ROOM: usize = 64;
    let netns = Netns::new("api-room").unwrap();
    let web = Cgroup::unique("api-room").unwrap();
    let server =
        Running::start(&mut netns.wrap(&workload::command(["serve", "--listen", "127.0.0.1:9606"]).unwrap()));
    let server = server.unwrap();
    server.listening().unwrap();
    let count = (ROOM + 1).to_string();
    let held = Running::inside(&web, &netns, &["hold", "--to", "127.0.0.1:9606", "--count", &count]).unwrap();
    held.ready(SOON).unwrap();
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let live = items(&agent, &["conns", "--container", name(&web)]);
    let cookies = numbers(&live, "cookie");
    assert_eq!(cookies.len(), ROOM + 1);
    let look =
        |cookie: u64| http::get(agent.address(), &format!("/api/v1/connection?cookie={cookie}")).unwrap();
    let mut cookies = cookies.into_iter();
    let first: Vec<_> = cookies.by_ref().take(ROOM).collect();
    for cookie in &first {
        assert_eq!(look(*cookie).status, 200);
    }
    let full = look(cookies.next().unwrap());
    assert_eq!(full.status, 429, "{}", full.body);
    assert!(full.body.contains("64 connections are watched already"), "{}", full.body);
    assert_eq!(look(first[0]).status, 200);
    assert_eq!(look(1 << 60).status, 404);
    held.finish().unwrap();
    server.finish().unwrap();
    agent.stop().unwrap();
}

/// The buffer has room for what 1,700 connections are told by.
#[test]
fn the_kernel_sends_events_only_while_somebody_follows() {
    let netns = Netns::new("api-silent").unwrap();
    let web = Cgroup::unique("api-silent").unwrap();
    let server = Running::inside(&web, &netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    server.listening().unwrap();
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let lost = || agent.json("/api/v1/health").unwrap()["lost"]["connection_events"].as_u64().unwrap();
    // While nobody reads what is sent.
    let flood = || {
        let signal =
            |signal: &str| output(Command::new("kill").args([signal, &agent.pid().to_string()])).unwrap();
        signal("-STOP");
        let args =
            ["churn", "--to", "127.0.0.1:9601", "--rate", "4000", "--seconds", "30", "--count", "4000"];
        let counts = Running::inside(&web, &netns, &args).unwrap().wait(SOON);
        signal("-CONT");
        assert_eq!(counts.unwrap().failures(), 0);
    };
    flood();
    assert_eq!(lost(), 0);
    let mut command = Tcptide::find().unwrap().command(["trace", "--container", "nobody", "--connect"]);
    let following = Streaming::start(command.arg(format!("http://{}", agent.address()))).unwrap();
    following.wait_for_line(SOON, |line| line.contains("EVENT")).unwrap();
    flood();
    let before = lost();
    assert!(before > 0);
    assert!(following.interrupt().unwrap().status.success());
    // It is found out that nobody reads the stream when something is to be sent, or within a quarter of a second.
    std::thread::sleep(Duration::from_secs(1));
    flood();
    assert_eq!(lost(), before);
    agent.stop().unwrap();
}

/// As a browser asks, which takes gzip.
#[test]
fn a_stream_is_not_held_back_to_be_compressed() {
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let mut stream = TcpStream::connect(agent.address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").unwrap();
    let lines: Vec<String> = BufReader::new(&stream)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| line != ": attached")
        .collect();
    assert!(lines.iter().any(|line| line == "content-type: text/event-stream"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("content-encoding")), "{lines:?}");
    drop(stream);
    agent.stop().unwrap();
}

/// One stream for several questions, as the page asks them.
#[test]
fn answers_are_told_again_when_they_change() {
    const HELD: u64 = 3;
    let netns = Netns::new("api-live").unwrap();
    let (web, app) = (Cgroup::unique("api-live-web").unwrap(), Cgroup::unique("api-live-app").unwrap());
    let server = Running::inside(&app, &netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    server.listening().unwrap();
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let states = format!("/states?container={}", name(&web));
    let asked = [states.as_str(), "/openapi.json", "/edges"].map(|ask| format!("&ask={}", encode(ask)));
    let mut stream = TcpStream::connect(agent.address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let request = format!("GET /api/v1/live?interval=1s{} HTTP/1.1\r\nHost: a\r\n\r\n", asked.concat());
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let mut next = || loop {
        let line = lines.next().unwrap();
        if line == "event: answer" {
            let data = lines.next().unwrap();
            return serde_json::from_str::<Value>(data.strip_prefix("data: ").unwrap()).unwrap();
        }
    };
    let first = [next(), next(), next()];
    assert_eq!(
        first.each_ref().map(|told| told["ask"].as_str().unwrap()),
        [&states, "/openapi.json", "/edges"]
    );
    assert_eq!(first.each_ref().map(|told| told["status"].as_u64().unwrap()), [200, 200, 400]);
    assert_eq!(first[0]["answer"]["states"].as_array().unwrap().len(), 0);
    assert_eq!(first[1]["answer"], agent.json("/api/v1/openapi.json").unwrap());
    assert!(first[2]["answer"]["error"].as_str().unwrap().contains("without --edges"), "{}", first[2]);
    // Only what is another answer comes once more.
    let count = HELD.to_string();
    let held = Running::inside(&web, &netns, &["hold", "--to", "127.0.0.1:9601", "--count", &count]).unwrap();
    held.ready(SOON).unwrap();
    loop {
        let told = next();
        assert_eq!(told["ask"], states);
        if told["answer"]["states"][0]["states"]["established"] == HELD {
            break;
        }
    }
    drop(held);
    assert_eq!(next()["ask"], states);
    drop(stream);
    for (query, text) in [
        ("", "'ask' is missing"),
        ("?ask=/events", "there are /connections"),
        ("?ask=/states&interval=10ms", "from 1s to 1h"),
        (&format!("?ask=/states{}", "&ask=/states".repeat(16)), "16 at most"),
    ] {
        let answer = agent.get(&format!("/api/v1/live{query}")).unwrap();
        assert!(answer.status == 400 && answer.body.contains(text), "{query}: {answer:?}");
    }
    agent.stop().unwrap();
}

/// A stream may last longer than an answer may take, as long as it is read.
#[test]
fn a_stream_lasts_as_long_as_it_is_read() {
    let netns = Netns::new("api-lasting").unwrap();
    let web = Cgroup::unique("api-lasting").unwrap();
    let server = Running::inside(&web, &netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    server.listening().unwrap();
    let agent = Tcptide::find().unwrap().agent(["--web.write-timeout", "1s"]).unwrap();
    let cut = || {
        let reason = [("reason", "write_timeout")];
        agent.scrape().unwrap().sum("tcptide_http_rejected_total", &reason).unwrap() as u64
    };
    let mut command = Tcptide::find().unwrap().command(["trace", "-o", "json", "--connect"]);
    command.arg(format!("http://{}", agent.address())).args(["--container", name(&web)]);
    let following = Streaming::start(&mut command).unwrap();
    let ends = || following.json_lines().unwrap().iter().filter(|line| line["event"] == "close").count();
    wait_until("it to follow", SOON, || {
        churn(&web, &netns, "127.0.0.1:9601", "1");
        Ok((ends() > 0).then_some(()))
    })
    .unwrap();
    // Nothing happens meanwhile.
    std::thread::sleep(Duration::from_secs(3));
    let before = ends();
    churn(&web, &netns, "127.0.0.1:9601", "10");
    wait_until("what comes after", SOON, || Ok((ends() >= before + 20).then_some(()))).unwrap();
    assert!(following.is_running(), "{:?}", following.stderr());
    assert_eq!(cut(), 0);
    assert!(following.interrupt().unwrap().status.success());

    // Somebody who reads nothing is cut off.
    let mut deaf = TcpStream::connect(agent.address()).unwrap();
    deaf.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the reader that reads nothing to be cut off", SOON, || {
        churn(&web, &netns, "127.0.0.1:9601", "1000");
        Ok((cut() > 0).then_some(()))
    })
    .unwrap();
    agent.stop().unwrap();
}

/// A container by the labels of its series.
type Owner = [String; 3];
/// A metric, the values of its own labels, and for a bucket its bound in seconds.
type Series = (String, Vec<String>, Option<String>);

const OWN: [&str; 3] = ["container", "pod", "namespace"];

/// What `/metrics` tells of containers.
fn of_metrics(scrape: &Scrape) -> BTreeMap<(Owner, Series), f64> {
    // Those of network namespaces have the same labels, and so has what is known of a container beside its numbers.
    let others = ["netns", "cgroup_path"];
    let owned = scrape.samples.iter().filter(|sample| {
        let has = |label: &&str| sample.labels.contains_key(*label);
        OWN.iter().all(has) && !others.iter().any(has)
    });
    let key = |sample: &Sample| {
        let mut own: Vec<_> =
            sample.labels.iter().filter(|(label, _)| !OWN.contains(&label.as_str())).collect();
        own.retain(|(label, _)| *label != "le");
        let values = own.into_iter().map(|(_, value)| value.clone()).collect();
        let le = sample.labels.get("le").cloned();
        (OWN.map(|label| sample.label(label).to_owned()), (sample.name.clone(), values, le))
    };
    owned.map(|sample| (key(sample), sample.value)).collect()
}

/// The value of such a series in what `/totals` tells of a container.
fn in_totals(metrics: &Value, (name, values, le): &Series) -> Option<f64> {
    for (suffix, field) in [("_count", "count"), ("_sum", "sum_us"), ("_bucket", "buckets")] {
        let Some(histogram) = name.strip_suffix(suffix).and_then(|name| metrics.get(name)) else { continue };
        let Some(le) = le else {
            let number = histogram[field].as_u64()? as f64;
            return Some(if field == "sum_us" { number / 1e6 } else { number });
        };
        // Those here are not cumulative, and their bounds are in whole microseconds.
        let le: f64 = le.parse().unwrap();
        let is_within = |bucket: &&Value| match bucket["le_us"].as_u64() {
            Some(us) => us as f64 <= le * 1e6,
            None => le.is_infinite(),
        };
        let within = histogram["buckets"].as_array()?.iter().filter(is_within);
        return Some(within.map(|bucket| bucket["count"].as_u64().unwrap()).sum::<u64>() as f64);
    }
    let metric = metrics.get(name)?;
    // With two labels either may come first.
    let orders = [values.clone(), values.iter().rev().cloned().collect()];
    orders.iter().find_map(|path| path.iter().try_fold(metric, |at, value| at.get(value))?.as_f64())
}

#[test]
fn totals_are_what_the_metrics_tell_and_what_the_workloads_counted() {
    let netns = Netns::new("api-totals").unwrap();
    let [web, app] = ["totals-web", "totals-app"].map(|name| Cgroup::unique(name).unwrap());
    let server = Running::inside(&app, &netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    server.listening().unwrap();
    let all = ["--metrics.max-series", "1000000", "--metrics.resolution", "half-octave"];
    let agent = Tcptide::find().unwrap().agent(all).unwrap();
    let held = Running::inside(&web, &netns, &["hold", "--to", "127.0.0.1:9601", "--count", "4"]).unwrap();
    held.ready(SOON).unwrap();
    let worked = churn(&web, &netns, "127.0.0.1:9601", "40");
    assert_eq!((worked.opened, worked.failures()), (40, 0));
    assert_eq!(churn(&web, &netns, "127.0.0.1:9602", "3").failures(), 3);
    let closed = |scrape: &Scrape| {
        [&web, &app]
            .map(|cgroup| scrape.sum("tcptide_closed_total", &[("container", name(cgroup))]).unwrap() as u64)
    };
    wait_until("all to have ended", SOON, || Ok((closed(&agent.scrape()?) == [40; 2]).then_some(())))
        .unwrap();

    let before = of_metrics(&agent.scrape().unwrap());
    let totals = agent.json("/api/v1/totals").unwrap();
    let after = of_metrics(&agent.scrape().unwrap());
    let containers = totals["containers"].as_array().unwrap();
    let of = |cgroup: &Cgroup| {
        let one = containers.iter().find(|one| one["container"]["name"] == name(cgroup));
        one.unwrap_or_else(|| panic!("no {}: {totals}", name(cgroup)))["metrics"].clone()
    };
    let (web_counted, app_counted) = (of(&web), of(&app));
    for (counted, sent, received) in [
        (&web_counted, worked.bytes_sent, worked.bytes_received),
        (&app_counted, worked.bytes_received, worked.bytes_sent),
    ] {
        assert_eq!(counted["tcptide_sent_bytes_total"], sent);
        assert_eq!(counted["tcptide_received_bytes_total"], received);
        assert_eq!(counted["tcptide_connections"]["established"], 4);
        assert_eq!(counted["tcptide_closed_total"]["normal"], 40);
    }
    assert_eq!(web_counted["tcptide_opened_total"]["active"], 47);
    assert_eq!(web_counted["tcptide_connect_failures_total"]["refused"], 3);
    assert_eq!(web_counted["tcptide_connect_duration_seconds"]["count"], 44);
    assert_eq!(app_counted["tcptide_opened_total"]["passive"], 44);

    // Containers that others are told by, too, are for the sums of them.
    let owner = |one: &Value| {
        OWN.map(|label| {
            let field = if label == "container" { "name" } else { label };
            one["container"][field].as_str().unwrap_or_default().to_owned()
        })
    };
    let mut quiet = BTreeMap::<Owner, usize>::new();
    for ((who, series), value) in &before {
        let mine: Vec<_> = containers.iter().filter(|one| owner(one) == *who).collect();
        let told: Vec<_> = mine.iter().filter_map(|one| in_totals(&one["metrics"], series)).collect();
        let Some(later) = after.get(&(who.clone(), series.clone())).copied() else { continue };
        if mine.is_empty() {
            // It has counted nothing.
            assert!(*value <= 0.0, "{who:?} {series:?}");
            continue;
        }
        assert!(!told.is_empty(), "{who:?} {series:?} is missing");
        let told: f64 = told.iter().sum();
        let is_gauge = series.0 == "tcptide_connections";
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6 * a.abs().max(1.0);
        if near(*value, later) {
            assert!(is_gauge || near(*value, told), "{who:?} {series:?}: {value}, {told}");
            *quiet.entry(who.clone()).or_default() += 1;
        } else {
            // It counts on, such as that in which this is asked.
            assert!(
                is_gauge || (*value <= told && told <= later),
                "{who:?} {series:?}: {value}, {told}, {later}"
            );
        }
    }
    for (name, value) in web_counted.as_object().unwrap() {
        let is_it =
            |of: &str| of.strip_prefix(name.as_str()).is_some_and(|rest| ["", "_count"].contains(&rest));
        let is_there = before.keys().any(|(_, (of, ..))| is_it(of));
        assert!(is_there || value.as_object().is_some_and(serde_json::Map::is_empty), "{name} is no metric");
    }
    for cgroup in [&web, &app] {
        let count = quiet.get(&[name(cgroup).to_owned(), String::new(), String::new()]);
        assert!(count.is_some_and(|count| *count > 300), "{quiet:?}");
    }
    // What was asked for, and nothing else.
    let few = format!("/api/v1/totals?metrics=tcptide_sent_bytes_total&container={}", encode(name(&web)));
    let few = agent.json(&few).unwrap();
    let metrics = serde_json::json!({ "tcptide_sent_bytes_total": worked.bytes_sent });
    assert_eq!(
        (few["containers"].as_array().unwrap().len(), &few["containers"][0]["metrics"]),
        (1, &metrics)
    );
    held.finish().unwrap();
    agent.stop().unwrap();
}

#[test]
fn what_is_wrong_is_said() {
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    for (path, status, text) in [
        ("/api/v1/connections?contaner=web", 400, "did you mean container?"),
        ("/api/v1/connections?port=none", 400, "80,443"),
        ("/api/v1/edges", 400, "--edges"),
        ("/api/v1/nothing", 404, "/connections"),
        ("/api/v1/connection", 400, "'cookie' is missing"),
        ("/api/v1/connection?cookie=18446744073709551615", 404, "no connection's socket has the cookie"),
        ("/api/v1/states?port=%00", 400, "port"),
    ] {
        let answer = agent.get(path).unwrap();
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        let said: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(said["error"].as_str().unwrap().contains(text), "{path}: {said}");
    }
    for (args, text) in [
        (vec!["map"], "without --edges"),
        (vec!["map", "--pid", "7"], "--pid cannot be asked"),
        (vec!["conns", "--runtime-socket", "/x"], "--runtime-socket cannot be asked"),
        (vec!["listen", "--duration", "1s"], "--duration cannot be asked"),
    ] {
        let output = as_nobody(&agent, &args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stderr.join("\n").contains(text), "{args:?}: {:?}", output.stderr);
    }
    let own = Tcptide::find().unwrap();
    for (url, text) in [
        ("http://127.0.0.1:1", "cannot ask the agent at http://127.0.0.1:1"),
        ("127.0.0.1:9836", "not an address such as http://127.0.0.1:9836"),
    ] {
        let output = own.run(["conns", "--connect", url]).unwrap();
        assert!(output.stderr.join("\n").contains(text), "{:?}", output.stderr);
    }
    agent.stop().unwrap();
}

/// A client that knows the document only tries what it allows and what it forbids.
#[test]
fn the_document_is_what_the_server_does() {
    let schemathesis = require("schemathesis", "schemathesis (PyPI)").unwrap();
    let agent = Tcptide::find().unwrap().agent(["--edges"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}/api/v1/openapi.json", agent.address());
    let mut command = Command::new(schemathesis);
    // A stream has no end to wait for.
    command.args([
        "run",
        &url,
        "--exclude-path",
        "/events",
        "--exclude-path",
        "/live",
        "--max-examples",
        "20",
        "--no-color",
        "--seed",
        "7",
    ]);
    let said = command.current_dir(folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && text.contains("Tested: 10"), "{text}");
    agent.stop().unwrap();
}
