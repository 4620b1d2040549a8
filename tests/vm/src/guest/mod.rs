//! Inside a guest: tells the stories of its plan and sends how each went. Started by `init.sh`.

mod cgroup_v1;
mod commands;
mod cost;
mod doctor;
mod overhead;
mod refused;
mod rps;
mod tests;

use std::fs::{self, File};
use std::io::Write as _;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use functional::process::output;

use crate::plan::{Boot, Line, PLAN, Plan, RESULTS, Story, Told};

/// Where hierarchies of cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Tells everything.
pub(crate) fn run() -> Result<()> {
    let plan: Plan = serde_json::from_str(&fs::read_to_string(PLAN).context("reading the plan")?)?;
    let mut results =
        Results { file: File::options().write(true).open(RESULTS).context("opening the serial line")? };
    mount_cgroups(plan.boot)?;
    for story in plan.stories {
        let begun = Instant::now();
        let outcome = tell(&story, plan.boot, &mut results).map_err(|error| format!("{error:#}"));
        results.send(&Line::Story(Told { story, outcome, seconds: begun.elapsed().as_secs_f64() }))?;
    }
    results.send(&Line::End)
}

/// The way out.
struct Results {
    file: File,
}

impl Results {
    fn send(&mut self, line: &Line) -> Result<()> {
        let line = serde_json::to_string(line)? + "\n";
        self.file.write_all(line.as_bytes()).context("sending a result")
    }
}

/// Returns a remark.
fn tell(story: &Story, boot: Boot, results: &mut Results) -> Result<String> {
    match story {
        Story::Doctor => doctor::tell(boot, results),
        Story::Functional { file, test } => tests::tell(file, test),
        Story::Rps { preemptible } => rps::tell(*preemptible),
        Story::Commands => commands::tell(),
        Story::TooOld => refused::too_old(),
        Story::Lockdown => refused::lockdown(),
        Story::NoBtf => refused::no_btf(),
        Story::CgroupV1 => cgroup_v1::tell(),
        Story::Cost => cost::tell(results),
        Story::Overhead => overhead::tell(results),
        Story::Peers => overhead::peers(results),
    }
}

fn mount_cgroups(boot: Boot) -> Result<()> {
    if boot == Boot::CgroupV1 {
        return cgroup_v1::mount();
    }
    output(Command::new("mount").args(["-t", "cgroup2", "cgroup2", CGROUPS])).map(drop)
}
