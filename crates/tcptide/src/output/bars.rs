//! A histogram drawn in text: a bar for each slot, then the quantiles.
use model::histogram::{Histogram, Slot};
use unicode_width::UnicodeWidthStr;

use super::{
    layout::{cut, wrap},
    style::Role,
    units::{count, duration, percent},
    writer::Screen,
};

/// The longest bar. Longer ones tell no more.
const LONGEST_BAR: usize = 50;
/// A bar shorter than this tells nothing; a terminal that has no room for it is too narrow.
const SHORTEST_BAR: usize = 4;
/// One column filled by so many eighths, from the left.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// The slots from the first to the last that holds anything, each with its range, its count, its share of
/// all, and a bar as long as its count is to the largest; then count, quantiles, mean, and the extremes if
/// known. `title` says what was measured.
pub(crate) fn bars(title: &str, histogram: &Histogram, screen: &Screen) -> String {
    let title = screen.width.map_or(title.into(), |width| cut(title, width));
    let mut text = format!("{}\n", screen.palette.paint(Some(Role::Header), &title));
    if histogram.is_empty() {
        return text + "nothing measured\n";
    }
    let all = histogram.count() as f64;
    let largest = histogram.counts().iter().copied().max().unwrap_or(1);
    let rows: Vec<[String; 4]> = histogram
        .occupied()
        .map(|slot| {
            let [from, to] = range(slot);
            [from, to, count(slot.count), percent(slot.count as f64 / all)]
        })
        .collect();
    let widths = [0, 1, 2, 3].map(|column| rows.iter().map(|row| row[column].width()).max().unwrap_or(0));
    let [from_width, to_width, count_width, share_width] = widths;
    // Besides the bar: a dash with spaces, and three gaps.
    let rest = widths.iter().sum::<usize>() + 9;
    let room = screen.width.map_or(LONGEST_BAR, |width| width.saturating_sub(rest));
    let room = room.clamp(SHORTEST_BAR, LONGEST_BAR);
    for (slot, [from, to, count, share]) in histogram.occupied().zip(&rows) {
        let bar = bar(slot.count, largest, room);
        let dash = if to.is_empty() { ' ' } else { '–' };
        let line = format!(
            "{from:>from_width$} {dash} {to:>to_width$}  {count:>count_width$}  {share:>share_width$}  {bar}"
        );
        text += line.trim_end();
        text.push('\n');
    }
    for line in wrap(&summary(histogram), "  ", screen.width) {
        text += &line;
        text.push('\n');
    }
    text
}

/// A slot's lower and upper end. Above the lower one, up to and including the upper one.
fn range(slot: Slot) -> [String; 2] {
    let above = slot.first_us.saturating_sub(1);
    match slot.last_us {
        Some(last) => [duration(above), duration(last)],
        None => [format!(">{}", duration(above)), String::new()],
    }
}

