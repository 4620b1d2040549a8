//! How many instructions each program takes with short connections. The guest's clock shows a nanosecond for each, so that
//! the kernel's own measure of run times is one of instructions, the same in every run but for a few.

use std::time::Duration;

use anyhow::{Result, ensure};
use functional::samples::Scrape;
use functional::tcptide::Tcptide;
use functional::workload::{Running, command};

use super::Results;
use crate::plan::Cost;
use crate::plan::Line;

/// Connections a second, and for how many seconds: one after the other.
const CHURN: [&str; 8] = ["--rate", "200", "--seconds", "60", "--count", "400", "--bytes", "100"];
/// What no short connection is without.
const EXPECTED: [&str; 3] = ["lifecycle", "lifecycle_nested", "rtt"];

pub(super) fn tell(results: &mut Results) -> Result<String> {
    let agent = Tcptide::find()?.agent(["--read-delay", "--program-stats", "always"])?;
    let server = Running::start(&mut command(["serve", "--listen", "127.0.0.1:0"])?)?;
    let to = server.listening()?.to_string();
    let before = agent.scrape()?;
    let mut churn = command([&["churn", "--to", &to][..], &CHURN].concat())?;
    let client = Running::start(&mut churn)?.wait(Duration::from_secs(120))?;
    let after = agent.scrape()?;
    server.finish()?;
    ensure!(client.failures() == 0 && client.opened > 0, "{client:?}");

    let of = |scrape: &Scrape, name: &str, program: &str| {
        scrape.sum(&format!("tcptide_program_{name}_total"), &[("program", program)]).unwrap_or(0.0)
    };
    let mut costs = Vec::new();
    for sample in after.select("tcptide_program_runs_total", &[]) {
        let program = sample.label("program");
        let [runs, seconds] =
            ["runs", "run_seconds"].map(|name| of(&after, name, program) - of(&before, name, program));
        // Those of the scrapes themselves, and of what happens now and then, are no average.
        if runs * 2.0 >= client.opened as f64 {
            costs.push(Cost {
                program: program.to_owned(),
                runs: runs / client.opened as f64,
                instructions: seconds * 1e9 / runs,
            });
        }
    }
    for expected in EXPECTED {
        ensure!(costs.iter().any(|cost| cost.program == expected), "{expected} was not measured: {costs:?}");
    }
    results.send(&Line::Costs(costs))?;
    Ok(String::new())
}
