//! The mixin: every query of the dashboards and rules says something of real traffic, to a real Prometheus.
//!
//! That names, labels and values are those of the table of metrics is a test without root
//! (`crates/model/tests/dashboards`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::forwarder::{Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::prometheus::{Prometheus, promtool};
use functional::samples::Scrape;
use functional::tcptide::{Agent, Tcptide};
use functional::witness::sockets;
use functional::workload::Running;
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};
use rustix::process::Signal;
use serde_json::Value;

mod host;

use host::{Host, address, knock, signal};

/// How long it may take until every query says something, on a machine that stands still now and then.
const PATIENCE: Duration = Duration::from_secs(60);
/// `MSG_FASTOPEN`.
const FAST_OPEN: SendFlags = SendFlags::from_bits_retain(0x2000_0000);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn prometheus_files() -> PathBuf {
    repository().join("packaging/prometheus")
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

#[test]
fn promtool_takes_the_rules_and_their_tests() {
    let folder = prometheus_files();
    promtool(&folder, &["check", "rules", "tcptide.rules.yml", "tcptide.alerts.yml"]).unwrap();
    promtool(&folder, &["test", "rules", "tests.yml"]).unwrap();
}

/// `tcptide` with the options that a runbook names takes them: what it does not know it says before its help.
#[test]
fn the_commands_of_runbooks_exist() {
    let tcptide = Tcptide::find().unwrap();
    let mut commands = BTreeSet::new();
    let pages = fs::read_dir(repository().join("docs/runbooks")).unwrap().map(|page| page.unwrap().path());
    for page in pages.chain([repository().join("docs/operating.md")]) {
        let text = fs::read_to_string(&page).unwrap();
        for block in text.split("```sh\n").skip(1) {
            let lines = block.split("```").next().unwrap().lines();
            commands.extend(lines.filter_map(|line| line.strip_prefix("tcptide ")).map(str::to_owned));
        }
    }
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands {
        let told = tcptide.run(command.split(' ').chain(["--help"])).unwrap();
        assert!(told.status.success(), "tcptide {command}: {}", told.stderr.join("\n"));
    }
    assert!(!tcptide.run(["conns", "--no-such-option", "--help"]).unwrap().status.success());
}

/// Where a query stands, and the query.
struct Query {
    stands_in: String,
    promql: String,
}

/// Each query of each dashboard, with all chosen, as Grafana sends it; those that find a variable's values, too.
fn of_dashboards() -> Vec<Query> {
    let mut all = Vec::new();
    for file in fs::read_dir(repository().join("packaging/grafana")).unwrap().map(|file| file.unwrap().path())
    {
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let name = text(&dashboard, "title");
        let variables: Vec<_> = dashboard["templating"]["list"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|variable| variable["type"] == "query")
            .collect();
        let chosen = |promql: &str| {
            variables.iter().fold(promql.replace("$__rate_interval", "1m"), |promql, variable| {
                promql.replace(&format!("${}", text(variable, "name")), text(variable, "allValue"))
            })
        };
        for variable in &variables {
            let query = text(variable, "definition");
            let inside = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
            let (selector, label) = inside.rsplit_once(", ").unwrap();
            let promql = chosen(&format!("count by ({label}) ({selector})"));
            all.push(Query { stands_in: format!("{name}: ${label}"), promql });
        }
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let promql = chosen(text(target, "expr"));
                assert!(!promql.contains('$'), "{promql}");
                all.push(Query { stands_in: format!("{name}: {}", text(panel, "title")), promql });
            }
        }
    }
    assert!(all.len() > 100, "{}", all.len());
    all
}

/// Each expression of the rules. Those of alerts are made to say what they compare: `bool` leaves 0 where nothing is to
/// be alerted of, so that both sides are seen to be there and to fit.
fn of_rules() -> Vec<Query> {
    let mut all = Vec::new();
    for file in ["tcptide.rules.yml", "tcptide.alerts.yml"] {
        let path = prometheus_files().join(file);
        let rules: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        for rule in
            rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
        {
            let expr = text(rule, "expr");
            if let Some(recorded) = rule["record"].as_str() {
                for promql in [expr, recorded] {
                    all.push(Query { stands_in: recorded.to_owned(), promql: promql.to_owned() });
                }
                continue;
            }
            let promql = match text(rule, "alert") {
                // Of what is there.
                "TcptideAbsent" => {
                    expr.strip_prefix("absent(").unwrap().strip_suffix(')').unwrap().to_owned()
                }
                // Nothing was six hours ago.
                "TcptideConnectionsGrow" => compared(&expr.replace(" offset 6h", "")),
                _ => compared(expr),
            };
            all.push(Query { stands_in: text(rule, "alert").to_owned(), promql });
        }
    }
    assert!(all.len() > 50, "{}", all.len());
    all
}

