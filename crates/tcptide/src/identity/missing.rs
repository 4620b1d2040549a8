//! What was looked for and not found: looked for again after a while only.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How long something that was not found is left alone.
const MISSING_FOR: Duration = Duration::from_secs(60);
/// The most that is kept in mind.
pub(super) const MOST_MISSING: usize = 4096;

/// See the module.
pub(super) struct Missing<K> {
    noted: HashSet<K>,
    /// The same, with the times when they were noted: the oldest first.
    in_order: VecDeque<(Instant, K)>,
}

impl<K: Hash + Eq + Clone> Missing<K> {
    pub(super) fn new() -> Self {
        Self { noted: HashSet::new(), in_order: VecDeque::new() }
    }

    /// Notes that `key` is missing. Whether to look for it: not if it was lately, nor when too much is missing.
    pub(super) fn note(&mut self, key: K, now: Instant) -> bool {
        while let Some((at, old)) = self.in_order.front()
            && now.saturating_duration_since(*at) >= MISSING_FOR
        {
            self.noted.remove(old);
            self.in_order.pop_front();
        }
        let is_new = self.noted.len() < MOST_MISSING && self.noted.insert(key.clone());
        if is_new {
            self.in_order.push_back((now, key));
        }
        is_new
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.noted.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_looked_for_once_a_minute() {
        let start = Instant::now();
        let mut missing = Missing::new();
        assert!(missing.note("a", start));
        assert!(!missing.note("a", start + MISSING_FOR / 2));
        assert!(missing.note("b", start + MISSING_FOR / 2));
        assert!(missing.note("a", start + MISSING_FOR));
    }

    #[test]
    fn what_is_kept_in_mind_is_bounded() {
        let start = Instant::now();
        let mut missing = Missing::new();
        let looked_for = (0..2 * MOST_MISSING).filter(|key| missing.note(*key, start)).count();
        assert_eq!((looked_for, missing.len()), (MOST_MISSING, MOST_MISSING));
        assert!(missing.note(0, start + MISSING_FOR));
        assert_eq!(missing.len(), 1, "the others are forgotten");
    }
}
