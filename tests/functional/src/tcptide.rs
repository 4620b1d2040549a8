//! The binary under test: found, run, and read.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::http;
use crate::process::{Ended, Reading, owned, wait_until};
use crate::samples::Scrape;

/// How long loading and attaching may take.
const ATTACH: Duration = Duration::from_secs(30);
/// How long an end after Ctrl-C may take.
const END: Duration = Duration::from_secs(15);
/// The longest run of a command that ends by itself.
const RUN: Duration = Duration::from_secs(120);

/// The binary under test.
#[derive(Clone, Debug)]
pub struct Tcptide {
    program: PathBuf,
}

/// What a command of tcptide wrote, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Lines of stdout.
    pub stdout: Vec<String>,
    /// Lines of stderr.
    pub stderr: Vec<String>,
}

impl From<Ended> for Output {
    fn from(ended: Ended) -> Self {
        Self { status: ended.status, stdout: ended.stdout, stderr: ended.stderr }
    }
}

impl Output {
    /// Itself if tcptide succeeded, else an error with what it said.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("tcptide failed: {}: {}", self.status, self.stderr.join("\n"))
    }

    /// Each line of stdout as JSON; an error names the line that is none.
    pub fn json_lines(&self) -> Result<Vec<Value>> {
        json(&self.stdout)
    }

    /// The whole of stdout as one JSON value.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout.join("\n")).context("reading tcptide's output as JSON")
    }
}

impl Tcptide {
    /// The path in the environment variable `TCPTIDE`, else the program that cargo built beside
    /// the running test, else the one of the other profile (debug, release).
    pub fn find() -> Result<Self> {
        if let Some(program) = std::env::var_os("TCPTIDE") {
            return Self::at(PathBuf::from(program)).context("the environment variable TCPTIDE");
        }
        let own = std::env::current_exe().context("asking for the test's path")?;
        // target/PROFILE/deps/test
        let profile = own.ancestors().nth(2).context("the test is not in a target folder")?;
        let target = profile.parent().context("the test is not in a target folder")?;
        // A bench stands beside the binary.
        let beside = own.with_file_name("");
        [beside, profile.to_owned(), target.join("release"), target.join("debug")]
            .iter()
            .find_map(|folder| Self::at(folder.join("tcptide")).ok())
            .with_context(|| {
                format!("no tcptide in {}: cargo build -p tcptide, or set TCPTIDE", target.display())
            })
    }

    /// The program at a path.
    pub fn at(program: impl Into<PathBuf>) -> Result<Self> {
        let program = program.into();
        if !program.is_file() {
            bail!("there is no program {}", program.display());
        }
        Ok(Self { program })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.program
    }

    /// A command, to be wrapped for a namespace or a cgroup and given to [`run_command`] or
    /// [`Streaming::start`].
    ///
    /// [`run_command`]: Self::run_command
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(owned(args));
        command
    }

    /// The same as somebody without any privilege.
    pub fn command_of_nobody<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(&self.program).args(owned(args));
        command
    }

    /// Runs a command that ends by itself, within two minutes.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        Self::run_command(&mut self.command(args))
    }

    /// As [`run`](Self::run), for a command from [`command`](Self::command).
    pub fn run_command(command: &mut Command) -> Result<Output> {
        let mut reading = Reading::start(command)?;
        reading.close_stdin();
        Ok(reading.wait(RUN)?.into())
    }

    /// Starts a command that streams.
    pub fn spawn<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Streaming> {
        Streaming::start(&mut self.command(args))
    }

    /// Starts the agent on a free port of loopback and waits until it is ready.
    pub fn agent<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Agent> {
        self.agent_at(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)), args)
    }

    /// As [`agent`](Self::agent), where another one has served before.
    pub fn agent_at<S: AsRef<OsStr>>(
        &self,
        address: SocketAddr,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Agent> {
        let mut command = self.command(["agent", "--web.listen-address", &address.to_string()]);
        command.args(owned(args));
        let streaming = Streaming::start(&mut command)?;
        let agent = Agent { address, streaming };
        wait_until("the agent to be ready", ATTACH, || {
            if !agent.streaming.is_running() {
                // Its last words may still be on their way.
                let _ =
                    agent.streaming.reading.stderr().wait_for("the end", Duration::from_secs(1), |_| false);
                bail!("the agent ended early: {}", agent.streaming.stderr().join("\n"));
            }
            Ok(agent.get("/-/ready").is_ok_and(|answer| answer.status == 200).then_some(()))
        })
        .with_context(|| format!("the agent said: {}", agent.streaming.stderr().join("\n")))?;
        Ok(agent)
    }
}

