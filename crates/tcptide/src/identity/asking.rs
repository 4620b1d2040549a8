//! Which containers to ask a runtime for, one by one, and when.
//!
//! A container is asked for when its cgroup turns up and nobody told of it. The runtime may make the cgroup before it
//! knows the container: what is not found is asked for again, a few times. However many containers come and go, few
//! requests are made: of more than that the latest come first, as the likeliest to be there still, and what finds no
//! time keeps its id until the runtime lists all.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many containers are asked for at once.
const BURST: u32 = 20;
/// Of those, how many are left to containers that have not been asked for yet.
const RESERVED: u32 = BURST / 2;
/// The time between two, after that.
const EACH: Duration = Duration::from_millis(100);
/// The pauses before a container is asked for again.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_millis(3200),
];
/// The most that wait. What has waited for longest makes room.
pub(super) const MOST_WAITING: usize = 1024;

/// A container to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) id: String,
    /// How often it was asked for.
    asked: usize,
    /// Not before.
    due: Instant,
}

/// See the module.
pub(super) struct Asking {
    /// In the order in which they came.
    waiting: VecDeque<Wanted>,
    /// When as many may be asked for at once again as ever.
    rested: Instant,
}

impl Asking {
    pub(super) fn new(now: Instant) -> Self {
        Self { waiting: VecDeque::new(), rested: now }
    }

    /// A container is wanted.
    pub(super) fn want(&mut self, id: String, now: Instant) {
        self.wait(Wanted { id, asked: 0, due: now });
    }

    /// A container was asked for and not found.
    pub(super) fn not_found(&mut self, wanted: Wanted, now: Instant) {
        if let Some(pause) = PAUSES.get(wanted.asked) {
            self.wait(Wanted { asked: wanted.asked + 1, due: now + *pause, ..wanted });
        }
    }

    fn wait(&mut self, wanted: Wanted) {
        if self.waiting.len() >= MOST_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(wanted);
    }

    /// When the next one is to be asked for, if one is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.iter().map(|wanted| self.when(wanted)).min()
    }

    fn when(&self, wanted: &Wanted) -> Instant {
        let at_once = if wanted.asked == 0 { BURST } else { BURST - RESERVED };
        let allowed = self.rested.checked_sub(EACH * (at_once - 1));
        allowed.map_or(wanted.due, |allowed| allowed.max(wanted.due))
    }

    /// Takes the one to ask for now, if it is time for one. Those that are known by now are not asked for.
    pub(super) fn take(&mut self, now: Instant, is_known: impl Fn(&str) -> bool) -> Option<Wanted> {
        self.waiting.retain(|wanted| !is_known(&wanted.id));
        let due = self.waiting.iter().enumerate().filter(|(_, wanted)| self.when(wanted) <= now);
        let (place, _) = due.min_by_key(|(place, wanted)| (wanted.asked, Reverse(*place)))?;
        self.rested = self.rested.max(now) + EACH;
        self.waiting.remove(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanting(ids: impl IntoIterator<Item = usize>, now: Instant) -> Asking {
        let mut asking = Asking::new(now);
        ids.into_iter().for_each(|id| asking.want(id.to_string(), now));
        asking
    }

    /// Takes what it gives until `end`, at the times it says.
    fn run(asking: &mut Asking, end: Instant, found: bool) -> Vec<(Instant, String)> {
        let mut taken = Vec::new();
        while let Some(at) = asking.next().filter(|at| *at <= end) {
            let wanted = asking.take(at, |_| false).expect("it is time for it");
            taken.push((at, wanted.id.clone()));
            if !found {
                asking.not_found(wanted, at);
            }
        }
        taken
    }

    #[test]
    fn a_storm_is_asked_for_at_a_bounded_rate_the_latest_first() {
        let start = Instant::now();
        let mut asking = wanting(0..5000, start);
        assert_eq!(asking.waiting.len(), MOST_WAITING);
        let taken = run(&mut asking, start + Duration::from_secs(10), true);
        assert_eq!(taken.iter().filter(|(at, _)| *at == start).count(), 20);
        assert_eq!(taken.len(), 20 + 100);
        assert_eq!((&*taken[0].1, &*taken[119].1), ("4999", "4880"));
        asking.want("new".to_owned(), start + Duration::from_secs(10));
        let next = asking.next().unwrap();
        assert!(next <= start + Duration::from_millis(10_100));
        assert_eq!(asking.take(next, |_| false).unwrap().id, "new");
        let rested = wanting(0..30, start + Duration::from_secs(60));
        assert_eq!(run(&mut { rested }, start + Duration::from_secs(60), true).len(), 20);
    }

    #[test]
    fn what_is_not_found_is_asked_for_again_a_few_times() {
        let start = Instant::now();
        let mut asking = wanting([1], start);
        let taken = run(&mut asking, start + Duration::from_secs(60), false);
        let times: Vec<u128> = taken.iter().map(|(at, _)| (*at - start).as_millis()).collect();
        assert_eq!(times, [0, 50, 250, 1050, 4250]);
        assert_eq!(asking.next(), None);
    }

    #[test]
    fn asking_again_leaves_room_for_what_was_never_asked_for() {
        let start = Instant::now();
        let mut asking = wanting(0..500, start);
        let mut late = start + Duration::from_secs(5);
        run(&mut asking, late, false);
        for new in ["a", "b", "c"] {
            asking.want(new.to_owned(), late);
            let wait = asking.next().unwrap().saturating_duration_since(late);
            assert!(wait <= EACH, "{wait:?}");
            late += wait;
            assert_eq!(asking.take(late, |_| false).unwrap().id, new);
        }
        // Many strangers, asked for again and again, and one newcomer.
        let mut asking = wanting(0..10, start);
        run(&mut asking, start + Duration::from_millis(400), false);
        for new in ["a", "b", "c"] {
            let now = start + Duration::from_millis(400);
            asking.want(new.to_owned(), now);
            assert_eq!(asking.take(now, |_| false).map(|wanted| wanted.id).as_deref(), Some(new), "at once");
        }
    }

    #[test]
    fn what_is_known_by_now_is_not_asked_for() {
        let start = Instant::now();
        let mut asking = wanting([1, 2, 3], start);
        assert_eq!(asking.take(start, |id| id != "2").unwrap().id, "2");
        assert_eq!(asking.take(start, |_| false), None);
    }
}
