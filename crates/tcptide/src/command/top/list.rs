//! What every list on the screen is made of: rows of values, which are shown, sorted and searched alike.

use std::{cmp::Ordering, net::IpAddr, rc::Rc, sync::Arc};

use jiff::{Timestamp, tz::TimeZone};
use model::container::{Container, sanitize};

use crate::{
    answer::edges::EdgeId,
    output::{style::Role, table::Column, units},
};

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    PerSecond,
    Bytes,
    /// Bytes a second.
    Rate,
    /// Microseconds.
    Duration,
    /// From 0 to 1.
    Share,
    /// A time of day: microseconds since 1970.
    Clock,
}

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// `None`: there is nothing to tell.
    Text(Option<Rc<str>>),
    /// `None`: not measured.
    Number(Option<f64>, Unit),
    /// The latest values, the oldest first; `None`: nothing was measured then.
    Spark(Vec<Option<u64>>),
}

impl Value {
    /// A text with nothing in it that a terminal would obey.
    pub(super) fn text(text: &str) -> Self {
        Self::Text((!text.is_empty()).then(|| sanitize(text).into()))
    }

    pub(super) fn number(number: Option<u64>, unit: Unit) -> Self {
        Self::Number(number.map(|number| number as f64), unit)
    }

    /// As people read it, in so many columns if it is a curve; `-` where nothing is known.
    pub(super) fn shown(&self, width: usize, zone: &TimeZone) -> String {
        match self {
            Self::Text(Some(text)) => text.to_string(),
            Self::Text(None) | Self::Number(None, _) => "-".to_owned(),
            Self::Number(Some(number), unit) => match unit {
                Unit::PerSecond if *number > 0.0 && *number < 9.95 => format!("{number:.1}"),
                Unit::Count | Unit::PerSecond => units::count(number.round() as u64),
                Unit::Bytes => units::bytes(number.round() as u64),
                Unit::Rate => units::rate(*number),
                Unit::Duration => units::duration(number.round() as u64),
                Unit::Share => units::percent(*number),
                Unit::Clock => Timestamp::from_microsecond(*number as i64)
                    .map_or_else(|_| "-".to_owned(), |time| units::clock(time, zone)),
            },
            Self::Spark(values) => spark(values, width),
        }
    }

    /// What comes first if nothing else is asked for: names by the alphabet, the largest number, what is not known last.
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => (a.is_none(), a).cmp(&(b.is_none(), b)),
            (Self::Number(a, _), Self::Number(b, _)) => {
                let key = |number: &Option<f64>| number.unwrap_or(f64::MIN);
                key(b).total_cmp(&key(a))
            }
            (Self::Spark(a), Self::Spark(b)) => {
                let last = |values: &[Option<u64>]| values.last().copied().flatten();
                last(b).cmp(&last(a))
            }
            _ => Ordering::Equal,
        }
    }
}

/// The latest values as a curve, lowest to highest of them; spaces where nothing was measured.
pub(super) fn spark(values: &[Option<u64>], width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let latest = &values[values.len().saturating_sub(width)..];
    let known = || latest.iter().flatten();
    let (Some(least), Some(most)) = (known().min(), known().max()) else { return String::new() };
    let level = |value: u64| match most - least {
        0 => 0,
        span => ((value - least) as f64 / span as f64 * 7.0).round() as usize,
    };
    latest.iter().map(|value| value.map_or(' ', |value| LEVELS[level(value)])).collect()
}

/// What tells rows apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Id {
    Cgroup(u64),
    Edge(Box<EdgeId>),
    Socket(u64),
    Event(u64),
}

/// A far end, for finding the connections to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Far {
    Cgroup(u64),
    Address(IpAddr),
    Name(Arc<str>),
}

/// What a row stands for: where one comes to who looks closer.
#[derive(Clone, Debug)]
pub(super) enum Opens {
    Container(Arc<Container>),
    /// The connections of a container with a far end, and the server's port.
    Edge {
        near: Option<Arc<Container>>,
        far: Far,
        port: Option<u16>,
        title: String,
    },
    Connection {
        container: Arc<Container>,
        cookie: u64,
    },
    Nothing,
}

/// One line of a list.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) id: Id,
    /// One for each column.
    pub(super) cells: Vec<Value>,
    /// Each cell's colour, by what it means.
    pub(super) roles: Vec<(usize, Role)>,
    pub(super) opens: Opens,
    /// Whether nothing goes on there: such rows are shown only if all are asked for.
    pub(super) idle: bool,
}

impl Row {
    pub(super) fn new(id: Id, cells: Vec<Value>, opens: Opens) -> Self {
        Self { id, cells, roles: Vec::new(), opens, idle: false }
    }

    /// Whether one of its texts has this in it, whatever the case.
    pub(super) fn has(&self, text: &str) -> bool {
        let has =
            |cell: &Value| matches!(cell, Value::Text(Some(cell)) if cell.to_lowercase().contains(text));
        self.cells.iter().any(has)
    }

    pub(super) fn role(&self, column: usize) -> Option<Role> {
        self.roles.iter().find(|(at, _)| *at == column).map(|(_, role)| *role)
    }
}

/// By which column rows are sorted, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sort {
    pub(super) column: usize,
    pub(super) reversed: bool,
}

