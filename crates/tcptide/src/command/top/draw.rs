//! A screen of what is shown. It is drawn into memory; who shows it sends what has changed.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use ratatui_core::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};
use unicode_width::UnicodeWidthStr as _;

use super::{
    keys::KEYS,
    list::Row,
    state::{Click, Drawn, State, View},
};
use crate::output::{
    layout::{Layout, cut},
    style::{Palette, Role},
    table::{Align, Column},
    units,
};

/// Lines above the rows, and below them.
const ABOVE: u16 = 3;
const BELOW: u16 = 1;
/// After so many intervals without an answer the numbers are old.
const LATE: u32 = 3;

/// How a role looks: the same colours as everywhere.
fn style(role: Option<Role>, palette: Palette) -> Style {
    let style = Style::new();
    match role {
        Some(Role::Header) => style.add_modifier(Modifier::BOLD),
        Some(Role::Dim) => style.add_modifier(Modifier::DIM),
        Some(Role::Good) if palette.colour => style.fg(Color::Green),
        Some(Role::Warn) if palette.colour => style.fg(Color::Yellow),
        Some(Role::Bad) if palette.colour => style.fg(Color::Red),
        _ => style,
    }
}

/// Where one may write: what does not fit is cut.
struct Canvas<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    palette: Palette,
}

impl Canvas<'_> {
    /// Writes a text at a column of a line, in so many columns at most. The column after it.
    fn put(&mut self, x: u16, y: u16, width: u16, text: &str, role: Option<Role>) -> u16 {
        if x >= self.area.width || y >= self.area.height {
            return x;
        }
        let room = width.min(self.area.width - x);
        let text = cut(text, usize::from(room));
        let style = style(role, self.palette);
        let (end, _) =
            self.buffer.set_stringn(self.area.x + x, self.area.y + y, &text, usize::from(room), style);
        end - self.area.x
    }

    /// The same, ending at the right side.
    fn put_right(&mut self, y: u16, text: &str, role: Option<Role>) {
        let width = text.width().min(usize::from(self.area.width)) as u16;
        self.put(self.area.width - width, y, width, text, role);
    }

    /// A whole line, in other colours.
    fn mark(&mut self, y: u16, modifier: Modifier) {
        if y < self.area.height {
            let line = Rect { y: self.area.y + y, height: 1, ..self.area };
            self.buffer.set_style(line, Style::new().add_modifier(modifier));
        }
    }
}

/// Draws it all. What a click finds there.
pub(super) fn draw(state: &State, now: Instant, palette: Palette, area: Rect, buffer: &mut Buffer) -> Drawn {
    let mut canvas = Canvas { buffer, area, palette };
    if state.help {
        help(&mut canvas);
        return Drawn { rows: state.drawn.rows, ..Drawn::default() };
    }
    let mut drawn = Drawn::default();
    title(state, &mut canvas, &mut drawn);
    path(state, &mut canvas);
    let bottom = area.height.saturating_sub(BELOW);
    if state.view() == View::Connection {
        connection(state, &mut canvas, bottom);
    } else {
        list(state, &mut canvas, bottom, &mut drawn);
    }
    if is_old(state, now) {
        for y in ABOVE..bottom {
            canvas.mark(y, Modifier::DIM);
        }
    }
    status(state, now, &mut canvas, bottom);
    drawn
}

/// The lists there are, and the time.
fn title(state: &State, canvas: &mut Canvas<'_>, drawn: &mut Drawn) {
    let mut x = canvas.put(0, 0, u16::MAX, "tcptide", Some(Role::Header));
    for (number, view) in View::LISTS.into_iter().enumerate() {
        let is_here = view == state.view() || (view, state.view()) == (View::Connections, View::Connection);
        let text = format!("{} {}", number + 1, view.title());
        let start = x + 2;
        x = canvas.put(start, 0, u16::MAX, &text, is_here.then_some(Role::Header));
        if is_here && x > start {
            let here = Rect { x: canvas.area.x + start, y: canvas.area.y, width: x - start, height: 1 };
            canvas.buffer.set_style(here, Style::new().add_modifier(Modifier::UNDERLINED));
        }
        if x > start {
            let area = Rect { x: canvas.area.x + start, y: canvas.area.y, width: x - start, height: 1 };
            drawn.clicks.push((area, Click::Show(view)));
        }
    }
    let clock = state.time.map(|time| units::clock(time, &state.zone)).unwrap_or_default();
    let clock = clock.split('.').next().unwrap_or_default();
    if usize::from(canvas.area.width) > usize::from(x) + clock.width() {
        canvas.put_right(0, clock, None);
    }
}

