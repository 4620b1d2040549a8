//! What is followed or watched for a while is the same from a running agent, asked by somebody without privileges, as from the
//! command's own programs, and as the workloads themselves counted it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::forwarder::{Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::{Agent, Output, Streaming, Tcptide};
use functional::workload::{Counts, Running};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn name(cgroup: &Cgroup) -> &str {
    cgroup.path().to_str().unwrap()
}

fn us(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// A command of somebody without any privilege, who asks the agent.
fn as_nobody(agent: &Agent, args: &[&str]) -> Command {
    let url = format!("http://{}", agent.address());
    Tcptide::find().unwrap().command_of_nobody([args, &["--connect", &url]].concat())
}

/// The same command twice, ready: by its own programs, and as nobody from the agent.
fn both(agent: &Agent, args: &[&str]) -> [Streaming; 2] {
    let direct = Tcptide::find().unwrap().spawn(args).unwrap();
    let asked = Streaming::start(&mut as_nobody(agent, args)).unwrap();
    for one in [&direct, &asked] {
        one.wait_ready().unwrap();
    }
    [direct, asked]
}

fn ended(both: [Streaming; 2]) -> [Output; 2] {
    // What was underway is told in any case.
    both.map(|one| one.interrupt().unwrap().success().unwrap())
}

fn of<'a>(lines: &'a [Value], cgroup: &Cgroup) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["container"]["cgroup_path"] == name(cgroup)).collect()
}

/// Counts by the bucket's bound.
fn buckets(histogram: &Value) -> BTreeMap<u64, u64> {
    let all = histogram["buckets"].as_array().unwrap().iter();
    all.map(|bucket| (bucket["le_us"].as_u64().unwrap_or(u64::MAX), us(&bucket["count"]))).collect()
}

/// How many are in other buckets.
fn moved(a: &BTreeMap<u64, u64>, b: &BTreeMap<u64, u64>) -> u64 {
    let bounds = a.keys().chain(b.keys()).collect::<std::collections::BTreeSet<_>>();
    let of = |all: &BTreeMap<u64, u64>, le: &u64| all.get(le).copied().unwrap_or(0);
    bounds.into_iter().map(|le| of(a, le).abs_diff(of(b, le))).sum()
}

fn churn(cgroup: &Cgroup, netns: &Netns, to: &str, count: &str) -> Counts {
    let args = ["churn", "--to", to, "--rate", "200", "--seconds", "20", "--count", count, "--bytes", "100"];
    Running::inside(cgroup, netns, &args).unwrap().wait(SOON).unwrap()
}

#[test]
fn connects_are_told_by_an_agent_as_by_the_programs() {
    let netns = Netns::new("remote-connlat").unwrap();
    let [web, app] = ["remote-web", "remote-app"].map(|name| Cgroup::unique(name).unwrap());
    let server = Running::inside(&app, &netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    server.listening().unwrap();
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let all = both(&agent, &["connlat", "-o", "json", "--container", name(&web)]);
    let tables = both(&agent, &["connlat", "--container", name(&web), "--port", "9602"]);
    let slow = both(&agent, &["connlat", "-o", "json", "--container", name(&web), "--min", "10m"]);
    let often = both(&agent, &["connlat", "-o", "json", "--container", name(&web), "--interval", "300ms"]);
    let worked = churn(&web, &netns, "127.0.0.1:9601", "60");
    let refused = churn(&web, &netns, "127.0.0.1:9602", "7");
    assert_eq!((worked.opened, refused.failures()), (60, 7));
    thread::sleep(Duration::from_millis(500));

    let told = ended(all).map(|output| output.json_lines().unwrap());
    for lines in &told {
        let (summaries, each): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line["summary"] == true);
        assert_eq!((summaries.len(), each.len()), (1, 67), "{lines:#?}");
        assert_eq!(summaries[0]["container"]["cgroup_path"], name(&web));
        let connect = &summaries[0]["connect"];
        assert_eq!(
            (us(&connect["count"]), &summaries[0]["failures"]),
            (60, &serde_json::json!({ "refused": 7 }))
        );
        let of_each = each.iter().filter(|line| line["event"] == "established");
        let of_each: Vec<u64> = of_each.map(|line| us(&line["connect_us"])).collect();
        assert_eq!((of_each.len(), of_each.iter().sum::<u64>()), (60, us(&connect["sum_us"])));
        assert_eq!(of_each.iter().min(), connect["min_us"].as_u64().as_ref());
        // The workload's own clock begins before, and ends after.
        let own = worked.connect_us.unwrap();
        assert!(
            us(&connect["min_us"]) as f64 <= own.min && us(&connect["max_us"]) as f64 <= own.max,
            "{own:?}"
        );
    }
    // Two clocks of one kernel, read by programs that run one after the other.
    let [direct, asked] = &told;
    let by_port = |lines: &[Value]| -> BTreeMap<u64, Value> {
        let each = lines.iter().filter(|line| line["summary"] != true);
        each.map(|line| (us(&line["local"]["port"]), line.clone())).collect()
    };
    let (direct, asked) = (by_port(direct), by_port(asked));
    assert_eq!(direct.keys().collect::<Vec<_>>(), asked.keys().collect::<Vec<_>>());
    let mut apart = Vec::new();
    for (a, b) in direct.values().zip(asked.values()) {
        for same in
            ["event", "container", "process", "direction", "local", "peer", "netns", "cookie", "close"]
        {
            assert_eq!(a[same], b[same], "{same}");
        }
        let took = if a["event"] == "fail" { "duration_us" } else { "connect_us" };
        apart.push(us(&a[took]).abs_diff(us(&b[took])));
    }
    apart.sort_unstable();
    assert!(apart[apart.len() * 9 / 10] < 1000, "{apart:?}");

    // The tables have the same columns, and the same rows but for the times.
    let [direct, asked] = ended(tables).map(|output| output.stdout);
    assert_eq!(direct[0], asked[0]);
    let rows = |lines: &[String]| {
        lines.iter().filter(|line| line.contains(":9602") && line.contains("refused")).count()
    };
    assert_eq!((rows(&direct), rows(&asked)), (7, 7), "{asked:?}");
    assert_eq!((direct.last(), direct.len()), (asked.last(), asked.len()));
    assert_eq!(asked.last().map(String::as_str), Some("failed: 7 refused"));
    for output in ended(slow) {
        assert_eq!(output.stdout, [""; 0]);
    }
    for output in ended(often) {
        let lines = output.json_lines().unwrap();
        let count = |summary: bool| -> u64 {
            let of = lines.iter().filter(|line| line["summary"] == summary);
            of.map(|line| us(&line["connect"]["count"])).sum()
        };
        assert_eq!((count(true), count(false)), (60, 60), "{lines:?}");
    }
    agent.stop().unwrap();
}

