//! `tcptide top`: the live screen.
//!
//! * [`source`]: where the numbers come from
//! * [`numbers`]: rows made of them
//! * [`state`]: what is shown, and what keys do to it
//! * [`draw`]: the screen
//! * [`terminal`]: taken over and given back

mod draw;
mod keys;
mod list;
mod numbers;
mod source;
mod state;
mod terminal;
mod watch;

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use crossterm::event::Event;
use jiff::tz::TimeZone;
use rustix::thread::CapabilitySet;
use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP},
    iterator::Signals,
};

use self::{
    source::{Answer, Question, Source},
    state::{Effect, State},
    terminal::Screen,
};
use crate::{
    args::TopArgs,
    client::Remote,
    output::writer::{self, Output},
    privileges,
};

/// How often events are fetched, which wait in the kernel until then.
const EVENTS_PERIOD: Duration = Duration::from_millis(250);
/// How often the age of old numbers is told anew.
const TICK: Duration = Duration::from_secs(1);
/// How long a terminal that takes nothing more may keep the program from ending.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(args: &TopArgs, agent: Option<Remote>) -> anyhow::Result<()> {
    if !args.once {
        terminal::check()?;
    }
    let mut source = Source::start(args, agent)?;
    if source.is_inside() {
        // The thread that owns the programs keeps what they need.
        privileges::keep(CapabilitySet::empty())?;
    }
    let mut state = State::new(args.interval, args.sort, TimeZone::system());
    // What is wrong with an agent is said before the screen is there.
    let first = source.answer(&state.question())?;
    state.answer(&Question::Containers, Ok(first), Instant::now());
    if args.once { once(args, source, state) } else { show(source, state) }
}

/// Prints one screen.
fn once(args: &TopArgs, mut source: Source, mut state: State) -> anyhow::Result<()> {
    thread::sleep(args.interval);
    let second = source.answer(&state.question())?;
    state.answer(&Question::Containers, Ok(second), Instant::now());
    let mut out = Output::stdout();
    out.write_all(draw::plain(&state, writer::Screen::detect().width).as_bytes())?;
    Ok(out.flush()?)
}

/// What the screen waits for.
enum Message {
    Input(Event),
    Answer(Question, anyhow::Result<Answer>),
    Signal(i32),
    /// Nobody asks any more, or nobody types.
    Gone(&'static str),
}

/// What is asked from now on.
#[derive(Clone, PartialEq)]
struct Wanted {
    question: Question,
    interval: Duration,
    paused: bool,
}

impl Wanted {
    fn of(state: &State) -> Self {
        let interval = match state.question() {
            Question::Events(_) => state.interval.min(EVENTS_PERIOD),
            _ => state.interval,
        };
        Self { question: state.question(), interval, paused: state.paused }
    }
}

/// Shows the screen until somebody ends it.
fn show(source: Source, mut state: State) -> anyhow::Result<()> {
    let (to, messages) = mpsc::channel();
    let (ask, asked) = mpsc::channel();
    let mut wanted = Wanted::of(&state);
    let _ = ask.send(wanted.clone());
    listen_for_signals(to.clone())?;
    let mut screen = Screen::enter(writer::Screen::detect().palette)?;
    start("input", to.clone(), "nothing comes from the terminal any more", read_input)?;
    let untaken = Arc::new(AtomicBool::new(false));
    let is_untaken = Arc::clone(&untaken);
    start("source", to, "nobody asks for numbers any more", move |to| {
        answer(source, &asked, &is_untaken, to);
    })?;
    let mut changed = true;
    loop {
        if changed {
            screen.draw(&mut state)?;
        }
        let first = match messages.recv_timeout(TICK) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => bail!("nobody is left to tell of anything"),
        };
        // Without a message only the age of old numbers may have changed.
        changed = first.is_some() || draw::is_old(&state, Instant::now());
        // What came meanwhile makes one frame.
        for message in first.into_iter().chain(messages.try_iter()) {
            if matches!(message, Message::Answer(..)) {
                untaken.store(false, Ordering::Relaxed);
            }
            match take(message, &mut state, &mut screen)? {
                Effect::None => {}
                Effect::Quit => return Ok(()),
                Effect::Suspend => terminal::suspend()?,
            }
        }
        let now = Wanted::of(&state);
        if now != wanted {
            wanted = now;
            ask.send(wanted.clone()).ok().context("nobody asks for numbers any more")?;
        }
    }
}

fn take(message: Message, state: &mut State, screen: &mut Screen) -> anyhow::Result<Effect> {
    match message {
        Message::Input(Event::Key(key)) => return Ok(state.key(&key)),
        Message::Input(Event::Mouse(mouse)) => return Ok(state.mouse(mouse)),
        // The next frame is as large as the terminal then.
        Message::Input(_) => {}
        Message::Answer(question, answer) => state.answer(&question, answer, Instant::now()),
        Message::Signal(SIGTSTP) => return Ok(Effect::Suspend),
        Message::Signal(SIGCONT) => screen.resume()?,
        Message::Signal(_) => return Ok(Effect::Quit),
        Message::Gone(why) => bail!(why),
    }
    Ok(Effect::None)
}

/// Starts a thread that is missed when it ends.
fn start(
    name: &str,
    to: Sender<Message>,
    gone: &'static str,
    work: impl FnOnce(&Sender<Message>) + Send + 'static,
) -> anyhow::Result<()> {
    let work = move || {
        work(&to);
        let _ = to.send(Message::Gone(gone));
    };
    thread::Builder::new().name(name.to_owned()).spawn(work).context("cannot start a thread")?;
    Ok(())
}

fn listen_for_signals(to: Sender<Message>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT])
        .context("cannot wait for signals")?;
    start("signals", to, "nobody waits for signals any more", move |to| {
        for signal in signals.forever() {
            if to.send(Message::Signal(signal)).is_err() {
                return;
            }
            if ![SIGTSTP, SIGCONT].contains(&signal) {
                // Who writes to a terminal that takes nothing takes no message either.
                thread::sleep(PATIENCE);
                terminal::abandon(signal);
            }
        }
    })
}

fn read_input(to: &Sender<Message>) {
    while let Ok(event) = crossterm::event::read() {
        if to.send(Message::Input(event)).is_err() {
            return;
        }
    }
}

/// Asks what is wanted, at its interval, until nobody wants anything. It may take as long as it takes: keys do not wait. While
/// an answer is untaken, as a slow terminal takes a frame, nothing is asked.
fn answer(mut source: Source, asked: &Receiver<Wanted>, untaken: &AtomicBool, to: &Sender<Message>) {
    let Ok(mut wanted) = asked.recv() else { return };
    // The first answer is there already.
    let mut next = Instant::now() + wanted.interval;
    loop {
        let left = if wanted.paused { TICK } else { next.saturating_duration_since(Instant::now()) };
        match asked.recv_timeout(left) {
            Ok(new) => {
                let at_once = new.question != wanted.question || (wanted.paused && !new.paused);
                next = if at_once { Instant::now() } else { next.min(Instant::now() + new.interval) };
                wanted = new;
                continue;
            }
            Err(RecvTimeoutError::Timeout) if wanted.paused => continue,
            Err(RecvTimeoutError::Timeout) if untaken.load(Ordering::Relaxed) => {
                next = Instant::now() + wanted.interval / 4;
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let answer = source.answer(&wanted.question);
        untaken.store(true, Ordering::Relaxed);
        if to.send(Message::Answer(wanted.question.clone(), answer)).is_err() {
            return;
        }
        // Who is slow to answer is left alone in between.
        next = (next + wanted.interval).max(Instant::now() + wanted.interval / 4);
    }
}
