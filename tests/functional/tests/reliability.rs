//! Whether an agent stands what may happen to it: nothing is lost uncounted, nothing ends, nothing grows without end.
//!
//! These stories take minutes and print figures: `make reliability` tells them, and nothing else does.
//! `TCPTIDE_SECONDS` says how long each lasts. What they printed stands in `docs/reliability.md`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use functional::cgroup::Cgroup;
use functional::netns::Netns;
use functional::process::{output, require, wait_until};
use functional::samples::Scrape;
use functional::tcptide::{Agent, Tcptide};
use functional::workload::{Counts, Running};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn lasting() -> Duration {
    let seconds = std::env::var("TCPTIDE_SECONDS").ok().map(|text| text.parse().expect("TCPTIDE_SECONDS"));
    Duration::from_secs(seconds.unwrap_or(60))
}

/// Connections a second in the soak.
fn rate() -> u32 {
    std::env::var("TCPTIDE_RATE").map_or(2000, |text| text.parse().expect("TCPTIDE_RATE"))
}

fn agent(args: &[&str]) -> Agent {
    Tcptide::find().unwrap().agent(args).unwrap()
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn lost(scrape: &Scrape, reason: &str) -> u64 {
    scrape.sum("tcptide_events_lost_total", &[("reason", reason)]).unwrap() as u64
}

fn of(scrape: &Scrape, name: &str, cgroup: &Cgroup, more: &[(&str, &str)]) -> u64 {
    let labels = [&[("container", cgroup.path().to_str().unwrap())], more].concat();
    scrape.sum(name, &labels).unwrap_or(0.0) as u64
}

/// Two containers, of which one asks the other all the time.
struct Busy {
    netns: Netns,
    client: Cgroup,
    server: Cgroup,
    serving: Running,
}

impl Busy {
    fn new(story: &str) -> Self {
        let netns = Netns::new(story).unwrap();
        // A port is not to be waited for.
        netns.sysctl("net.ipv4.tcp_tw_reuse", "1").unwrap();
        netns.sysctl("net.ipv4.ip_local_port_range", "10000 65535").unwrap();
        let [client, server] =
            ["client", "server"].map(|end| Cgroup::unique(&format!("{story}-{end}")).unwrap());
        let serve = ["serve", "--listen", "127.0.0.1:7001", "--seconds", "100000"];
        let serving = Running::inside(&server, &netns, &serve).unwrap();
        serving.listening().unwrap();
        Self { netns, client, server, serving }
    }

    fn ask(&self, rate: u32, lasting: Duration) -> Running {
        let (rate, seconds) = (rate.to_string(), lasting.as_secs().to_string());
        let args =
            ["churn", "--to", "127.0.0.1:7001", "--rate", &rate, "--seconds", &seconds, "--threads", "2"];
        Running::inside(&self.client, &self.netns, &args).unwrap()
    }

    /// What the agent has of both is what they did themselves, to the connection and the byte.
    fn ends_counted(self, agent: &Agent, asked: &Counts) -> Scrape {
        let answered = self.serving.finish().unwrap();
        assert_eq!((asked.failures(), answered.accepted), (0, asked.opened));
        let scrape = agent.scrape().unwrap();
        for (cgroup, direction, counts) in
            [(&self.client, "active", asked), (&self.server, "passive", &answered)]
        {
            let opened = of(&scrape, "tcptide_opened_total", cgroup, &[("direction", direction)]);
            let closed = of(&scrape, "tcptide_closed_total", cgroup, &[]);
            let [sent, received] = ["sent", "received"]
                .map(|way| of(&scrape, &format!("tcptide_{way}_bytes_total"), cgroup, &[]));
            assert_eq!(
                (opened, closed, sent, received),
                (asked.opened, asked.opened, counts.bytes_sent, counts.bytes_received),
                "{direction}"
            );
        }
        println!("connections: {} of {} counted, bytes: all", asked.opened, asked.opened);
        scrape
    }
}

#[test]
#[ignore = "long: make reliability"]
fn a_soak() {
    let busy = Busy::new("soak");
    let agent = agent(&["--edges", "--metrics.grace", "10m"]);
    let asking = busy.ask(rate(), lasting());
    let (began, mut curve) = (Instant::now(), Vec::new());
    while began.elapsed() < lasting() {
        let at = Instant::now();
        agent.metrics().unwrap();
        curve.push((began.elapsed().as_secs(), resident(agent.pid()), at.elapsed()));
        thread::sleep(Duration::from_secs(2));
    }
    let asked = asking.wait(SOON).unwrap();
    println!("connections a second: {:.0}", asked.opened as f64 / lasting().as_secs_f64());
    let slowest = curve.iter().map(|(_, _, took)| *took).max().unwrap();
    println!("scrapes: {}, the slowest {slowest:.1?}", curve.len());
    for (seconds, resident, _) in curve.iter().step_by(curve.len().div_ceil(12)) {
        println!("after {seconds:4} s: {:.1} MiB resident", *resident as f64 / MIB as f64);
    }
    let scrape = busy.ends_counted(&agent, &asked);
    println!("events lost: {}", lost(&scrape, "connection_buffer_full"));
    // From the first third on it may not grow by more than names and rounding.
    let peak = |part: &[(u64, u64, Duration)]| part.iter().map(|(_, resident, _)| *resident).max().unwrap();
    let (early, late) = curve.split_at(curve.len() / 3);
    assert!(peak(late) <= peak(early) + 8 * MIB, "{} {}", peak(early), peak(late));
    agent.stop().unwrap();
}

#[test]
#[ignore = "long: make reliability"]
fn a_buffer_that_is_full() {
    let busy = Busy::new("full");
    let agent = agent(&["--edges"]);
    let pid = Pid::from_raw(agent.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let asked = busy.ask(4000, lasting()).wait(lasting() + SOON).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    let scrape = busy.ends_counted(&agent, &asked);
    let lost = lost(&scrape, "connection_buffer_full");
    // Those of others on this host are among them; that the count is exact is a story in churn.rs.
    println!("the agent stood still for {:?}: {lost} events lost and counted", lasting());
    assert!(lost > 0, "the buffer was large enough: more TCPTIDE_SECONDS are needed");
    agent.stop().unwrap();
}

#[test]
#[ignore = "long: make reliability"]
fn cgroups_come_and_go() {
    let home = Cgroup::unique("many").unwrap();
    let agent = agent(&[]);
    agent.metrics().unwrap();
    let before = resident(agent.pid());
    let (began, mut made, mut peak) = (Instant::now(), 0_u64, before);
    while began.elapsed() < lasting() {
        // A thousand a second, or as many as the machine makes.
        let due = (began.elapsed().as_secs_f64() * 1000.0) as u64;
        while made < due {
            let folder = home.folder().join(format!("c{made}"));
            fs::create_dir(&folder).unwrap();
            fs::remove_dir(&folder).unwrap();
            made += 1;
            if made.is_multiple_of(5000) {
                agent.metrics().unwrap();
                peak = peak.max(resident(agent.pid()));
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    let scrape = agent.scrape().unwrap();
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    println!("cgroups made and removed: {:.0} a second", made as f64 / lasting().as_secs_f64());
    println!("resident: {:.1} MiB before, {:.1} MiB at most", mib(before), mib(peak));
    println!("events lost: {}", lost(&scrape, "cgroup_buffer_full"));
    // The names of 100,000 that are gone are kept for ten minutes.
    assert!(peak < before + 128 * MIB, "{before} {peak}");
    agent.stop().unwrap();
}

#[test]
#[ignore = "long: make reliability"]
fn readers_that_are_stuck() {
    const READERS: usize = 200;
    // With room for others.
    let agent = agent(&["--web.max-connections", "300", "--web.write-timeout", "1h"]);
    agent.metrics().unwrap();
    let before = resident(agent.pid());
    let stuck = stuck(&agent, READERS);
    let (mut slowest, began) = (Duration::ZERO, Instant::now());
    while began.elapsed() < lasting() / 4 {
        let at = Instant::now();
        agent.metrics().unwrap();
        slowest = slowest.max(at.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    let after = resident(agent.pid());
    println!("beside {READERS} readers that do not read the slowest scrape took {slowest:.1?}");
    println!(
        "resident: {:.1} MiB before, {:.1} MiB with them",
        before as f64 / MIB as f64,
        after as f64 / MIB as f64
    );
    assert!(slowest < Duration::from_secs(5) && after < before + 128 * MIB, "{slowest:?} {after}");
    // What they asked for is there once they read.
    for mut stream in stuck.into_iter().take(3) {
        let mut head = [0; 15];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }
    agent.stop().unwrap();
}

/// Those who ask for metrics and read nothing.
fn stuck(agent: &Agent, readers: usize) -> Vec<TcpStream> {
    let ask = |_| {
        let mut stream = TcpStream::connect(agent.address()).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream
    };
    (0..readers).map(ask).collect()
}

/// Who takes all places keeps others out, and no longer than an answer may take.
#[test]
#[ignore = "long: make reliability"]
fn readers_that_take_all_places() {
    let agent = agent(&["--web.write-timeout", "5s", "--web.idle-timeout", "5s"]);
    let stuck = stuck(&agent, 60);
    let began = Instant::now();
    let turned_away = agent.get("/-/healthy").unwrap().status;
    let scrape = wait_until("room", Duration::from_secs(30), || Ok(agent.scrape().ok())).unwrap();
    let rejected = |reason| scrape.sum("tcptide_http_rejected_total", &[("reason", reason)]).unwrap() as u64;
    println!("with 60 readers that do not read others were turned away for {:.1?}", began.elapsed());
    assert_eq!(turned_away, 503);
    assert!(rejected("connections") > 20, "{}", rejected("connections"));
    drop(stuck);
    agent.stop().unwrap();
}

/// A cgroup that bounds memory, of whichever version there is. Removed on `Drop`.
struct Bounded {
    folder: PathBuf,
}

impl Bounded {
    const LIMIT: u64 = 64 * MIB;

    fn new() -> Self {
        let name = format!("tcptide-{}-memory", std::process::id());
        let of_v1 = Path::new("/sys/fs/cgroup/memory");
        let (folder, limit) = if of_v1.exists() {
            (of_v1.join(name), "memory.limit_in_bytes")
        } else {
            let root = Path::new("/sys/fs/cgroup");
            fs::write(root.join("cgroup.subtree_control"), "+memory").unwrap();
            (root.join(name), "memory.max")
        };
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(limit), Self::LIMIT.to_string()).unwrap();
        Self { folder }
    }

    /// The most that it has had.
    fn peak(&self) -> u64 {
        let files = ["memory.max_usage_in_bytes", "memory.peak"].map(|name| self.folder.join(name));
        let text = files.into_iter().find_map(|file| fs::read_to_string(file).ok()).unwrap();
        text.trim().parse().unwrap()
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        let gone = || Ok(fs::remove_dir(&self.folder).is_ok().then_some(()));
        let _ = wait_until("the bounded cgroup to be left", SOON, gone);
    }
}

/// What the kernel keeps for the programs counts, too.
#[test]
#[ignore = "long: make reliability"]
fn a_limit_of_memory() {
    let busy = Busy::new("memory");
    let bounded = Bounded::new();
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("tcptide");
    let program = Tcptide::find().unwrap();
    let (group, path) = (bounded.folder.display(), program.path().display());
    fs::write(&inside, format!("#!/bin/sh\necho $$ >{group}/cgroup.procs && exec {path} \"$@\"\n")).unwrap();
    fs::set_permissions(&inside, Permissions::from_mode(0o755)).unwrap();
    let agent = Tcptide::at(&inside).unwrap().agent::<&str>([]).unwrap();
    let asking = busy.ask(2000, lasting() / 2);
    let began = Instant::now();
    while began.elapsed() < lasting() / 2 {
        agent.metrics().unwrap();
        thread::sleep(Duration::from_millis(500));
    }
    let asked = asking.wait(SOON).unwrap();
    let scrape = busy.ends_counted(&agent, &asked);
    let (peak, limit) = (bounded.peak() / MIB, Bounded::LIMIT / MIB);
    println!("within {limit} MiB it took {peak} MiB at most, with what the kernel keeps for it");
    assert_eq!(scrape.sum("tcptide_storage_failures_total", &[]), Some(0.0));
    agent.stop().unwrap();
}

/// Ids of the BPF objects of a kind that the kernel has.
fn bpf(kind: &str) -> BTreeSet<u64> {
    let bpftool = require("bpftool", "bpftool").unwrap();
    let list = output(Command::new(bpftool).args(["-j", kind, "list"])).unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    list.iter().map(|one| one["id"].as_u64().unwrap()).collect()
}

/// Ids of the BPF objects of a kind that the process holds.
fn held(pid: u32, kind: &str) -> BTreeSet<u64> {
    let prefix = format!("{kind}_id:");
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix(&prefix)?.trim().parse().ok()))
        .collect()
}

#[test]
#[ignore = "long: make reliability"]
fn killed_at_random_moments() {
    let busy = Busy::new("killed");
    let asking = busy.ask(500, lasting());
    let tcptide = Tcptide::find().unwrap();
    let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    println!("seed: {seed}");
    let (began, mut times, mut with_programs) = (Instant::now(), 0, 0);
    while began.elapsed() < lasting() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_millis((seed >> 33) % 1000);
        let mut child = tcptide
            .command(["agent", "--edges", "--web.listen-address", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(moment);
        // Another may come between this and the end, and is not known then.
        let kinds = ["prog", "map", "link"].map(|kind| (kind, held(child.id(), kind)));
        child.kill().unwrap();
        child.wait().unwrap();
        times += 1;
        with_programs += u32::from(!kinds[0].1.is_empty());
        for (kind, ids) in &kinds {
            let gone = || Ok(bpf(kind).is_disjoint(ids).then_some(()));
            wait_until(&format!("its {kind}s to be gone after {moment:?}"), SOON, gone).unwrap();
        }
    }
    println!(
        "killed {times} times within a second of the start, {with_programs} times with programs: nothing is left"
    );
    assert!(with_programs > 0);
    // The traffic went on meanwhile.
    let asked = asking.wait(SOON).unwrap();
    println!("connections meanwhile: {}, failed: {}", asked.opened, asked.failures());
    assert!(asked.opened > 0 && asked.failures() == 0, "{asked:?}");
}

#[test]
#[ignore = "long: make reliability"]
fn a_disk_that_is_full() {
    let busy = Busy::new("disk");
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let tcptide = Tcptide::find().unwrap();
    let _asking = busy.ask(200, Duration::from_secs(3600));
    let began = Instant::now();
    let mut command = tcptide.command(["trace", "-o", "json", "--duration", "30s"]);
    let ended = command.stdin(Stdio::null()).stdout(full()).stderr(Stdio::piped()).output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "trace goes on with its output full");
    let (status, said) = (ended.status, String::from_utf8_lossy(&ended.stderr));
    println!("trace into a full disk: {status}: {}", said.trim().lines().last().unwrap_or(""));
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    // An agent whose log finds no room serves as before.
    let mut child = tcptide
        .command(["agent", "--web.listen-address", "127.0.0.1:9871"])
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(full())
        .spawn()
        .unwrap();
    let at = "127.0.0.1:9871".parse().unwrap();
    let served = wait_until("an agent that cannot write its log", SOON, || {
        Ok(functional::http::get(at, "/metrics").ok().filter(|answer| answer.status == 200))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    println!("an agent without room for its log serves {} bytes", served.unwrap().body.len());
}
