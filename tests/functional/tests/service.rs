//! The agent as a service: what it tells the service manager, and how its unit fares under a real one.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use functional::cgroup::Cgroup;
use functional::http;
use functional::runtime::Machines;
use functional::samples::Scrape;
use functional::tcptide::{Streaming, Tcptide};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

const SOON: Duration = Duration::from_secs(30);

/// A file of the repository.
fn packaged(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(path).canonicalize().unwrap()
}

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    beats: u32,
}

impl Manager {
    /// The next message that is no sign of life alone.
    fn next(&mut self) -> Vec<String> {
        loop {
            let mut buffer = [0; 4096];
            self.socket.set_read_timeout(Some(SOON)).unwrap();
            let length = self.socket.recv(&mut buffer).expect("a message to the service manager");
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines != ["WATCHDOG=1"] {
                return lines;
            }
            self.beats += 1;
        }
    }

    /// Signs of life in so long.
    fn beats(&mut self, period: Duration) -> u32 {
        let (end, mut beats) = (Instant::now() + period, 0);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let mut buffer = [0; 4096];
            self.socket.set_read_timeout(Some(left)).unwrap();
            if let Ok(length) = self.socket.recv(&mut buffer) {
                assert_eq!(String::from_utf8_lossy(&buffer[..length]).trim_end(), "WATCHDOG=1");
                beats += 1;
            }
        }
        beats
    }
}

fn monotonic_us() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[test]
fn the_service_manager_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, file) = (folder.path().join("notify"), folder.path().join("tcptide.toml"));
    fs::write(&file, "web.listen-address = '127.0.0.1:0'\n").unwrap();
    let mut manager = Manager { socket: UnixDatagram::bind(&socket).unwrap(), beats: 0 };
    let mut command = Tcptide::find().unwrap().command(["agent", "--config.file"]);
    command.arg(&file).env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "1000000");
    let agent = Streaming::start(&mut command).unwrap();

    let ready = manager.next();
    assert_eq!((ready.len(), &*ready[0]), (2, "READY=1"), "{ready:?}");
    let serving = ready[1].strip_prefix("STATUS=serving http://").unwrap();
    // It is what it says.
    let address = serving.strip_suffix("/metrics").unwrap().parse().unwrap();
    assert_eq!(http::get(address, "/-/ready").unwrap().status, 200);

    // Twice as often as is asked for, give or take how often the gauge looks.
    let beats = manager.beats(Duration::from_secs(3));
    assert!((3..=7).contains(&beats), "{beats}");

    for (text, became) in
        [("", "the settings were read again"), ("edges = 1", "the settings stay as they were")]
    {
        fs::write(&file, format!("web.listen-address = '127.0.0.1:0'\n{text}")).unwrap();
        let before = monotonic_us();
        agent.signal(Signal::HUP).unwrap();
        let reloading = manager.next();
        assert_eq!((reloading.len(), &*reloading[0]), (2, "RELOADING=1"), "{reloading:?}");
        let at: i64 = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=monotonic_us()).contains(&at), "{before} {at}");
        let ready = manager.next();
        assert_eq!((ready.len(), &*ready[0]), (2, "READY=1"), "{ready:?}");
        assert!(ready[1].starts_with(&format!("STATUS=serving http://{serving}; {became}")), "{ready:?}");
    }

    agent.signal(Signal::TERM).unwrap();
    assert_eq!(manager.next()[0], "STOPPING=1");
    agent.wait(SOON).unwrap().success().unwrap();
}

#[test]
fn without_a_service_manager_nobody_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Tcptide::find().unwrap().command(["agent", "--web.listen-address", "127.0.0.1:0"]);
    let gone = folder.path().join("gone");
    command.env("NOTIFY_SOCKET", &gone);
    let agent = Streaming::start(&mut command).unwrap();
    agent.wait_ready().unwrap();
    let ended = agent.interrupt().unwrap();
    // Who asked to be told and is not there is complained of; the agent works on.
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stderr.iter().any(|line| line.contains("cannot tell the service manager")), "{ended:?}");
}

