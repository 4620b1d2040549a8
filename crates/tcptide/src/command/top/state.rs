//! What is shown: which list, of whom, sorted and filtered how, and which row is chosen. Nothing here reads or writes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossterm::event::{
    KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use jiff::{Timestamp, tz::TimeZone};
use model::container::Container;
use ratatui_core::layout::{Position, Rect};

use super::{
    keys::{self, Action},
    list::{Far, Id, Opens, Row, Sort, columns},
    numbers::{Memory, is_of_edge},
    source::{Answer, Of, Question},
    watch::Watch,
};
use crate::{args::TopColumn, command::owner, output::table::Column};

/// A kind of screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Containers,
    Edges,
    Connections,
    Listeners,
    Events,
    /// One connection.
    Connection,
}

impl View {
    /// Those that a key leads to.
    pub(super) const LISTS: [Self; 5] =
        [Self::Containers, Self::Edges, Self::Connections, Self::Listeners, Self::Events];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Containers => "Containers",
            Self::Edges => "Edges",
            Self::Connections => "Connections",
            Self::Listeners => "Listeners",
            Self::Events => "Events",
            Self::Connection => "Connection",
        }
    }

    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Self::Containers => columns::CONTAINERS,
            Self::Edges => columns::EDGES,
            Self::Connections => columns::CONNECTIONS,
            Self::Listeners => columns::LISTENERS,
            Self::Events => columns::EVENTS,
            Self::Connection => &[],
        }
    }

    fn usual_sort(self) -> Sort {
        match self {
            Self::Containers => Sort::by(1),
            Self::Edges | Self::Listeners => Sort::by(3),
            Self::Connections => Sort::by(7),
            Self::Events | Self::Connection => Sort::by(0),
        }
    }
}

/// Where somebody is, and comes back to.
#[derive(Clone)]
struct Place {
    view: View,
    of: Option<Arc<Container>>,
    /// The edge whose connections these are.
    edge: Option<(Far, Option<u16>, String)>,
    /// The connection looked at: its cookie and own port.
    socket: Option<u64>,
    /// What had been chosen.
    chosen: Option<Id>,
}

/// What is to be done outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Quit,
    Suspend,
}

/// What a click does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Click {
    Show(View),
    SortBy(usize),
    /// Chooses the row with this number; opens it if it was chosen.
    Row(usize),
}

/// What was drawn, for the mouse and for paging.
#[derive(Clone, Debug, Default)]
pub(super) struct Drawn {
    pub(super) clicks: Vec<(Rect, Click)>,
    /// The first row on the screen, and how many have room.
    pub(super) first: usize,
    pub(super) rows: usize,
}

/// How it goes with the answers.
pub(super) struct Status {
    /// Since when this is asked.
    asked: Instant,
    /// When the last answer came.
    pub(super) answered: Option<Instant>,
    /// Why there was none since.
    pub(super) error: Option<String>,
    /// What there is more of than is shown.
    pub(super) note: Option<String>,
}

impl Status {
    fn new(asked: Instant) -> Self {
        Self { asked, answered: None, error: None, note: None }
    }

    /// How old the numbers are, or for how long there were none.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.answered.unwrap_or(self.asked))
    }
}

/// Intervals that the keys choose, ms.
const INTERVALS: [u64; 9] = [100, 250, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];

pub(super) struct State {
    place: Place,
    trail: Vec<Place>,
    sorts: Vec<Sort>,
    memory: Memory,
    /// All that came, unsorted.
    rows: Vec<Row>,
    /// What is shown of it, sorted: where it is there.
    shown: Vec<usize>,
    /// The chosen row's number.
    at: usize,
    pub(super) drawn: Drawn,
    pub(super) watch: Option<Watch>,
    pub(super) filter: String,
    /// Whether keys go into the filter.
    pub(super) typing: bool,
    pub(super) all: bool,
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) interval: Duration,
    pub(super) status: Status,
    /// The last answer's time.
    pub(super) time: Option<Timestamp>,
    pub(super) zone: TimeZone,
}

