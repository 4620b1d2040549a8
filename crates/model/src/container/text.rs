//! Names on a terminal: made harmless, and guessed when mistyped.

use std::borrow::Cow;

/// The longest text shown, in characters.
const LONGEST: usize = 256;
/// How alike two names must be to suggest one for the other, from 0 (nothing in common) to 1.
const ALIKE: f64 = 0.8;
/// The most suggestions given.
const SUGGESTIONS: usize = 3;

/// Makes text from outside (names, labels, `comm`) safe to print: what would move the cursor, break the
/// line, reorder or hide text is shown as `\n` or `\u{…}`, and the result has at most 256 characters,
/// the last of them `…` if something was cut.
pub fn sanitize(text: &str) -> Cow<'_, str> {
    let fits = text.chars().nth(LONGEST).is_none();
    if fits && !text.chars().any(is_deceptive) {
        return Cow::Borrowed(text);
    }
    let mut safe: Vec<char> = Vec::with_capacity(LONGEST + 1);
    for c in text.chars() {
        if is_deceptive(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
        if safe.len() > LONGEST {
            safe.truncate(LONGEST - 1);
            safe.push('…');
            break;
        }
    }
    Cow::Owned(safe.into_iter().collect())
}

/// Characters that do something other than stand for themselves: controls, line and paragraph
/// separators, direction marks, overrides and isolates, invisible ones and tags.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The candidates a mistyped `name` may have meant, best first, at most three, each once.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = comparable(name);
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut scored: Vec<(f64, &str)> = candidates
        .into_iter()
        .map(|candidate| (likeness(&wanted, &comparable(candidate)), candidate))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    scored.into_iter().take(SUGGESTIONS).map(|(_, candidate)| candidate).collect()
}

/// Comparing takes time in the square of the length, so long names are compared by their beginning.
fn comparable(name: &str) -> String {
    name.chars().take(64).flat_map(char::to_lowercase).collect()
}

/// A name that holds what was typed counts as alike: `web` is a fair guess at `shop-web-1`.
fn likeness(wanted: &str, candidate: &str) -> f64 {
    // One slip of the finger is likely in a short name too, where hardly a letter stays in its place: `wbe` for `web`.
    let slip = if strsim::osa_distance(wanted, candidate) <= 1 && wanted.len() >= 3 { 0.95 } else { 0.0 };
    let alike = strsim::jaro_winkler(wanted, candidate).max(slip);
    if wanted.len() >= 3 && candidate.contains(wanted) { alike.max(0.9) } else { alike }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_slip_in_a_short_name() {
        assert_eq!(nearest("wbe", ["web", "db", "api"]), ["web"]);
        assert_eq!(nearest("ap", ["web", "db"]), Vec::<&str>::new());
    }

    #[test]
    fn harmless_text_is_borrowed() {
        for text in ["", "web-1", "naïve 数据库", r"dev-disk\x2dby.mount"] {
            assert!(matches!(sanitize(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn tricks_become_visible() {
        assert_eq!(sanitize("a\x1b[2Jb\nc\td\re"), r"a\u{1b}[2Jb\nc\td\re");
        assert_eq!(sanitize("x\u{202e}gpj.exe"), r"x\u{202e}gpj.exe");
        assert_eq!(sanitize("\u{2066}\u{200b}\u{2028}\u{9b}"), r"\u{2066}\u{200b}\u{2028}\u{9b}");
    }

    #[test]
    fn long_text_is_cut() {
        let exact = "é".repeat(256);
        assert_eq!(sanitize(&exact), exact);
        assert_eq!(sanitize(&"é".repeat(257)), format!("{}…", "é".repeat(255)));
        assert_eq!(sanitize(&"\n".repeat(129)), format!("{}\\…", r"\n".repeat(127)));
    }

    #[test]
    fn mistyped_names_find_their_like() {
        let names = ["shop-web-1", "shop-db-1", "nginx.service", "redis"];
        assert_eq!(nearest("ngnix.service", names), ["nginx.service"]);
        assert_eq!(nearest("Redsi", names), ["redis"]);
        assert_eq!(nearest("web", names), ["shop-web-1"]);
        assert_eq!(nearest("shop-web-2", names)[0], "shop-web-1");
        assert!(nearest("postgres", names).is_empty());
        assert!(nearest("", names).is_empty());
        assert_eq!(nearest("redis", ["redis", "redis"]), ["redis"]);
    }

    proptest! {
        #[test]
        fn sanitized_text_is_clean_short_and_final(text in "(\\PC|\\p{C}|a){0,300}") {
            let once = sanitize(&text).into_owned();
            prop_assert!(once.chars().count() <= LONGEST);
            prop_assert!(!once.chars().any(is_deceptive));
            prop_assert_eq!(sanitize(&once), once.as_str());
        }

        #[test]
        fn suggestions_are_candidates(name in any::<String>(), candidates in proptest::collection::vec(any::<String>(), 0..9)) {
            let found = nearest(&name, candidates.iter().map(String::as_str));
            prop_assert!(found.len() <= SUGGESTIONS);
            prop_assert!(found.iter().all(|one| candidates.iter().any(|candidate| candidate == one)));
        }
    }
}
