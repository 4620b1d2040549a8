//! Child processes: run to the end, kept as daemons, read line by line, and always ended.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Locks `mutex` even if a panicking story held it: what is guarded here is valid at every moment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where `program` is on the `PATH`, or an error that names the Debian `package` to install.
pub fn require(program: &str, package: &str) -> Result<PathBuf> {
    find(program).ok_or_else(|| anyhow!("the program `{program}` is missing: apt-get install {package}"))
}

/// The path of a program, if there is one.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps daemons in sbin, which is not on every user's PATH.
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The command as a person would type it, for error texts.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `command` to its end and returns what it wrote to stdout, without the last newline.
///
/// A failure names the command, its status, and what it wrote to stderr.
pub fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, &[])
}

/// As [`output`], with `input` given to the command's stdin.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let line = shown(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // A command that does not read its input closes it: that is no error of ours.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input)));
        child.wait_with_output()
    })
    .with_context(|| format!("waiting for `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}`: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
}

/// A command that runs `inner`, with its arguments, environment and folder, as the arguments of
/// `outer`.
pub(crate) fn wrapped(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    if let Some(folder) = inner.get_current_dir() {
        outer.current_dir(folder);
    }
    outer
}

/// Asks every 10 ms until `ask` has an answer; after `limit`, an error that says `what` was awaited.
pub fn wait_until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain: {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process with this id exists (a zombie does).
pub fn alive(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// Whether the process still runs: it exists and is not a zombie waiting for its parent.
pub fn running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// Sends SIGKILL to each of the processes and waits, at most 10 s, until none of them runs.
pub(crate) fn kill_all(pids: &[i32]) {
    for pid in pids.iter().filter_map(|&pid| Pid::from_raw(pid)) {
        // It may have ended by itself in the meantime.
        let _ = kill_process(pid, Signal::KILL);
    }
    let _ = wait_until("the killed processes to end", Duration::from_secs(10), || {
        Ok((!pids.iter().any(|&pid| running(pid))).then_some(()))
    });
}

/// The processes whose command line contains `text`, other than this one.
///
/// `text` should be something only our own processes can have, such as the path of a folder with a
/// random name.
pub(crate) fn with_command_line(text: &str) -> Vec<i32> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| u32::try_from(pid) != Ok(own))
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
        })
        .collect()
}

/// A program that runs beside the story, with its output in a log file, and is ended on `Drop`.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; `log` receives its stdout and stderr, and is quoted in errors.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("duplicating the log file's descriptor")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting `{}`", shown(command)))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks every 10 ms until `ready`; an early end or a timeout quotes the end of the log.
    pub fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait().context("asking for the daemon's status")? {
                bail!("`{}` ended early: {status}; its last words: {}", self.name, self.last_words());
            }
            if start.elapsed() > limit {
                bail!("`{}` is not ready after {limit:?}; its last words: {}", self.name, self.last_words());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Asks it to end, and kills it if it has not after `patience`.
    pub fn stop(&mut self, patience: Duration) -> Option<ExitStatus> {
        end(&mut self.child, Signal::TERM, patience)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(10));
    }
}

/// Sends `signal`, waits `patience`, then SIGKILLs. The child is reaped in any case.
pub(crate) fn end(child: &mut Child, signal: Signal, patience: Duration) -> Option<ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let _ = kill_process(Pid::from_child(child), signal);
    wait_until("the child to end", patience, || Ok(child.try_wait()?)).ok().or_else(|| {
        let _ = child.kill();
        child.wait().ok()
    })
}

/// The lines a child writes to one of its pipes, collected by a thread.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    shared: Arc<(Mutex<Collected>, Condvar)>,
}

#[derive(Debug, Default)]
struct Collected {
    lines: Vec<String>,
    closed: bool,
}

impl Lines {
    /// Starts to collect from `pipe`. The thread ends when every writer has closed it.
    pub fn collect(pipe: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let lines = Self::default();
        let shared = Arc::clone(&lines.shared);
        let thread = thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                lock(&shared.0).lines.push(text);
                shared.1.notify_all();
                line.clear();
            }
            lock(&shared.0).closed = true;
            shared.1.notify_all();
        });
        (lines, thread)
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        lock(&self.shared.0).lines.clone()
    }

    /// Waits for the first line, also among those already there, that is `wanted`.
    ///
    /// An error, quoting the last lines, if the pipe closes or `limit` passes before.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Result<String> {
        let start = Instant::now();
        let mut seen = 0;
        let mut collected = lock(&self.shared.0);
        loop {
            if let Some(line) = collected.lines[seen..].iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = collected.lines.len();
            let left = limit.saturating_sub(start.elapsed());
            if collected.closed || left.is_zero() {
                let why = if collected.closed { "the output ended" } else { "nothing came in time" };
                let last: VecDeque<_> = collected.lines.iter().rev().take(5).rev().cloned().collect();
                bail!("waited for {what}: {why}; the last lines: {}", Vec::from(last).join("\n"));
            }
            collected = self.shared.1.wait_timeout(collected, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A program started by a story whose stdout and stderr are read while it runs.
///
/// Killed on `Drop` unless it was ended before.
#[derive(Debug)]
pub struct Reading {
    child: Child,
    line: String,
    stdout: Lines,
    stderr: Lines,
    readers: Vec<JoinHandle<()>>,
}

/// How a program ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit status, or the signal that killed it.
    pub status: ExitStatus,
    /// Lines written to stdout.
    pub stdout: Vec<String>,
    /// Lines written to stderr.
    pub stderr: Vec<String>,
}

impl Reading {
    /// Starts `command` with its three standard streams as pipes.
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::start_with(command, Stdio::piped())
    }

    /// As [`start`](Self::start), with something else than a pipe for its stdin.
    pub fn start_with(command: &mut Command, stdin: Stdio) -> Result<Self> {
        let line = shown(command);
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{line}`"))?;
        let stdout = child.stdout.take().context("the child has no stdout")?;
        let stderr = child.stderr.take().context("the child has no stderr")?;
        let (stdout, out_reader) = Lines::collect(stdout);
        let (stderr, err_reader) = Lines::collect(stderr);
        Ok(Self { child, line, stdout, stderr, readers: vec![out_reader, err_reader] })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Lines of stdout.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// Lines of stderr.
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// Writes a line to its stdin.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let stdin =
            self.child.stdin.as_mut().with_context(|| format!("the stdin of `{}` is closed", self.line))?;
        writeln!(stdin, "{line}").with_context(|| format!("telling `{}` something", self.line))
    }

    /// Closes its stdin.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("sending {signal:?} to `{}`", self.line))
    }

    /// Waits for its end; after `limit` it is killed and that is an error.
    pub fn wait(mut self, limit: Duration) -> Result<Ended> {
        let child = &mut self.child;
        let what = format!("the end of `{}`", self.line);
        let status = wait_until(&what, limit, || Ok(child.try_wait()?))?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Ok(Ended { status, stdout: self.stdout.all(), stderr: self.stderr.all() })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `name` as an argument list for `Command::args`, from anything that looks like strings.
pub(crate) fn owned<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Vec<OsString> {
    args.into_iter().map(|arg| arg.as_ref().to_owned()).collect()
}
