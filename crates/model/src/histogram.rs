//! Distributions of durations in slots, as the kernel side counts them, and their quantiles.
//!
//! The slots' upper bounds are powers of two (or of √2) of a *second*. They are therefore exactly the
//! bounds of a Prometheus native histogram of schema 0 or 1, and a classic histogram made of them says
//! nothing that the kernel did not count. The kernel itself sees whole microseconds only: it looks a
//! value up in [`Scale::bounds_us`], and for whole microseconds that table decides exactly as the real
//! bounds do.
use serde::{Serialize, Serializer};

const US_PER_SECOND: u128 = 1_000_000;

/// How a kind of duration is cut into slots.
///
/// Slot `i` holds the durations above slot `i - 1`'s upper bound up to and including its own, which is
/// `2^(first_exponent + i / per_octave)` seconds. The last slot has no upper bound.
#[derive(Debug, PartialEq, Eq)]
pub struct Scale {
    first_exponent: i32,
    per_octave: u32,
    slots: usize,
}

impl Scale {
    /// Round-trip times: 7.6 µs to 8 s, two slots to the octave.
    pub const RTT: Self = Self::new(-17, 2, 42);
    /// Time to connect: 7.6 µs to 256 s (all SYN retries take 127 s by default), two slots to the octave.
    pub const CONNECT: Self = Self::new(-17, 2, 52);
    /// How long connections lived: 1 ms to 3 days, one slot to the octave.
    pub const LIFETIME: Self = Self::new(-10, 1, 30);

    const fn new(first_exponent: i32, per_octave: u32, slots: usize) -> Self {
        assert!(per_octave == 1 || per_octave == 2, "only these have whole squares, see `square_us`");
        assert!(slots >= 2, "a slot with a bound, and the overflow");
        Self { first_exponent, per_octave, slots }
    }

    /// The number of slots, the overflow slot included.
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// The schema of the native histogram with these bounds: its factor is `2^(2^-schema)`.
    pub const fn schema(&self) -> u32 {
        self.per_octave.trailing_zeros()
    }

    /// Inclusive upper bounds in whole microseconds, strictly rising, of all slots but the last.
    pub fn bounds_us(&self) -> Vec<u64> {
        (0..self.slots - 1).map(|slot| self.bound_us(slot)).collect()
    }

    /// The same bounds in seconds: the exact powers, rounded only to `f64`.
    pub fn bounds_seconds(&self) -> Vec<f64> {
        (0..self.slots - 1).map(|slot| self.bound_seconds(slot)).collect()
    }

    /// The index of a slot's bucket in the native histogram of this [`schema`](Self::schema): bucket `i` holds what is above
    /// `2^((i - 1) / 2^schema)` seconds, up to and including `2^(i / 2^schema)`. The first slot begins at zero and is the zero
    /// bucket, whose threshold is that slot's bound: `None`. The last has no bound, which no native bucket is without but
    /// that of infinity: it is the bucket that comes next.
    #[expect(clippy::cast_possible_wrap, reason = "slots are few")]
    pub const fn native_index(&self, slot: usize) -> Option<i32> {
        if slot == 0 { None } else { Some(self.first_exponent * self.per_octave as i32 + slot as i32) }
    }

    /// Inclusive upper bounds in seconds of whole octaves; the last is infinite.
    pub fn octaves_seconds(&self) -> Vec<f64> {
        let bounds = self.bounds_seconds().into_iter().step_by(self.per_octave as usize);
        bounds.chain([f64::INFINITY]).collect()
    }

    /// The slot of a duration in microseconds.
    pub fn slot(&self, us: u64) -> usize {
        let square = u128::from(us) * u128::from(us);
        (0..self.slots - 1).find(|&slot| square <= self.square_us(slot)).unwrap_or(self.slots - 1)
    }

