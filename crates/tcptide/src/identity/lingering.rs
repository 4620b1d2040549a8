//! A bounded map whose removed entries stay readable for a while.
//!
//! A socket may close after its cgroup is gone and after its runtime forgot the container; its last
//! event still wants a name.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

/// How long a removed entry stays.
pub(super) const GRACE: Duration = Duration::from_secs(600);
/// The most entries of one map, removed ones included.
pub(super) const CAPACITY: usize = 100_000;

struct Entry<V> {
    value: V,
    removed: Option<Instant>,
}

/// See the module.
pub(super) struct Lingering<K, V> {
    entries: HashMap<K, Entry<V>, RandomState>,
    /// Removals in order; one whose time is not its entry's was taken back by a new insert.
    removals: VecDeque<(Instant, K)>,
    capacity: usize,
    grace: Duration,
}

impl<K: Hash + Eq + Clone, V> Lingering<K, V> {
    pub(super) fn new(capacity: usize, grace: Duration) -> Self {
        Self { entries: HashMap::default(), removals: VecDeque::new(), capacity, grace }
    }

    /// Adds or replaces an entry and hands every value that leaves the map to `forget`. When full, the
    /// oldest removed entries make room; false means that there was none and the entry was refused.
    pub(super) fn insert(&mut self, key: K, value: V, now: Instant, mut forget: impl FnMut(K, V)) -> bool {
        let mut needed = usize::from(!self.entries.contains_key(&key) && self.entries.len() >= self.capacity);
        while let Some((at, oldest)) = self.removals.front() {
            let valid = self.entries.get(oldest).is_some_and(|entry| entry.removed == Some(*at));
            if valid && needed == 0 && now.saturating_duration_since(*at) < self.grace {
                break;
            }
            let Some((_, oldest)) = self.removals.pop_front() else { break };
            if valid && let Some(entry) = self.entries.remove(&oldest) {
                forget(oldest, entry.value);
                needed = 0;
            }
        }
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            return false;
        }
        if let Some(old) = self.entries.insert(key.clone(), Entry { value, removed: None }) {
            forget(key, old.value);
        }
        true
    }

    /// Marks an entry as gone; its value stays readable for the grace period.
    pub(super) fn remove(&mut self, key: &K, now: Instant) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.removed.is_none()) else { return };
        entry.removed = Some(now);
        if self.removals.len() >= 2 * self.capacity {
            let entries = &self.entries;
            self.removals
                .retain(|(at, key)| entries.get(key).is_some_and(|entry| entry.removed == Some(*at)));
        }
        self.removals.push_back((now, key.clone()));
    }

    /// The value, of a removed entry too.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Whether the entry is there and not removed.
    pub(super) fn is_live(&self, key: &K) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.removed.is_none())
    }

    /// When the entry was removed, if it was.
    pub(super) fn removed_at(&self, key: &K) -> Option<Instant> {
        self.entries.get(key)?.removed
    }

    /// All entries, removed ones too.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.value))
    }

    /// All values, to be changed.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().map(|entry| &mut entry.value)
    }

    /// The entries that are not removed.
    pub(super) fn live(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.removed.is_none())
            .map(|(key, entry)| (key, &entry.value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn removed_entries_linger_and_then_leave() {
        let start = Instant::now();
        let mut map = Lingering::new(10, seconds(60));
        let mut gone = Vec::new();
        map.insert(1, "a", start, |_, _| ());
        map.remove(&1, start);
        assert_eq!((map.get(&1), map.is_live(&1), map.live().count()), (Some(&"a"), false, 0));
        map.insert(2, "b", start + seconds(59), |key, _| gone.push(key));
        assert_eq!((map.get(&1), gone.len()), (Some(&"a"), 0));
        map.insert(3, "c", start + seconds(60), |key, _| gone.push(key));
        assert_eq!((map.get(&1), gone), (None, vec![1]));
    }

    #[test]
    fn a_returned_entry_stays() {
        let start = Instant::now();
        let mut map = Lingering::new(10, seconds(60));
        map.insert(1, "a", start, |_, _| ());
        map.remove(&1, start);
        map.insert(1, "again", start + seconds(1), |_, old| assert_eq!(old, "a"));
        map.insert(2, "b", start + seconds(100), |_, _| panic!("nothing leaves"));
        assert_eq!((map.get(&1), map.is_live(&1)), (Some(&"again"), true));
    }

    #[test]
    fn the_oldest_removed_makes_room() {
        let start = Instant::now();
        let mut map = Lingering::new(3, seconds(60));
        for key in 0..3 {
            assert!(map.insert(key, key, start, |_, _| ()));
        }
        assert!(!map.insert(3, 3, start, |_, _| ()), "full of live entries");
        map.remove(&2, start);
        map.remove(&1, start + seconds(1));
        assert!(map.insert(3, 3, start + seconds(2), |key, _| assert_eq!(key, 2)));
        assert_eq!((map.get(&2), map.get(&1)), (None, Some(&1)));
    }

    proptest! {
        /// Whatever happens, the map keeps its bound, what is live stays, and every value leaves once.
        #[test]
        fn nothing_leaks(steps in proptest::collection::vec((0..12u8, any::<bool>(), 0..30u64), 0..200)) {
            let mut map = Lingering::new(8, seconds(60));
            let mut now = Instant::now();
            let (mut inserted, mut left) = (0, 0);
            for (key, insert, pause) in steps {
                now += seconds(pause);
                if insert {
                    let live: Vec<u8> = map.live().map(|(key, ())| *key).collect();
                    inserted += usize::from(map.insert(key, (), now, |_, ()| left += 1));
                    prop_assert!(live.iter().all(|key| map.is_live(key)));
                } else {
                    map.remove(&key, now);
                }
                prop_assert!(map.entries.len() <= 8 && map.removals.len() <= 16);
                prop_assert_eq!(map.entries.len() + left, inserted);
            }
        }
    }
}
