//! What became of packets of no socket goes to the container whose namespace they were in, if it is one container's.
//!
//! A namespace may become several containers' later, and then it is nobody's: what is counted until then stays with the one
//! whose it was, or its counters would fall. So it is what was new since the last look that is given away.

use std::collections::{BTreeMap, HashMap};

use model::record::{CGROUP_UNATTRIBUTED, Strays, Totals};

/// What was given to whom.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    /// What the kernel had counted in each namespace at the last look.
    seen: HashMap<u64, Box<Strays>>,
    /// What cgroups have been given so far.
    given: BTreeMap<u64, Box<Totals>>,
}

impl Accounts {
    /// The namespaces in which something has happened since the last look.
    pub(crate) fn moved(&self, strays: &[(u64, Box<Strays>)]) -> impl Iterator<Item = u64> {
        strays.iter().filter(|(id, now)| self.seen.get(id) != Some(now)).map(|(id, _)| *id)
    }

    /// Gives away what is new. Returns the namespaces of which the kernel may forget: those that are gone, and where
    /// nothing has moved since the last look.
    pub(crate) fn settle(
        &mut self,
        strays: &[(u64, Box<Strays>)],
        owner: impl Fn(u64) -> Option<u64>,
        is_there: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        let mut over = Vec::new();
        for (namespace, now) in strays {
            let seen = self.seen.entry(*namespace).or_default();
            if *seen != *now {
                let to = self.given.entry(owner(*namespace).unwrap_or(CGROUP_UNATTRIBUTED)).or_default();
                give(to, now, seen);
                seen.clone_from(now);
            } else if !is_there(*namespace) {
                over.push(*namespace);
            }
        }
        for namespace in &over {
            self.seen.remove(namespace);
        }
        over
    }

    /// Calls `each` with what the kernel has counted of each cgroup, which `read` hands over, and with what it was given added.
    pub(crate) fn add<E>(
        &self,
        read: impl FnOnce(&mut dyn FnMut(u64, &Totals)) -> Result<(), E>,
        mut each: impl FnMut(u64, &Totals),
    ) -> Result<(), E> {
        let mut left: BTreeMap<u64, &Totals> =
            self.given.iter().map(|(cgroup, given)| (*cgroup, &**given)).collect();
        read(&mut |cgroup, totals| match left.remove(&cgroup) {
            None => each(cgroup, totals),
            Some(given) => {
                let mut sum = Box::new(*totals);
                join(&mut sum, given);
                each(cgroup, &sum);
            }
        })?;
        for (cgroup, given) in left {
            each(cgroup, given);
        }
        Ok(())
    }

    /// The cgroup is gone, and its series with it.
    pub(crate) fn forget(&mut self, cgroup: u64) {
        self.given.remove(&cgroup);
    }
}

/// What `now` has and `seen` had not.
fn give(to: &mut Totals, now: &Strays, seen: &Strays) {
    let Strays { dropped_packets, resets_sent } = now;
    for (sum, (now, seen)) in
        to.dropped_packets.iter_mut().zip(dropped_packets.iter().zip(seen.dropped_packets))
    {
        *sum += now.saturating_sub(seen);
    }
    // Those sent come first.
    for (sum, (now, seen)) in to.resets_by_state.iter_mut().zip(resets_sent.iter().zip(seen.resets_sent)) {
        let new = now.saturating_sub(seen);
        *sum += new;
        to.resets[0] += new;
    }
}

fn join(totals: &mut Totals, given: &Totals) {
    let Totals { dropped_packets, resets, resets_by_state, .. } = totals;
    let pairs = dropped_packets.iter_mut().zip(&given.dropped_packets);
    let pairs = pairs.chain(resets.iter_mut().zip(&given.resets));
    for (sum, given) in pairs.chain(resets_by_state.iter_mut().zip(&given.resets_by_state)) {
        *sum += given;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strays(dropped: u64, resets: u64) -> Box<Strays> {
        let mut strays = Box::<Strays>::default();
        (strays.dropped_packets[3], strays.resets_sent[6]) = (dropped, resets);
        strays
    }

    /// Drops, resets, and resets in TIME_WAIT of each cgroup.
    fn shown(accounts: &Accounts) -> Vec<(u64, [u64; 3])> {
        let mut all = Vec::new();
        let each = |id, t: &Totals| all.push((id, [t.dropped_packets[3], t.resets[0], t.resets_by_state[6]]));
        accounts.add::<()>(|_| Ok(()), each).unwrap();
        all
    }

    #[test]
    fn what_a_container_was_given_stays_its_own() {
        let mut accounts = Accounts::default();
        accounts.settle(&[(7, strays(2, 3))], |_| Some(70), |_| true);
        assert_eq!(shown(&accounts), [(70, [2, 3, 3])]);
        // Now it is several containers' namespace.
        accounts.settle(&[(7, strays(5, 4))], |_| None, |_| true);
        assert_eq!(shown(&accounts), [(CGROUP_UNATTRIBUTED, [3, 1, 1]), (70, [2, 3, 3])]);
        accounts.forget(70);
        assert_eq!(shown(&accounts), [(CGROUP_UNATTRIBUTED, [3, 1, 1])]);
    }

    #[test]
    fn it_comes_on_top_of_what_the_kernel_gave() {
        let mut accounts = Accounts::default();
        accounts.settle(&[(7, strays(2, 3))], |_| Some(70), |_| true);
        let counted = Totals { sent_bytes: 9, resets: [1, 1], ..Totals::default() };
        let read = |each: &mut dyn FnMut(u64, &Totals)| {
            each(60, &counted);
            each(70, &counted);
            Ok(())
        };
        let mut all = Vec::new();
        accounts.add::<()>(read, |id, totals| all.push((id, totals.sent_bytes, totals.resets))).unwrap();
        assert_eq!(all, [(60, 9, [1, 1]), (70, 9, [4, 1])]);
    }

    #[test]
    fn a_namespace_that_is_gone_is_forgotten_when_all_is_given_away() {
        let mut accounts = Accounts::default();
        let last = [(7, strays(2, 0))];
        assert!(accounts.settle(&last, |_| None, |_| false).is_empty());
        assert!(accounts.settle(&last, |_| None, |_| true).is_empty());
        assert_eq!(accounts.settle(&last, |_| None, |_| false), [7]);
        // The kernel begins anew.
        accounts.settle(&[(7, strays(1, 0))], |_| None, |_| false);
        assert_eq!(shown(&accounts), [(CGROUP_UNATTRIBUTED, [3, 0, 0])]);
    }

    proptest! {
        /// However often whoever looks, and whosever it is meanwhile: all is given, and once.
        #[test]
        fn nothing_is_lost(steps in prop::collection::vec((0..9_u64, 0..9_u64, prop::option::of(1..4_u64)), 0..20)) {
            let mut accounts = Accounts::default();
            let (mut dropped, mut resets) = (0, 0);
            for (drops, more, owner) in steps {
                dropped += drops;
                resets += more;
                accounts.settle(&[(7, strays(dropped, resets))], |_| owner, |_| true);
            }
            let all = shown(&accounts).into_iter().fold([0; 3], |[a, b, c], (_, [x, y, z])| [a + x, b + y, c + z]);
            prop_assert_eq!(all, [dropped, resets, resets]);
        }
    }
}