/// A command that streams. Killed on `Drop`.
#[derive(Debug)]
pub struct Streaming {
    reading: Reading,
}

impl Streaming {
    /// Starts a command from [`Tcptide::command`].
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self { reading: Reading::start(command)? })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.reading.pid()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        i32::try_from(self.pid()).is_ok_and(crate::process::running)
    }

    /// Waits until it has said on stderr that its programs are attached: what happens from now on
    /// is seen.
    pub fn wait_ready(&self) -> Result<()> {
        self.reading
            .stderr()
            .wait_for("`tcptide: attached`", ATTACH, |line| line.contains("tcptide: attached"))
            .map(drop)
    }

    /// Waits for a line of stdout, also among those already there.
    pub fn wait_for_line(&self, limit: Duration, wanted: impl FnMut(&str) -> bool) -> Result<String> {
        self.reading.stdout().wait_for("a line", limit, wanted)
    }

    /// Waits for a JSON object on stdout, also among those already there.
    pub fn wait_for_json(&self, limit: Duration, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        let is_wanted = |line: &str| serde_json::from_str(line).is_ok_and(|value| wanted(&value));
        let line = self.reading.stdout().wait_for("a JSON object", limit, is_wanted)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Lines of stdout so far.
    pub fn stdout(&self) -> Vec<String> {
        self.reading.stdout().all()
    }

    /// Lines of stderr so far.
    pub fn stderr(&self) -> Vec<String> {
        self.reading.stderr().all()
    }

    /// Each line of stdout so far as JSON.
    pub fn json_lines(&self) -> Result<Vec<Value>> {
        json(&self.stdout())
    }

    /// Does what Ctrl-C does, and waits for the end.
    pub fn interrupt(self) -> Result<Output> {
        self.end_with(Signal::INT)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.reading.signal(signal)
    }

    /// Sends a signal that should end it, and waits for the end.
    pub fn end_with(self, signal: Signal) -> Result<Output> {
        self.reading.signal(signal)?;
        Ok(self.reading.wait(END)?.into())
    }

    /// Waits for its own end, as with `--duration`.
    pub fn wait(self, limit: Duration) -> Result<Output> {
        Ok(self.reading.wait(limit)?.into())
    }
}

/// A running agent. Killed on `Drop`.
#[derive(Debug)]
pub struct Agent {
    address: SocketAddr,
    streaming: Streaming,
}

impl Agent {
    /// Where it serves HTTP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.streaming.pid()
    }

    /// GETs a path.
    pub fn get(&self, path: &str) -> Result<http::Response> {
        http::get(self.address, path)
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        self.get("/metrics")?.ok()
    }

    /// The samples of `/metrics`.
    pub fn scrape(&self) -> Result<Scrape> {
        Scrape::parse(&self.metrics()?)
    }

    /// A path that answers with JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.get(path)?.ok()?)?)
    }

    /// Lines of stderr so far.
    pub fn log(&self) -> Vec<String> {
        self.streaming.stderr()
    }

    /// Has it read its file of settings again, as a service manager does.
    pub fn reload(&self) -> Result<()> {
        self.streaming.signal(Signal::HUP)
    }

    /// Ends it as a service manager does, and waits.
    pub fn stop(self) -> Result<Output> {
        self.streaming.end_with(Signal::TERM)
    }
}

fn json(lines: &[String]) -> Result<Vec<Value>> {
    let parse = |line: &String| serde_json::from_str(line).with_context(|| format!("no JSON: `{line}`"));
    lines.iter().filter(|line| !line.trim().is_empty()).map(parse).collect()
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
