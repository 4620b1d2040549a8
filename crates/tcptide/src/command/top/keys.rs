//! The keys: one table for what they do and for what the help says.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::state::View;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    Suspend,
    Help,
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Open,
    Back,
    Show(View),
    SortLeft,
    SortRight,
    Reverse,
    Filter,
    Pause,
    Faster,
    Slower,
    All,
}

/// One line of the help.
pub(super) struct Key {
    /// As people call them.
    pub(super) names: &'static str,
    pub(super) does: &'static str,
    codes: &'static [(KeyCode, KeyModifiers)],
    pub(super) action: Action,
}

const fn key(
    names: &'static str,
    does: &'static str,
    action: Action,
    codes: &'static [(KeyCode, KeyModifiers)],
) -> Key {
    Key { names, does, codes, action }
}

const NONE: KeyModifiers = KeyModifiers::NONE;
const CONTROL: KeyModifiers = KeyModifiers::CONTROL;

/// All of them.
pub(super) const KEYS: &[Key] = &[
    key("Up k", "one row up", Action::Up, &[(KeyCode::Up, NONE), (KeyCode::Char('k'), NONE)]),
    key("Down j", "one row down", Action::Down, &[(KeyCode::Down, NONE), (KeyCode::Char('j'), NONE)]),
    key("PageUp", "one screen up", Action::PageUp, &[(KeyCode::PageUp, NONE)]),
    key("PageDown", "one screen down", Action::PageDown, &[(KeyCode::PageDown, NONE)]),
    key("Home g", "the first row", Action::First, &[(KeyCode::Home, NONE), (KeyCode::Char('g'), NONE)]),
    key("End G", "the last row", Action::Last, &[(KeyCode::End, NONE), (KeyCode::Char('G'), NONE)]),
    key("Enter Right", "look closer", Action::Open, &[(KeyCode::Enter, NONE), (KeyCode::Right, NONE)]),
    key(
        "Esc Left",
        "back; no filter any more",
        Action::Back,
        &[(KeyCode::Esc, NONE), (KeyCode::Left, NONE), (KeyCode::Backspace, NONE)],
    ),
    key("1", "containers", Action::Show(View::Containers), &[(KeyCode::Char('1'), NONE)]),
    key("2", "edges: who talks to whom", Action::Show(View::Edges), &[(KeyCode::Char('2'), NONE)]),
    key("3", "connections", Action::Show(View::Connections), &[(KeyCode::Char('3'), NONE)]),
    key("4", "listeners", Action::Show(View::Listeners), &[(KeyCode::Char('4'), NONE)]),
    key("5", "events as they come", Action::Show(View::Events), &[(KeyCode::Char('5'), NONE)]),
    key("<", "sort by the column left", Action::SortLeft, &[(KeyCode::Char('<'), NONE)]),
    key(">", "sort by the column right", Action::SortRight, &[(KeyCode::Char('>'), NONE)]),
    key("r", "sort the other way round", Action::Reverse, &[(KeyCode::Char('r'), NONE)]),
    key("/", "rows with this text only", Action::Filter, &[(KeyCode::Char('/'), NONE)]),
    key("a", "also what is idle", Action::All, &[(KeyCode::Char('a'), NONE)]),
    key(
        "Space p",
        "pause, and go on",
        Action::Pause,
        &[(KeyCode::Char(' '), NONE), (KeyCode::Char('p'), NONE)],
    ),
    key("+", "look more often", Action::Faster, &[(KeyCode::Char('+'), NONE)]),
    key("-", "look less often", Action::Slower, &[(KeyCode::Char('-'), NONE)]),
    key("? F1", "this help", Action::Help, &[(KeyCode::Char('?'), NONE), (KeyCode::F(1), NONE)]),
    key("Ctrl-Z", "stop, until fg", Action::Suspend, &[(KeyCode::Char('z'), CONTROL)]),
    key("q Ctrl-C", "end", Action::Quit, &[(KeyCode::Char('q'), NONE), (KeyCode::Char('c'), CONTROL)]),
];

/// What a key does.
pub(super) fn action(event: &KeyEvent) -> Option<Action> {
    // A terminal says of capitals that shift was held; the character says so already.
    let modifiers = event.modifiers - KeyModifiers::SHIFT;
    let is = |key: &&Key| key.codes.contains(&(event.code, modifiers));
    KEYS.iter().filter(|_| event.kind != KeyEventKind::Release).find(is).map(|key| key.action)
}
