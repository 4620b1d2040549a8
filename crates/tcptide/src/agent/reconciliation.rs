//! The comparison with the kernel's counters, interval after interval.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use model::record;
use probe::Monitor;

use crate::{
    namespaces::Readings,
    reconcile::{Comparison, Fate, Namespace, PATIENCE, Reconciler},
};

/// What one counter of one namespace has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) kernel: Total,
    pub(crate) counted: Total,
    /// Of the last interval; `None` where it was not compared.
    pub(crate) unexplained: Option<i64>,
}

/// A sum that is shown as a counter: it never falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    sum: i64,
    shown: u64,
}

impl Total {
    /// A connect is counted, and taken back when it turns out that no SYN was sent: maybe in the next interval.
    fn add(&mut self, n: i64) {
        self.sum += n;
        self.shown = self.shown.max(u64::try_from(self.sum).unwrap_or(0));
    }

    pub(crate) fn shown(self) -> u64 {
        self.shown
    }
}

/// The comparison, and its sums.
pub(crate) struct Reconciliation {
    reconciler: Reconciler,
    interval: Duration,
    /// When the last interval ended.
    turned: Instant,
    /// Whether that one is still to be compared.
    is_due: bool,
    sums: BTreeMap<u64, BTreeMap<String, Sums>>,
}

impl Reconciliation {
    /// Begins the first interval. Needs a monitor with [`crate::reconcile::options`].
    pub(crate) fn start(
        interval: Duration,
        monitor: &mut Monitor,
        read: impl FnOnce() -> anyhow::Result<Readings>,
    ) -> anyhow::Result<Self> {
        let mut reconciler = Reconciler::new()?;
        reconciler.turn(monitor, read, |_| {})?;
        let turned = Instant::now();
        Ok(Self { reconciler, interval, turned, is_due: false, sums: BTreeMap::new() })
    }

    /// An event.
    pub(crate) fn event(&mut self, event: &record::Connection) {
        self.reconciler.event(event);
    }

    /// Compares when it is time. To be called ten times a second or so, with the events taken in.
    pub(crate) fn tick(
        &mut self,
        monitor: &mut Monitor,
        read: impl FnOnce() -> anyhow::Result<Readings>,
    ) -> anyhow::Result<()> {
        let since = self.turned.elapsed();
        if self.is_due && since >= PATIENCE {
            self.is_due = false;
            let all = self.reconciler.compare(monitor)?;
            add(&mut self.sums, all);
        } else if !self.is_due && since >= self.interval {
            let done = self.reconciler.turn(monitor, read, |_| {});
            // Also of one that failed: the next one is an interval later.
            self.turned = Instant::now();
            self.is_due = done.is_ok();
            done?;
        } else {
            self.reconciler.settle();
        }
        Ok(())
    }

    /// The counters that have moved, by namespace and name.
    pub(crate) fn sums(&self) -> impl Iterator<Item = (u64, &str, &Sums)> {
        let all = self.sums.iter();
        all.flat_map(|(netns, sums)| sums.iter().map(|(counter, sums)| (*netns, counter.as_str(), sums)))
    }
}

/// What a namespace came to goes with it, as its counters do.
fn add(sums: &mut BTreeMap<u64, BTreeMap<String, Sums>>, all: Vec<Namespace>) {
    sums.retain(|netns, _| {
        let fate = all.iter().find(|namespace| namespace.netns == *netns).map(|namespace| namespace.fate);
        matches!(fate, Some(Fate::Compared | Fate::Unreadable | Fate::LeftOut))
    });
    for sums in sums.values_mut().flat_map(BTreeMap::values_mut) {
        sums.unexplained = None;
    }
    for Namespace { netns, counters, .. } in all {
        for Comparison { counter, kernel, tcptide, unexplained, .. } in counters {
            let known = sums.entry(netns).or_default();
            if kernel == 0 && tcptide == 0 && !known.contains_key(&counter) {
                continue;
            }
            let sums = known.entry(counter).or_default();
            sums.kernel.add(kernel);
            sums.counted.add(tcptide);
            sums.unexplained = Some(unexplained);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn namespace(netns: u64, fate: Fate, counters: &[(&str, i64, i64, i64)]) -> Namespace {
        let counters = counters.iter().map(|&(counter, kernel, tcptide, unexplained)| Comparison {
            counter: counter.to_owned(),
            kernel,
            tcptide,
            difference: kernel - tcptide,
            explained: unexplained == 0,
            unexplained,
            because: Vec::new(),
        });
        let counters = counters.collect();
        Namespace { netns, path: None, containers: BTreeSet::new(), fate, from: None, to: None, counters }
    }

    /// Counter, both sums, and what was unexplained last, of the one namespace.
    fn shown(sums: &BTreeMap<u64, BTreeMap<String, Sums>>) -> Vec<(&str, u64, u64, Option<i64>)> {
        let all = sums.values().flatten();
        all.map(|(name, one)| (name.as_str(), one.kernel.shown, one.counted.shown, one.unexplained)).collect()
    }

    #[test]
    fn what_moved_is_summed_up_and_what_is_gone_goes() {
        let mut sums = BTreeMap::new();
        let quiet = ("EstabResets", 0, 0, 0);
        add(&mut sums, vec![namespace(7, Fate::Compared, &[("ActiveOpens", 3, 1, 2), quiet])]);
        assert_eq!(shown(&sums), [("ActiveOpens", 3, 1, Some(2))]);
        add(
            &mut sums,
            vec![
                namespace(7, Fate::Compared, &[("ActiveOpens", 0, 0, 0), ("EstabResets", 0, 1, -1)]),
                namespace(8, Fate::Appeared, &[]),
            ],
        );
        assert_eq!(shown(&sums), [("ActiveOpens", 3, 1, Some(0)), ("EstabResets", 0, 1, Some(-1))]);
        add(&mut sums, vec![namespace(7, Fate::Unreadable, &[])]);
        assert_eq!(shown(&sums), [("ActiveOpens", 3, 1, None), ("EstabResets", 0, 1, None)]);
        for fate in [Fate::Gone, Fate::Replaced] {
            let mut sums = sums.clone();
            add(&mut sums, vec![namespace(7, fate, &[])]);
            assert_eq!(shown(&sums), []);
        }
    }

    #[test]
    fn a_total_never_falls() {
        let mut total = Total::default();
        let shown: Vec<_> = [5, -2, 1, 3].map(|n| (total.add(n), total.shown()).1).into();
        assert_eq!(shown, [5, 5, 5, 7]);
    }
}
