//! How every command shows what it found: tables and bars for people, JSON and YAML for programs.
//!
//! * [`format`]: what `-o` chooses
//! * [`table`]: whole tables, and streams of rows
//! * [`layout`]: how columns share the width there is
//! * [`bars`]: a histogram drawn in text
//! * [`units`]: durations, bytes, rates, times and addresses as people write them
//! * [`style`]: what a colour means
//! * [`writer`]: standard output, its width, and its end

pub(crate) mod bars;
pub(crate) mod format;
mod layout;
pub(crate) mod style;
pub(crate) mod table;
pub(crate) mod units;
pub(crate) mod writer;