/// The same with `bool` behind each comparison that stands in no parentheses.
fn compared(expr: &str) -> String {
    let (mut depth, mut made) = (0, String::new());
    let mut chars = expr.chars().peekable();
    while let Some(char) = chars.next() {
        made.push(char);
        match char {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth -= 1,
            '>' | '<' if depth == 0 => made.push_str(" bool"),
            '=' if depth == 0 && chars.peek() == Some(&'=') => {
                chars.next();
                made.push_str("= bool");
            }
            _ => {}
        }
    }
    made
}

#[test]
fn a_comparison_becomes_a_number() {
    let expr = "a{x=~\"y\"} / (b > 0)\n  > 0.1 and c == 1";
    assert_eq!(compared(expr), "a{x=~\"y\"} / (b > 0)\n  > bool 0.1 and c == bool 1");
}

/// Those queries that say nothing here, and must not: of what this kernel does not let an agent measure.
fn without_answer(queries: &[Query], scrape: &Scrape) -> BTreeSet<String> {
    let runs = |program: &str| {
        scrape.has("tcptide_program_status")
            && scrape
                .select("tcptide_program_status", &[("program", program)])
                .any(|status| status.label("status") == "attached")
    };
    let is_whole = scrape
        .select("tcptide_program_status", &[])
        .all(|status| !["refused", "unsupported"].contains(&status.label("status")));
    let absent: Vec<_> = [
        ("tcptide_accept_wait_seconds_", !runs("accepted")),
        ("tcptide_accept_wait_bound_seconds_", runs("accepted")),
        ("tcptide_listen_overflows_total", !runs("overflow_syn")),
        ("tcptide_receive_collapses_total", !runs("collapsed")),
        ("status=~\"refused|unsupported\"", is_whole),
    ]
    .into_iter()
    .filter(|(_, is_absent)| *is_absent)
    .map(|(part, _)| part)
    .collect();
    let promqls = queries.iter().map(|query| query.promql.clone());
    promqls.filter(|promql| absent.iter().any(|part| promql.contains(part))).collect()
}

/// Traffic that has something of everything, until it is dropped.
struct Trouble {
    _running: Vec<Running>,
    _held: Vec<OwnedFd>,
    _path: Forwarder,
    _netns: [Netns; 2],
    _containers: [Cgroup; 2],
    slow: Host,
    ports: Netns,
    fast_open: TcpListener,
}

const NEAR: &str = "198.18.61.1";
const FAR: &str = "198.18.61.2";
/// Where nobody accepts.
const FULL: &str = "127.0.0.1:7001";

