//! How every command shows what it found: tables and bars for people, JSON and YAML for programs.
//!
//! * [`mod@format`]: what `-o` chooses
//! * [`table`]: whole tables, and streams of rows
//! * [`layout`]: how columns share the width there is
//! * [`bars`]: a histogram drawn in text
//! * [`units`]: durations, bytes, rates, times and addresses as people write them
//! * [`style`]: what a colour means
//! * [`log`]: where warnings go
//! * [`writer`]: standard output, its width, and its end

/// Says something to the person, beside what a command prints. Where nobody listens any more, it is not said.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "tcptide: {}", format_args!($($text)*));
    }};
}
pub(crate) use say;

pub(crate) mod bars;
pub(crate) mod format;
pub(crate) mod layout;
pub(crate) mod log;
pub(crate) mod style;
pub(crate) mod table;
pub(crate) mod units;
pub(crate) mod writer;
