//! Readings of [`METRICS`] in little room, for those that are kept: most of a container's numbers are zero.

use std::{collections::HashMap, sync::Arc};

use model::{
    histogram::Histogram,
    metrics::{Kind, METRICS, Reading},
    record::Totals,
};

use super::ledger::nothing;
use crate::answer::totals::Metrics;

/// More numbers than any metric has.
const NUMBERS: u64 = 1 << 10;

/// Metrics without those that are zero: for each number how far it is from the one before in the order of [`METRICS`], and
/// the number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packed(Arc<[u8]>);

impl Packed {
    /// Readings with where they stand in [`METRICS`], in that order.
    pub(super) fn of<'a>(readings: impl IntoIterator<Item = (usize, &'a Reading)>) -> Self {
        let mut all = Packing::default();
        readings.into_iter().for_each(|(at, reading)| all.put_reading(at, reading));
        all.packed()
    }

    /// What a cgroup counted, as of the walk with this number.
    pub(super) fn of_totals(totals: &Totals, walk: u32) -> Self {
        let mut all = Packing::default();
        for (at, metric) in METRICS.iter().enumerate() {
            all.put_reading(at, &(metric.read)(totals, walk));
        }
        all.packed()
    }

    /// Where numbers are, and the numbers.
    fn numbers(&self) -> impl Iterator<Item = (u64, u64)> {
        let (mut bytes, mut place) = (&*self.0, 0_u64);
        std::iter::from_fn(move || {
            place = place.checked_add(read(&mut bytes)?)?;
            Some((place, read(&mut bytes)?))
        })
    }

    /// Those that are `shown` and of which anything was counted.
    pub(super) fn metrics(&self, shown: &[bool]) -> Metrics {
        let numbers = self.by_metric();
        Metrics::with(|at, zero| {
            let numbers = numbers.get(&at).filter(|_| shown.get(at) == Some(&true))?;
            let mut reading = zero.clone();
            set(&mut reading, numbers);
            Some(reading)
        })
    }

    /// One of each of [`METRICS`].
    pub(super) fn readings(&self) -> Vec<Reading> {
        let mut all = nothing();
        for (at, numbers) in self.by_metric() {
            if let Some(reading) = all.get_mut(at) {
                set(reading, &numbers);
            }
        }
        all
    }

    fn by_metric(&self) -> HashMap<usize, Vec<(usize, u64)>> {
        let mut all: HashMap<_, Vec<_>> = HashMap::new();
        for (place, n) in self.numbers() {
            all.entry((place / NUMBERS) as usize).or_default().push(((place % NUMBERS) as usize, n));
        }
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What came since an earlier look. What only goes up and down stays as it is.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, |is_gauge, now, before| if is_gauge { now } else { now.saturating_sub(before) })
    }

    /// What was counted then and later. What only goes up and down is as it was later.
    pub(super) fn then(&self, later: &Self) -> Self {
        self.with(later, |is_gauge, before, now| if is_gauge { now } else { before.saturating_add(now) })
    }

    /// What two cgroups counted.
    pub(super) fn and(&self, other: &Self) -> Self {
        self.with(other, |_, one, other| one.saturating_add(other))
    }

    /// One number of two, wherever either has one that is not zero; by whether it is one that only goes up and down.
    fn with(&self, other: &Self, of: impl Fn(bool, u64, u64) -> u64) -> Self {
        let mut all = Packing::default();
        let (mut own, mut others) = (self.numbers().peekable(), other.numbers().peekable());
        while let Some(place) = own.peek().into_iter().chain(others.peek()).map(|(place, _)| *place).min() {
            let at_place = |numbers: &mut std::iter::Peekable<_>| {
                numbers.next_if(|(other, _): &(u64, u64)| *other == place).map_or(0, |(_, n)| n)
            };
            let metric = METRICS.get((place / NUMBERS) as usize);
            let is_gauge = metric.is_some_and(|metric| metric.kind == Kind::Gauge);
            all.put(place, of(is_gauge, at_place(&mut own), at_place(&mut others)));
        }
        all.packed()
    }
}

/// Numbers on their way into a [`Packed`].
#[derive(Default)]
struct Packing {
    bytes: Vec<u8>,
    last: u64,
}