    /// The first and the last whole microsecond of a slot; the overflow slot has no last one.
    fn span_us(&self, slot: usize) -> (u64, Option<u64>) {
        let first = if slot == 0 { 0 } else { self.bound_us(slot - 1) + 1 };
        (first, (slot + 1 < self.slots).then(|| self.bound_us(slot)))
    }

    fn bound_us(&self, slot: usize) -> u64 {
        self.square_us(slot).isqrt() as u64
    }

    fn bound_seconds(&self, slot: usize) -> f64 {
        let halves = self.half_octaves(slot);
        let root = if halves.rem_euclid(2) == 1 { std::f64::consts::SQRT_2 } else { 1.0 };
        root * f64::from(halves.div_euclid(2)).exp2()
    }

    /// The square of a bound in µs², rounded down. The bound's own exponent may end in a half; that of
    /// its square is whole, so that integers suffice to compare and to take the root.
    fn square_us(&self, slot: usize) -> u128 {
        let square = US_PER_SECOND * US_PER_SECOND;
        let exponent = self.half_octaves(slot);
        if exponent < 0 { square >> exponent.unsigned_abs() } else { square << exponent }
    }

    /// Twice the exponent of a slot's bound.
    #[expect(clippy::cast_possible_wrap, reason = "slots are few")]
    fn half_octaves(&self, slot: usize) -> i32 {
        2 * self.first_exponent + slot as i32 * if self.per_octave == 2 { 1 } else { 2 }
    }
}

/// Durations counted into the slots of a [`Scale`], with their exact sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    scale: &'static Scale,
    counts: Vec<u64>,
    sum_us: u64,
    min_us: Option<u64>,
    max_us: Option<u64>,
}

/// One slot of a [`Histogram`] and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The shortest duration it can hold, in whole microseconds.
    pub first_us: u64,
    /// The longest, or nothing for the overflow slot.
    pub last_us: Option<u64>,
    /// How many it holds.
    pub count: u64,
}

impl Histogram {
    /// An empty histogram.
    pub fn new(scale: &'static Scale) -> Self {
        Self { scale, counts: vec![0; scale.slots], sum_us: 0, min_us: None, max_us: None }
    }

    /// A histogram of the kernel's counts, slot by slot. Missing slots are empty; what stands beyond the
    /// last slot is counted in it.
    pub fn from_counts(scale: &'static Scale, counts: impl IntoIterator<Item = u64>, sum_us: u64) -> Self {
        let mut histogram = Self { sum_us, ..Self::new(scale) };
        for (slot, count) in counts.into_iter().enumerate() {
            let kept = &mut histogram.counts[slot.min(scale.slots - 1)];
            *kept = kept.saturating_add(count);
        }
        histogram
    }

    /// Adds the shortest and longest duration, in microseconds, where they are known from elsewhere:
    /// they narrow the quantiles.
    #[must_use]
    pub fn with_extremes(mut self, min_us: Option<u64>, max_us: Option<u64>) -> Self {
        self.min_us = min_us;
        self.max_us = max_us;
        self
    }

    /// Counts one duration of `us` microseconds.
    pub fn record(&mut self, us: u64) {
        let mut one = Self::new(self.scale).with_extremes(Some(us), Some(us));
        one.counts[self.scale.slot(us)] = 1;
        one.sum_us = us;
        self.merge(&one);
    }

