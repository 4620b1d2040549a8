//! Bad input and bad places: each gets a clear answer, and none a panic.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::pipe;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use functional::http;
use functional::netns::Netns;
use functional::process::{Reading, output, require, shown};
use functional::samples::Scrape;
use functional::tcptide::{Streaming, Tcptide};
use functional::witness::sockets;
use functional::workload::{Churn, Client, Held, ServeOptions, Server, churn};
use tempfile::TempDir;

/// The commands that look at sockets, each so that it ends by itself.
const WATCHING: [&[&str]; 6] = [
    &["trace", "--duration", "800ms"],
    &["connlat", "--duration", "800ms"],
    &["rtt", "--duration", "800ms"],
    &["conns"],
    &["states"],
    &["agent", "--web.listen-address", "127.0.0.1:0"],
];
/// The other commands.
const OTHERS: [&[&str]; 2] = [&["containers", "--all"], &["doctor"]];

fn tcptide() -> Tcptide {
    Tcptide::find().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A copy of the program where everybody may run it.
struct Public {
    folder: TempDir,
}

impl Public {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        fs::copy(tcptide().path(), folder.path().join("tcptide")).unwrap();
        Self { folder }
    }

    /// Run by a user that is nobody and has these capabilities only.
    fn as_nobody(&self, capabilities: &[&str], args: &[&str]) -> Command {
        let granted = capabilities.iter().fold("-all".to_owned(), |set, capability| set + ",+" + capability);
        let mut command = Command::new(require("setpriv", "util-linux").unwrap());
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
            command.arg(format!("{set}={granted}"));
        }
        command.arg(self.folder.path().join("tcptide")).args(args);
        command
    }
}

/// A server in a namespace, and connections to it that the test holds.
struct Held3 {
    _held: Held,
    server: Server,
    netns: Netns,
}

impl Held3 {
    fn new(story: &str) -> Self {
        let netns = Netns::new(story).unwrap();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = netns.enter(|| Server::start(local, ServeOptions::default())).unwrap();
        let client = Client::new(server.address());
        let held = netns.enter(|| Held::open(&client, 3, Duration::from_secs(5))).unwrap();
        assert_eq!(held.connections().len(), 3);
        Self { _held: held, server, netns }
    }

    fn port(&self) -> String {
        self.server.address().port().to_string()
    }

    /// `ss` counts them, too: three connections with two ends each.
    fn ends(&self) -> usize {
        sockets(&self.netns, &["state", "established"]).unwrap().len()
    }

    /// Connects for about two seconds, in the background.
    fn keep_connecting(&self) -> thread::JoinHandle<()> {
        let (client, path) = (Client::new(self.server.address()), self.netns.path());
        thread::spawn(move || {
            let plan = Churn::new(50.0, Duration::from_secs(2));
            functional::netns::enter(&path, || Ok(churn(&client, &plan))).unwrap();
        })
    }
}