/// A bar as long as `count` is to `largest`, which fills `room` columns. Something is never nothing.
fn bar(count: u64, largest: u64, room: usize) -> String {
    let eighths = (count as f64 / largest as f64 * room as f64 * 8.0).round() as usize;
    let eighths = eighths.max(usize::from(count > 0));
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

fn summary(histogram: &Histogram) -> Vec<String> {
    let quantile = |name: &str, q: f64| {
        let value = histogram.quantile(q)?;
        let overflow = histogram.scale().slot(value) + 1 == histogram.scale().slots();
        let at_least = if overflow && histogram.max_us().is_none() { ">" } else { "" };
        Some(format!("{name} {at_least}{}", duration(value)))
    };
    let known = |name: &str, us: Option<u64>| Some(format!("{name} {}", duration(us?)));
    let parts = [
        Some(format!("count {}", count(histogram.count()))),
        quantile("p50", 0.5),
        quantile("p90", 0.9),
        quantile("p99", 0.99),
        known("min", histogram.min_us()),
        known("mean", histogram.mean().map(|mean| mean.round() as u64)),
        known("max", histogram.max_us()),
    ];
    parts.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use model::histogram::Scale;
    use proptest::prelude::*;

    use super::*;
    use crate::output::style::Palette;

    fn screen(width: usize) -> Screen {
        Screen { width: Some(width), palette: Palette::PLAIN }
    }

    fn sample() -> Histogram {
        let mut histogram = Histogram::new(&Scale::RTT);
        for (us, times) in [(180, 3), (250, 412), (300, 12_400), (500, 640), (1_400, 1), (2_100, 90)] {
            (0..times).for_each(|_| histogram.record(us));
        }
        histogram
    }

    #[test]
    fn bars_fit_the_terminal() {
        assert_snapshot!(bars("RTT of web", &sample(), &screen(120)), @r"
        RTT of web
         172µs –  244µs      3  <0.1%  ▏
         244µs –  345µs  12.8k  94.6%  ██████████████████████████████████████████████████
         345µs –  488µs      0   0.0%
         488µs –  690µs    640   4.7%  ██▌
         690µs –  976µs      0   0.0%
         976µs – 1.38ms      0   0.0%
        1.38ms – 1.95ms      1  <0.1%  ▏
        1.95ms – 2.76ms     90   0.7%  ▍
        count 13.5k  p50 294µs  p90 339µs  p99 674µs  min 180µs  mean 320µs  max 2.1ms
        ");
        assert_snapshot!(bars("RTT of web", &sample(), &screen(80)), @r"
        RTT of web
         172µs –  244µs      3  <0.1%  ▏
         244µs –  345µs  12.8k  94.6%  █████████████████████████████████████████████████
         345µs –  488µs      0   0.0%
         488µs –  690µs    640   4.7%  ██▌
         690µs –  976µs      0   0.0%
         976µs – 1.38ms      0   0.0%
        1.38ms – 1.95ms      1  <0.1%  ▏
        1.95ms – 2.76ms     90   0.7%  ▍
        count 13.5k  p50 294µs  p90 339µs  p99 674µs  min 180µs  mean 320µs  max 2.1ms
        ");
        assert_snapshot!(bars("RTT of web", &sample(), &screen(40)), @r"
        RTT of web
         172µs –  244µs      3  <0.1%  ▏
         244µs –  345µs  12.8k  94.6%  █████████
         345µs –  488µs      0   0.0%
         488µs –  690µs    640   4.7%  ▌
         690µs –  976µs      0   0.0%
         976µs – 1.38ms      0   0.0%
        1.38ms – 1.95ms      1  <0.1%  ▏
        1.95ms – 2.76ms     90   0.7%  ▏
        count 13.5k  p50 294µs  p90 339µs
        p99 674µs  min 180µs  mean 320µs
        max 2.1ms
        ");
    }

    #[test]
    fn an_overflow_is_more_than_the_last_bound() {
        let counts = std::iter::repeat_n(0, 40).chain([1, 3]);
        let histogram = Histogram::from_counts(&Scale::RTT, counts, 40_000_000);
        assert_snapshot!(bars("RTT of web", &histogram, &Screen::UNLIMITED), @r"
        RTT of web
        5.66s – 8s  1  25.0%  ████████████████▋
          >8s       3  75.0%  ██████████████████████████████████████████████████
        count 4  p50 >8s  p90 >8s  p99 >8s  mean 10s
        ");
    }

    #[test]
    fn an_empty_histogram_says_so() {
        assert_snapshot!(bars("RTT of web", &Histogram::new(&Scale::RTT), &screen(80)), @r"
        RTT of web
        nothing measured
        ");
    }

    #[test]
    fn bars_grow_by_eighths() {
        assert_eq!(bar(0, 100, 10), "");
        assert_eq!(bar(1, 100_000, 10), "▏", "something is never nothing");
        assert_eq!(bar(50, 100, 1), "▌");
        assert_eq!(bar(100, 100, 3), "███");
    }

    proptest! {
        #[test]
        fn no_line_is_too_wide_from_40_columns_on(
            counts in prop::collection::vec(prop_oneof![Just(0), any::<u64>().prop_map(|c| c >> 8)], 42),
            width in 40..200_usize,
        ) {
            let histogram = Histogram::from_counts(&Scale::RTT, counts, 1);
            for line in bars("RTT", &histogram, &screen(width)).lines() {
                prop_assert!(line.width() <= width, "{line}");
            }
        }
    }
}
