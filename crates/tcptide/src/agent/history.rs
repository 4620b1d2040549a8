//! What was counted in the last hour or so: for each step of time, what each edge or container that counted anything added.
//!
//! Bounded: where it grows too large, two steps each of its older half become one, so that less is known of when, and
//! nothing less of how much.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use model::edge::EdgeCounts;

/// How long a step takes.
const STEP: Duration = Duration::from_secs(5);
/// It takes so many times as long as what is done for it, if that is more.
const MOST_OFTEN: u32 = 100;

/// What is counted within a step.
pub(super) trait Counts: Clone {
    /// Adds what was counted in a later step.
    fn add(&mut self, later: &Self);

    /// How much room it takes, in whatever the history is bounded by.
    fn size(&self) -> usize;
}

impl Counts for EdgeCounts {
    fn add(&mut self, later: &Self) {
        self.add(later);
    }

    fn size(&self) -> usize {
        1
    }
}

/// What somebody counted within a step.
#[derive(Clone, Debug)]
pub(super) struct Added<W, C> {
    /// Whose number, which is given once.
    pub(super) of: u64,
    pub(super) who: Arc<W>,
    pub(super) counts: C,
}

/// A span of time.
#[derive(Clone, Debug)]
pub(super) struct Step<W, C> {
    pub(super) began: Instant,
    pub(super) added: Vec<Added<W, C>>,
}

/// The steps, the oldest first.
#[derive(Debug)]
pub(super) struct History<W, C> {
    keep: Duration,
    most: usize,
    steps: VecDeque<Step<W, C>>,
    size: usize,
    /// When the next step began.
    began: Instant,
    /// How long the next step takes at least.
    step: Duration,
}

impl<W, C: Counts> History<W, C> {
    /// Remembers for so long, and so much at most.
    pub(super) fn new(keep: Duration, most: usize, now: Instant) -> Self {
        Self { keep, most, steps: VecDeque::new(), size: 0, began: now, step: STEP }
    }

    /// Whether it is time to end a step: never, if nothing is kept.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.keep.is_zero() && now.saturating_duration_since(self.began) >= self.step
    }

    /// Ends a step, all that was done for which took so long.
    pub(super) fn push(&mut self, now: Instant, took: Duration, added: Vec<Added<W, C>>) {
        self.step = STEP.max(took * MOST_OFTEN);
        self.size += size(&added);
        self.steps.push_back(Step { began: self.began, added });
        self.began = now;
        // The end of a step is the beginning of the one after it.
        while self.steps.get(1).is_some_and(|next| now.saturating_duration_since(next.began) >= self.keep) {
            self.forget_first();
        }
        while self.size > self.most && self.steps.len() > 1 {
            self.coarsen();
        }
    }

    /// The steps since a time, the oldest first, and when the last of them ended: from the end of the last step before that
    /// time, or as far as is known.
    pub(super) fn steps(&self, time: Instant) -> (impl Iterator<Item = &Step<W, C>>, Instant) {
        let ends = self.steps.iter().skip(1).map(|step| step.began).chain([self.began]);
        // Before the first step has ended there is an end, and no step.
        let first = ends.take_while(|ended| *ended <= time).count().min(self.steps.len());
        (self.steps.range(first..), self.began)
    }

    /// What was added since a time, with `latest` that is in no step yet; and since when that is.
    pub(super) fn since(&self, time: Instant, latest: &[Added<W, C>]) -> (Instant, Vec<Added<W, C>>) {
        let (steps, ended) = self.steps(time);
        let mut steps = steps.peekable();
        let began = steps.peek().map_or(ended, |step| step.began);
        let mut sum = Sum::default();
        for added in steps.flat_map(|step| &step.added).chain(latest) {
            sum.add(Added { who: Arc::clone(&added.who), counts: added.counts.clone(), of: added.of });
        }
        (began, sum.added)
    }

    fn forget_first(&mut self) {
        if let Some(step) = self.steps.pop_front() {
            self.size -= size(&step.added);
        }
    }

    /// Makes one of two, all over the older half; forgets the oldest where that saves nothing.
    fn coarsen(&mut self) {
        let before = self.size;
        let older: Vec<Step<W, C>> = self.steps.drain(..self.steps.len().div_ceil(2)).collect();
        self.size -= older.iter().map(|step| size(&step.added)).sum::<usize>();
        let mut merged = Vec::new();
        let mut steps = older.into_iter();
        while let Some(Step { began, added }) = steps.next() {
            let mut sum = Sum::default();
            added
                .into_iter()
                .chain(steps.next().into_iter().flat_map(|step| step.added))
                .for_each(|one| sum.add(one));
            merged.push(Step { began, added: sum.added });
        }
        for step in merged.into_iter().rev() {
            self.size += size(&step.added);
            self.steps.push_front(step);
        }
        if self.size >= before {
            self.forget_first();
        }
    }
}

