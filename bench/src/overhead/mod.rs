//! What being watched costs: the same work in turn under each subject, with nothing before and after each.

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
    /// Rounds; in each, every subject is measured once, and nothing before and after it: so many pairs of each.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// A tenth of the work in each measurement: enough where instructions are counted.
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
    let mut subjects = Vec::new();
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
    let measure = || works.iter().map(Work::measure).collect::<Result<Vec<_>>>();
    measure()?; // the first one finds nothing in any cache
    for round in 0..options.pairs {
        eprintln!("bench: round {} of {}", round + 1, options.pairs);
        let mut before = measure()?;
        for at in 0..subjects.len() {
            // Whoever comes first in one round comes later in the next.
            let subject = subjects[(at + round as usize) % subjects.len()];
            if comparison.is_left_out(subject) {
                continue;
            }
            let mut attached = match Attached::start(subject, tcptide, watcher, options.short) {
                Ok(attached) => attached,
                // Other tools need what this kernel may not have.
                Err(error) if subject.is_peer() => {
                    comparison.leave_out(subject, format!("{error:#}"));
                    continue;
                }
                Err(error) => return Err(error.context(subject.title())),
            };
            let pid = attached.pid();
            let own = || pid.map(cpu_of).transpose();
            let (own_before, begin) = (own()?, Instant::now());
            let with = measure()?;
            if let Some(why) = attached.failed()? {
                comparison.leave_out(subject, why);
                before = measure()?;
                continue;
            }
            if let (Some(before), Some(after)) = (own_before, own()?) {
                let share = after.saturating_sub(before).as_secs_f64() / begin.elapsed().as_secs_f64();
                comparison.add_own(subject, share * 100.0);
            }
            attached.end().with_context(|| subject.title().to_owned())?;
            let after = measure()?;
            for (at, work) in works.iter().enumerate() {
                comparison.add(work.kind(), subject, with[at], [before[at], after[at]]);
            }
            before = after;
        }
    }
    Ok(comparison)
}

fn or_all<T: ValueEnum>(chosen: &[T]) -> &[T] {
    if chosen.is_empty() { T::value_variants() } else { chosen }
}
