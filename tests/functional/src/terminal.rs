//! A terminal to run a program on: what its screen shows, and whoever sits before it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use vt100::{MouseProtocolMode, Parser, Screen};

use crate::process::{lock, shown, wait_until, wrapped};

/// How long the screen may take to show what it should.
const SOON: Duration = Duration::from_secs(20);
/// How often a second a slow line takes something.
const TICKS: u32 = 20;

/// A program on a terminal of its own. Killed on `Drop`.
pub struct Terminal {
    child: Child,
    line: String,
    /// Our end.
    fd: OwnedFd,
    /// The program's end: kept, so that its settings can be read after the program.
    theirs: OwnedFd,
    parser: Arc<Mutex<Parser>>,
    /// How many bytes a second the line takes.
    pace: Arc<AtomicU32>,
    before: Termios,
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

fn sizes(columns: u16, rows: u16) -> Result<(NonZeroU16, NonZeroU16)> {
    Ok((NonZeroU16::new(rows).context("no rows")?, NonZeroU16::new(columns).context("no columns")?))
}

impl Terminal {
    /// Starts a command, which has nothing else for its standard streams.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Result<Self> {
        let line = shown(command);
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let fd = openpt(flags).context("making a terminal")?;
        unlockpt(&fd).context("making a terminal")?;
        let theirs = ioctl_tiocgptpeer(&fd, flags).context("making a terminal")?;
        tcsetwinsize(&fd, winsize(columns, rows)).context("telling a terminal its size")?;
        let before = tcgetattr(&theirs).context("reading a terminal's settings")?;
        let mut setsid = Command::new("setsid");
        // It makes way for the program: the process is the same.
        setsid.arg("-c").env("TERM", "xterm-256color").env_remove("COLUMNS").env_remove("LINES");
        setsid.env_remove("NO_COLOR");
        let mut all = wrapped(setsid, command);
        let copy = || theirs.as_fd().try_clone_to_owned().context("duplicating a terminal");
        all.stdin(copy()?).stdout(copy()?).stderr(copy()?);
        let child = all.spawn().with_context(|| format!("starting `{line}`"))?;
        let (rows, columns) = sizes(columns, rows)?;
        let parser = Arc::new(Mutex::new(Parser::new(rows, columns, 0)));
        let mut reader = File::from(fd.as_fd().try_clone_to_owned().context("duplicating a terminal")?);
        let to = Arc::clone(&parser);
        let pace = Arc::new(AtomicU32::new(u32::MAX));
        let at_pace = Arc::clone(&pace);
        thread::spawn(move || {
            let mut bytes = vec![0; 65536];
            loop {
                let pace = at_pace.load(Ordering::Relaxed);
                let most = bytes.len().min((pace / TICKS) as usize);
                if pace != u32::MAX {
                    thread::sleep(Duration::from_secs(1) / TICKS);
                }
                if most == 0 {
                    continue;
                }
                let Ok(count @ 1..) = reader.read(&mut bytes[..most]) else { return };
                lock(&to).process(&bytes[..count]);
            }
        });
        Ok(Self { child, line, fd, theirs, parser, pace, before })
    }

    /// From now on the line takes so many bytes a second; 0: none at all.
    pub fn set_pace(&self, bytes_a_second: u32) {
        self.pace.store(bytes_a_second, Ordering::Relaxed);
    }

    /// What is on the screen now.
    pub fn screen(&self) -> Screen {
        lock(&self.parser).screen().clone()
    }

    /// Its lines, without spaces at their ends.
    pub fn lines(&self) -> Vec<String> {
        lines(&self.screen())
    }

    /// Waits until the screen is as it should be; an error shows it.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut(&[String]) -> Option<T>) -> Result<T> {
        wait_until(what, SOON, || Ok(look(&self.lines())))
            .with_context(|| format!("the screen of `{}`:\n{}", self.line, self.lines().join("\n")))
    }

    /// Waits for a text anywhere on the screen.
    pub fn wait_for_text(&self, text: &str) -> Result<()> {
        self.wait_for(text, |lines| lines.iter().any(|line| line.contains(text)).then_some(()))
    }

    /// Types.
    pub fn press(&self, keys: &str) -> Result<()> {
        let mut writer = File::from(self.fd.as_fd().try_clone_to_owned()?);
        writer.write_all(keys.as_bytes()).with_context(|| format!("typing {keys:?}"))
    }

    /// Clicks with the left button; columns and lines count from 0.
    pub fn click(&self, column: usize, line: usize) -> Result<()> {
        let (column, line) = (column + 1, line + 1);
        self.press(&format!("\x1b[<0;{column};{line}M\x1b[<0;{column};{line}m"))
    }

    /// Makes it larger or smaller.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let (new_rows, new_columns) = sizes(columns, rows)?;
        lock(&self.parser).screen_mut().set_size(new_rows, new_columns);
        tcsetwinsize(&self.fd, winsize(columns, rows)).context("telling a terminal its size")
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("sending {signal:?} to `{}`", self.line))
    }

    /// The state of its process, as `ps` shows it: `T` is stopped.
    pub fn state(&self) -> Result<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).context("no state in /proc")
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_until(&format!("the end of `{}`", self.line), SOON, || Ok(child.try_wait()?))
    }

    /// An error unless the terminal is as it was before the program: settings, screen, cursor and mouse.
    pub fn is_given_back(&self) -> Result<()> {
        let settings = tcgetattr(&self.theirs).context("reading a terminal's settings")?;
        if format!("{settings:?}") != format!("{:?}", self.before) {
            bail!("the terminal's settings are {settings:?} and were {:?}", self.before);
        }
        wait_until("the terminal to be given back", SOON, || {
            let screen = self.screen();
            let is_back = !screen.alternate_screen()
                && !screen.hide_cursor()
                && screen.mouse_protocol_mode() == MouseProtocolMode::None;
            Ok(is_back.then_some(()))
        })
    }

    /// Whether the program has the whole screen.
    pub fn is_taken(&self) -> bool {
        self.screen().alternate_screen()
    }
}

/// A screen's lines, without spaces at their ends.
fn lines(screen: &Screen) -> Vec<String> {
    let (_, columns) = screen.size();
    screen.rows(0, columns.get()).map(|row| row.trim_end().to_owned()).collect()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