impl Packing {
    fn put_reading(&mut self, at: usize, reading: &Reading) {
        let first = at as u64 * NUMBERS;
        match reading {
            Reading::One(n) => self.put(first, *n),
            Reading::Each(numbers) | Reading::EachSeen(numbers) | Reading::EachMicroseconds(numbers) => {
                (first..).zip(numbers).for_each(|(place, n)| self.put(place, *n));
            }
            Reading::Distribution(histogram) => {
                self.put(first, histogram.sum_us());
                (first + 1..).zip(histogram.counts()).for_each(|(place, n)| self.put(place, *n));
            }
        }
    }

    /// No place comes before one that was put.
    fn put(&mut self, place: u64, n: u64) {
        if n > 0 {
            write(&mut self.bytes, place - self.last);
            write(&mut self.bytes, n);
            self.last = place;
        }
    }

    fn packed(self) -> Packed {
        Packed(self.bytes.into())
    }
}

fn set(reading: &mut Reading, numbers: &[(usize, u64)]) {
    match reading {
        Reading::One(one) => *one = numbers.iter().map(|(_, n)| n).sum(),
        Reading::Each(all) | Reading::EachSeen(all) | Reading::EachMicroseconds(all) => {
            for (number, n) in numbers {
                if let Some(place) = all.get_mut(*number) {
                    *place = *n;
                }
            }
        }
        Reading::Distribution(histogram) => {
            let mut counts = vec![0; histogram.scale().slots()];
            let mut sum_us = 0;
            for (number, n) in numbers {
                match number.checked_sub(1) {
                    None => sum_us = *n,
                    Some(slot) => {
                        if let Some(count) = counts.get_mut(slot) {
                            *count = *n;
                        }
                    }
                }
            }
            *histogram = Histogram::from_counts(histogram.scale(), counts, sum_us);
        }
    }
}

/// Seven bits a byte, the lowest first.
fn write(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn totals(sent_bytes: u64, slot: usize, state: usize, connections: u32) -> Totals {
        let mut totals = Totals { sent_bytes, walk: 5, ..Totals::default() };
        totals.rtt.slots[slot] = sent_bytes;
        totals.rtt.sum_us = sent_bytes;
        totals.limited_us[1] = sent_bytes;
        totals.connections[state] = connections;
        totals
    }

    fn everything() -> Vec<bool> {
        vec![true; METRICS.len()]
    }

    fn packed(metrics: &Metrics) -> Packed {
        Packed::of(metrics.iter().map(|(metric, reading)| (Metrics::place(metric.name).unwrap(), reading)))
    }

    fn read(totals: &Totals) -> Vec<Reading> {
        METRICS.iter().map(|metric| (metric.read)(totals, 5)).collect()
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(sent: u64, slot in 0_usize..40, state in 0_usize..8, n: u32) {
            let totals = totals(sent, slot, state, n);
            let all = Packed::of_totals(&totals, 5);
            prop_assert_eq!(all.readings(), read(&totals));
            prop_assert_eq!(&Packed::of(all.readings().iter().enumerate()), &all);
            prop_assert_eq!(&packed(&all.metrics(&everything())), &all);
            prop_assert_eq!(all.metrics(&vec![false; METRICS.len()]).iter().count(), 0);
        }

        /// As of what is not packed.
        #[test]
        fn what_came_since_and_then_is_all(
            before in (0..1_u64 << 40, 0_usize..40, 0_usize..8, 0..100_u32),
            more in (0..1_u64 << 40, 0_usize..40, 0_usize..8, 0..100_u32),
        ) {
            let of = |(sent, slot, state, n)| totals(sent, slot, state, n);
            let mut now = of(before);
            now.sent_bytes += more.0;
            now.rtt.slots[more.1] += more.0;
            now.connections = of(more).connections;
            let [before, more, now] = [&of(before), &of(more), &now].map(|one| Packed::of_totals(one, 5));
            prop_assert_eq!(before.then(&now.since(&before)), now.clone());
            let since = now.metrics(&everything()).since(&before.metrics(&everything()));
            prop_assert_eq!(now.since(&before), packed(&since));
            let mut sum = Metrics::with(|_, zero| Some(zero.clone()));
            for one in [&before, &more] {
                let readings = one.readings();
                sum.add(&Metrics::with(|at, _| Some(readings[at].clone())));
            }
            prop_assert_eq!(before.and(&more), packed(&sum));
        }

        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>, more: Vec<u8>) {
            let (one, other) = (Packed(bytes.into()), Packed(more.into()));
            let _ = (one.readings(), one.metrics(&everything()));
            let _ = (one.since(&other), one.then(&other), one.and(&other));
        }
    }
}
