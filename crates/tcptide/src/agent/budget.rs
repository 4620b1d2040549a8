//! Who has series of their own when there is no room for all: the most active ones, without flapping.
//!
//! Who has some keeps them for [`HOLD`] and then until they end, or until somebody comes who is [`HEAVIER`] times as active;
//! who lost them gets none for [`HOLD`]. Only where not even those who have some fit any more, the least active lose theirs at
//! once: the room is never exceeded. Newcomers leave some of it free, as those that are there may come to have more series.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// For how long it stays decided at least.
pub(super) const HOLD: Duration = Duration::from_secs(300);
/// How many times as active somebody must be to take another's room.
const HEAVIER: f64 = 2.0;
/// After so long, activity counts half.
const HALF_LIFE: Duration = Duration::from_secs(300);

/// How much of the room newcomers may fill.
pub(super) fn for_newcomers(room: usize) -> usize {
    room - room / 20
}

/// Whether somebody may have series of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Always, and first.
    Always,
    /// If there is room.
    ByActivity,
    /// Never.
    Never,
}

/// One who may have series of their own.
#[derive(Clone, Debug)]
pub(super) struct Candidate<K> {
    pub(super) key: K,
    /// A counter of what it did: segments.
    pub(super) activity: u64,
    /// What it has open, each of which counts as one of these.
    pub(super) open: u64,
    /// How many series these would be.
    pub(super) series: usize,
    pub(super) claim: Claim,
}

/// What is remembered of one.
#[derive(Clone, Copy, Debug)]
struct Standing {
    counted: u64,
    activity: f64,
    has_own: bool,
    /// Since when it has series of its own, or has them no more; `None`: it never had.
    since: Option<Instant>,
    round: u64,
}

/// What was decided.
#[derive(Debug)]
pub(super) struct Budget<K> {
    known: HashMap<K, Standing>,
    round: u64,
    at: Option<Instant>,
}

impl<K> Default for Budget<K> {
    fn default() -> Self {
        Self { known: HashMap::new(), round: 0, at: None }
    }
}

impl<K: Clone + Eq + Hash> Budget<K> {
    /// Decides anew, for so many series. These are all that there are: others are forgotten. Returns how many series those are
    /// that have them.
    pub(super) fn decide(&mut self, candidates: &[Candidate<K>], room: usize, now: Instant) -> usize {
        let mut ranks = self.rank(candidates, now);
        // Of equals, those that come first.
        ranks.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let ordered = |wanted: &dyn Fn(&Candidate<K>, &Standing) -> bool| -> Vec<(f64, &Candidate<K>)> {
            let is_wanted = |at: usize| {
                let one = &candidates[at];
                self.known.get(&one.key).is_some_and(|standing| wanted(one, standing))
            };
            ranks
                .iter()
                .filter(|(_, at)| is_wanted(*at))
                .map(|(rank, at)| (*rank, &candidates[*at]))
                .collect()
        };
        let always = ordered(&|one, _| one.claim == Claim::Always);
        let never = ordered(&|one, _| one.claim == Claim::Never);
        let by_activity = |one: &Candidate<K>| one.claim == Claim::ByActivity;
        let having = ordered(&|one, standing| by_activity(one) && standing.has_own);
        let may = |standing: &Standing| standing.since.is_none_or(|since| is_past(since, now));
        let wanting = ordered(&|one, standing| by_activity(one) && !standing.has_own && may(standing));

        let mut used: usize = always.iter().map(|(_, one)| one.series).sum();
        for (own, (_, one)) in
            always.into_iter().map(|one| (true, one)).chain(never.into_iter().map(|one| (false, one)))
        {
            self.put(&one.key, own, now);
        }
        let mut kept = Vec::new();
        for (rank, one) in having {
            if used + one.series <= room {
                used += one.series;
                kept.push((rank, one));
            } else {
                self.put(&one.key, false, now);
            }
        }
        let room = for_newcomers(room);
        for (rank, one) in wanting {
            if used + one.series > room {
                let needed = used + one.series - room;
                let Some(freed) = self.make_room(&mut kept, rank, needed, now) else { continue };
                used -= freed;
            }
            used += one.series;
            self.put(&one.key, true, now);
        }
        used
    }

    /// Whether it has series of its own.
    pub(super) fn has_own(&self, key: &K) -> bool {
        self.known.get(key).is_some_and(|standing| standing.has_own)
    }

