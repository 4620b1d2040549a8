//! The terminal: taken over, and given back as it was, whatever happens.

use std::{
    io::{self, BufWriter, IsTerminal as _, Stdout, Write as _, stdout},
    panic, process,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::{Context as _, bail};
use crossterm::{
    cursor::{Hide, Show},
    event::{DisableMouseCapture, EnableMouseCapture},
    execute, queue,
    terminal::{
        BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
        disable_raw_mode, enable_raw_mode,
    },
};
use ratatui_core::terminal::Terminal;
use ratatui_crossterm::CrosstermBackend;

use super::{draw::draw, state::State};
use crate::output::{log, style::Palette};

/// Whether the terminal is ours now.
static IS_OURS: AtomicBool = AtomicBool::new(false);

/// As much as a screen takes at once.
const BUFFER: usize = 64 << 10;

/// The screen, while it is shown.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    palette: Palette,
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn enter(palette: Palette) -> anyhow::Result<Self> {
        give_back_on_panic();
        enter().context("cannot take the terminal over")?;
        let out = BufWriter::with_capacity(BUFFER, stdout());
        let terminal = Terminal::new(CrosstermBackend::new(out)).context("cannot draw on the terminal")?;
        Ok(Self { terminal, palette })
    }

    /// Shows what has changed since the last time.
    pub(super) fn draw(&mut self, state: &mut State) -> anyhow::Result<()> {
        if !IS_OURS.load(Ordering::Relaxed) {
            return Ok(());
        }
        let palette = self.palette;
        let mut drawn = None;
        // A terminal that knows this shows the frame at once.
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate).context(WRITE)?;
        self.terminal
            .draw(|frame| {
                let area = frame.area();
                drawn = Some(draw(state, Instant::now(), palette, area, frame.buffer_mut()));
            })
            .context(WRITE)?;
        execute!(self.terminal.backend_mut(), EndSynchronizedUpdate).context(WRITE)?;
        state.drawn = drawn.unwrap_or_default();
        Ok(())
    }

    /// Takes it over again, and draws all.
    pub(super) fn resume(&mut self) -> anyhow::Result<()> {
        // Whoever had it meanwhile may have left it in any state.
        leave();
        enter().context("cannot take the terminal over again")?;
        // It asks for no place of the cursor, as clear() does: the answer would come among the keys.
        let size = self.terminal.size().context(WRITE)?;
        self.terminal.resize(size.into()).context(WRITE)
    }
}

/// Gives the terminal back until [`Screen::resume`], and stops this process as Ctrl-Z does.
pub(super) fn suspend() -> anyhow::Result<()> {
    leave();
    signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGTSTP).context("cannot stop")
}

/// Ends this process for a signal, though another thread waits for the terminal. What can be done without waiting is done.
pub(super) fn abandon(signal: i32) -> ! {
    if IS_OURS.swap(false, Ordering::Relaxed) {
        let _ = disable_raw_mode();
    }
    process::exit(128 + signal)
}

const WRITE: &str = "cannot write to the terminal";

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

/// An error where there is no terminal that could show a screen.
pub(super) fn check() -> anyhow::Result<()> {
    if !stdout().is_terminal() {
        bail!("standard output is no terminal; `tcptide top --once` prints what the screen would show");
    }
    if std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        bail!(
            "this terminal cannot show a screen (TERM=dumb); `tcptide top --once` prints what it would show"
        );
    }
    Ok(())
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    IS_OURS.store(true, Ordering::Relaxed);
    // They would tear the screen.
    log::keep();
    execute!(stdout(), EnterAlternateScreen, EnableMouseCapture, Hide)
}

fn leave() {
    if IS_OURS.swap(false, Ordering::Relaxed) {
        // There is nobody to tell what goes wrong here.
        let _ = execute!(stdout(), DisableMouseCapture, Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
        let _ = stdout().flush();
        log::release();
    }
}

/// A panic of any thread ends the program: with its words on a terminal that shows them.
fn give_back_on_panic() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |why| {
        leave();
        before(why);
        process::exit(101);
    }));
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::fd::AsFd as _, process::Command};

    use rustix::{pty, termios};

    use super::*;

    /// Set in the process that is to panic.
    const PANICS: &str = "TCPTIDE_TEST_PANICS";

    /// The test runs itself, on a terminal of its own.
    #[test]
    fn a_panic_gives_the_terminal_back() {
        if std::env::var_os(PANICS).is_some() {
            let _screen = Screen::enter(Palette::PLAIN).unwrap();
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
            panic!("nobody comes here");
        }
        let ours = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
        pty::unlockpt(&ours).unwrap();
        let theirs =
            pty::ioctl_tiocgptpeer(&ours, pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
        let before = format!("{:?}", termios::tcgetattr(&theirs).unwrap());
        let mut command = Command::new("setsid");
        command.arg("-c").arg(std::env::current_exe().unwrap());
        let name = "command::top::terminal::tests::a_panic_gives_the_terminal_back";
        command.args(["--exact", name, "--nocapture"]).env(PANICS, "1");
        let copy = || theirs.as_fd().try_clone_to_owned().unwrap();
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let status = command.spawn().unwrap().wait().unwrap();
        drop(command);
        assert_eq!(status.code(), Some(101));
        assert_eq!(format!("{:?}", termios::tcgetattr(&theirs).unwrap()), before);
        drop(theirs);
        let mut bytes = Vec::new();
        // Without anybody on the other side, the end is an error.
        let _ = File::from(ours).read_to_end(&mut bytes);
        let said = String::from_utf8_lossy(&bytes);
        let place = |text: &str| said.find(text).unwrap_or_else(|| panic!("{text:?} is not in {said:?}"));
        let order = [place("\x1b[?1049h"), place("\x1b[?25h"), place("\x1b[?1049l"), place("on purpose")];
        assert!(order.is_sorted(), "{said:?}");
        assert!(!said.contains("nobody comes here"), "{said:?}");
    }
}