#[test]
fn without_privileges_every_capability_is_named_with_its_purpose() {
    let public = Public::new();
    for args in WATCHING {
        let ran = public.as_nobody(&[], args).output().unwrap();
        let stderr = text(&ran.stderr);
        assert_eq!((ran.status.code(), ran.stdout.len()), (Some(1), 0), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        for capability in ["CAP_BPF (", "CAP_PERFMON (", "CAP_SYS_ADMIN (", "CAP_SYS_PTRACE ("] {
            assert!(stderr.contains(capability), "{args:?}: {stderr}");
        }
    }
    let doctor = public.as_nobody(&[], &["doctor"]).output().unwrap();
    assert_eq!(doctor.status.code(), Some(1));
    assert!(text(&doctor.stdout).contains("!!  privileges"), "{doctor:?}");
    let containers = public.as_nobody(&[], &["containers", "--all"]).output().unwrap();
    assert!(containers.status.success(), "who reads cgroups needs nothing: {containers:?}");
}

#[test]
fn the_one_capability_that_is_missing_is_named() {
    let public = Public::new();
    for (held, missing) in [("bpf", "CAP_PERFMON"), ("perfmon", "CAP_BPF")] {
        for args in WATCHING {
            let ran = public.as_nobody(&[held], args).output().unwrap();
            let stderr = text(&ran.stderr);
            assert_eq!(ran.status.code(), Some(1), "{args:?}: {stderr}");
            assert!(stderr.contains(&format!("{missing} (")), "{args:?} with {held}: {stderr}");
            assert!(!stderr.contains(&format!("CAP_{} (", held.to_uppercase())), "{args:?}: {stderr}");
        }
    }
}

/// CAP_SYS_ADMIN and CAP_SYS_PTRACE are for what no process holds; the rest is there without.
#[test]
fn what_two_capabilities_show_is_shown_and_what_they_do_not_is_said() {
    let (public, story) = (Public::new(), Held3::new("two-caps"));
    let args = ["conns", "-o", "json", "--port", &story.port()];
    let ran = public.as_nobody(&["bpf", "perfmon"], &args).output().unwrap();
    let stderr = text(&ran.stderr);
    assert!(ran.status.success(), "{stderr}");
    let connections: Vec<serde_json::Value> = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((connections.len(), story.ends()), (6, 6));
    assert!(stderr.contains("CAP_SYS_ADMIN (") && stderr.contains("CAP_SYS_PTRACE ("), "{stderr}");
}

/// Nor are they for what the kernel counts in the own network namespace.
#[test]
fn an_agent_with_two_capabilities_reads_no_namespace_but_its_own() {
    let (public, _other) = (Public::new(), Netns::new("two-caps-agent").unwrap());
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let args = ["agent", "--web.listen-address", &at.to_string()];
    let agent = Reading::start(&mut public.as_nobody(&["bpf", "perfmon"], &args)).unwrap();
    agent.stderr().wait_for("the agent", Duration::from_secs(20), |line| line.contains("serving")).unwrap();
    let scrape = Scrape::parse(&http::get(at, "/metrics").unwrap().ok().unwrap()).unwrap();
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino().to_string();
    let told: BTreeSet<_> =
        scrape.select("tcptide_namespace_events_total", &[]).map(|sample| sample.label("netns")).collect();
    assert_eq!(told, [own.as_str()].into());
    // A mounted one is found, and cannot be entered.
    assert!(scrape.sum("tcptide_namespaces", &[("status", "unreadable")]) >= Some(1.0));
    let said = agent.stderr().all().join("\n");
    assert!(said.contains("what the kernel counts there"), "{said}");
}

#[test]
fn four_capabilities_are_as_good_as_root_and_a_small_memlock_does_no_harm() {
    let (public, story) = (Public::new(), Held3::new("four-caps"));
    let all = ["bpf", "perfmon", "sys_admin", "sys_ptrace"];
    let port = story.port();
    let inner = public.as_nobody(&all, &["conns", "-o", "json", "--port", &port]);
    let mut limited = Command::new(require("prlimit", "util-linux").unwrap());
    limited.arg("--memlock=0:0").arg(inner.get_program()).args(inner.get_args());
    let ran = limited.output().unwrap();
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", text(&ran.stderr));
    let connections: Vec<serde_json::Value> = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((connections.len(), story.ends()), (6, 6));
}

#[test]
fn wrong_usage_is_status_2_and_says_what_would_be_right() {
    for (args, hint) in [
        (&["conns", "--port", "99999"] as &[&str], "65535"),
        (&["conns", "--port", "http"], "80"),
        (&["conns", "--peer", "10.0.0.0/99"], "10.0.0.0/8"),
        (&["conns", "--peer", "somewhere"], "10.0.0.0/8"),
        (&["conns", "--pid", "x"], "1234"),
        (&["conns", "--prot", "80"], "--port"),
        (&["conns", "-o", "xml"], "yaml"),
        (&["trace", "--duration", "ten"], "10s"),
        (&["trace", "--duration", "0"], "10s"),
        (&["trace", "--events", "opened"], "open"),
        (&["trace", "--buffer", "3"], "power of two"),
        (&["rtt", "--by", "day"], "peer"),
        (&["connlat", "--min", "-1ms"], "-1"),
        (&["agent", "--web.listen-address", "here"], "--web.listen-address"),
        (&["agent", "--metrics.max-cgroups", "0"], "1..=1000000"),
        (&["agent", "--metrics.max-series", "10"], "1000..=100000000"),
        (&["agent", "--metrics.include-container", "!"], "names"),
        (&["agent", "--metrics.drop-labels", "container"], "peer_name"),
        (&["agent", "--max-sockets", "0"], "1..=16777216"),
        (&["con"], "conns"),
        (&[], "Usage"),
    ] {
        let ran = tcptide().run(args).unwrap();
        let stderr = ran.stderr.join("\n");
        assert_eq!(ran.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(hint) && ran.stdout.is_empty(), "{args:?}: {stderr}");
    }
}

#[test]
fn a_filter_that_matches_nothing_says_so_and_what_there_is() {
    let story = Held3::new("nothing");
    let free = if story.port() == "9" { "10" } else { "9" };
    let ran = tcptide().run(["conns", "--port", free]).unwrap().success().unwrap();
    assert!(ran.stderr[0].contains(&format!("port {free}")), "{:?}", ran.stderr);
    let ran = tcptide().run(["conns", "--cgroup", "/no/such/cgroup"]).unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert_eq!(ran.stderr, ["tcptide: there is no cgroup /no/such/cgroup"]);
}

/// Runs a command on a terminal of 40 columns and returns what is on its screen.
fn on_a_narrow_terminal(args: &[&str], environment: &[(&str, &str)]) -> String {
    let line =
        format!("stty cols 40 rows 24; exec {} {} 2>/dev/null", tcptide().path().display(), args.join(" "));
    let mut script = Command::new(require("script", "bsdutils").unwrap());
    script
        .args(["-qec", &line, "/dev/null"])
        .env_remove("COLUMNS")
        .env_remove("NO_COLOR")
        .env("TERM", "xterm");
    script.envs(environment.iter().copied());
    output(&mut script).unwrap().replace('\r', "")
}

/// Without the sequences that colour it.
fn plain(screen: &str) -> String {
    let mut parts = screen.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest))
}

