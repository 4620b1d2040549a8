//! The program `workload` as a child of a story.

use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::Counts;
use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::process::{Reading, owned};

/// Where the program is: beside the running test, where cargo built it.
pub fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("asking for the running program's path")?;
    // A test is in target/PROFILE/deps, a program in target/PROFILE.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("workload"))
        .find(|file| file.is_file())
        .with_context(|| format!("no program `workload` beside {}: cargo build -p functional", own.display()))
}

/// The program with arguments, to be wrapped for a namespace or a cgroup and then started.
pub fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = Command::new(program()?);
    command.args(owned(args));
    Ok(command)
}

/// The program at work. Killed on `Drop`.
#[derive(Debug)]
pub struct Running {
    reading: Reading,
}

impl Running {
    /// Starts the program `workload` in a cgroup and in a network namespace.
    pub fn inside(cgroup: &Cgroup, netns: &Netns, args: &[&str]) -> Result<Self> {
        Self::start(&mut cgroup.wrap(&netns.wrap(&command(args)?)))
    }

    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self { reading: Reading::start(command)? })
    }

    /// Starts `serve --inherited`, which serves on this listener.
    pub fn inheriting(command: &mut Command, listener: &TcpListener) -> Result<Self> {
        let listener: OwnedFd = listener.try_clone().context("duplicating the listener")?.into();
        Ok(Self { reading: Reading::start_with(command, listener.into())? })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.reading.pid()
    }

    /// Waits until it has said on stderr that it is ready, and returns what it is ready with:
    /// `listening on ADDRESS` or `holding N connections`.
    pub fn ready(&self, limit: Duration) -> Result<String> {
        let line = self.reading.stderr().wait_for("`ready: `", limit, |line| line.starts_with("ready: "))?;
        Ok(line.trim_start_matches("ready: ").to_owned())
    }

    /// For `serve`: waits until it is ready, and returns where it listens.
    pub fn listening(&self) -> Result<SocketAddr> {
        let line = self.ready(Duration::from_secs(10))?;
        line.trim_start_matches("listening on ").parse().with_context(|| format!("no address in `{line}`"))
    }

    /// For `speak`: has it send so many bytes.
    pub fn say(&mut self, bytes: u64) -> Result<()> {
        self.reading.write_line(&bytes.to_string())
    }

    /// Tells it to end (closed stdin, SIGTERM), waits, and returns its counts.
    pub fn finish(mut self) -> Result<Counts> {
        self.reading.close_stdin();
        // It may have ended by itself.
        let _ = self.reading.signal(Signal::TERM);
        self.wait(Duration::from_secs(30))
    }

    /// Closes its stdin, waits for its own end, and returns its counts.
    pub fn let_go(mut self, limit: Duration) -> Result<Counts> {
        self.reading.close_stdin();
        self.wait(limit)
    }

    /// Waits for its own end, and returns its counts.
    pub fn wait(self, limit: Duration) -> Result<Counts> {
        let ended = self.reading.wait(limit)?;
        if !ended.status.success() {
            bail!("the workload failed: {}: {}", ended.status, ended.stderr.join("\n"));
        }
        let line = ended.stdout.last().context("the workload printed no counts")?;
        serde_json::from_str(line).with_context(|| format!("reading the workload's counts: {line}"))
    }
}