    /// Adds all that `other`, of the same scale, has counted. An extreme that one of them does not know is
    /// no longer known.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.scale, other.scale, "histograms of two scales have no sum");
        self.min_us = self.joint_extreme(other, |h| h.min_us, u64::min);
        self.max_us = self.joint_extreme(other, |h| h.max_us, u64::max);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// What was counted since `earlier`, a former reading of the same growing histogram. The extremes of
    /// that time are not known.
    #[must_use]
    pub fn minus(&self, earlier: &Self) -> Self {
        debug_assert_eq!(self.scale, earlier.scale, "not two readings of one histogram");
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, then)| now.saturating_sub(*then));
        Self::from_counts(self.scale, counts, self.sum_us.saturating_sub(earlier.sum_us))
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// The sum of all durations, in microseconds. Exact: it does not come from the slots.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The shortest duration in microseconds, if known.
    pub fn min_us(&self) -> Option<u64> {
        self.min_us
    }

    /// The longest duration in microseconds, if known.
    pub fn max_us(&self) -> Option<u64> {
        self.max_us
    }

    /// The mean duration in microseconds. Exact; nothing for an empty histogram.
    pub fn mean(&self) -> Option<f64> {
        (!self.is_empty()).then(|| self.sum_us as f64 / self.count() as f64)
    }

    /// The scale it counts in.
    pub fn scale(&self) -> &'static Scale {
        self.scale
    }

    /// The count of every slot.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The duration, in microseconds, that a share `q` (0 to 1) of all durations does not exceed.
    ///
    /// It lies in the slot that holds the true one, so that the two differ by less than the width of a
    /// slot: a factor of 2 (one slot to the octave) or √2 (two), and in the first slot its upper bound.
    /// Inside the slot the durations are taken to be spread evenly on a logarithmic scale, as
    /// Prometheus does for native histograms. In the overflow slot, unless the maximum is known, the
    /// answer is where the slot begins: "at least that".
    ///
    /// Nothing for an empty histogram, or for a `q` that is not between 0 and 1.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = q * self.count() as f64;
        let mut before = 0_u64;
        for (slot, &count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let upto = before.saturating_add(count);
            if upto as f64 >= rank {
                let share = (rank - before as f64) / count as f64;
                return Some(self.inside(slot, share.clamp(0.0, 1.0)));
            }
            before = upto;
        }
        None
    }

    /// Counts by whole octaves, not cumulative: half the buckets of a scale with two slots to the octave, at bounds that
    /// both have, which [`Scale::octaves_seconds`] tells.
    pub fn octaves(&self) -> impl Iterator<Item = u64> + '_ {
        let per_octave = self.scale.per_octave as usize;
        let (first, rest) = self.counts.split_at(1);
        first.iter().copied().chain(rest.chunks(per_octave).map(|slots| slots.iter().sum()))
    }

    /// The slots from the first to the last that holds anything, empty ones between them included.
    pub fn occupied(&self) -> impl ExactSizeIterator<Item = Slot> + '_ {
        let first = self.counts.iter().position(|count| *count > 0).unwrap_or(0);
        let end = self.counts.iter().rposition(|count| *count > 0).map_or(first, |last| last + 1);
        (first..end).map(|slot| {
            let (first_us, last_us) = self.scale.span_us(slot);
            Slot { first_us, last_us, count: self.counts[slot] }
        })
    }

    /// The place at `share` of a slot's width, within the known extremes.
    fn inside(&self, slot: usize, share: f64) -> u64 {
        let (first, last) = self.scale.span_us(slot);
        let last = last.unwrap_or_else(|| self.max_us.unwrap_or(first).max(first));
        let low = self.min_us.unwrap_or(first).clamp(first, last);
        let high = self.max_us.unwrap_or(last).clamp(low, last);
        let (from, to) = (low as f64, high as f64);
        // A slot that begins at zero has no logarithm to go by.
        let place = if low == 0 { to * share } else { from * (to / from).powf(share) };
        (place.round() as u64).clamp(low, high)
    }

    /// An extreme of this and another histogram together; an empty one has no say in it.
    fn joint_extreme(
        &self,
        other: &Self,
        of: impl Fn(&Self) -> Option<u64>,
        pick: impl Fn(u64, u64) -> u64,
    ) -> Option<u64> {
        match (self.is_empty(), other.is_empty()) {
            (true, false) => of(other),
            (false, true) => of(self),
            _ => of(self).zip(of(other)).map(|(mine, theirs)| pick(mine, theirs)),
        }
    }
}