#[test]
fn every_command_fits_a_terminal_of_40_columns() {
    let story = Held3::new("narrow");
    for args in WATCHING.into_iter().chain(OTHERS).filter(|args| args[0] != "agent") {
        let connecting = story.keep_connecting();
        let screen = plain(&on_a_narrow_terminal(args, &[]));
        connecting.join().unwrap();
        // The findings of doctor are sentences; its table comes after them.
        let table = if args[0] == "doctor" { screen.split_once("\n\n").unwrap().1 } else { &screen };
        assert!(table.lines().count() > 2, "{args:?}:\n{screen}");
        for line in table.lines() {
            assert!(line.chars().count() <= 40, "{args:?}: `{line}` is too long in\n{screen}");
        }
    }
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let escape = '\x1b';
    assert!(on_a_narrow_terminal(&["doctor"], &[]).contains(escape));
    for args in WATCHING.into_iter().chain(OTHERS).filter(|args| args[0] != "agent") {
        assert!(!on_a_narrow_terminal(args, &[("NO_COLOR", "1")]).contains(escape), "{args:?}");
        let mut piped = tcptide().command(args);
        let piped =
            piped.env("TERM", "xterm").env("TCPTIDE_LOG", "debug").stdin(Stdio::null()).output().unwrap();
        assert!(piped.status.success() && !piped.stdout.contains(&0x1b), "{args:?}: {}", text(&piped.stdout));
        assert!(!piped.stderr.contains(&0x1b), "{args:?}: {}", text(&piped.stderr));
    }
}

/// Runs with standard output, or standard error too, going to a reader that has left.
fn unread(args: &[&str], stderr_too: bool) -> Output {
    let mut command = tcptide().command(args);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    if stderr_too {
        command.stderr(writer.try_clone().unwrap());
    }
    command.stdout(writer);
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let story = Held3::new("reader");
    let help: [&[&str]; 2] = [&["--help"], &["trace", "--help"]];
    for args in WATCHING.into_iter().chain(OTHERS).chain(help).filter(|args| args[0] != "agent") {
        for format in [&[] as &[&str], &["-o", "json"]] {
            let args = [args, if args.contains(&"--help") { &[] } else { format }].concat();
            for stderr_too in [false, true] {
                let connecting = (args[0] == "trace").then(|| story.keep_connecting());
                let ran = unread(&args, stderr_too);
                let stderr = text(&ran.stderr);
                assert_eq!(ran.status.code(), Some(0), "{args:?}, stderr too: {stderr_too}: {stderr}");
                assert!(!stderr.contains("panic") && !stderr.contains("pipe"), "{args:?}: {stderr}");
                connecting.map(thread::JoinHandle::join).transpose().unwrap();
            }
        }
    }
}

#[test]
fn head_gets_its_line() {
    let story = Held3::new("head");
    let line = format!("{} conns --port {} | head -1", tcptide().path().display(), story.port());
    let ran = Command::new("bash").args(["-c", &format!("set -o pipefail; {line}")]).output().unwrap();
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", text(&ran.stderr));
    assert!(text(&ran.stdout).starts_with("CONTAINER"), "{}", text(&ran.stdout));
}

#[test]
fn without_a_runtime_there_are_no_names_but_all_data() {
    let story = Held3::new("no-runtime");
    let port = story.port();
    let args = ["conns", "-o", "json", "--port", &port, "--runtime-socket", "/nowhere/docker.sock"];
    let ran = tcptide().run(args).unwrap().success().unwrap();
    assert_eq!((ran.json().unwrap().as_array().unwrap().len(), story.ends()), (6, 6));
    assert!(ran.stderr.is_empty(), "{:?}", ran.stderr);
    let ran =
        tcptide().run(["containers", "--runtime-socket", "/nowhere/docker.sock"]).unwrap().success().unwrap();
    assert!(ran.stderr.join("\n").contains("/nowhere/docker.sock: not there"), "{:?}", ran.stderr);
}

#[test]
fn help_comes_at_once() {
    let mut times: Vec<_> = (0..20)
        .map(|_| {
            let began = Instant::now();
            assert!(tcptide().command(["--help"]).output().unwrap().status.success());
            began.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[10] < Duration::from_millis(10), "{times:?}");
}

#[test]
fn it_is_attached_within_a_second() {
    let best = (0..3).map(|_| {
        let began = Instant::now();
        let streaming = Streaming::start(&mut tcptide().command(["trace"])).unwrap();
        streaming.wait_ready().unwrap();
        let took = began.elapsed();
        streaming.interrupt().unwrap().success().unwrap();
        took
    });
    let best = best.min().unwrap();
    // Without optimisation it is libbpf's relocation that takes the time.
    let release = tcptide().path().components().any(|part| part.as_os_str() == "release");
    let limit = Duration::from_secs(if release { 1 } else { 5 });
    assert!(best < limit, "{best:?} for {}", shown(&tcptide().command(["trace"])));
}
