//! How columns share the width there is, and how one line of them is set.
use std::borrow::Cow;

use unicode_width::UnicodeWidthStr;

use super::{
    style::{Palette, Role},
    table::{Align, Column},
};

/// Spaces between columns: two, so that a name with one space in it can still be told apart.
const GAP: usize = 2;

/// Where each column that is shown stands.
#[derive(Debug)]
pub(crate) struct Layout {
    places: Vec<Place>,
    /// Headers of the columns that found no room.
    hidden: Vec<&'static str>,
    limit: Option<usize>,
}

#[derive(Debug)]
struct Place {
    column: usize,
    start: usize,
    width: usize,
    align: Align,
    shrinks: bool,
}

/// What to do with a cell that is longer than its column is wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    /// Cut it.
    Cut,
    /// Let it push those behind it, which take up again where they have room. Cut only what would
    /// otherwise break the line.
    Push,
}

impl Layout {
    /// Fits columns, of which each would like its width of `wanted`, into `limit`: those that may shrink
    /// do so, the widest first, then the ones of the highest rank are left out. One always remains.
    pub(crate) fn fit(columns: &[Column], wanted: &[usize], wide: bool, limit: Option<usize>) -> Self {
        let mut shown: Vec<usize> = (0..columns.len()).filter(|i| wide || !columns[*i].wide_only).collect();
        let mut hidden = Vec::new();
        loop {
            let mut widths: Vec<usize> = shown.iter().map(|i| wanted[*i]).collect();
            let floors: Vec<usize> =
                shown.iter().map(|i| columns[*i].shrinks_to.unwrap_or(usize::MAX)).collect();
            let fits = limit.is_none_or(|limit| shrink(&mut widths, &floors, limit));
            if fits || shown.len() < 2 {
                hidden.sort_unstable();
                return Self {
                    places: place(columns, &shown, &widths),
                    hidden: hidden.into_iter().map(|i: usize| columns[i].header).collect(),
                    limit,
                };
            }
            let least = (0..shown.len()).max_by_key(|at| columns[shown[*at]].rank);
            hidden.extend(least.map(|at| shown.remove(at)));
        }
    }

    /// The columns that found room, each with its number, where it begins, and its width.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        self.places.iter().map(|place| (place.column, place.start, place.width))
    }

    /// One line, ended, of the cells that `cell` gives for a column's index.
    pub(super) fn line<'a>(
        &self,
        cell: impl Fn(usize) -> (&'a str, Option<Role>),
        overflow: Overflow,
        palette: Palette,
    ) -> String {
        let at_once = overflow == Overflow::Cut && self.limit.is_some();
        let (line, width) = self.set(&cell, at_once, palette);
        if !at_once && self.limit.is_some_and(|limit| width > limit) {
            return self.set(&cell, true, palette).0;
        }
        line
    }

    /// A line and its width.
    fn set<'a>(
        &self,
        cell: &impl Fn(usize) -> (&'a str, Option<Role>),
        cut_cells: bool,
        palette: Palette,
    ) -> (String, usize) {
        let mut line = String::new();
        let mut end = 0;
        for (nth, place) in self.places.iter().enumerate() {
            let (text, role) = cell(place.column);
            let text = if cut_cells && place.shrinks { cut(text, place.width) } else { text.into() };
            let start = match place.align {
                Align::Left => place.start,
                Align::Right => place.start + place.width.saturating_sub(text.width()),
            };
            let start = if nth == 0 { start } else { start.max(end + GAP) };
            line.extend(std::iter::repeat_n(' ', start - end));
            line.push_str(&palette.paint(role, &text));
            end = start + text.width();
        }
        line.push('\n');
        (line, end)
    }

    /// Says which columns are missing, if any.
    pub(super) fn notice(&self, palette: Palette) -> String {
        if self.hidden.is_empty() {
            return String::new();
        }
        let text = format!("no room for {}; a wider terminal or -o json has them", self.hidden.join(", "));
        let words: Vec<&str> = text.split(' ').collect();
        let lines = wrap(&words, " ", self.limit);
        lines.iter().fold(String::new(), |all, line| all + &palette.paint(Some(Role::Dim), line) + "\n")
    }
}

/// Takes from the widest column that may shrink until all fit, if they can.
fn shrink(widths: &mut [usize], floors: &[usize], limit: usize) -> bool {
    let gaps = GAP * widths.len().saturating_sub(1);
    loop {
        if widths.iter().sum::<usize>() + gaps <= limit {
            return true;
        }
        let widest = (0..widths.len()).filter(|i| widths[*i] > floors[*i]).max_by_key(|i| widths[*i]);
        let Some(widest) = widest else { return false };
        widths[widest] -= 1;
    }
}

fn place(columns: &[Column], shown: &[usize], widths: &[usize]) -> Vec<Place> {
    let starts = widths.iter().scan(0, |next, width| {
        let start = *next;
        *next += width + GAP;
        Some(start)
    });
    let places = shown.iter().zip(widths).zip(starts).map(|((&column, &width), start)| Place {
        column,
        start,
        width,
        align: columns[column].align,
        shrinks: columns[column].shrinks_to.is_some(),
    });
    places.collect()
}

/// The text, or as much of its beginning as fits into `width` with an `…` for the rest.
pub(crate) fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return text.into();
    }
    // Measured as a whole each time: joined characters are narrower than the sum of their parts.
    let ends = text.char_indices().map(|(at, _)| at);
    let kept = ends.take_while(|at| text[..*at].width() < width).last().unwrap_or(0);
    format!("{}{}", &text[..kept], if width == 0 { "" } else { "…" }).into()
}

/// Items in as few lines as hold them within `limit`; an item that alone is longer stays whole.
pub(crate) fn wrap(items: &[impl AsRef<str>], between: &str, limit: Option<usize>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        let item = item.as_ref();
        match lines.last_mut() {
            Some(line)
                if limit.is_none_or(|limit| line.width() + between.width() + item.width() <= limit) =>
            {
                line.push_str(between);
                line.push_str(item);
            }
            _ => lines.push(item.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cuts_leave_room_for_the_ellipsis() {
        assert_eq!(cut("web-frontend", 12), "web-frontend");
        assert_eq!(cut("web-frontend", 5), "web-…");
        assert_eq!(cut("東京の塔", 6), "東京…");
        assert_eq!(cut("東京の塔", 4), "東…", "a wide character is not halved");
        assert_eq!(cut("web", 1), "…");
        assert_eq!(cut("web", 0), "");
    }

    #[test]
    fn wrapping_keeps_items_whole() {
        assert_eq!(
            wrap(&["one", "two", "three", "incomprehensible"], "  ", Some(8)),
            ["one  two", "three", "incomprehensible"]
        );
        assert_eq!(wrap(&["one", "two"], ", ", None), ["one, two"]);
    }

    proptest! {
        #[test]
        fn a_cut_fits(text in "\\PC{0,20}|[a-z東🙂\u{301}]{0,20}", width in 0..20_usize) {
            let kept = cut(&text, width);
            prop_assert!(kept.width() <= width, "{kept:?}");
            prop_assert!(kept == text || text.width() > width);
        }
    }
}
