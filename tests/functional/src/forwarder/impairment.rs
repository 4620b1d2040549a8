//! What a path does to packets, decided packet by packet from a seed.
//!
//! Every packet takes the same number of random draws, so what happens to the n-th packet of a
//! direction depends on the seed and on n alone: not on timing, sizes, or the other probabilities.

use std::time::{Duration, Instant};

/// What one direction of a path does to the packets it carries.
///
/// Probabilities are between 0 and 1. The default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Added to every packet, one way: a round trip sees it twice.
    pub delay: Duration,
    /// Up to this much more, evenly distributed. Does not reorder.
    pub jitter: Duration,
    /// Probability that a packet is lost.
    pub drop: f64,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
    /// Probability that a packet is held back by [`HOLD_BACK`], so that later ones overtake it.
    pub reorder: f64,
    /// Probability that one bit is flipped behind the headers (see [`crate::packet`]).
    pub corrupt: f64,
    /// Probability that a packet of an ECN-capable transport gets a congestion mark (CE).
    pub mark: f64,
    /// Where the random sequence starts. The two directions draw different sequences from it.
    pub seed: u64,
    /// Bytes (whole IP packets) that leave per second; unlimited if `None`.
    pub rate_bytes_per_s: Option<u64>,
    /// With a rate: bytes that may wait for it; more are dropped. Unlimited if `None`.
    pub queue_bytes: Option<u64>,
}

/// How much later a packet picked for reordering arrives.
pub const HOLD_BACK: Duration = Duration::from_millis(5);

/// What happens to one packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fate {
    pub(super) drop: bool,
    pub(super) duplicate: bool,
    pub(super) hold_back: bool,
    /// A random number to choose the bit by, if one is to be flipped.
    pub(super) corrupt: Option<u64>,
    pub(super) mark: bool,
    pub(super) jitter: Duration,
}

/// `SplitMix64`: small, fast, and the same on every machine.
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly distributed in [0, 1).
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Decides packet by packet, and keeps the queue of a path with a rate.
#[derive(Debug)]
pub(super) struct Impairer {
    impairment: Impairment,
    random: SplitMix64,
    /// Beside the rest: what a seed does to packets is the same with and without marks.
    marks: SplitMix64,
    /// When the last byte admitted so far will have left.
    line_free: Option<Instant>,
    /// When the last packet that keeps its place will arrive.
    last_due: Option<Instant>,
}

impl Impairer {
    /// `stream` tells the two directions of a path with one seed apart.
    pub(super) fn new(impairment: Impairment, stream: u64) -> Self {
        let mut seeds = SplitMix64(impairment.seed ^ (stream << 32));
        let [random, marks] = [seeds.next(), seeds.next()].map(SplitMix64);
        Self { impairment, random, marks, line_free: None, last_due: None }
    }

    /// Changes what happens from now on; the random sequence and the queue go on.
    pub(super) fn set(&mut self, impairment: Impairment) {
        self.impairment = impairment;
    }

    pub(super) fn fate(&mut self) -> Fate {
        let Impairment { drop, duplicate, reorder, corrupt, jitter, .. } = self.impairment;
        let mut chance = |probability: f64| self.random.fraction() < probability;
        let (drop, duplicate) = (chance(drop), chance(duplicate));
        let (hold_back, corrupt) = (chance(reorder), chance(corrupt));
        let bit = self.random.next();
        let jitter = jitter.mul_f64(self.random.fraction());
        let mark = self.marks.fraction() < self.impairment.mark;
        Fate { drop, duplicate, hold_back, corrupt: corrupt.then_some(bit), mark, jitter }
    }

    /// When a packet of `length` bytes that comes now is through; `None` if the queue is full.
    pub(super) fn due(&mut self, now: Instant, length: usize, fate: &Fate) -> Option<Instant> {
        let departure = self.departure(now, length as u64)?;
        let due = departure + self.impairment.delay + fate.jitter;
        let due = self.last_due.map_or(due, |last| due.max(last));
        if fate.hold_back {
            return Some(due + HOLD_BACK);
        }
        self.last_due = Some(due);
        Some(due)
    }

    fn departure(&mut self, now: Instant, length: u64) -> Option<Instant> {
        let Some(rate) = self.impairment.rate_bytes_per_s.filter(|&rate| rate > 0) else {
            return Some(now);
        };
        let start = self.line_free.map_or(now, |free| free.max(now));
        let waiting = (start - now).as_secs_f64() * rate as f64;
        if self.impairment.queue_bytes.is_some_and(|limit| waiting + length as f64 > limit as f64) {
            return None;
        }
        let departure = start + Duration::from_secs_f64(length as f64 / rate as f64);
        self.line_free = Some(departure);
        Some(departure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(impairment: Impairment, stream: u64) -> Vec<Fate> {
        let mut impairer = Impairer::new(impairment, stream);
        (0..1000).map(|_| impairer.fate()).collect()
    }

    fn lossy(seed: u64) -> Impairment {
        Impairment { drop: 0.1, jitter: Duration::from_millis(3), seed, ..Impairment::default() }
    }

    #[test]
    fn the_seed_and_the_direction_decide() {
        assert_eq!(fates(lossy(1), 0), fates(lossy(1), 0));
        assert_ne!(fates(lossy(1), 0), fates(lossy(2), 0));
        assert_ne!(fates(lossy(1), 0), fates(lossy(1), 1));
    }

    #[test]
    fn a_further_impairment_does_not_change_which_packets_are_lost() {
        let lost = |impairment| fates(impairment, 0).iter().map(|fate| fate.drop).collect::<Vec<_>>();
        let more = Impairment { duplicate: 0.5, corrupt: 0.5, mark: 0.5, ..lossy(1) };
        assert_eq!(lost(lossy(1)), lost(more));
    }

    #[test]
    fn probabilities_are_met() {
        let lost = fates(lossy(7), 0).iter().filter(|fate| fate.drop).count();
        assert!((70..130).contains(&lost), "{lost} of 1000 at a probability of 0.1");
        assert!(fates(Impairment { drop: 1.0, ..lossy(1) }, 0).iter().all(|fate| fate.drop));
        assert!(fates(Impairment { drop: 0.0, ..lossy(1) }, 0).iter().all(|fate| !fate.drop));
    }

    #[test]
    fn a_rate_spaces_packets_and_a_full_queue_drops() {
        let impairment = Impairment {
            rate_bytes_per_s: Some(1_000_000),
            queue_bytes: Some(2500),
            delay: Duration::from_millis(10),
            ..Impairment::default()
        };
        let mut impairer = Impairer::new(impairment, 0);
        let now = Instant::now();
        let fate = impairer.fate();
        let due: Vec<_> = (0..4).map(|_| impairer.due(now, 1000, &fate)).collect();
        let at = |ms| Some(now + Duration::from_millis(ms));
        assert_eq!(due, [at(11), at(12), None, None]);
        // What has left no longer counts against the queue.
        let later = now + Duration::from_millis(1);
        assert_eq!(impairer.due(later, 1000, &fate), at(13));
    }

    #[test]
    fn jitter_keeps_the_order_and_a_held_back_packet_loses_it() {
        let mut impairer = Impairer::new(lossy(3), 0);
        let now = Instant::now();
        let due: Vec<_> = (0..100)
            .map(|_| {
                let fate = impairer.fate();
                impairer.due(now, 100, &fate).unwrap()
            })
            .collect();
        assert!(due.is_sorted());
        let plain = impairer.fate();
        let held = impairer.due(now, 100, &Fate { hold_back: true, ..plain }).unwrap();
        assert!(held > impairer.due(now, 100, &plain).unwrap());
    }
}
