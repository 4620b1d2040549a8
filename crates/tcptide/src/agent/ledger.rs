//! What of a cgroup's counters is its container's own series', and what is `~other`'s.
//!
//! What a counter grows by is always in one of the two, and stays there. A container that gets series of its own later begins
//! with what grows from then on, or goes on where they had ended; one that loses them ends its series, and only what grows
//! from then on is `~other`'s. So no counter ever falls, nothing is counted twice, and nothing is lost.

use std::collections::HashMap;

use model::metrics::{Kind, METRICS, Reading};

use crate::answer::totals::zeros;

/// What was counted where of one cgroup, where it is not all its own.
#[derive(Debug)]
enum Account {
    /// The series are its own, but `~other` has had so much of it.
    Own(Vec<Reading>),
    /// It is in `~other`, but its own series have had so much of it; empty: nothing.
    Folded(Vec<Reading>),
}

/// The accounts of all cgroups.
#[derive(Debug)]
pub(super) struct Ledger {
    accounts: HashMap<u64, Account>,
    /// What `~other` has had of cgroups that are not in it any more.
    base: Vec<Reading>,
    /// What `~other` has at this look.
    other: Vec<Reading>,
    /// Whether it ever had any.
    has_other: bool,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { accounts: HashMap::new(), base: zeros().to_vec(), other: zeros().to_vec(), has_other: false }
    }

    /// A look begins.
    pub(super) fn begin(&mut self) {
        self.other.clone_from(&self.base);
    }

    /// What is its own of a cgroup with series of its own.
    pub(super) fn own(&mut self, cgroup: u64, mut now: Vec<Reading>) -> Vec<Reading> {
        if let Some(Account::Folded(own)) = self.accounts.get(&cgroup) {
            let others = grown(now.clone(), own);
            add_counters(&mut self.base, &others);
            add_counters(&mut self.other, &others);
            self.accounts.insert(cgroup, Account::Own(others));
        }
        if let Some(Account::Own(others)) = self.accounts.get(&cgroup) {
            now = grown(now, others);
        }
        now
    }

    /// Gives to `~other` what is new of a cgroup without series of its own. `before` is what it had counted at the last look,
    /// if there was one.
    pub(super) fn fold(
        &mut self,
        cgroup: u64,
        now: Vec<Reading>,
        before: impl FnOnce() -> Option<Vec<Reading>>,
    ) {
        self.has_other = true;
        let own = match self.accounts.remove(&cgroup) {
            Some(Account::Folded(own)) => own,
            Some(Account::Own(others)) => {
                // From now on it is reckoned from what its own series have.
                take_counters(&mut self.base, &others);
                take_counters(&mut self.other, &others);
                before().map(|before| grown(before, &others)).unwrap_or_default()
            }
            None => before().unwrap_or_default(),
        };
        add(&mut self.other, &grown(now, &own));
        self.accounts.insert(cgroup, Account::Folded(own));
    }

    /// A cgroup ends, which had counted so much. Returns what its own series have of it.
    pub(super) fn end(&mut self, cgroup: u64, now: Vec<Reading>) -> Vec<Reading> {
        match self.accounts.remove(&cgroup) {
            Some(Account::Folded(own)) => {
                let others = grown(now, &own);
                add_counters(&mut self.base, &others);
                add_counters(&mut self.other, &others);
                own
            }
            Some(Account::Own(others)) => grown(now, &others),
            None => now,
        }
    }

    /// What `~other` has, with what else belongs there; nothing, if it never had any.
    pub(super) fn other(&self, more: Option<Vec<Reading>>) -> Option<Vec<Reading>> {
        match (self.has_other, more) {
            (false, more) => more,
            (true, None) => Some(self.other.clone()),
            (true, Some(mut more)) => {
                add(&mut more, &self.other);
                Some(more)
            }
        }
    }

    /// Whether it ever had any.
    pub(super) fn has_other(&self) -> bool {
        self.has_other
    }
}

/// What counters have grown by; gauges as they are.
fn grown(mut now: Vec<Reading>, then: &[Reading]) -> Vec<Reading> {
    take_counters(&mut now, then);
    now
}

fn take_counters(from: &mut [Reading], less: &[Reading]) {
    for ((sum, less), metric) in from.iter_mut().zip(less).zip(METRICS) {
        if metric.kind != Kind::Gauge {
            sum.subtract(less);
        }
    }
}

fn add_counters(to: &mut [Reading], more: &[Reading]) {
    for ((sum, more), metric) in to.iter_mut().zip(more).zip(METRICS) {
        if metric.kind != Kind::Gauge {
            sum.add(more);
        }
    }
}

/// Adds all, gauges too. Nothing is added of what is empty.
pub(super) fn add(to: &mut [Reading], more: &[Reading]) {
    to.iter_mut().zip(more).for_each(|(sum, more)| sum.add(more));
}
