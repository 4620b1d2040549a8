//! Tables for people: a whole one, whose columns are as wide as their contents, and a stream of rows,
//! whose columns must be as wide as usual before the first row is known.
//!
//! On a terminal a table fits the width: long names are cut, unimportant columns left out, and what was
//! left out is said. Numbers are never cut. Into a pipe everything goes whole, with two spaces or more
//! between columns and no colours, so that other tools can take it apart.
use model::container::sanitize;
use unicode_width::UnicodeWidthStr;

use super::{
    layout::{Layout, Overflow},
    style::Role,
    writer::Screen,
};

/// On which side a column is flush: text on the left, numbers on the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Flush left.
    Left,
    /// Flush right.
    Right,
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(super) header: &'static str,
    pub(super) align: Align,
    pub(super) width: usize,
    pub(super) shrinks_to: Option<usize>,
    pub(super) rank: u8,
    pub(super) wide_only: bool,
}

impl Column {
    /// A column of text.
    pub(crate) const fn left(header: &'static str) -> Self {
        Self { header, align: Align::Left, width: 0, shrinks_to: None, rank: 0, wide_only: false }
    }

    /// A column of numbers.
    pub(crate) const fn right(header: &'static str) -> Self {
        Self { align: Align::Right, ..Self::left(header) }
    }

    /// The usual width of its contents: what it has in a stream.
    pub(crate) const fn width(self, width: usize) -> Self {
        Self { width, ..self }
    }

    /// Where room is short, cells may be cut to this width.
    pub(crate) const fn shrinks_to(self, width: usize) -> Self {
        Self { shrinks_to: Some(width), ..self }
    }

    /// Where room is still short, columns of the highest rank go first; of equal ones the rightmost.
    pub(crate) const fn rank(self, rank: u8) -> Self {
        Self { rank, ..self }
    }

    /// Shown in wide tables only.
    pub(crate) const fn wide_only(self) -> Self {
        Self { wide_only: true, ..self }
    }

    /// What stands above it.
    pub(crate) const fn header(self) -> &'static str {
        self.header
    }

    /// Its usual width.
    pub(crate) const fn usual_width(self) -> usize {
        self.width
    }

    /// On which side it is flush.
    pub(crate) const fn align(self) -> Align {
        self.align
    }

    fn heading(self) -> (&'static str, Option<Role>) {
        (self.header, Some(Role::Header))
    }
}

/// One cell. Its text has nothing in it that a terminal would obey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    role: Option<Role>,
}

impl Cell {
    /// A cell with this text, or `-` for none.
    pub(crate) fn new(text: &str) -> Self {
        Self { text: sanitize(if text.is_empty() { "-" } else { text }).into_owned(), role: None }
    }

    /// In the colour of `role`.
    pub(crate) fn role(self, role: Role) -> Self {
        Self { role: Some(role), ..self }
    }

    fn parts(&self) -> (&str, Option<Role>) {
        (&self.text, self.role)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

/// What is not known is `-`.
impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(text: Option<T>) -> Self {
        text.map_or_else(|| Self::new(""), Into::into)
    }
}

/// A table of which all rows are known before it is shown.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    columns: &'a [Column],
    wide: bool,
    rows: Vec<Vec<Cell>>,
}

impl<'a> Table<'a> {
    /// A table without rows.
    pub(crate) fn new(columns: &'a [Column], wide: bool) -> Self {
        Self { columns, wide, rows: Vec::new() }
    }

    /// Adds a row with a cell for every column, wide-only ones too.
    pub(crate) fn push(&mut self, row: impl Into<Vec<Cell>>) {
        let mut row = row.into();
        debug_assert_eq!(row.len(), self.columns.len(), "a cell for every column");
        row.resize(self.columns.len(), Cell::new(""));
        self.rows.push(row);
    }

    /// The header, the rows, and a last line about columns that found no room.
    pub(crate) fn render(&self, screen: &Screen) -> String {
        let wanted: Vec<usize> = (0..self.columns.len()).map(|column| self.natural_width(column)).collect();
        let layout = Layout::fit(self.columns, &wanted, self.wide, screen.width);
        let mut text = layout.line(|column| self.columns[column].heading(), Overflow::Cut, screen.palette);
        for row in &self.rows {
            text += &layout.line(|column| row[column].parts(), Overflow::Cut, screen.palette);
        }
        text + &layout.notice(screen.palette)
    }

    fn natural_width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].text.width());
        cells.max().unwrap_or(0).max(self.columns[column].header.width())
    }
}

/// A table whose rows come one by one. A cell longer than usual widens its own line only.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    columns: &'a [Column],
    layout: Layout,
    screen: Screen,
}

impl<'a> Stream<'a> {
    /// A stream that fits `screen` as it is now.
    pub(crate) fn new(columns: &'a [Column], wide: bool, screen: Screen) -> Self {
        let wanted: Vec<usize> =
            columns.iter().map(|column| column.width.max(column.header.width())).collect();
        Self { columns, layout: Layout::fit(columns, &wanted, wide, screen.width), screen }
    }