/// As people's programs read it: `{count, sum_us, p50_us, p90_us, p99_us, min_us, max_us, buckets}`, where
/// `buckets` holds [`Histogram::occupied`] as `{le_us, count}`, not cumulative, and the overflow slot's
/// `le_us` is null. What is not known is absent.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Bucket {
            le_us: Option<u64>,
            count: u64,
        }
        #[derive(Serialize)]
        struct Shape {
            count: u64,
            sum_us: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            p50_us: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            p90_us: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            p99_us: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            min_us: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            max_us: Option<u64>,
            buckets: Vec<Bucket>,
        }
        let buckets = self.occupied().map(|slot| Bucket { le_us: slot.last_us, count: slot.count }).collect();
        Shape {
            count: self.count(),
            sum_us: self.sum_us,
            p50_us: self.quantile(0.5),
            p90_us: self.quantile(0.9),
            p99_us: self.quantile(0.99),
            min_us: self.min_us,
            max_us: self.max_us,
            buckets,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCALES: [&Scale; 3] = [&Scale::RTT, &Scale::CONNECT, &Scale::LIFETIME];

    /// Durations of every magnitude, the exact bounds and their neighbours among them.
    fn duration() -> impl Strategy<Value = u64> {
        let near_bound = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..3_u64).prop_map(
            |(scale, slot, off)| {
                let bounds = scale.get(&SCALES).bounds_us();
                slot.get(&bounds) + off - 1
            },
        );
        prop_oneof![near_bound, (0..40_u32, any::<u64>()).prop_map(|(bits, v)| v & ((1 << bits) - 1))]
    }

    fn recorded(scale: &'static Scale, durations: &[u64]) -> Histogram {
        let mut histogram = Histogram::new(scale);
        for us in durations {
            histogram.record(*us);
        }
        histogram
    }

    fn durations() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(duration(), 0..50)
    }

    #[test]
    fn bounds_are_powers_of_two_of_a_second() {
        let rtt = Scale::RTT.bounds_us();
        assert_eq!(rtt.len(), 41);
        assert_eq!(rtt[..6], [7, 10, 15, 21, 30, 43]);
        assert_eq!(rtt[34], 1_000_000);
        assert_eq!(rtt[35], 1_414_213);
        assert_eq!(rtt[40], 8_000_000);
        assert_eq!(Scale::CONNECT.bounds_us()[..41], rtt);
        assert_eq!(Scale::CONNECT.bounds_us()[50], 256_000_000);
        assert_eq!(Scale::LIFETIME.bounds_us()[0], 976);
        assert_eq!(Scale::LIFETIME.bounds_us()[28], 1_000_000 << 18);
        assert_eq!(Scale::RTT.bounds_seconds()[34..37], [1.0, std::f64::consts::SQRT_2, 2.0]);
        assert_eq!(Scale::LIFETIME.bounds_seconds()[..2], [1.0 / 1024.0, 1.0 / 512.0]);
        assert_eq!((Scale::RTT.schema(), Scale::LIFETIME.schema()), (1, 0));
        for scale in SCALES {
            assert_eq!(scale.bounds_us().len(), scale.slots() - 1);
            assert!(scale.bounds_us().is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn whole_microseconds_compare_as_the_real_bounds_do() {
        for scale in SCALES {
            for (us, seconds) in scale.bounds_us().into_iter().zip(scale.bounds_seconds()) {
                assert!(us as f64 / 1e6 <= seconds, "{us} µs is above {seconds} s");
                assert!((us + 1) as f64 / 1e6 > seconds, "{us} µs is not the last one below {seconds} s");
            }
        }
    }

    #[test]
    fn counts_that_do_not_fit_are_kept() {
        let long = Histogram::from_counts(&Scale::LIFETIME, vec![1; 40], 0);
        assert_eq!(long.count(), 40);
        assert_eq!(long.counts()[29], 11);
        let short = Histogram::from_counts(&Scale::LIFETIME, [0, 3], 0);
        assert_eq!(short.count(), 3);
    }

    #[test]
    fn an_empty_histogram_knows_nothing() {
        let empty = Histogram::new(&Scale::RTT);
        assert_eq!((empty.quantile(0.5), empty.mean(), empty.occupied().len()), (None, None, 0));
        assert_eq!(
            serde_json::to_string(&empty).expect("serializes"),
            r#"{"count":0,"sum_us":0,"buckets":[]}"#
        );
    }

    #[test]
    fn quantiles_that_make_no_sense_are_refused() {
        let one = recorded(&Scale::RTT, &[100]);
        for q in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(one.quantile(q), None, "{q}");
        }
    }

    #[test]
    fn quantiles_interpolate_geometrically_within_known_extremes() {
        // The slot is (707106, 1000000] µs; its geometric middle is 840896.
        let counts = std::iter::repeat_n(0, 34).chain([4]);
        let blind = Histogram::from_counts(&Scale::RTT, counts, 3_600_000);
        assert_eq!(blind.quantile(0.0), Some(707_107));
        assert_eq!(blind.quantile(0.5), Some(840_897));
        assert_eq!(blind.quantile(1.0), Some(1_000_000));
        let known = blind.with_extremes(Some(800_000), Some(900_000));
        assert_eq!(known.quantile(0.0), Some(800_000));
        assert_eq!(known.quantile(1.0), Some(900_000));
    }

    #[test]
    fn overflow_is_at_least_its_beginning() {
        let counts = std::iter::repeat_n(0, 41).chain([1]);
        let overflow = Histogram::from_counts(&Scale::RTT, counts, 20_000_000);
        assert_eq!(overflow.quantile(0.99), Some(8_000_001));
        assert_eq!(overflow.with_extremes(None, Some(20_000_000)).quantile(1.0), Some(20_000_000));
    }

    #[test]
    fn json_holds_the_occupied_range_only() {
        let counts = std::iter::repeat_n(0, 38).chain([2, 0, 0, 1]);
        let histogram =
            Histogram::from_counts(&Scale::RTT, counts, 16_000_000).with_extremes(Some(3_000_000), None);
        assert_eq!(
            serde_json::to_string(&histogram).expect("serializes"),
            concat!(
                r#"{"count":3,"sum_us":16000000,"p50_us":3722419,"p90_us":8000001,"p99_us":8000001,"#,
                r#""min_us":3000000,"buckets":[{"le_us":4000000,"count":2},{"le_us":5656854,"count":0},"#,
                r#"{"le_us":8000000,"count":0},{"le_us":null,"count":1}]}"#
            )
        );
    }

    #[test]
    fn the_schema_is_the_resolution() {
        assert_eq!(SCALES.map(Scale::schema), [1, 1, 0]);
        assert_eq!(Scale::RTT.native_index(0), None);
        // 1 s is 2^0: its bucket ends there.
        assert_eq!(Scale::RTT.native_index(Scale::RTT.slot(1_000_000)), Some(0));
        assert_eq!(Scale::RTT.native_index(Scale::RTT.slot(1_000_001)), Some(1));
        assert_eq!(Scale::LIFETIME.native_index(Scale::LIFETIME.slot(500_000)), Some(-1));
        assert_eq!(Scale::LIFETIME.native_index(Scale::LIFETIME.slot(500_001)), Some(0));
    }

    proptest! {
        /// As the native histogram's own definition has it, with bounds computed from nothing but schema and index.
        #[test]
        fn every_duration_is_in_its_native_bucket(us in duration()) {
            for scale in SCALES {
                let (slot, seconds) = (scale.slot(us), us as f64 / 1e6);
                let bound = |index: i32| (f64::from(index) / f64::from(1 << scale.schema())).exp2();
                match scale.native_index(slot) {
                    None => prop_assert!(seconds <= scale.bounds_seconds()[0]),
                    Some(index) => {
                        prop_assert!(seconds > bound(index - 1), "{us} is not above bucket {}", index - 1);
                        let is_open = slot + 1 == scale.slots();
                        prop_assert!(is_open || seconds <= bound(index), "{us} is above bucket {index}");
                    }
                }
            }
        }
        #[test]
        fn slot_is_the_first_whose_bound_is_not_exceeded(us in duration()) {
            for scale in SCALES {
                let bounds = scale.bounds_us();
                let expected = bounds.iter().position(|bound| us <= *bound).unwrap_or(bounds.len());
                prop_assert_eq!(scale.slot(us), expected);
            }
        }

        #[test]
        fn quantile_lies_in_the_slot_of_its_rank(
            mut all in durations(),
            q in 0.0..=1.0_f64,
            extremes in any::<bool>(),
        ) {
            prop_assume!(!all.is_empty());
            for scale in SCALES {
                let mut histogram = recorded(scale, &all);
                if !extremes {
                    histogram = histogram.with_extremes(None, None);
                }
                let quantile = histogram.quantile(q).expect("not empty");
                all.sort_unstable();
                let rank = (q * all.len() as f64).ceil().max(1.0) as usize;
                prop_assert_eq!(scale.slot(quantile), scale.slot(all[rank - 1]));
                if extremes {
                    prop_assert!((all[0]..=all[all.len() - 1]).contains(&quantile));
                }
            }
        }

        #[test]
        fn quantiles_rise(all in durations(), a in 0.0..=1.0_f64, b in 0.0..=1.0_f64) {
            let histogram = recorded(&Scale::RTT, &all);
            prop_assert!(histogram.quantile(a.min(b)) <= histogram.quantile(a.max(b)));
        }

        #[test]
        fn extremes_that_contradict_the_counts_do_no_harm(
            all in durations(), q in 0.0..=1.0_f64, min in any::<Option<u64>>(), max in any::<Option<u64>>(),
        ) {
            let histogram = recorded(&Scale::RTT, &all).with_extremes(min, max);
            prop_assert_eq!(histogram.quantile(q).is_some(), !all.is_empty());
        }

        #[test]
        fn merge_commutes_and_loses_nothing(a in durations(), b in durations()) {
            let (left, right) = (recorded(&Scale::CONNECT, &a), recorded(&Scale::CONNECT, &b));
            let (mut ab, mut ba) = (left.clone(), right.clone());
            ab.merge(&right);
            ba.merge(&left);
            prop_assert_eq!(&ab, &ba);
            prop_assert_eq!(&ab, &recorded(&Scale::CONNECT, &[a.clone(), b].concat()));
            prop_assert_eq!(ab.minus(&right), left.with_extremes(None, None));
        }

        #[test]
        fn octaves_count_what_does_not_exceed_each_bound(all in durations()) {
            for scale in SCALES {
                let bounds = scale.octaves_seconds();
                let octaves: Vec<_> = recorded(scale, &all).octaves().collect();
                prop_assert_eq!(octaves.len(), bounds.len());
                let mut sum = 0;
                for (le, count) in bounds.into_iter().zip(octaves) {
                    sum += count;
                    prop_assert_eq!(sum, all.iter().filter(|us| **us as f64 / 1e6 <= le).count() as u64);
                }
            }
        }

        #[test]
        fn occupied_slots_hold_everything_and_end_in_full_ones(all in durations()) {
            let histogram = recorded(&Scale::LIFETIME, &all);
            let slots: Vec<_> = histogram.occupied().collect();
            prop_assert_eq!(slots.iter().map(|slot| slot.count).sum::<u64>(), all.len() as u64);
            for end in [slots.first(), slots.last()].into_iter().flatten() {
                prop_assert!(end.count > 0);
            }
        }
    }
}
