//! A command run to its end: how long it took, and what it needed.

use std::{
    io::Read,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use functional::process::shown;
use rustix::process::{Pid, Signal, kill_process};

use crate::accounting::{cpu_of_ended_children, resident};

/// After this it is killed, and that is an error.
const LIMIT: Duration = Duration::from_secs(60);
/// How often its memory is looked at. The kernel keeps the peak, so only a last-moment one is missed.
const PERIOD: Duration = Duration::from_millis(5);
/// What is read from it at a time.
const CHUNK: usize = 1 << 20;

/// What a command needed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ran {
    /// From its start to its end.
    pub(crate) took: Duration,
    /// CPU time, in steps of a clock tick.
    pub(crate) cpu: Duration,
    /// Most memory resident, bytes.
    pub(crate) resident: u64,
    /// Bytes written to stdout. They are read through a pipe and thrown away.
    pub(crate) written: u64,
}

/// Runs it, with nobody else's child ending meanwhile.
pub(crate) fn run(command: &mut Command) -> Result<Ran> {
    let line = shown(command);
    let before = cpu_of_ended_children()?;
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let mut stdout = child.stdout.take().context("the child has no stdout")?;
    let (pid, over) = (Pid::from_child(&child), AtomicBool::new(false));
    let (written, status, took, resident) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(pid, start, &over));
        let written = drain(&mut stdout);
        let status = child.wait();
        let took = start.elapsed();
        over.store(true, Ordering::Relaxed);
        (written, status, took, watch.join().unwrap_or(0))
    });
    let status = status.with_context(|| format!("waiting for `{line}`"))?;
    if !status.success() {
        bail!("`{line}`: {status} after {took:?}");
    }
    Ok(Ran { took, cpu: cpu_of_ended_children()?.saturating_sub(before), resident, written: written? })
}

/// Keeps an eye on its memory and on the time.
fn watch(pid: Pid, start: Instant, over: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !over.load(Ordering::Relaxed) {
        if let Some((most, _)) = resident(pid.as_raw_nonzero().get().unsigned_abs()) {
            peak = peak.max(most);
        }
        if start.elapsed() > LIMIT {
            let _ = kill_process(pid, Signal::KILL);
            break;
        }
        thread::sleep(PERIOD);
    }
    peak
}

fn drain(pipe: &mut impl Read) -> Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut read = 0;
    loop {
        match pipe.read(&mut chunk).context("reading its output")? {
            0 => return Ok(read),
            n => read += n as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_writes_and_takes_is_seen() {
        let ran = run(Command::new("sh").args(["-c", "sleep 0.1; printf hello"])).unwrap();
        assert_eq!(ran.written, 5);
        assert!(ran.took >= Duration::from_millis(100) && ran.resident > 0);
        assert!(run(&mut Command::new("false")).is_err());
    }
}