impl Trouble {
    /// `web` asks `app` over a path with losses, and one of its servers never reads; `slow` does not accept.
    fn start() -> Self {
        let [near, far] = ["mixin-near", "mixin-far"].map(|name| Netns::new(name).unwrap());
        let loss = Impairment { drop: 0.03, delay: Duration::from_millis(2), ..Impairment::default() };
        let path = Forwarder::build(&near, &far)
            .addresses(NEAR.parse().unwrap(), FAR.parse().unwrap())
            .impair_both(loss)
            .start()
            .unwrap();
        far.sysctl("net.ipv4.tcp_rmem", "4096 131072 131072").unwrap();
        let [web, app] = ["mixin-web", "mixin-app"].map(|name| Cgroup::unique(name).unwrap());
        let serve = |port: u16, more: &[&str]| {
            let at = format!("{FAR}:{port}");
            let server = Running::inside(&app, &far, &[&["serve", "--listen", &at], more].concat()).unwrap();
            server.listening().unwrap();
            server
        };
        let ask = |what: &str, port: u16, more: &[&str]| {
            let to = format!("{FAR}:{port}");
            Running::inside(&web, &near, &[&[what, "--to", &to], more].concat()).unwrap()
        };
        let often = ["--rate", "20", "--seconds", "300", "--threads", "4"];
        let mut running = vec![serve(7001, &[]), serve(7002, &["--bytes-back", "0"])];
        let held = ask("hold", 7001, &["--count", "3", "--timeout", "60"]);
        held.ready(PATIENCE).unwrap();
        let stalled = ask("stream", 7002, &["--bytes", "4000000", "--no-answer", "--timeout", "300"]);
        wait_until("the stream to begin", PATIENCE, || {
            let seen = sockets(&far, &["state", "established", "sport", "=", ":7002"])?;
            Ok(seen.first().filter(|socket| socket.bytes_received() > 0).map(|_| ()))
        })
        .unwrap();
        signal(&running[1], Signal::STOP);
        running.extend([held, stalled]);
        running.push(ask("churn", 7001, &[&often as &[&str], &["--bytes", "9000"]].concat()));
        running.push(ask("churn", 7001, &[&often as &[&str], &["--reset"]].concat()));
        running.push(ask("churn", 7003, &often));

        let slow = Host::new("mixin-slow");
        for (name, value) in [("tcp_syncookies", "2"), ("tcp_max_tw_buckets", "4"), ("tcp_fastopen", "1027")]
        {
            slow.netns.sysctl(&format!("net.ipv4.{name}"), value).unwrap();
        }
        running.push(slow.listen(address(FULL), 2));
        let held = slow.knock(address(FULL), 3);
        running.push(slow.serve(address("127.0.0.1:7002"), 64));
        let churn = [&["churn", "--to", "127.0.0.1:7002"], &often as &[&str]].concat();
        running.push(Running::inside(&slow.cgroup, &slow.netns, &churn).unwrap());
        let fast_open = slow.netns.enter(|| Ok(TcpListener::bind("127.0.0.1:7003")?)).unwrap();
        let ports = Netns::new("mixin-ports").unwrap();
        ports.sysctl("net.ipv4.ip_local_port_range", "40000 40001").unwrap();
        let (netns, containers) = ([near, far], [web, app]);
        Self {
            _running: running,
            _held: held,
            _path: path,
            _netns: netns,
            _containers: containers,
            slow,
            ports,
            fast_open,
        }
    }

    /// What does not happen by itself.
    fn once_more(&self) -> anyhow::Result<()> {
        // Turned away.
        drop(knock(&self.slow.netns, None, address(FULL), 1));
        // Data with the SYN.
        let at = self.fast_open.local_addr()?;
        let client = self.slow.netns.enter(|| {
            let client = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            sendto(&client, b"hello", FAST_OPEN, &at)?;
            Ok(client)
        })?;
        self.fast_open.accept()?.0.read_exact(&mut [0; 5])?;
        drop(client);
        // No port is left for a third one.
        self.ports.enter(|| {
            let to = TcpListener::bind("127.0.0.1:7000")?;
            let held = [TcpStream::connect(to.local_addr()?)?, TcpStream::connect(to.local_addr()?)?];
            assert!(TcpStream::connect(to.local_addr()?).is_err());
            // They are to leave no TIME_WAIT behind that keeps the ports.
            held.iter().try_for_each(|one| Ok(set_socket_linger(one, Some(Duration::ZERO))?))
        })?;
        self.no_room_for_what_comes()
    }

    /// A receiver offers a large window, and then has no room for what was sent into it.
    fn no_room_for_what_comes(&self) -> anyhow::Result<()> {
        self.slow.netns.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            set_socket_recv_buffer_size(&listener, 200_000)?;
            let mut sender = TcpStream::connect(listener.local_addr()?)?;
            sender.set_nodelay(true)?;
            sender.set_nonblocking(true)?;
            let (mut receiver, _) = listener.accept()?;
            (0..100).try_for_each(|_| sender.write_all(&[0; 100]))?;
            // Who reads offers its window anew; what is sent into that comes.
            receiver.read_exact(&mut [0])?;
            set_socket_recv_buffer_size(&receiver, 1)?;
            // Until nothing more is taken.
            let _ = (0..200).try_for_each(|_| sender.write_all(&[0; 100]));
            Ok(())
        })
    }
}

/// Every metric of `docs/metrics.md`.
fn documented() -> Vec<String> {
    let page = fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    let names = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let names: Vec<_> = names.filter(|name| name.starts_with("tcptide_")).map(str::to_owned).collect();
    assert!(names.len() > 60, "{names:?}");
    names
}