/// What the story in the container does; each part's answer goes to a file of its own.
const SCRIPT: &str = r#"#!/bin/sh
cd /tmp/story
ip link set lo up
unshare --net sleep 60 &
# A runtime, of which it is enough that it is asked.
python3 -c 'import socket
runtime = socket.socket(socket.AF_UNIX)
runtime.bind("/run/docker.sock")
runtime.listen()
open("listening", "w").close()
open("asked", "wb").write(runtime.accept()[0].recv(4096))' &
for i in $(seq 100); do [ -e listening ] && break; sleep 0.1; done
show() { systemctl show tcptide -p "$1" --value; }
end() {
    journalctl --no-pager -o cat -u tcptide -u init.scope >log
    touch whole
    systemctl poweroff
    exit
}
systemctl start tcptide; echo $? >start
[ "$(cat start)" = 0 ] || end
show StatusText >status
cat /proc/$(show MainPID)/status >process
cat $(dirname $(grep -lx gauge /proc/$(show MainPID)/task/*/comm))/status >gauge
python3 -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:9836/metrics").read().decode())' >metrics
systemctl reload tcptide; echo $? >reload
# It is told to, and says itself when it has.
for i in $(seq 100); do show StatusText | grep -q again && break; sleep 0.1; done
show StatusText >reloaded
# Longer than the watchdog waits.
sleep 4
show NRestarts >restarts
kill -STOP $(show MainPID)
for i in $(seq 100); do
    [ "$(show NRestarts)" = 1 ] && [ "$(show ActiveState)" = active ] && break
    sleep 0.1
done
show NRestarts >restarted
systemctl stop tcptide
show Result >result
end
"#;

/// The unit as it is packaged, under systemd as the first process: of its sandbox all is in force but limits of memory where
/// the hierarchy of cgroups has none.
#[test]
fn the_unit_works_under_systemd_in_its_sandbox() {
    let machines = Machines::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let story = folder.path();
    fs::set_permissions(story, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(story.join("script"), SCRIPT).unwrap();
    fs::set_permissions(story.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let service = "[Unit]\nAfter=sysinit.target\n[Service]\nType=oneshot\nExecStart=/tmp/story/script\n";
    fs::write(story.join("story.service"), service).unwrap();
    // A quick watchdog, or the story would take a minute.
    fs::write(story.join("quick.conf"), "[Service]\nWatchdogSec=2\nRestartSec=100ms\n").unwrap();
    fs::write(story.join("tcptide.toml"), "[metrics]\ngrace = '7m'\n").unwrap();
    let unit = packaged("systemd/tcptide.service");
    let (service, quick, settings) =
        (story.join("story.service"), story.join("quick.conf"), story.join("tcptide.toml"));
    let cgroup = Cgroup::new(format!("story{}-boot.service", std::process::id())).unwrap();
    let console = machines
        .boot(
            &cgroup,
            &[
                (story, "/tmp/story"),
                (Tcptide::find().unwrap().path(), "/usr/bin/tcptide"),
                (&unit, "/etc/systemd/system/tcptide.service"),
                (&quick, "/etc/systemd/system/tcptide.service.d/quick.conf"),
                (&service, "/etc/systemd/system/story.service"),
                (&settings, "/etc/tcptide/tcptide.toml"),
            ],
            "story.service",
        )
        .unwrap();
    let of = |name: &str| fs::read_to_string(story.join(name)).unwrap_or_default().trim().to_owned();
    let log = of("log");
    assert!(story.join("whole").exists(), "it did not come to its end: {}", console.join("\n"));

    assert_eq!(of("start"), "0", "{log}");
    assert_eq!(of("status"), "serving http://127.0.0.1:9836/metrics", "{log}");
    let line = |of: &str, name: &str| {
        let line = of.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    // CAP_SYS_PTRACE (19), CAP_SYS_ADMIN (21), CAP_PERFMON (38), CAP_BPF (39). Once it is attached, one thread has some of
    // them, and no other any; what the unit bounds them by cannot be taken away without CAP_SETPCAP.
    let bits = |bits: &[u32]| format!("{:016x}", bits.iter().fold(0_u64, |set, bit| set | 1 << bit));
    let (process, gauge) = (of("process"), of("gauge"));
    for set in ["CapPrm", "CapEff"] {
        assert_eq!((line(&process, set), line(&gauge, set)), (bits(&[]), bits(&[19, 21, 39])), "{set}");
    }
    assert_eq!(line(&process, "CapBnd"), bits(&[19, 21, 38, 39]));
    assert_eq!((line(&process, "NoNewPrivs"), line(&process, "Seccomp")), ("1".to_owned(), "2".to_owned()));

    // In the sandbox as many programs run as outside of it, and the other network namespace is entered.
    let metrics = Scrape::parse(&of("metrics")).unwrap();
    let programs =
        |scrape: &Scrape| scrape.sum("tcptide_program_status", &[("status", "attached")]).map(|n| n as u64);
    let outside = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    assert_eq!(programs(&metrics), programs(&outside.scrape().unwrap()), "{log}");
    let namespaces = |status| metrics.sum("tcptide_namespaces", &[("status", status)]);
    assert_eq!((namespaces("read"), namespaces("unreadable")), (Some(2.0), Some(0.0)), "{log}");
    assert!(of("asked").starts_with("GET /"), "the runtime's socket: {:?}", of("asked"));
    assert_eq!(metrics.sum("tcptide_config_last_reload_successful", &[]), Some(1.0));

    assert_eq!(of("reload"), "0", "{log}");
    assert_eq!(
        of("reloaded"),
        "serving http://127.0.0.1:9836/metrics; the settings were read again",
        "{log}"
    );
    // It lives on as long as it says so, and is started again when it does not.
    assert_eq!((of("restarts"), of("restarted")), ("0".to_owned(), "1".to_owned()), "{log}");
    assert_eq!(of("result"), "success", "{log}");
    let mut lines = log.lines().filter(|line| line.contains("tcptide.service:"));
    assert!(!lines.any(|line| line.contains("Unknown") || line.contains("Failed to parse")), "{log}");
}
