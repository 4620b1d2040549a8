//! Measurements, and what each subject adds to nothing right before and after it: a machine that is shared is now faster and
//! now slower, for seconds.

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
    samples: Vec<Samples>,
    /// What a subject's own process took, % of one CPU.
    own: Vec<(Subject, Vec<f64>)>,
    left_out: Vec<(Subject, String)>,
}

/// Of one kind of work under one subject.
struct Samples {
    kind: Kind,
    subject: Subject,
    /// CPU time for one operation, us.
    us: Vec<f64>,
    /// What that is above nothing, %.
    added: Vec<f64>,
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

    /// CPU time for one operation, us: under the subject, and under nothing before and after.
    pub(crate) fn add(&mut self, kind: Kind, subject: Subject, us: f64, around: [f64; 2]) {
        let nothing = f64::midpoint(around[0], around[1]);
        self.samples_of(kind, subject).us.push(us);
        self.samples_of(kind, subject).added.push((us / nothing - 1.0) * 100.0);
        // What comes after one subject comes before the next.
        self.samples_of(kind, Subject::Nothing).us.push(around[0]);
    }

    fn samples_of(&mut self, kind: Kind, subject: Subject) -> &mut Samples {
        let is_it = |samples: &Samples| (samples.kind, samples.subject) == (kind, subject);
        let at = self.samples.iter().position(is_it).unwrap_or_else(|| {
            self.samples.push(Samples { kind, subject, us: Vec::new(), added: Vec::new() });
            self.samples.len() - 1
        });
        &mut self.samples[at]
    }

    pub(crate) fn add_own(&mut self, subject: Subject, percent: f64) {
        match self.own.iter_mut().find(|(s, _)| *s == subject) {
            Some((_, samples)) => samples.push(percent),
            None => self.own.push((subject, vec![percent])),
        }
    }

    /// What was measured of it before says nothing, either: it may have been about to fail.
    pub(crate) fn leave_out(&mut self, subject: Subject, why: String) {
        self.samples.retain(|samples| samples.subject != subject);
        self.own.retain(|(known, _)| *known != subject);
        if !self.is_left_out(subject) {
            self.left_out.push((subject, why));
        }
    }

    pub(crate) fn is_left_out(&self, subject: Subject) -> bool {
        self.left_out.iter().any(|(known, _)| *known == subject)
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        let mut all: Vec<_> = self.samples.iter().collect();
        all.sort_by_key(|samples| (samples.kind as u8, samples.subject as u8));
        all.into_iter().filter_map(|Samples { kind, subject, us, added }| {
            Some(Row {
                work: kind.title(),
                subject: subject.title(),
                us: Quartiles::of(us.clone())?,
                added_percent: Quartiles::of(added.clone()),
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
                    writeln!(f, " {:>9} {:>17} {:>3}", signed(added.median), range(&added, signed), added.n)?;
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
        assert_eq!(Quartiles::of(vec![7.0]).map(|one| number(one.median)), Some("7.00".to_owned()));
        assert_eq!(Quartiles::of(Vec::new()), None);
    }

    #[test]
    fn each_is_compared_with_what_is_around_it() {
        let mut comparison = Comparison::new(Machine::nowhere());
        for (agent, around) in [(11.0, [9.0, 11.0]), (105.0, [110.0, 90.0]), (51.0, [50.0, 50.0])] {
            comparison.add(Kind::Requests, Subject::Agent, agent, around);
        }
        let rows: Vec<_> = comparison.rows().collect();
        let added: Vec<_> =
            rows.iter().map(|row| row.added_percent.map(|added| signed(added.median))).collect();
        assert_eq!(added, [None, Some("+5.0".to_owned())]);
        assert_eq!((rows[0].us.median, rows[1].us.n), (50.0, 3));
        assert!(comparison.to_string().contains("+5.0"));
    }
}
