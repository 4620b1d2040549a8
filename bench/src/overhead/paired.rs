//! Measurements in rounds, and what each subject adds to nothing in the same round.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::figures::{Machine, number};

use super::{subject::Subject, work::Kind};

/// Of some measurements: the middle one, and those a quarter from each end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Quartiles {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) n: usize,
}

impl Quartiles {
    /// `None` of nothing.
    pub(crate) fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().checked_sub(1)?;
        let at = |share: f64| {
            let place = last as f64 * share;
            let (below, above) = (samples[place.floor() as usize], samples[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Self { median: at(0.5), low: at(0.25), high: at(0.75), n: samples.len() })
    }
}

/// All of it.
pub(crate) struct Comparison {
    machine: Machine,
    /// By work, subject and round: us of CPU time for one operation.
    samples: Vec<(Kind, Subject, BTreeMap<u32, f64>)>,
    /// What a subject's own process took, % of one CPU.
    own: Vec<(Subject, Vec<f64>)>,
    left_out: Vec<(Subject, String)>,
}

/// One row of the table.
#[derive(Debug, Serialize)]
struct Row {
    work: &'static str,
    subject: &'static str,
    us: Quartiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    added_percent: Option<Quartiles>,
}

impl Comparison {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, samples: Vec::new(), own: Vec::new(), left_out: Vec::new() }
    }

    pub(crate) fn add(&mut self, round: u32, kind: Kind, subject: Subject, us: f64) {
        let place = self.samples.iter_mut().find(|(k, s, _)| (*k, *s) == (kind, subject));
        match place {
            Some((_, _, samples)) => {
                samples.insert(round, us);
            }
            None => self.samples.push((kind, subject, BTreeMap::from([(round, us)]))),
        }
    }

    pub(crate) fn add_own(&mut self, subject: Subject, percent: f64) {
        match self.own.iter_mut().find(|(s, _)| *s == subject) {
            Some((_, samples)) => samples.push(percent),
            None => self.own.push((subject, vec![percent])),
        }
    }

    pub(crate) fn leave_out(&mut self, subject: Subject, why: String) {
        self.left_out.push((subject, why));
    }

    /// What a subject adds to the work, in percent of nothing in the same round.
    pub(crate) fn added(&self, kind: Kind, subject: Subject) -> Option<Quartiles> {
        let of = |subject| self.samples.iter().find(|(k, s, _)| (*k, *s) == (kind, subject));
        let ((_, _, with), (_, _, without)) = (of(subject)?, of(Subject::Nothing)?);
        let pairs = with.iter().filter_map(|(round, us)| Some((us, without.get(round)?)));
        Quartiles::of(pairs.map(|(us, nothing)| (us / nothing - 1.0) * 100.0).collect())
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        let mut all: Vec<_> = self.samples.iter().collect();
        all.sort_by_key(|(kind, subject, _)| (*kind as u8, *subject as u8));
        all.into_iter().filter_map(|(kind, subject, samples)| {
            Some(Row {
                work: kind.title(),
                subject: subject.title(),
                us: Quartiles::of(samples.values().copied().collect())?,
                added_percent: (*subject != Subject::Nothing).then(|| self.added(*kind, *subject)).flatten(),
            })
        })
    }
}

impl Serialize for Comparison {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let own: BTreeMap<_, _> =
            self.own.iter().map(|(subject, all)| (subject.title(), Quartiles::of(all.clone()))).collect();
        let left_out: BTreeMap<_, _> =
            self.left_out.iter().map(|(subject, why)| (subject.title(), why)).collect();
        serde_json::json!({
            "machine": self.machine,
            "rows": self.rows().collect::<Vec<_>>(),
            "own_cpu_percent": own,
            "left_out": left_out,
        })
        .serialize(serializer)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        let mut work = "";
        for row in self.rows() {
            if row.work != work {
                work = row.work;
                writeln!(
                    f,
                    "{work:<34} {:>8} {:>17} {:>9} {:>17} {:>3}",
                    "us", "half of all", "added %", "half of all", "n"
                )?;
            }
            let range =
                |q: &Quartiles, show: fn(f64) -> String| format!("{} to {}", show(q.low), show(q.high));
            write!(f, "  {:<32} {:>8} {:>17}", row.subject, number(row.us.median), range(&row.us, number))?;
            match row.added_percent {
                Some(added) => {
                    writeln!(f, " {:>9} {:>17} {:>3}", signed(added.median), range(&added, signed), added.n)?
                }
                None => writeln!(f, " {:>9} {:>17} {:>3}", "", "", row.us.n)?,
            }
        }
        writeln!(f, "\nits own process, % of one CPU")?;
        for (subject, samples) in &self.own {
            if let Some(own) = Quartiles::of(samples.clone()) {
                writeln!(
                    f,
                    "  {:<32} {:>8} {:>8} to {}",
                    subject.title(),
                    number(own.median),
                    number(own.low),
                    number(own.high)
                )?;
            }
        }
        for (subject, why) in &self.left_out {
            writeln!(f, "left out: {}: {why}", subject.title())?;
        }
        Ok(())
    }
}

fn signed(percent: f64) -> String {
    format!("{percent:+.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_measurements() {
        let four = Quartiles::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((four.low, four.median, four.high, four.n), (1.75, 2.5, 3.25, 4));
        assert_eq!(Quartiles::of(vec![7.0]).unwrap().median, 7.0);
        assert_eq!(Quartiles::of(Vec::new()), None);
    }

    #[test]
    fn only_what_was_measured_in_the_same_round_is_compared() {
        let mut comparison = Comparison::new(Machine::nowhere());
        for (round, nothing, agent) in [(0, 10.0, 11.0), (1, 100.0, 105.0), (2, 50.0, 51.0)] {
            comparison.add(round, Kind::Requests, Subject::Nothing, nothing);
            comparison.add(round, Kind::Requests, Subject::Agent, agent);
        }
        comparison.add(3, Kind::Requests, Subject::Agent, 1000.0);
        let added = comparison.added(Kind::Requests, Subject::Agent).unwrap();
        assert_eq!((added.n, signed(added.median)), (3, "+5.0".to_owned()));
        assert_eq!(comparison.added(Kind::Stream, Subject::Agent), None);
        assert!(comparison.to_string().contains("+5.0"));
    }
}