impl State {
    pub(super) fn new(interval: Duration, sort: TopColumn, zone: TimeZone) -> Self {
        let mut sorts: Vec<Sort> = View::LISTS.iter().map(|view| view.usual_sort()).collect();
        sorts[0] = Sort::by(sort as usize);
        Self {
            place: Place { view: View::Containers, of: None, edge: None, socket: None, chosen: None },
            trail: Vec::new(),
            sorts,
            memory: Memory::default(),
            rows: Vec::new(),
            shown: Vec::new(),
            at: 0,
            drawn: Drawn::default(),
            watch: None,
            filter: String::new(),
            typing: false,
            all: false,
            paused: false,
            help: false,
            interval,
            status: Status::new(Instant::now()),
            time: None,
            zone,
        }
    }

    pub(super) fn view(&self) -> View {
        self.place.view
    }

    /// What is shown, sorted.
    pub(super) fn shown(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.shown.iter().map(|at| &self.rows[*at])
    }

    /// The chosen row's number.
    pub(super) fn chosen(&self) -> usize {
        self.at
    }

    pub(super) fn sort(&self) -> Sort {
        self.sorts.get(self.place.view as usize).copied().unwrap_or(Sort::by(0))
    }

    /// Where one is, in words.
    pub(super) fn path(&self) -> String {
        let mut parts = vec![self.place.view.title().to_owned()];
        parts.extend(self.place.of.as_deref().map(|container| format!("of {}", owner(container))));
        if let Some((_, port, title)) = &self.place.edge {
            let port = port.map(|port| format!(", port {port}")).unwrap_or_default();
            parts.push(format!("with {title}{port}"));
        }
        parts.join(" ")
    }

    /// What has to be asked for what is shown.
    pub(super) fn question(&self) -> Question {
        let of = self.place.of.as_deref().map(Of::new);
        match self.place.view {
            View::Containers => Question::Containers,
            View::Edges => Question::Edges(of),
            // Those of an edge are chosen here: behind a published port, the server knows itself by another one.
            View::Connections => Question::Connections(of),
            // A view of one has one.
            View::Connection => Question::Connection(self.place.socket.unwrap_or_default()),
            View::Listeners => Question::Listeners(of),
            View::Events => Question::Events(of),
        }
    }