    /// Takes in how active all have been; returns that with their indices.
    fn rank(&mut self, candidates: &[Candidate<K>], now: Instant) -> Vec<(f64, usize)> {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let left = (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.at = Some(now);
        self.round += 1;
        let round = self.round;
        let rank = |(at, one): (usize, &Candidate<K>)| {
            let new = Standing { counted: 0, activity: 0.0, has_own: false, since: None, round };
            let standing = self.known.entry(one.key.clone()).or_insert(new);
            standing.activity =
                standing.activity * left + one.activity.saturating_sub(standing.counted) as f64;
            (standing.counted, standing.round) = (one.activity, round);
            (standing.activity + one.open as f64, at)
        };
        let ranks = candidates.iter().enumerate().map(rank).collect();
        self.known.retain(|_, standing| standing.round == round);
        ranks
    }

    fn put(&mut self, key: &K, own: bool, now: Instant) {
        if let Some(standing) = self.known.get_mut(key)
            && standing.has_own != own
        {
            (standing.has_own, standing.since) = (own, Some(now));
        }
    }

    /// Takes so many series at least from the least active, if all of them are far less active than this. Returns how many.
    fn make_room(
        &mut self,
        kept: &mut Vec<(f64, &Candidate<K>)>,
        rank: f64,
        needed: usize,
        now: Instant,
    ) -> Option<usize> {
        let may_go = |(other, one): &(f64, &Candidate<K>)| {
            let since = self.known.get(&one.key).and_then(|standing| standing.since);
            other * HEAVIER < rank && since.is_none_or(|since| is_past(since, now))
        };
        let (mut freed, mut going) = (0, Vec::new());
        for (at, one) in kept.iter().enumerate().rev().filter(|(_, one)| may_go(one)) {
            freed += one.1.series;
            going.push(at);
            if freed >= needed {
                // From the back: the indices before stay.
                for at in going {
                    let (_, one) = kept.remove(at);
                    self.put(&one.key, false, now);
                }
                return Some(freed);
            }
        }
        None
    }
}

fn is_past(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= HOLD
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(key: u32, activity: u64) -> Candidate<u32> {
        Candidate { key, activity, open: 0, series: 10, claim: Claim::ByActivity }
    }

    fn own(budget: &Budget<u32>, of: &[Candidate<u32>]) -> Vec<u32> {
        of.iter().map(|one| one.key).filter(|key| budget.has_own(key)).collect()
    }

    #[test]
    fn the_most_active_have_series_of_their_own() {
        let mut budget = Budget::default();
        let mut all = [one(1, 5), one(2, 50), one(3, 7), one(4, 60)];
        assert_eq!(budget.decide(&all, 28, Instant::now()), 20);
        assert_eq!(own(&budget, &all), [2, 4]);
        // Who has open connections comes before who has none.
        all[0].open = 3;
        let mut budget = Budget::default();
        budget.decide(&all, 31, Instant::now());
        assert_eq!(own(&budget, &all), [1, 2, 4]);
    }

    #[test]
    fn only_the_much_more_active_take_anothers_place_and_not_at_once() {
        let mut budget = Budget::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut all = vec![one(1, 100), one(2, 0)];
        budget.decide(&all, 10, at(0));
        all[1].activity = 150;
        budget.decide(&all, 10, at(HOLD.as_secs() + 1));
        // By now the first one's are worth 50, but that took longer than a moment.
        assert_eq!(own(&budget, &all), [2], "150 to 50");
        all[0].activity = 1_000_000;
        budget.decide(&all, 10, at(HOLD.as_secs() + 2));
        assert_eq!(own(&budget, &all), [2], "it was given its place a second ago");
        budget.decide(&all, 10, at(2 * HOLD.as_secs() + 1));
        assert_eq!(own(&budget, &all), [1]);
        // Half as active again is not enough.
        all[1].activity += 400_000;
        budget.decide(&all, 10, at(3 * HOLD.as_secs() + 1));
        assert_eq!(own(&budget, &all), [1]);
    }

    #[test]
    fn the_room_is_kept_at_once_and_given_again_later() {
        let mut budget = Budget::default();
        let start = Instant::now();
        let mut all = [one(1, 100), one(2, 50)];
        assert_eq!(budget.decide(&all, 21, start), 20);
        all[0].series = 11;
        assert_eq!(budget.decide(&all, 21, start), 21, "what was left free");
        all[0].series = 12;
        assert_eq!(budget.decide(&all, 21, start), 12);
        assert_eq!(own(&budget, &all), [1]);
        all[0].series = 10;
        budget.decide(&all, 21, start + HOLD / 2);
        assert_eq!(own(&budget, &all), [1], "not back and forth");
        budget.decide(&all, 21, start + HOLD);
        assert_eq!(own(&budget, &all), [1, 2]);
    }

    #[test]
    fn some_always_and_some_never_have_theirs() {
        let mut budget = Budget::default();
        let mut all = [one(1, 100), one(2, 0), one(3, 50)];
        all[1].claim = Claim::Always;
        all[0].claim = Claim::Never;
        budget.decide(&all, 21, Instant::now());
        assert_eq!(own(&budget, &all), [2, 3]);
    }

    proptest! {
        /// Whatever happens: there are never more series than room, and nobody goes back and forth.
        #[test]
        fn the_room_is_a_limit_and_nothing_flaps(
            steps in prop::collection::vec((0..9_u32, 0..1000_u64, 1..15_usize, 0..200_u64), 1..60),
            room in 0..60_usize,
        ) {
            let mut budget = Budget::default();
            let mut now = Instant::now();
            let mut all: Vec<Candidate<u32>> = Vec::new();
            let mut lost: HashMap<u32, Instant> = HashMap::new();
            for (key, more, series, seconds) in steps {
                now += Duration::from_secs(seconds);
                match all.iter().position(|one| one.key == key) {
                    Some(at) if more < 50 => {
                        all.remove(at);
                        lost.remove(&key);
                    }
                    Some(at) => {
                        all[at].activity += more;
                        all[at].series = series;
                    }
                    None => all.push(Candidate { series, ..one(key, more) }),
                }
                let before = own(&budget, &all);
                let used = budget.decide(&all, room, now);
                let after = own(&budget, &all);
                let sum: usize = all.iter().filter(|one| after.contains(&one.key)).map(|one| one.series).sum();
                prop_assert_eq!(used, sum);
                prop_assert!(used <= room, "{} of {}", used, room);
                for key in before.iter().filter(|key| !after.contains(key)) {
                    lost.insert(*key, now);
                }
                for key in after.iter().filter(|key| !before.contains(key)) {
                    let since = lost.remove(key);
                    prop_assert!(since.is_none_or(|since| now - since >= HOLD), "{} came back", key);
                }
                // No room is left that somebody who waits could have.
                let waiting = all.iter().filter(|one| !after.contains(&one.key) && !lost.contains_key(&one.key));
                for one in waiting {
                    prop_assert!(used + one.series > for_newcomers(room), "{} could have had a place", one.key);
                }
            }
        }
    }
}
