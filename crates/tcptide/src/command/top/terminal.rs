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

    /// Gives the terminal back until [`Screen::resume`], and stops this process as Ctrl-Z does.
    pub(super) fn suspend(&self) -> anyhow::Result<()> {
        leave();
        signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGTSTP).context("cannot stop")
    }

    /// Takes it over again, and draws all.
    pub(super) fn resume(&mut self) -> anyhow::Result<()> {
        // Whoever had it meanwhile may have left it in any state.
        leave();
        enter().context("cannot take the terminal over again")?;
        self.terminal.clear().context(WRITE)
    }
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
