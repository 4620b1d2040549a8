//! The tools that people would use instead.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use functional::process::{Lines, find, shown, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use super::subject::Subject;

/// How long a tool may take until it watches, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(20);
/// From its programs being loaded to their being attached.
const ATTACHED: Duration = Duration::from_millis(500);

/// Round-trip times as tcp_probe shows them, of all sockets together.
const RTT: &str = "tracepoint:tcp:tcp_probe { @srtt_us = hist(args->srtt); }";
const LIFE: &str = "tracepoint:sock:inet_sock_set_state { \
     if (args->protocol == 6 && args->newstate == 2) { @born[args->skaddr] = nsecs; } \
     if (args->protocol == 6 && args->newstate == 1 && args->oldstate == 3) { @born[args->skaddr] = nsecs; } \
     if (args->protocol == 6 && args->newstate == 7 && @born[args->skaddr]) { \
     @life_us = hist((nsecs - @born[args->skaddr]) / 1000); delete(@born[args->skaddr]); } }";

/// All of Rezolus's samplers of TCP and no other; with its usual place among tasks, as everybody has here.
const REZOLUS: &str = r#"
[general]
listen = "127.0.0.1:4241"
[scheduler]
policy = "normal"
[defaults]
enabled = false
[samplers.tcp_connect_latency]
enabled = true
[samplers.tcp_packet_latency]
enabled = true
[samplers.tcp_receive]
enabled = true
[samplers.tcp_retransmit]
enabled = true
[samplers.tcp_traffic]
enabled = true
"#;

/// How one knows that a tool watches.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sign {
    /// A line on stderr has this in it.
    Says(&'static str),
    /// It has loaded BPF programs.
    Programs,
    /// It runs: a shell, which starts others again and again.
    Runs,
}

/// A tool's program, and how to get it; `None` of what is no other tool.
pub(super) fn needs(subject: Subject) -> Option<(&'static str, &'static str)> {
    match subject {
        Subject::Tcplife => Some(("tcplife", "apt-get install libbpf-tools")),
        Subject::Tcpstates => Some(("tcpstates", "apt-get install libbpf-tools")),
        Subject::Tcprtt => Some(("tcprtt", "apt-get install libbpf-tools")),
        Subject::Tcpconnlat => Some(("tcpconnlat", "apt-get install libbpf-tools")),
        Subject::Tcptop => Some(("tcptop", "apt-get install libbpf-tools")),
        Subject::BpftraceRtt | Subject::BpftraceLife => Some(("bpftrace", "apt-get install bpftrace")),
        Subject::Rezolus => Some(("rezolus", "cargo install rezolus")),
        Subject::Ss => Some(("ss", "apt-get install iproute2")),
        _ => None,
    }
}

/// What is missing for a subject on this machine.
pub(crate) fn missing(subject: Subject) -> Option<String> {
    let (program, how) = needs(subject)?;
    find(program).is_none().then(|| format!("the program `{program}` is missing: {how}"))
}

/// How a tool is started, and the file that it needs. Those that look for tracepoints in tracefs get one, in a mount
/// namespace of their own.
pub(crate) fn command(subject: Subject) -> Result<(Command, Sign, Option<NamedTempFile>)> {
    let Some((program, how)) = needs(subject) else { bail!("{subject:?} is no other tool") };
    let path = find(program).with_context(|| format!("the program `{program}` is missing: {how}"))?;
    let with_tracefs = |path: PathBuf, args: &[&str]| {
        let mut command = Command::new("unshare");
        let script = "mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing; \
                      mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug; exec \"$0\" \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(path).args(args);
        command
    };
    Ok(match subject {
        Subject::BpftraceRtt => (with_tracefs(path, &["-e", RTT]), Sign::Programs, None),
        Subject::BpftraceLife => (with_tracefs(path, &["-e", LIFE]), Sign::Programs, None),
        Subject::Rezolus => {
            let mut config = NamedTempFile::new().context("a file for the configuration of Rezolus")?;
            config.write_all(REZOLUS.as_bytes())?;
            let mut command = with_tracefs(path, &[]);
            command.arg(config.path());
            (command, Sign::Programs, Some(config))
        }
        Subject::Ss => {
            let mut command = Command::new("sh");
            let script =
                "while sleep 1; do for n in /run/netns/*; do nsenter --net=$n \"$0\" -tinH; done; done";
            command.args(["-c", script]).arg(path);
            (command, Sign::Runs, None)
        }
        _ => (with_tracefs(path, &[]), Sign::Programs, None),
    })
}

/// A tool at work, whose output nobody reads. Killed on `Drop`.
pub(crate) struct Peer {
    child: Child,
    line: String,
    stderr: Lines,
    sign: Sign,
}

impl Peer {
    /// Starts it, and waits for the sign.
    pub(crate) fn start(mut command: Command, sign: Sign) -> Result<Self> {
        let line = shown(&command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{line}`"))?;
        let (stderr, _) = Lines::collect(child.stderr.take().context("the child has no stderr")?);
        let mut peer = Self { child, line, stderr, sign };
        match sign {
            Sign::Says(sign) => {
                peer.stderr.wait_for(sign, PATIENCE, |said| said.contains(sign))?;
            }
            Sign::Programs => {
                let what = format!("the BPF programs of `{}`", peer.line);
                wait_until(&what, PATIENCE, || {
                    if let Some(why) = peer.failed()? {
                        bail!(why);
                    }
                    Ok(has_programs(peer.child.id()).then_some(()))
                })?;
                thread::sleep(ATTACHED);
            }
            Sign::Runs => {}
        }
        Ok(peer)
    }

    /// Its status and what it said, if it has ended by itself.
    pub(crate) fn failed(&mut self) -> Result<Option<String>> {
        let status = self.child.try_wait()?;
        Ok(status.map(|status| format!("`{}`: {status}: {}", self.line, self.stderr.all().join("\n"))))
    }

    /// The process that does all of its work, if it is one.
    pub(crate) fn worker(&self) -> Option<u32> {
        (!matches!(self.sign, Sign::Runs)).then(|| self.child.id())
    }

    /// Does what Ctrl-C does, and waits.
    pub(crate) fn end(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::INT)
            .with_context(|| format!("interrupting `{}`", self.line))?;
        let Self { child, line, .. } = &mut self;
        if wait_until(line, PATIENCE, || Ok(child.try_wait()?)).is_err() {
            kill_process(Pid::from_child(child), Signal::TERM).context("ending it")?;
            wait_until(line, PATIENCE, || Ok(child.try_wait()?))?;
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Whether a process holds BPF programs.
fn has_programs(pid: u32) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    targets.into_iter().any(|target| target.to_string_lossy().contains("bpf-prog"))
}