    /// What stands above the first row: which columns found no room, and the headers.
    pub(crate) fn header(&self) -> String {
        let notice = self.layout.notice(self.screen.palette);
        let headings = |column: usize| self.columns[column].heading();
        notice + &self.layout.line(headings, Overflow::Push, self.screen.palette)
    }

    /// One row with a cell for every column, wide-only ones too.
    pub(crate) fn row(&self, cells: &[Cell]) -> String {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for every column");
        let cell = |column: usize| cells.get(column).map_or(("-", None), Cell::parts);
        self.layout.line(cell, Overflow::Push, self.screen.palette)
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::*;
    use crate::output::style::Palette;

    const COLUMNS: [Column; 8] = [
        Column::left("CONTAINER").width(16).shrinks_to(8),
        Column::left("STATE").width(11).rank(3),
        Column::left("LOCAL").width(15).rank(2),
        Column::left("PEER").width(15),
        Column::right("SENT").width(7).rank(1),
        Column::right("SRTT").width(6),
        Column::right("CWND").width(4).rank(4),
        Column::left("CGROUP").wide_only().shrinks_to(10),
    ];

    fn rows() -> Vec<Vec<Cell>> {
        let row = |texts: [&str; 8]| texts.map(Cell::from).to_vec();
        vec![
            row([
                "web",
                "ESTABLISHED",
                "10.0.0.1:80",
                "10.0.0.9:40112",
                "12.3MiB",
                "1.2ms",
                "10",
                "/docker/4f8a1bc09e3d",
            ]),
            row([
                "checkout-7d9fc5b6c8-x2kqp",
                "CLOSE_WAIT",
                "10.0.0.2:8080",
                "[fd00::17]:51422",
                "812B",
                "",
                "",
                "/",
            ]),
            row([
                "東京",
                "LISTEN",
                "[::]:5432",
                "",
                "0B",
                "240µs",
                "1024",
                "/system.slice/postgresql.service",
            ]),
        ]
    }

    fn screen(width: usize) -> Screen {
        Screen { width: Some(width), palette: Palette::PLAIN }
    }

    fn whole(wide: bool, screen: &Screen) -> String {
        let mut table = Table::new(&COLUMNS, wide);
        for row in rows() {
            table.push(row);
        }
        table.render(screen)
    }

    fn streamed(screen: Screen) -> String {
        let stream = Stream::new(&COLUMNS, false, screen);
        rows().iter().fold(stream.header(), |text, row| text + &stream.row(row))
    }

    #[test]
    fn whole_tables_fit_the_terminal() {
        assert_snapshot!(whole(false, &screen(120)), @r"
        CONTAINER                  STATE        LOCAL          PEER                 SENT   SRTT  CWND
        web                        ESTABLISHED  10.0.0.1:80    10.0.0.9:40112    12.3MiB  1.2ms    10
        checkout-7d9fc5b6c8-x2kqp  CLOSE_WAIT   10.0.0.2:8080  [fd00::17]:51422     812B      -     -
        東京                       LISTEN       [::]:5432      -                      0B  240µs  1024
        ");
        assert_snapshot!(whole(false, &screen(80)), @r"
        CONTAINER     STATE        LOCAL          PEER                 SENT   SRTT  CWND
        web           ESTABLISHED  10.0.0.1:80    10.0.0.9:40112    12.3MiB  1.2ms    10
        checkout-7d…  CLOSE_WAIT   10.0.0.2:8080  [fd00::17]:51422     812B      -     -
        東京          LISTEN       [::]:5432      -                      0B  240µs  1024
        ");
        assert_snapshot!(whole(false, &screen(40)), @r"
        CONTAINER        PEER               SRTT
        web              10.0.0.9:40112    1.2ms
        checkout-7d9fc…  [fd00::17]:51422      -
        東京             -                 240µs
        no room for STATE, LOCAL, SENT, CWND; a
        wider terminal or -o json has them
        ");
    }

    #[test]
    fn wide_tables_have_all_columns() {
        assert_snapshot!(whole(true, &screen(120)), @r"
        CONTAINER                  STATE        LOCAL          PEER                 SENT   SRTT  CWND  CGROUP
        web                        ESTABLISHED  10.0.0.1:80    10.0.0.9:40112    12.3MiB  1.2ms    10  /docker/4f8a1bc09e3d
        checkout-7d9fc5b6c8-x2kqp  CLOSE_WAIT   10.0.0.2:8080  [fd00::17]:51422     812B      -     -  /
        東京                       LISTEN       [::]:5432      -                      0B  240µs  1024  /system.slice/postgresql…
        ");
    }

    #[test]
    fn a_pipe_gets_everything_whole() {
        assert_snapshot!(whole(true, &Screen::UNLIMITED), @r"
        CONTAINER                  STATE        LOCAL          PEER                 SENT   SRTT  CWND  CGROUP
        web                        ESTABLISHED  10.0.0.1:80    10.0.0.9:40112    12.3MiB  1.2ms    10  /docker/4f8a1bc09e3d
        checkout-7d9fc5b6c8-x2kqp  CLOSE_WAIT   10.0.0.2:8080  [fd00::17]:51422     812B      -     -  /
        東京                       LISTEN       [::]:5432      -                      0B  240µs  1024  /system.slice/postgresql.service
        ");
        assert_snapshot!(streamed(Screen::UNLIMITED), @r"
        CONTAINER         STATE        LOCAL            PEER                SENT    SRTT  CWND
        web               ESTABLISHED  10.0.0.1:80      10.0.0.9:40112   12.3MiB   1.2ms    10
        checkout-7d9fc5b6c8-x2kqp  CLOSE_WAIT  10.0.0.2:8080  [fd00::17]:51422  812B   -     -
        東京              LISTEN       [::]:5432        -                     0B   240µs  1024
        ");
    }

    #[test]
    fn streams_fit_the_terminal() {
        assert_snapshot!(streamed(screen(120)), @r"
        CONTAINER         STATE        LOCAL            PEER                SENT    SRTT  CWND
        web               ESTABLISHED  10.0.0.1:80      10.0.0.9:40112   12.3MiB   1.2ms    10
        checkout-7d9fc5b6c8-x2kqp  CLOSE_WAIT  10.0.0.2:8080  [fd00::17]:51422  812B   -     -
        東京              LISTEN       [::]:5432        -                     0B   240µs  1024
        ");
        assert_snapshot!(streamed(screen(80)), @r"
        CONTAINER   STATE        LOCAL            PEER                SENT    SRTT  CWND
        web         ESTABLISHED  10.0.0.1:80      10.0.0.9:40112   12.3MiB   1.2ms    10
        checkout-…  CLOSE_WAIT   10.0.0.2:8080    [fd00::17]:51422    812B       -     -
        東京        LISTEN       [::]:5432        -                     0B   240µs  1024
        ");
        assert_snapshot!(streamed(screen(40)), @r"
        no room for STATE, LOCAL, SENT, CWND; a
        wider terminal or -o json has them
        CONTAINER        PEER               SRTT
        web              10.0.0.9:40112    1.2ms
        checkout-7d9fc…  [fd00::17]:51422      -
        東京             -                 240µs
        ");
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_snapshot!(Table::new(&COLUMNS, false).render(&screen(80)), @"CONTAINER  STATE  LOCAL  PEER  SENT  SRTT  CWND");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let columns = [Column::left("NAME"), Column::right("LOST")];
        let mut table = Table::new(&columns, false);
        table.push([Cell::from("web"), Cell::from("0").role(Role::Good)]);
        table.push([Cell::from("database"), Cell::from("17").role(Role::Bad)]);
        let text = table.render(&Screen { width: Some(80), palette: Palette { colour: true } });
        assert_snapshot!(text.replace('\x1b', "^"), @r"
        ^[1mNAME^[0m      ^[1mLOST^[0m
        web          ^[32m0^[0m
        database    ^[31m17^[0m
        ");
    }

    #[test]
    fn cells_cannot_command_the_terminal() {
        let columns = [Column::left("NAME"), Column::left("STATE")];
        let mut table = Table::new(&columns, false);
        table.push([Cell::from("a\x1b[2Jb\nc"), Cell::from(None::<String>)]);
        let text = table.render(&Screen::UNLIMITED);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    fn any_rows() -> impl Strategy<Value = Vec<Vec<String>>> {
        let cell = || "[a-z東é]{0,24}|[0-9]{1,6}";
        prop::collection::vec(prop::collection::vec(cell(), COLUMNS.len()), 0..6)
    }

    proptest! {
        #[test]
        fn no_line_of_a_whole_table_is_too_wide(rows in any_rows(), width in 30..200_usize, wide in any::<bool>()) {
            let mut table = Table::new(&COLUMNS, wide);
            for row in rows {
                table.push(row.into_iter().map(Cell::from).collect::<Vec<_>>());
            }
            for line in table.render(&screen(width)).lines() {
                prop_assert!(line.width() <= width, "{line}");
            }
        }

        #[test]
        fn a_pipe_loses_no_cell(rows in any_rows()) {
            let stream = Stream::new(&COLUMNS, true, Screen::UNLIMITED);
            for row in rows {
                let cells: Vec<_> = row.iter().map(|text| Cell::new(text)).collect();
                let line = stream.row(&cells);
                let fields: Vec<_> = line.trim_end().split("  ").map(str::trim).filter(|f| !f.is_empty()).collect();
                let expected: Vec<_> = row.iter().map(|text| if text.is_empty() { "-" } else { text }).collect();
                prop_assert_eq!(fields, expected);
            }
        }
    }
}
