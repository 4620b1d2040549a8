//! Standard output: how wide it is, whether it has colours, and what happens when its reader leaves.
use std::{
    env, fmt,
    io::{self, BufWriter, ErrorKind, IsTerminal, Stdout, Write},
};

use super::style::Palette;

/// Where text for people goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Screen {
    /// Columns of the terminal. A file or pipe has no width: nothing is cut there.
    pub(crate) width: Option<usize>,
    /// Its colours.
    pub(crate) palette: Palette,
}

impl Screen {
    /// The width of a terminal that does not tell its own.
    const USUAL_WIDTH: usize = 80;

    /// The screen behind standard output.
    pub(crate) fn detect() -> Self {
        let stdout = io::stdout();
        let size = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| size.ws_col);
        Self::of(stdout.is_terminal(), size, |name| env::var_os(name)?.into_string().ok())
    }

    /// Neither width nor colours, as in a pipe.
    pub(crate) const UNLIMITED: Self = Self { width: None, palette: Palette::PLAIN };

    /// `size` is what the terminal says of its width, 0 if nothing. `COLUMNS` overrules it, as in other
    /// tools. Colours follow `NO_COLOR` (set to anything but nothing) and `TERM=dumb`.
    fn of(terminal: bool, size: u16, variable: impl Fn(&str) -> Option<String>) -> Self {
        if !terminal {
            return Self::UNLIMITED;
        }
        let columns = variable("COLUMNS").and_then(|text| text.parse().ok()).unwrap_or(usize::from(size));
        let no_color = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = variable("TERM").is_some_and(|term| term == "dumb");
        Self {
            width: Some(if columns == 0 { Self::USUAL_WIDTH } else { columns }),
            palette: Palette { colour: !no_color && !dumb },
        }
    }
}

/// As much as a pipe takes at once.
const BUFFER: usize = 64 << 10;

/// A buffered output. Its user decides when what is written is worth a flush: after each batch of a
/// stream, and at the end.
#[derive(Debug)]
pub(crate) struct Output<W: Write = Stdout>(BufWriter<W>);

impl Output {
    /// Standard output.
    pub(crate) fn stdout() -> Self {
        Self::new(io::stdout())
    }
}

impl<W: Write> Output<W> {
    /// Any other output.
    pub(crate) fn new(to: W) -> Self {
        Self(BufWriter::with_capacity(BUFFER, to))
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(|error| explain(&error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(|error| explain(&error))
    }
}

/// The reader of the output has left, as `head` does when it has seen enough. Nobody's fault.
#[derive(Debug)]
struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of the output has left")
    }
}

impl std::error::Error for ReaderGone {}

fn explain(error: &io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::BrokenPipe => io::Error::new(ErrorKind::BrokenPipe, ReaderGone),
        kind => io::Error::new(kind, format!("cannot write to standard output: {error}")),
    }
}

/// Whether a command ended because the reader of its [`Output`] left. It then ends quietly and with
/// success. A pipe to something else that broke is an error like any other.
pub(crate) fn reader_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.is_some_and(|inner| inner.downcast_ref::<ReaderGone>().is_some())
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn screen(terminal: bool, size: u16, variables: &[(&str, &str)]) -> (Option<usize>, bool) {
        let screen = Screen::of(terminal, size, |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        });
        (screen.width, screen.palette.colour)
    }

    #[test]
    fn a_pipe_has_neither_width_nor_colours() {
        assert_eq!(screen(false, 120, &[("COLUMNS", "40"), ("TERM", "xterm")]), (None, false));
    }

    #[test]
    fn a_terminal_is_as_wide_as_it_says() {
        assert_eq!(screen(true, 120, &[]), (Some(120), true));
        assert_eq!(screen(true, 120, &[("COLUMNS", "40")]), (Some(40), true));
        assert_eq!(screen(true, 120, &[("COLUMNS", "wide")]), (Some(120), true));
        assert_eq!(screen(true, 0, &[]), (Some(80), true));
        assert_eq!(screen(true, 0, &[("COLUMNS", "0")]), (Some(80), true));
    }

    #[test]
    fn colours_can_be_refused() {
        assert_eq!(screen(true, 80, &[("NO_COLOR", "1")]), (Some(80), false));
        assert_eq!(screen(true, 80, &[("NO_COLOR", "")]), (Some(80), true));
        assert_eq!(screen(true, 80, &[("TERM", "dumb")]), (Some(80), false));
    }

    #[test]
    fn a_reader_that_left_is_known_through_any_context() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let mut output = Output::new(writer);
        writeln!(output, "line").expect("buffered");
        let error =
            Err::<(), _>(output.flush().expect_err("nobody reads")).context("writing").expect_err("failed");
        assert!(reader_gone(&error), "{error:#}");
        let through_json =
            serde_json::to_writer(&mut output, &vec![0_u8; 100_000]).expect_err("nobody reads");
        assert!(reader_gone(&io::Error::from(through_json).into()));
    }

    #[test]
    fn a_full_disk_is_said_with_what_was_tried() {
        let mut output =
            Output::new(std::fs::File::options().write(true).open("/dev/full").expect("/dev/full"));
        writeln!(output, "line").expect("buffered");
        let error = output.flush().expect_err("it is full");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("cannot write to standard output: "), "{error}");
    }

    #[test]
    fn another_broken_pipe_is_an_error() {
        let elsewhere = io::Error::from(ErrorKind::BrokenPipe);
        assert!(!reader_gone(&anyhow::Error::from(elsewhere).context("asking the runtime")));
    }
}
