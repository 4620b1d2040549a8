//! What being watched costs: the same work in turn under each subject, compared with nothing in the same round.

mod paired;
mod peers;
mod scraper;
mod subject;
mod work;

use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use functional::tcptide::Tcptide;

use crate::{accounting::cpu_of, figures::Machine, pin};

use self::{
    paired::Comparison,
    subject::{Attached, Subject},
    work::{Kind, Work},
};

/// How to compare.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each, every subject is measured once, so as many pairs of it and nothing.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// A tenth of the work in each measurement.
    #[arg(long)]
    short: bool,
    /// What is done [default: everything].
    #[arg(long, value_delimiter = ',')]
    work: Vec<Kind>,
    /// Who watches; nothing always takes part [default: everybody].
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<Subject>,
}

/// Compares. What cannot be compared on this machine is named in the result.
pub(crate) fn compare(options: &Options, tcptide: &Tcptide, machine: Machine) -> Result<Comparison> {
    let cpus = pin::cpus()?;
    let (&watcher, &worker) = cpus.first().zip(cpus.last()).context("no CPU to run on")?;
    let mut comparison = Comparison::new(machine);
    let mut subjects = vec![Subject::Nothing];
    for &subject in or_all(&options.subjects) {
        match subject.missing() {
            Some(why) => comparison.leave_out(subject, why),
            None if subjects.contains(&subject) => {}
            None => subjects.push(subject),
        }
    }
    let works = or_all(&options.work)
        .iter()
        .map(|&kind| Work::start(kind, worker, options.short))
        .collect::<Result<Vec<_>>>()?;
    for work in &works {
        work.measure()?; // the first one finds nothing in any cache
    }
    for round in 0..options.pairs {
        eprintln!("bench: round {} of {}", round + 1, options.pairs);
        // Whoever comes first in one round comes later in the next.
        for at in 0..subjects.len() {
            let subject = subjects[(at + round as usize) % subjects.len()];
            let attached =
                Attached::start(subject, tcptide, watcher).with_context(|| subject.title().to_owned())?;
            let own = |pid: Option<u32>| pid.map(cpu_of).transpose();
            let (before, begin) = (own(attached.pid())?, Instant::now());
            for work in &works {
                comparison.add(round, work.kind(), subject, work.measure()?);
            }
            if let (Some(before), Some(after)) = (before, own(attached.pid())?) {
                let share = after.saturating_sub(before).as_secs_f64() / begin.elapsed().as_secs_f64();
                comparison.add_own(subject, share * 100.0);
            }
            attached.end().with_context(|| subject.title().to_owned())?;
        }
    }
    Ok(comparison)
}

fn or_all<T: ValueEnum>(chosen: &[T]) -> &[T] {
    if chosen.is_empty() { T::value_variants() } else { chosen }
}