/// A client and a server, each in a namespace and a cgroup of its own, 10 ms apart.
struct Apart {
    netns: [Netns; 2],
    cgroups: [Cgroup; 2],
    _path: Forwarder,
    at: SocketAddr,
}

impl Apart {
    fn new(number: u8) -> Self {
        let netns = ["remote-a", "remote-b"].map(|name| Netns::new(name).unwrap());
        let cgroups = ["remote-client", "remote-server"].map(|name| Cgroup::unique(name).unwrap());
        let [at_a, at_b] = [1, 2].map(|host| Ipv4Addr::new(198, 18, number, host));
        let way = Impairment { delay: Duration::from_millis(5), ..Impairment::default() };
        let path = Forwarder::between(&netns[0], at_a.into(), &netns[1], at_b.into(), way).unwrap();
        Self { netns, cgroups, _path: path, at: (at_b, 9601).into() }
    }

    fn serve(&self) -> Running {
        let server =
            Running::inside(&self.cgroups[1], &self.netns[1], &["serve", "--listen", &self.at.to_string()]);
        let server = server.unwrap();
        server.listening().unwrap();
        server
    }

    fn start(&self, what: &str, args: &[&str]) -> Running {
        let at = self.at.to_string();
        let args = [&[what, "--to", &at], args].concat();
        Running::inside(&self.cgroups[0], &self.netns[0], &args).unwrap()
    }
}

