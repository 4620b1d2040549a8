//! What edges counted in the last hour or so: for each step of time, what each edge that counted anything added.
//!
//! Bounded: where it grows too large, two steps each of its older half become one, so that less is known of when, and
//! nothing less of how much.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use model::edge::EdgeCounts;

use super::edges::Ends;

/// How much is remembered at most: edges of steps, some 100 bytes each.
const MOST_ENTRIES: usize = 262_144;

/// What an edge counted within a step.
#[derive(Clone, Debug)]
pub(super) struct Added {
    /// The edge's number, which is given once.
    pub(super) edge: u64,
    pub(super) ends: Arc<Ends>,
    pub(super) counts: EdgeCounts,
}

/// A span of time.
#[derive(Debug)]
struct Step {
    began: Instant,
    added: Vec<Added>,
}

/// The steps, the oldest first.
#[derive(Debug)]
pub(super) struct History {
    keep: Duration,
    most: usize,
    steps: VecDeque<Step>,
    entries: usize,
    /// When the next step began.
    began: Instant,
}

impl History {
    /// Remembers for so long.
    pub(super) fn new(keep: Duration, now: Instant) -> Self {
        Self { keep, most: MOST_ENTRIES, steps: VecDeque::new(), entries: 0, began: now }
    }

    /// For how long the step has lasted that is not over yet.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// Ends a step.
    pub(super) fn push(&mut self, now: Instant, added: Vec<Added>) {
        self.entries += added.len();
        self.steps.push_back(Step { began: self.began, added });
        self.began = now;
        // The end of a step is the beginning of the one after it.
        while self.steps.get(1).is_some_and(|next| now.saturating_duration_since(next.began) >= self.keep) {
            self.forget_first();
        }
        while self.entries > self.most && self.steps.len() > 1 {
            self.coarsen();
        }
    }

    /// What was added since a time, by edge, with `latest` that is in no step yet; and since when that is: the end of the
    /// last step before that time, or as far as is known.
    pub(super) fn since(&self, time: Instant, latest: &[Added]) -> (Instant, Vec<Added>) {
        let mut sums: HashMap<u64, Added> = HashMap::new();
        let mut began = self.began;
        let later = self.steps.iter().rev();
        // Newest first: an edge's ends are the latest that are known.
        let mut add = |added: &Added| {
            sums.entry(added.edge)
                .and_modify(|sum| sum.counts.add(&added.counts))
                .or_insert_with(|| added.clone());
        };
        latest.iter().for_each(&mut add);
        for step in later {
            if began <= time {
                break;
            }
            step.added.iter().for_each(&mut add);
            began = step.began;
        }
        (began, sums.into_values().collect())
    }

    fn forget_first(&mut self) {
        if let Some(step) = self.steps.pop_front() {
            self.entries -= step.added.len();
        }
    }

    /// Makes one of two, all over the older half; forgets the oldest where that saves nothing.
    fn coarsen(&mut self) {
        let before = self.entries;
        let older: Vec<Step> = self.steps.drain(..self.steps.len().div_ceil(2)).collect();
        self.entries -= older.iter().map(|step| step.added.len()).sum::<usize>();
        let mut merged = Vec::new();
        let mut steps = older.into_iter();
        while let Some(mut first) = steps.next() {
            if let Some(second) = steps.next() {
                first.add(second);
            }
            merged.push(first);
        }
        for step in merged.into_iter().rev() {
            self.entries += step.added.len();
            self.steps.push_front(step);
        }
        if self.entries >= before {
            self.forget_first();
        }
    }
}

impl Step {
    fn add(&mut self, later: Self) {
        let at: HashMap<u64, usize> = self.added.iter().enumerate().map(|(at, one)| (one.edge, at)).collect();
        for one in later.added {
            match at.get(&one.edge).and_then(|at| self.added.get_mut(*at)) {
                Some(sum) => {
                    sum.counts.add(&one.counts);
                    sum.ends = one.ends;
                }
                None => self.added.push(one),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn added(edge: u64, sent_bytes: u64) -> Added {
        Added { edge, ends: Ends::of_nobody(), counts: EdgeCounts { sent_bytes, ..EdgeCounts::default() } }
    }

    fn sent(added: &[Added]) -> u64 {
        added.iter().map(|one| one.counts.sent_bytes).sum()
    }

    #[test]
    fn since_is_as_exact_as_a_step_and_says_how_exact() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut history = History::new(Duration::from_secs(60), start);
        for step in 1..=4 {
            history.push(at(5 * step), vec![added(step % 2, step)]);
        }
        // Steps end at 5, 10, 15 and 20.
        let since = |seconds| {
            let (began, all) = history.since(at(seconds), &[added(9, 100)]);
            (began.duration_since(start).as_secs(), sent(&all), all.len())
        };
        assert_eq!(since(20), (20, 100, 1));
        assert_eq!(since(16), (15, 104, 2));
        assert_eq!(since(15), (15, 104, 2));
        assert_eq!(since(9), (5, 109, 3));
        assert_eq!(since(0), (0, 110, 3));
    }

    #[test]
    fn what_is_too_old_is_forgotten() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut history = History::new(Duration::from_secs(10), start);
        for second in 1..=30 {
            history.push(at(second), vec![added(1, 1)]);
        }
        let (began, all) = history.since(start, &[]);
        assert_eq!((began, sent(&all)), (at(20), 10));
    }

    proptest! {
        /// However little may be remembered: nothing is lost but whole spans at the old end, and the sum is that of the time
        /// that is told with it.
        #[test]
        fn sums_are_those_of_the_span(
            steps in prop::collection::vec(prop::collection::vec((0_u64..8, 1_u64..100), 0..8), 1..60),
            most in 1_usize..40,
        ) {
            let start = Instant::now();
            let at = |step: usize| start + Duration::from_secs(step as u64);
            let mut history = History::new(Duration::from_secs(1000), start);
            history.most = most;
            for (step, all) in steps.iter().enumerate() {
                let mut once: HashMap<u64, u64> = HashMap::new();
                for (edge, bytes) in all {
                    *once.entry(*edge).or_default() += bytes;
                }
                history.push(at(step + 1), once.into_iter().map(|(edge, bytes)| added(edge, bytes)).collect());
                prop_assert!(history.entries <= most || history.steps.len() == 1);
                prop_assert_eq!(history.entries, history.steps.iter().map(|s| s.added.len()).sum::<usize>());
            }
            for since in 0..=steps.len() {
                let (began, all) = history.since(at(since), &[]);
                let began = began.duration_since(start).as_secs() as usize;
                let expected = steps[began..].iter().flatten().map(|(_, bytes)| bytes).sum::<u64>();
                prop_assert_eq!(sent(&all), expected);
            }
        }
    }
}
