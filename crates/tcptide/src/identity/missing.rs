//! What was looked for and not found: looked for again after a while only.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How long something that was not found is left alone.
const MISSING_FOR: Duration = Duration::from_secs(60);
/// The most that is kept in mind.
pub(super) const MOST_MISSING: usize = 4096;

/// See the module.
pub(super) struct Missing<K> {
    asked: HashMap<K, Instant>,
}

impl<K: Hash + Eq> Missing<K> {
    pub(super) fn new() -> Self {
        Self { asked: HashMap::new() }
    }

    /// Notes that `key` is missing. Whether to look for it: not if it was lately, nor when too much is missing.
    pub(super) fn note(&mut self, key: K, now: Instant) -> bool {
        let lately = |asked: &Instant| now.saturating_duration_since(*asked) < MISSING_FOR;
        if self.asked.get(&key).is_some_and(lately) {
            return false;
        }
        if self.asked.len() >= MOST_MISSING {
            self.asked.retain(|_, asked| lately(asked));
        }
        let room = self.asked.len() < MOST_MISSING;
        if room {
            self.asked.insert(key, now);
        }
        room
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.asked.len()
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