/// Whose they are, and how many.
fn path(state: &State, canvas: &mut Canvas<'_>) {
    let mut text = state.path();
    if state.view() != View::Connection {
        // Writing into a string cannot fail.
        let _ = write!(text, ": {}", units::count(state.shown().len() as u64));
    }
    if state.all {
        text += ", idle ones too";
    }
    let x = canvas.put(0, 1, u16::MAX, &text, None);
    if state.typing || !state.filter.is_empty() {
        let cursor = if state.typing { "_" } else { "" };
        canvas.put(x + 2, 1, u16::MAX, &format!("/{}{cursor}", state.filter), Some(Role::Warn));
    }
}

fn list(state: &State, canvas: &mut Canvas<'_>, bottom: u16, drawn: &mut Drawn) {
    let room = usize::from(bottom.saturating_sub(ABOVE));
    let count = state.shown().len();
    let at = state.chosen();
    // As little as possible is moved.
    let least = (at + 1).saturating_sub(room);
    let first = state.drawn.first.clamp(least, at.max(least)).min(count.saturating_sub(room));
    let rows: Vec<_> = state.shown().skip(first).take(room).collect();
    drawn.first = first;
    drawn.rows = room;
    let width = usize::from(canvas.area.width);
    table(state, &rows, canvas, Some(width), drawn);
    for (line, number) in (first..first + rows.len()).enumerate() {
        let y = ABOVE + line as u16;
        let area = Rect { y: canvas.area.y + y, height: 1, ..canvas.area };
        drawn.clicks.push((area, Click::Row(number)));
        if number == at {
            canvas.mark(y, Modifier::REVERSED);
        }
    }
    if rows.is_empty() && bottom > ABOVE {
        let text = match (state.status.answered, &state.filter) {
            (None, _) => "looking",
            (_, filter) if !filter.is_empty() => "nothing has that in it (Esc: no filter)",
            _ if state.view() == View::Events => "nothing has happened yet",
            _ if !state.all => "nothing goes on (a: also what is idle)",
            _ => "nothing is there",
        };
        canvas.put(0, ABOVE, u16::MAX, text, Some(Role::Dim));
    }
}

/// A column's head, with the way it is sorted.
fn head(state: &State, column: usize, of: &Column) -> String {
    let sort = state.sort();
    match (sort.column == column, sort.reversed) {
        (false, _) => of.header().to_owned(),
        (true, false) => format!("{}▾", of.header()),
        (true, true) => format!("{}▴", of.header()),
    }
}

/// Heads and rows, with as many columns as there is room for.
fn table(state: &State, rows: &[&Row], canvas: &mut Canvas<'_>, limit: Option<usize>, drawn: &mut Drawn) {
    let layout = layout(state, rows, limit);
    place(state, rows, &layout, canvas);
    for (column, start, width) in layout.places() {
        let (x, y) = (canvas.area.x + start as u16, canvas.area.y + ABOVE - 1);
        drawn.clicks.push((Rect { x, y, width: width as u16, height: 1 }, Click::SortBy(column)));
    }
}

fn place(state: &State, rows: &[&Row], layout: &Layout, canvas: &mut Canvas<'_>) {
    let columns = state.view().columns();
    for (column, start, width) in layout.places() {
        let mut put = |y: u16, text: &str, role| {
            let indent = match columns[column].align() {
                Align::Left => 0,
                Align::Right => width.saturating_sub(text.width()),
            };
            canvas.put((start + indent) as u16, y, width as u16, text, role);
        };
        put(ABOVE - 1, &head(state, column, &columns[column]), Some(Role::Header));
        for (line, row) in rows.iter().enumerate() {
            if let Some(cell) = row.cells.get(column) {
                put(ABOVE + line as u16, &cell.shown(width, &state.zone), row.role(column));
            }
        }
    }
}

/// Columns are as wide as usual, or as what is in them.
fn layout(state: &State, rows: &[&Row], limit: Option<usize>) -> Layout {
    let columns = state.view().columns();
    let wanted: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().filter_map(|row| row.cells.get(at));
            let widths = cells.map(|cell| cell.shown(column.usual_width(), &state.zone).width());
            let head = head(state, at, column).width();
            widths.max().unwrap_or(0).max(head).max(column.usual_width())
        })
        .collect();
    Layout::fit(columns, &wanted, true, limit)
}

fn connection(state: &State, canvas: &mut Canvas<'_>, bottom: u16) {
    let Some(watch) = &state.watch else { return };
    let lines = watch.lines(usize::from(canvas.area.width), &state.zone);
    for (line, (text, role)) in lines.iter().enumerate() {
        let y = ABOVE - 1 + line as u16;
        if y < bottom {
            canvas.put(0, y, u16::MAX, text, *role);
        }
    }
}