fn size<W, C: Counts>(added: &[Added<W, C>]) -> usize {
    added.iter().map(|one| one.counts.size()).sum()
}

/// What steps one after the other have counted, as one.
struct Sum<W, C> {
    at: HashMap<u64, usize>,
    added: Vec<Added<W, C>>,
}

impl<W, C> Default for Sum<W, C> {
    fn default() -> Self {
        Self { at: HashMap::new(), added: Vec::new() }
    }
}

impl<W, C: Counts> Sum<W, C> {
    /// Who it is is what is known last.
    fn add(&mut self, later: Added<W, C>) {
        match self.at.get(&later.of).and_then(|at| self.added.get_mut(*at)) {
            Some(sum) => {
                sum.counts.add(&later.counts);
                sum.who = later.who;
            }
            None => {
                self.at.insert(later.of, self.added.len());
                self.added.push(later);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Added = super::Added<(), EdgeCounts>;
    type History = super::History<(), EdgeCounts>;

    const MOST: usize = 1000;
    const SOON: Duration = Duration::from_millis(1);

    fn added(of: u64, sent_bytes: u64) -> Added {
        Added { of, who: Arc::new(()), counts: EdgeCounts { sent_bytes, ..EdgeCounts::default() } }
    }

    fn sent(added: &[Added]) -> u64 {
        added.iter().map(|one| one.counts.sent_bytes).sum()
    }

    #[test]
    fn since_is_as_exact_as_a_step_and_says_how_exact() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut history = History::new(Duration::from_secs(60), MOST, start);
        assert!(history.since(at(1), &[]).1.is_empty());
        for step in 1..=4 {
            history.push(at(5 * step), SOON, vec![added(step % 2, step)]);
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
        let mut history = History::new(Duration::from_secs(10), MOST, start);
        for second in 1..=30 {
            history.push(at(second), SOON, vec![added(1, 1)]);
        }
        let (began, all) = history.since(start, &[]);
        assert_eq!((began, sent(&all)), (at(20), 10));
    }

    #[test]
    fn a_step_takes_a_hundred_times_as_long_as_its_making() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut history = History::new(Duration::from_secs(60), MOST, start);
        assert!(!history.is_due(at(4)) && history.is_due(at(5)));
        history.push(at(5), Duration::from_millis(100), Vec::new());
        assert!(!history.is_due(at(14)) && history.is_due(at(15)));
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
            let mut history = History::new(Duration::from_secs(1000), most, start);
            for (step, all) in steps.iter().enumerate() {
                let mut once: HashMap<u64, u64> = HashMap::new();
                for (edge, bytes) in all {
                    *once.entry(*edge).or_default() += bytes;
                }
                history.push(at(step + 1), SOON, once.into_iter().map(|(edge, bytes)| added(edge, bytes)).collect());
                prop_assert!(history.size <= most || history.steps.len() == 1);
                prop_assert_eq!(history.size, history.steps.iter().map(|s| s.added.len()).sum::<usize>());
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