    /// Takes in what came for a question. What is not shown any more is left.
    pub(super) fn answer(&mut self, question: &Question, answer: anyhow::Result<Answer>, now: Instant) {
        if *question != self.question() || self.paused {
            return;
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.status.error = Some(format!("{error:#}"));
                return;
            }
        };
        self.status = Status { answered: Some(now), ..Status::new(self.status.asked) };
        let time = Timestamp::now();
        let of = self.place.of.as_deref().map(Of::new);
        let rows = match answer {
            Answer::Containers(totals) => {
                self.time = Some(totals.time);
                self.memory.containers(totals)
            }
            Answer::Edges(edges) => {
                self.time = Some(time);
                self.memory.edges(&edges, of.as_ref(), time)
            }
            Answer::Connection(watched) => {
                if let Some(watch) = &mut self.watch {
                    watch.see(*watched);
                }
                self.time = Some(time);
                Vec::new()
            }
            Answer::Connections(found) => {
                let edge = &self.place.edge;
                let is_wanted =
                    |one: &_| edge.as_ref().is_none_or(|(far, port, _)| is_of_edge(one, far, *port));
                let rows = self.memory.connections(&found, is_wanted);
                let told = found.connections.len() as u64;
                if told < found.matched {
                    self.status.note =
                        Some(format!("the {told} that have carried most, of {}", found.matched));
                }
                self.time = Some(time);
                rows
            }
            Answer::Listeners(found) => {
                self.time = Some(time);
                self.memory.listeners(&found)
            }
            Answer::Events(new, lost) => {
                self.time = Some(time);
                if lost > 0 {
                    self.status.note = Some(format!("{lost} more events are not shown: too many at a time"));
                }
                self.memory.events(new)
            }
        };
        self.rows = rows;
        self.arrange();
    }

    /// Sorts and filters, and stays at the chosen row.
    fn arrange(&mut self) {
        let text = self.filter.to_lowercase();
        let sort = self.sort();
        let wanted = |row: &Row| (self.all || !row.idle) && (text.is_empty() || row.has(&text));
        self.shown = (0..self.rows.len()).filter(|at| wanted(&self.rows[*at])).collect();
        self.shown.sort_by(|a, b| sort.order(&self.rows[*a], &self.rows[*b]));
        let place =
            self.place.chosen.as_ref().and_then(|chosen| self.shown().position(|row| row.id == *chosen));
        self.at = place.unwrap_or(self.at).min(self.shown.len().saturating_sub(1));
        // Who has chosen nothing stays at the top, whoever is there.
        if place.is_none() && self.place.chosen.is_none() {
            self.at = 0;
        }
    }

    fn choose(&mut self, at: usize) {
        self.at = at.min(self.shown.len().saturating_sub(1));
        let chosen = self.shown().nth(self.at).map(|row| row.id.clone());
        self.place.chosen = chosen;
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, event: &KeyEvent) -> Effect {
        if event.kind == KeyEventKind::Release {
            return Effect::None;
        }
        let is_plain = (event.modifiers - KeyModifiers::SHIFT).is_empty();
        if self.typing && is_plain && self.type_in(event.code) {
            return Effect::None;
        }
        match keys::action(event) {
            Some(Action::Quit) => return Effect::Quit,
            Some(Action::Suspend) => return Effect::Suspend,
            // Any key ends the help.
            _ if self.help => self.help = false,
            Some(action) => self.act(action),
            None => {}
        }
        Effect::None
    }

    /// A key while the filter is typed; whether it was for the filter.
    fn type_in(&mut self, code: KeyCode) -> bool {
        match code {
            KeyCode::Char(c) => self.filter.push(c),
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            _ => return false,
        }
        self.arrange();
        true
    }

    fn act(&mut self, action: Action) {
        let page = self.drawn.rows.max(1);
        match action {
            // Done before.
            Action::Quit | Action::Suspend => {}
            Action::Help => self.help = true,
            Action::Up => self.choose(self.at.saturating_sub(1)),
            Action::Down => self.choose(self.at + 1),
            Action::PageUp => self.choose(self.at.saturating_sub(page)),
            Action::PageDown => self.choose(self.at + page),
            Action::First => {
                self.choose(0);
                // From here on it is the first, whoever that is.
                self.place.chosen = None;
            }
            Action::Last => self.choose(usize::MAX),
            Action::Open => self.open(),
            Action::Back => self.back(),
            Action::Show(view) => self.show(view),
            Action::SortLeft => self.sort_by_next(|column, count| (column + count - 1) % count),
            Action::SortRight => self.sort_by_next(|column, count| (column + 1) % count),
            Action::Reverse => {
                let sort = self.sort();
                self.sort_by(Sort { reversed: !sort.reversed, ..sort });
            }
            Action::Filter => self.typing = self.view() != View::Connection,
            Action::Pause => self.paused = !self.paused,
            Action::Faster => {
                self.change_interval(|now| INTERVALS.iter().rev().copied().find(|ms| *ms < now));
            }
            Action::Slower => self.change_interval(|now| INTERVALS.iter().copied().find(|ms| *ms > now)),
            Action::All => {
                self.all = !self.all;
                self.arrange();
            }
        }
    }

    fn change_interval(&mut self, next: impl Fn(u64) -> Option<u64>) {
        let now = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        if let Some(next) = next(now) {
            self.interval = Duration::from_millis(next);
        }
    }

    fn sort_by_next(&mut self, next: impl Fn(usize, usize) -> usize) {
        let count = self.view().columns().len();
        if count > 0 {
            self.sort_by(Sort::by(next(self.sort().column, count)));
        }
    }

    fn sort_by(&mut self, sort: Sort) {
        if let Some(place) = self.sorts.get_mut(self.place.view as usize) {
            *place = sort;
        }
        self.arrange();
    }

    /// Looks closer at the chosen row.
    fn open(&mut self) {
        let Some(row) = self.shown().nth(self.at) else { return };
        let id = row.id.clone();
        let opens = row.opens.clone();
        let here = Place { chosen: Some(id), ..self.place.clone() };
        let next = match opens {
            Opens::Nothing => return,
            Opens::Container(container) => {
                Place { view: View::Edges, of: Some(container), edge: None, socket: None, chosen: None }
            }
            Opens::Edge { near, far, port, title } => Place {
                view: View::Connections,
                of: near,
                edge: Some((far, port, title)),
                socket: None,
                chosen: None,
            },
            Opens::Connection { container, cookie } => Place {
                view: View::Connection,
                of: Some(container),
                socket: Some(cookie),
                chosen: None,
                ..self.place.clone()
            },
        };
        self.trail.push(here);
        self.go(next);
    }

    /// Another list, of the same container.
    fn show(&mut self, view: View) {
        if view == self.place.view {
            return;
        }
        self.trail.clear();
        let of = self.place.of.clone().filter(|_| view != View::Containers);
        if of.is_some() {
            let first = Place { view: View::Containers, of: None, edge: None, socket: None, chosen: None };
            self.trail.push(first);
        }
        self.go(Place { view, of, edge: None, socket: None, chosen: None });
    }

    fn back(&mut self) {
        if !self.filter.is_empty() {
            self.filter.clear();
            self.arrange();
        } else if let Some(place) = self.trail.pop() {
            self.go(place);
        } else if self.place.view != View::Containers {
            self.show(View::Containers);
        }
    }

    fn go(&mut self, place: Place) {
        self.watch = place.socket.map(|_| Watch::new());
        self.place = place;
        self.rows.clear();
        self.shown.clear();
        self.at = 0;
        self.filter.clear();
        self.typing = false;
        self.memory.forget_events();
        self.status = Status::new(Instant::now());
        // Who asks for something else wants to see it.
        self.paused = false;
    }

    /// The mouse was moved or clicked.
    pub(super) fn mouse(&mut self, event: MouseEvent) -> Effect {
        match event.kind {
            MouseEventKind::ScrollUp => self.choose(self.at.saturating_sub(3)),
            MouseEventKind::ScrollDown => self.choose(self.at + 3),
            MouseEventKind::Down(MouseButton::Left) if self.help => self.help = false,
            MouseEventKind::Down(MouseButton::Left) => {
                let at = Position { x: event.column, y: event.row };
                let hit =
                    self.drawn.clicks.iter().find(|(area, _)| area.contains(at)).map(|(_, click)| *click);
                match hit {
                    Some(Click::Show(view)) => self.show(view),
                    Some(Click::SortBy(column)) => {
                        let sort = self.sort();
                        let reversed = sort.column == column && !sort.reversed;
                        self.sort_by(Sort { column, reversed });
                    }
                    Some(Click::Row(row)) if row == self.at && self.place.chosen.is_some() => self.open(),
                    Some(Click::Row(row)) => self.choose(row),
                    None => {}
                }
            }
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use model::{metrics::METRICS, record};

    use super::*;
    use crate::{
        answer::totals::{Counted, Layout, Metrics, Totals},
        command::top::draw,
    };

    pub(in super::super) fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    /// What containers with these names, numbers of connections, and bytes sent have counted.
    fn totals(seconds: f64, all: &[(&str, u32, u64)]) -> Answer {
        let containers = all.iter().enumerate().map(|(id, (name, connections, sent))| {
            let mut totals = record::Totals { sent_bytes: *sent, walk: 1, ..record::Totals::default() };
            totals.connections[1] = *connections;
            totals.rtt.slots[4] = *sent / 100;
            totals.connect_failures[4] = *sent / 1000;
            let mut container = Container::unknown(id as u64 + 10);
            (*name).clone_into(&mut container.name);
            let metrics = Metrics::of(&totals, 1, &Layout::of(&[true; METRICS.len()]));
            Counted { container: Arc::new(container), live: true, metrics }
        });
        Answer::Containers(Totals { time: Timestamp::UNIX_EPOCH, seconds, containers: containers.collect() })
    }

    /// Three containers at two looks, two seconds apart.
    pub(in super::super) fn shop() -> State {
        let mut state = State::new(Duration::from_secs(1), TopColumn::Connections, TimeZone::UTC);
        let now = Instant::now();
        let looks = [(1.0, [0, 0, 0]), (3.0, [2000, 10_240, 0])];
        for (seconds, [web, db, idle]) in looks {
            let answer = totals(seconds, &[("web", 7, web), ("db", 2, db), ("idle", 0, idle)]);
            state.answer(&Question::Containers, Ok(answer), now);
        }
        state
    }

    fn names(state: &State) -> String {
        let shown = state.shown().map(|row| row.cells[0].shown(0, &TimeZone::UTC));
        shown.collect::<Vec<_>>().join(" ")
    }

    fn press(state: &mut State, text: &str) {
        for c in text.chars() {
            state.key(&key(KeyCode::Char(c)));
        }
    }

    #[test]
    fn a_screen_of_80_columns_and_24_lines() {
        let state = shop();
        let screen = draw::screen(&state, Instant::now(), 80, 24);
        insta::assert_snapshot!(screen[..5].join("\n"), @r"
        tcptide  1 Containers  2 Edges  3 Connections  4 Listeners  5 Events    00:00:00
        Containers: 2
        CONTAINER    CONNS▾      OUT/S       IN/S     P50     P99   RETR  FAIL  LIMIT
        web               7    1000B/s       0B/s    26µs    30µs   0.0%   1.0  -
        db                2     5KiB/s       0B/s    26µs    30µs   0.0%   5.0  -
        ");
        insta::assert_snapshot!(screen[23], @"every 1s  ?: help  q: end");
        assert!(screen[5..23].iter().all(String::is_empty), "{screen:?}");
    }

    #[test]
    fn what_is_printed_once_has_all_columns() {
        insta::assert_snapshot!(draw::plain(&shop(), None), @r"
        CONTAINER       CONNS▾      OUT/S       IN/S     P50     P99   RETR  FAIL  LIMIT     RTT
        web                  7    1000B/s       0B/s    26µs    30µs   0.0%   1.0  -         ▁
        db                   2     5KiB/s       0B/s    26µs    30µs   0.0%   5.0  -         ▁
        ");
        insta::assert_snapshot!(draw::plain(&shop(), Some(40)), @r"
        CONTAINER   CONNS▾      OUT/S       IN/S
        web              7    1000B/s       0B/s
        db               2     5KiB/s       0B/s
        ");
    }

    #[test]
    fn rows_are_sorted_by_any_column_both_ways() {
        let mut state = shop();
        assert_eq!(names(&state), "web db");
        press(&mut state, ">");
        assert_eq!((names(&state).as_str(), state.sort()), ("db web", Sort::by(2)));
        press(&mut state, "r");
        assert_eq!(names(&state), "web db");
        press(&mut state, "<<");
        assert_eq!((names(&state).as_str(), state.sort()), ("db web", Sort::by(0)));
        press(&mut state, "<");
        assert_eq!(state.sort().column, columns::CONTAINERS.len() - 1);
    }

    #[test]
    fn the_chosen_row_stays_chosen_wherever_it_goes() {
        let mut state = shop();
        press(&mut state, "j");
        assert_eq!(state.chosen(), 1);
        press(&mut state, ">");
        assert_eq!((state.chosen(), names(&state).as_str()), (0, "db web"));
        // Who has chosen none stays at the top.
        press(&mut state, "g<");
        assert_eq!((state.chosen(), names(&state).as_str()), (0, "web db"));
        press(&mut state, "jjjjj");
        assert_eq!(state.chosen(), 1);
    }

    #[test]
    fn a_filter_is_typed_and_given_up() {
        let mut state = shop();
        press(&mut state, "/Wq");
        assert_eq!((state.filter.as_str(), names(&state).as_str()), ("Wq", ""));
        state.key(&key(KeyCode::Backspace));
        assert_eq!(names(&state), "web");
        assert_eq!(state.key(&KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Effect::Quit);
        state.key(&key(KeyCode::Enter));
        assert_eq!(state.key(&key(KeyCode::Char('q'))), Effect::Quit);
        state.key(&key(KeyCode::Esc));
        assert_eq!((state.filter.as_str(), names(&state).as_str()), ("", "web db"));
    }

    #[test]
    fn idle_ones_are_shown_only_if_asked_for() {
        let mut state = shop();
        press(&mut state, "a");
        assert_eq!(names(&state), "web db idle");
    }

    #[test]
    fn looking_closer_asks_for_that_and_coming_back_finds_the_same_row() {
        let mut state = shop();
        press(&mut state, "j");
        state.key(&key(KeyCode::Enter));
        let Question::Edges(Some(of)) = state.question() else { panic!("{:?}", state.question()) };
        assert_eq!((of.cgroup_id, state.path().as_str()), (11, "Edges of db"));
        // What was asked before and comes late is not shown.
        state.answer(&Question::Containers, Ok(totals(5.0, &[("web", 1, 1)])), Instant::now());
        assert_eq!(state.shown().len(), 0);
        press(&mut state, "3");
        assert!(matches!(state.question(), Question::Connections(Some(_))));
        state.key(&key(KeyCode::Esc));
        assert_eq!((state.view(), state.question()), (View::Containers, Question::Containers));
        press(&mut state, "2");
        assert_eq!(state.question(), Question::Edges(None));
        state.key(&key(KeyCode::Esc));
        assert_eq!(state.view(), View::Containers);
        state.key(&key(KeyCode::Esc));
        assert_eq!(state.view(), View::Containers);
    }

    #[test]
    fn nothing_moves_while_it_is_paused() {
        let mut state = shop();
        press(&mut state, "p");
        state.answer(&Question::Containers, Ok(totals(5.0, &[])), Instant::now());
        assert_eq!((state.paused, names(&state).as_str()), (true, "web db"));
        press(&mut state, " ");
        state.answer(&Question::Containers, Ok(totals(5.0, &[])), Instant::now());
        assert_eq!((state.paused, names(&state).as_str()), (false, ""));
    }

    #[test]
    fn an_agent_that_began_anew_has_no_rates_until_the_second_look() {
        let mut state = shop();
        state.answer(&Question::Containers, Ok(totals(0.5, &[("web", 7, 1)])), Instant::now());
        let shown = |state: &State| state.shown().next().unwrap().cells[2].shown(9, &TimeZone::UTC);
        assert_eq!(shown(&state), "-");
        state.answer(&Question::Containers, Ok(totals(1.5, &[("web", 7, 101)])), Instant::now());
        assert_eq!(shown(&state), "100B/s");
    }

    #[test]
    fn old_numbers_are_told_with_their_age() {
        let mut state = shop();
        let now = Instant::now();
        let later = now + Duration::from_secs(12);
        assert!(!draw::is_old(&state, now));
        let last = |state: &State| draw::screen(state, later, 80, 24)[23].clone();
        assert_eq!(last(&state), "numbers of 12s ago: no answer yet");
        state.answer(&Question::Containers, Err(anyhow::anyhow!("nobody there")), now);
        assert_eq!(last(&state), "numbers of 12s ago: nobody there");
        state.answer(&Question::Containers, Ok(totals(9.0, &[("web", 1, 1)])), later);
        assert_eq!(last(&state), "every 1s  ?: help  q: end");
    }

    #[test]
    fn no_screen_is_too_small_and_no_name_too_odd() {
        let mut state = shop();
        let odd = "東京\u{1b}[31m🙂\u{202e}אב\u{301}\nend of a name that is longer than most others are";
        state.answer(&Question::Containers, Ok(totals(9.0, &[(odd, 1, 1), ("web", 1, 1)])), Instant::now());
        for help in [false, true] {
            state.help = help;
            for width in 1..130 {
                for height in [1, 2, 3, 4, 5, 10, 30] {
                    let lines = draw::screen(&state, Instant::now(), width, height);
                    for line in lines {
                        let fits = unicode_width::UnicodeWidthStr::width(line.as_str()) <= width.into();
                        assert!(fits && !line.contains(char::is_control), "{width}×{height}: {line:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_key_of_the_help_is_one_keys_only() {
        let mut seen = BTreeMap::new();
        for entry in keys::KEYS {
            assert!(entry.names.len() <= 11 && entry.does.len() <= 27, "{}", entry.does);
            for name in entry.names.split(' ') {
                assert_eq!(seen.insert(name, entry.action), None, "{name}");
            }
        }
    }

    #[test]
    fn the_interval_goes_up_and_down_by_steps() {
        let mut state = shop();
        press(&mut state, "--");
        assert_eq!(state.interval, Duration::from_secs(5));
        press(&mut state, "++++++++++");
        assert_eq!(state.interval, Duration::from_millis(100));
    }
}