impl Sort {
    pub(super) const fn by(column: usize) -> Self {
        Self { column, reversed: false }
    }

    /// Which of two rows comes first; those that are equal in this column stay by their first.
    pub(super) fn order(self, a: &Row, b: &Row) -> Ordering {
        let of = |column: usize| match (a.cells.get(column), b.cells.get(column)) {
            (Some(a), Some(b)) => a.order(b),
            _ => Ordering::Equal,
        };
        let order = of(self.column);
        let order = if self.reversed { order.reverse() } else { order };
        order.then_with(|| of(0))
    }
}

/// The columns of each list.
pub(super) mod columns {
    use super::Column;

    pub(in super::super) const CONTAINERS: &[Column] = &[
        Column::left("CONTAINER").width(14).shrinks_to(10),
        Column::right("CONNS").width(5),
        Column::right("OUT/S").width(9),
        Column::right("IN/S").width(9),
        Column::right("P50").width(6).rank(1),
        Column::right("P99").width(6).rank(1),
        Column::right("RETR").width(5).rank(2),
        Column::right("FAIL").width(4).rank(2),
        Column::left("LIMIT").width(8).rank(3),
        Column::left("RTT").width(20).shrinks_to(8).rank(4),
    ];
    pub(in super::super) const EDGES: &[Column] = &[
        Column::left("CLIENT").width(12).shrinks_to(10),
        Column::left("SERVER").width(12).shrinks_to(10),
        Column::right("PORT").width(5),
        Column::right("CONNS").width(5),
        Column::right("SENT/S").width(9),
        Column::right("RECV/S").width(9),
        Column::right("RTT").width(6).rank(1),
        Column::right("OPEN").width(4).rank(2),
        Column::right("FAIL").width(4).rank(1),
        Column::right("RETR").width(5).rank(3),
    ];
    pub(in super::super) const CONNECTIONS: &[Column] = &[
        Column::left("CONTAINER").width(10).shrinks_to(8).rank(6),
        Column::left("PROCESS").width(12).shrinks_to(8).rank(3),
        Column::left("DIR").width(3).rank(3),
        Column::left("LOCAL").width(16).shrinks_to(12).rank(5),
        Column::left("PEER").width(16).shrinks_to(21),
        Column::left("PEER NAME").width(10).shrinks_to(8).rank(2),
        Column::left("STATE").width(11).rank(4),
        Column::right("OUT/S").width(9),
        Column::right("IN/S").width(9),
        Column::right("RTT").width(6),
        Column::right("RETR").width(4).rank(5),
        Column::right("CWND").width(4).rank(7),
        Column::right("AGE").width(6).rank(8),
    ];
    pub(in super::super) const LISTENERS: &[Column] = &[
        Column::left("CONTAINER").width(14).shrinks_to(10),
        Column::left("PROCESS").width(14).shrinks_to(8).rank(1),
        Column::left("LOCAL").width(16).shrinks_to(21),
        Column::right("QUEUE").width(5),
        Column::right("LIMIT").width(5),
        Column::right("SYN").width(4).rank(1),
        Column::right("DROPS").width(5),
        Column::right("DROPS/S").width(7).rank(2),
    ];
    pub(in super::super) const EVENTS: &[Column] = &[
        Column::left("TIME").width(12),
        Column::left("EVENT").width(11),
        Column::left("CONTAINER").width(12).shrinks_to(8),
        Column::left("PROCESS").width(12).shrinks_to(8).rank(3),
        Column::left("DIR").width(3).rank(4),
        Column::left("LOCAL").width(16).shrinks_to(12).rank(5),
        Column::left("PEER").width(16).shrinks_to(12),
        Column::left("PEER NAME").width(10).shrinks_to(8).rank(4),
        Column::right("TOOK").width(7).rank(1),
        Column::right("SENT").width(8).rank(2),
        Column::right("RECV").width(8).rank(2),
        Column::left("RESULT").width(8).rank(1),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, number: Option<f64>) -> Row {
        let cells = vec![Value::text(name), Value::Number(number, Unit::Count)];
        Row::new(Id::Cgroup(0), cells, Opens::Nothing)
    }

    #[test]
    fn rows_sort_both_ways_and_what_is_not_known_comes_last() {
        let mut rows = [row("b", Some(1.0)), row("c", None), row("a", Some(1.0)), row("d", Some(9.0))];
        let names = |rows: &[Row]| -> String {
            rows.iter().map(|row| row.cells[0].shown(0, &TimeZone::UTC)).collect()
        };
        rows.sort_by(|a, b| Sort::by(1).order(a, b));
        assert_eq!(names(&rows), "dabc");
        rows.sort_by(|a, b| Sort { column: 1, reversed: true }.order(a, b));
        assert_eq!(names(&rows), "cabd");
        rows.sort_by(|a, b| Sort::by(0).order(a, b));
        assert_eq!(names(&rows), "abcd");
    }

    #[test]
    fn a_curve_goes_from_its_least_to_its_most() {
        assert_eq!(spark(&[Some(1), None, Some(8), Some(4)], 4), "▁ █▄");
        assert_eq!(spark(&[Some(1), Some(5), Some(5)], 2), "▁▁");
        assert_eq!(spark(&[None, None], 4), "");
        assert_eq!(spark(&[Some(3)], 3), "▁");
    }
}