/// Whether the numbers are of a while ago.
pub(super) fn is_old(state: &State, now: Instant) -> bool {
    if state.paused {
        return false;
    }
    state.status.error.is_some() || state.status.age(now) > late(state)
}

fn late(state: &State) -> Duration {
    (state.interval * LATE).max(Duration::from_secs(2))
}

fn status(state: &State, now: Instant, canvas: &mut Canvas<'_>, y: u16) {
    let age = state.status.answered.map(|_| seconds(state.status.age(now)));
    let since = age.map(|age| format!("numbers of {age} ago: ")).unwrap_or_default();
    let (text, role) = match (&state.status.error, &state.status.note) {
        (Some(error), _) => (format!("{since}{error}"), Some(Role::Bad)),
        (None, _) if is_old(state, now) => (format!("{since}no answer yet"), Some(Role::Bad)),
        (None, Some(note)) => (note.clone(), Some(Role::Warn)),
        (None, None) => (String::new(), None),
    };
    if !text.is_empty() {
        canvas.put(0, y, u16::MAX, &text, role);
        return;
    }
    if state.paused {
        canvas.put(0, y, u16::MAX, "PAUSED  Space: go on  ?: help  q: end", Some(Role::Warn));
        return;
    }
    let every = units::duration(u64::try_from(state.interval.as_micros()).unwrap_or(u64::MAX));
    canvas.put(0, y, u16::MAX, &format!("every {every}  ?: help  q: end"), Some(Role::Dim));
}

fn seconds(age: Duration) -> String {
    units::duration(age.as_secs().max(1) * 1_000_000)
}

/// The keys, in two columns where there is room.
fn help(canvas: &mut Canvas<'_>) {
    const NAMES: u16 = 12;
    const COLUMN: u16 = 40;
    canvas.put(0, 0, u16::MAX, "tcptide top: keys", Some(Role::Header));
    let columns = if canvas.area.width >= 2 * COLUMN - 2 { 2 } else { 1 };
    let lines = KEYS.len().div_ceil(columns);
    for (number, key) in KEYS.iter().enumerate() {
        let x = (number / lines) as u16 * COLUMN;
        let y = 2 + (number % lines) as u16;
        canvas.put(x, y, NAMES, key.names, Some(Role::Header));
        canvas.put(x + NAMES, y, COLUMN - NAMES, key.does, None);
    }
    let below = 3 + lines as u16;
    let more = [
        "Mouse: a list's name shows it, a column's name sorts by it, a row is chosen by",
        "one click and opened by another, the wheel moves. RETR is the share of segments",
        "sent again, FAIL failed connects a second; P50, P99 and RTT are round trips.",
    ];
    for (line, text) in more.iter().enumerate() {
        canvas.put(0, below + line as u16, u16::MAX, text, None);
    }
}

/// One screen of all rows as plain text. Without a width, nothing is cut.
pub(super) fn plain(state: &State, width: Option<usize>) -> String {
    let rows: Vec<_> = state.shown().collect();
    let layout = layout(state, &rows, width);
    let natural = layout.places().map(|(_, start, width)| start + width).max().unwrap_or(0);
    let width = width.unwrap_or(natural).clamp(1, usize::from(u16::MAX)) as u16;
    let mut text = String::new();
    // A buffer has no more than 65,535 cells' worth of places in some of its sums: one row at a time.
    let area = Rect::new(0, 0, width, ABOVE + 1);
    let mut line = |rows: &[&Row], y: u16| {
        let mut buffer = Buffer::empty(area);
        let mut canvas = Canvas { buffer: &mut buffer, area, palette: Palette::PLAIN };
        place(state, rows, &layout, &mut canvas);
        text += shown(&buffer, y).trim_end();
        text.push('\n');
    };
    line(&[], ABOVE - 1);
    for row in rows {
        line(&[row], ABOVE);
    }
    text
}

/// A line of a buffer as text.
fn shown(buffer: &Buffer, y: u16) -> String {
    let area = *buffer.area();
    let mut text = String::new();
    let mut x = area.x;
    while x < area.x + area.width {
        let symbol = buffer.cell((x, y)).map_or(" ", |cell| cell.symbol());
        text.push_str(symbol);
        // What is wide stands on the next cell, too.
        x += (symbol.width().max(1)) as u16;
    }
    text
}

#[cfg(test)]
pub(super) fn screen(state: &State, now: Instant, width: u16, height: u16) -> Vec<String> {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw(state, now, Palette::PLAIN, area, &mut buffer);
    (0..height).map(|y| shown(&buffer, y).trim_end().to_owned()).collect()
}
