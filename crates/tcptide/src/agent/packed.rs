//! Readings of [`METRICS`] in little room, for those that are kept: most of a container's numbers are zero.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    metrics::{Kind, METRICS, Reading},
    record::Totals,
};

use crate::answer::totals::{Metrics, zeros};

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
            all.put_reading(at, &metric.read(totals, walk));
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
        let all = self.by_metric().into_iter().filter(|(at, _)| shown.get(*at) == Some(&true));
        all.filter_map(|(at, numbers)| Some((at, zeros().get(at)?.with(numbers)))).collect()
    }

    /// One of each of [`METRICS`].
    pub(super) fn readings(&self) -> Vec<Reading> {
        let mut all = zeros().to_vec();
        for (at, numbers) in self.by_metric() {
            if let Some(reading) = all.get_mut(at) {
                *reading = reading.with(numbers);
            }
        }
        all
    }

    fn by_metric(&self) -> BTreeMap<usize, Vec<(usize, u64)>> {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
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
        (at as u64 * NUMBERS..).zip(reading.all()).for_each(|(place, n)| self.put(place, n));
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
        let readings: Vec<_> = metrics.iter().collect();
        Packed::of(readings.iter().map(|(metric, reading)| (Metrics::place(metric.name).unwrap(), reading)))
    }

    fn read(totals: &Totals) -> Vec<Reading> {
        METRICS.iter().map(|metric| metric.read(totals, 5)).collect()
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
            let whole = |one: &Packed| one.readings().into_iter().enumerate().collect::<Metrics>();
            let mut sum = whole(&before);
            sum.add(&whole(&more));
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