#[test]
fn round_trips_are_told_by_an_agent_as_by_the_programs() {
    let story = Apart::new(71);
    let server = story.serve();
    // They were there before, and do nothing.
    let held = story.start("hold", &["--count", "3"]);
    held.ready(SOON).unwrap();
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let earlier = story.start("pingpong", &["--count", "20"]).wait(SOON).unwrap();
    assert_eq!(earlier.requests, 20);
    // Its other end ends a round trip later.
    thread::sleep(Duration::from_millis(500));
    let names = story.cgroups.each_ref().map(name).join(",");
    let args = ["rtt", "-o", "json", "--container", &names];
    let all = both(&agent, &args);
    let often = both(&agent, &[&args[..], &["--interval", "300ms"]].concat());
    let table = both(&agent, &["rtt", "--container", name(&story.cgroups[0])]);
    // Begun meanwhile, some of them ended and one not.
    let ping = story.start("pingpong", &["--count", "100"]);
    let short = story.start("churn", &["--rate", "50", "--seconds", "20", "--count", "12", "--bytes", "100"]);
    assert_eq!(short.wait(SOON).unwrap().opened, 12);
    let counts = ping.wait(SOON).unwrap();
    assert_eq!(counts.requests, 100);
    let mut lasting = story.start("speak", &[]);
    for _ in 0..5 {
        lasting.say(100).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    let [direct, asked] = ended(all).map(|output| output.json_lines().unwrap());
    assert_eq!((direct.len(), asked.len()), (2, 2), "{direct:#?} {asked:#?}");
    for cgroup in &story.cgroups {
        let (a, b) = (of(&direct, cgroup)[0], of(&asked, cgroup)[0]);
        assert_eq!(a["container"], b["container"]);
        for line in [a, b] {
            assert_eq!((us(&line["connections"]), &line["summary"]), (14, &Value::Bool(true)), "{line}");
            // One for each handshake and each request, and few more.
            let (count, sum) = (us(&line["rtt"]["count"]), us(&line["rtt"]["sum_us"]));
            assert!((110..=150).contains(&count) && sum / count >= 10_000, "{line}");
            assert!((10_000..14_000).contains(&us(&line["min_us"])), "{line}");
        }
        // What the client's own requests took has their round trips in it, and not those of the answers.
        if name(cgroup) == name(&story.cgroups[0]) {
            assert!(us(&b["min_us"]) as f64 <= counts.round_trip_us.unwrap().min, "{b} {counts:?}");
        }
        let apart = moved(&buckets(&a["rtt"]), &buckets(&b["rtt"]));
        assert!(apart <= 6, "{apart}: {a} {b}");
        assert!(us(&a["min_us"]).abs_diff(us(&b["min_us"])) < 500, "{a} {b}");
        assert!(us(&a["queueing_us"]).abs_diff(us(&b["queueing_us"])) < 5000, "{a} {b}");
    }
    for output in ended(often) {
        let lines = output.json_lines().unwrap();
        for cgroup in &story.cgroups {
            let (whole, parts): (Vec<_>, Vec<_>) =
                of(&lines, cgroup).into_iter().partition(|line| line["summary"] == true);
            let sum: u64 = parts.iter().map(|line| us(&line["rtt"]["count"])).sum();
            assert_eq!((us(&whole[0]["rtt"]["count"]), whole.len()), (sum, 1), "{lines:?}");
            assert_eq!(us(&whole[0]["connections"]), 14, "{lines:?}");
            assert!(parts.len() > 3, "{lines:?}");
        }
    }
    let [direct, asked] = ended(table).map(|output| output.stdout);
    assert_eq!(direct.len(), asked.len(), "{direct:?} {asked:?}");
    assert!(asked.last().unwrap().ends_with("connections 14"), "{asked:?}");
    lasting.let_go(SOON).unwrap();
    held.finish().unwrap();
    server.finish().unwrap();
    agent.stop().unwrap();
}

/// The causes of each connection, by its cookie.
fn causes(output: Output) -> BTreeMap<u64, Vec<String>> {
    let output = output.success().unwrap();
    let of = |one: &Value| {
        let verdicts = one["verdicts"].as_array().unwrap();
        let causes = verdicts.iter().map(|verdict| verdict["cause"].as_str().unwrap().to_owned());
        (us(&one["connection"]["cookie"]), causes.collect())
    };
    output.json().unwrap().as_array().unwrap().iter().map(of).collect()
}

#[test]
fn what_holds_connections_back_is_told_by_an_agent_as_by_the_programs() {
    let netns = Netns::new("remote-explain").unwrap();
    let agent = Tcptide::find().unwrap().agent(["--read-delay"]).unwrap();
    let unaware = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let (listener, full, idle, waiting) = netns
        .enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let to = listener.local_addr()?;
            let [full, idle, waiting] = [(); 3].map(|()| TcpStream::connect(to));
            Ok((listener, full?, idle?, waiting?))
        })
        .unwrap();
    // Nobody accepts the third one.
    let accepted = [listener.accept().unwrap(), listener.accept().unwrap()];
    full.set_nonblocking(true).unwrap();
    let much = vec![0; 65536];
    while (&full).write(&much).is_ok() {}
    let to = listener.local_addr().unwrap().port();
    let port = to.to_string();
    let args = ["explain", "-o", "json", "--duration", "3s", "--port", &port];
    let ask = |agent: &Agent, args: &[&str]| Tcptide::run_command(&mut as_nobody(agent, args)).unwrap();
    let [direct, asked, without] = thread::scope(|scope| {
        let direct = scope.spawn(|| Tcptide::find().unwrap().run(args).unwrap());
        let asked = scope.spawn(|| ask(&agent, &args));
        let without = ask(&unaware, &args);
        [direct.join().unwrap(), asked.join().unwrap(), without]
    });
    let says_so = |output: &Output| output.stderr.iter().any(|line| line.contains("--read-delay"));
    assert!(!says_so(&asked) && says_so(&without), "{:?} {:?}", asked.stderr, without.stderr);
    let items = asked.json().unwrap();
    let [direct, asked, without] = [direct, asked, without].map(causes);
    // Both ends of three; of the listener there is nothing to say.
    assert_eq!((&direct, direct.len()), (&asked, 6));
    // What it does not measure speaks for nothing; none of this needs it.
    assert_eq!(asked, without);
    let cookie = |local: u16, peer: u16| {
        let is_it = |one: &&Value| {
            let ends = ["local", "peer"].map(|end| one["connection"][end]["port"].as_u64());
            ends == [local, peer].map(|port| Some(port.into()))
        };
        let one = items.as_array().unwrap().iter().find(is_it);
        us(&one.unwrap_or_else(|| panic!("no {local} -> {peer}: {items}"))["connection"]["cookie"])
    };
    let [full_port, idle_port, waiting_port] =
        [&full, &idle, &waiting].map(|stream| stream.local_addr().unwrap().port());
    for (local, peer, cause) in [
        (full_port, to, "receiver_slow"),
        (to, full_port, "slow_to_read"),
        (idle_port, to, "nothing_to_send"),
        (to, waiting_port, "slow_to_accept"),
    ] {
        let cookie = cookie(local, peer);
        assert_eq!(asked[&cookie], [cause]);
        // One alone, in words.
        let output = ask(&agent, &["explain", &cookie.to_string(), "--duration", "1s"]).success().unwrap();
        assert_eq!(output.stdout.len(), 2, "{output:?}");
        assert!(output.stdout[0].ends_with(&format!("cookie {cookie}")), "{output:?}");
    }
    let unknown = ask(&agent, &["explain", "18446744073709551615", "--duration", "100ms"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(unknown.stderr.join(" ").contains("no connection has the cookie"), "{unknown:?}");
    drop((accepted, full, idle, waiting));
    agent.stop().unwrap();
    unaware.stop().unwrap();
}

#[test]
fn two_agents_are_not_taken_for_one() {
    let netns = Netns::new("remote-anew").unwrap();
    let [web, app] = ["anew-web", "anew-app"].map(|name| Cgroup::unique(name).unwrap());
    let server = Running::inside(&app, &netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    server.listening().unwrap();
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let address = agent.address().to_string();
    let held = Running::inside(&web, &netns, &["hold", "--to", "127.0.0.1:9601", "--count", "2"]).unwrap();
    held.ready(SOON).unwrap();
    let args = ["explain", "--duration", "15s", "--container", name(&web)];
    let looking = Streaming::start(&mut as_nobody(&agent, &args)).unwrap();
    wait_until("the first look", SOON, || {
        Ok(looking.stderr().iter().any(|line| line.contains("looking again")).then_some(()))
    })
    .unwrap();
    agent.stop().unwrap();
    let other = Tcptide::find().unwrap().spawn(["agent", "--web.listen-address", &address]).unwrap();
    other.wait_ready().unwrap();
    let output = looking.wait(SOON).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
    assert!(output.stderr.join("\n").contains("the agent was started anew"), "{output:?}");
    other.interrupt().unwrap();
    held.finish().unwrap();
}

#[test]
fn what_an_agent_cannot_tell_is_an_error() {
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    for (args, text) in [
        (vec!["rtt", "--by", "peer"], "--by peer: an agent counts round trips by container only"),
        (vec!["rtt", "--by", "edge"], "--by edge"),
        (vec!["rtt", "--port", "80"], "--port cannot be asked"),
        (vec!["rtt", "--peer-container", "a"], "--peer-container cannot be asked"),
        (vec!["rtt", "--buffer", "64"], "--buffer cannot be asked"),
        (vec!["connlat", "--peers"], "--peers cannot be asked"),
        (vec!["connlat", "--dns"], "--dns cannot be asked"),
        (vec!["explain", "--kubeconfig", "/x"], "--kubeconfig cannot be asked"),
        (vec!["trace", "--read-delay"], "--read-delay cannot be asked"),
    ] {
        let output = Tcptide::run_command(&mut as_nobody(&agent, &args)).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stderr.join("\n").contains(text), "{args:?}: {:?}", output.stderr);
        assert_eq!(output.stdout, [""; 0], "{args:?}");
    }
    // An agent that ends is told of.
    let streams = ["connlat", "rtt", "trace"].map(|command| {
        let stream = Streaming::start(&mut as_nobody(&agent, &[command, "--container", "nobody"])).unwrap();
        stream.wait_ready().unwrap();
        stream
    });
    agent.stop().unwrap();
    for stream in streams {
        let output = stream.wait(SOON).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stderr.join("\n").contains("the agent ended the stream"), "{output:?}");
    }
}