/// What the agent says of its own process is what the kernel says of it.
fn the_agent_knows_what_it_takes(agent: &Agent) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", agent.pid())).unwrap();
    // Behind the name: state, and so on; user and system time are the 14th and 15th, in hundredths of a second.
    let cpu = || -> f64 {
        let stat = read("stat");
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        [11, 12].iter().map(|&at| fields[at].parse::<f64>().unwrap() / 100.0).sum()
    };
    let status = |key: &str| -> f64 {
        let status = read("status");
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
    };
    let before = cpu();
    let scrape = agent.scrape().unwrap();
    let after = cpu();
    let told = scrape.sum("tcptide_process_cpu_seconds_total", &[]).unwrap();
    assert!((before - 0.03..=after + 0.03).contains(&told), "{before} {told} {after}");
    let told = scrape.sum("tcptide_process_resident_memory_bytes", &[]).unwrap();
    assert!(told > status("VmRSS:") / 2.0 && told < status("VmHWM:") * 1.1, "{told}");
}

#[test]
fn every_query_says_something_of_real_traffic() {
    let trouble = Trouble::start();
    let folder = tempfile::tempdir().unwrap();
    let [settings, web] =
        ["settings.toml", "web.yml"].map(|name| folder.path().join(name).display().to_string());
    fs::write(&settings, "[metrics]\ngrace = \"4m\"\n").unwrap();
    fs::write(&web, "http_server_config: { headers: { X-Frame-Options: deny } }\n").unwrap();
    let options = ["--edges", "--reconcile=1s", "--read-delay", "--program-stats", "always"];
    let files = ["--config.file", &settings, "--web.config.file", &web];
    let agent = Tcptide::find().unwrap().agent(options.iter().chain(&files)).unwrap();
    let files = ["tcptide.rules.yml", "tcptide.alerts.yml"].map(|file| prometheus_files().join(file));
    let files: Vec<_> = files.iter().map(PathBuf::as_path).collect();
    let prometheus = Prometheus::with_rules(agent.address(), &files).unwrap();
    let queries: Vec<_> = of_dashboards().into_iter().chain(of_rules()).collect();
    let silent = without_answer(&queries, &agent.scrape().unwrap());
    let mut waiting: Vec<_> = queries.iter().filter(|query| !silent.contains(&query.promql)).collect();

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let nagging = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                trouble.once_more().unwrap();
                thread::sleep(Duration::from_millis(200));
            }
        });
        let answered = wait_until("an answer to each query", PATIENCE, || {
            let mut left = Vec::new();
            for query in waiting.drain(..) {
                if !says_something(&prometheus, &query.promql)? {
                    left.push(query);
                }
            }
            waiting = left;
            thread::sleep(Duration::from_millis(500));
            Ok(waiting.is_empty().then_some(()))
        });
        done.store(true, Ordering::Relaxed);
        nagging.join().unwrap();
        let left: Vec<_> = waiting.iter().map(|query| (&query.stands_in, &query.promql)).collect();
        assert!(answered.is_ok(), "{answered:?}: {left:#?}");
    });
    for promql in &silent {
        assert!(!says_something(&prometheus, promql).unwrap(), "{promql}");
    }
    every_metric_is_there(&agent.scrape().unwrap(), &silent);
    let rules = prometheus.json("/api/v1/rules").unwrap();
    for rule in
        rules["data"]["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap())
    {
        assert_eq!((text(rule, "health"), rule["lastError"].as_str().unwrap_or("")), ("ok", ""), "{rule}");
    }
    the_agent_knows_what_it_takes(&agent);
    agent.stop().unwrap();
}

/// Whether there is a number among the answer.
fn says_something(prometheus: &Prometheus, promql: &str) -> anyhow::Result<bool> {
    let series = prometheus.query(promql)?;
    let number = |one: &Value| one.pointer("/value/1")?.as_str()?.parse::<f64>().ok();
    Ok(series.iter().filter_map(number).any(|number| !number.is_nan()))
}

/// The story left out nothing that can be measured here.
fn every_metric_is_there(scrape: &Scrape, silent: &BTreeSet<String>) {
    for metric in documented() {
        let is_there = scrape.has(&metric) || scrape.has(&format!("{metric}_count"));
        let is_silent = silent.iter().any(|promql| promql.contains(&metric));
        assert!(is_there || is_silent, "no {metric}");
    }
}
