//! Whether an event costs the same with one container or a thousand, with a thousand connections live or a hundred thousand.

use anyhow::{Context, Result};
use functional::tcptide::Tcptide;

use crate::{
    accounting::{kernel_memory, resident},
    churn::Site,
    crowd::Crowd,
    figures::Report,
    scale,
};

/// Who else is there while connections are made.
struct Size {
    connections: u64,
    /// One half are the clients', the other the servers'.
    cgroups: u64,
    namespaces: u64,
}

/// From little to much of each, the others as they are.
const SIZES: &[Size] = &[
    Size { connections: 10_000, cgroups: 2, namespaces: 1 },
    Size { connections: 10_000, cgroups: 100, namespaces: 1 },
    Size { connections: 10_000, cgroups: 1_000, namespaces: 1 },
    Size { connections: 1_000, cgroups: 100, namespaces: 10 },
    Size { connections: 10_000, cgroups: 100, namespaces: 10 },
    Size { connections: 50_000, cgroups: 100, namespaces: 10 },
    Size { connections: 100_000, cgroups: 100, namespaces: 10 },
    Size { connections: 50_000, cgroups: 1_000, namespaces: 100 },
    Size { connections: 50_000, cgroups: 2_000, namespaces: 1_000 },
];
/// Short connections a second while the others are held.
const RATE: u64 = 2_000;
const SCRAPES: u32 = 4;
/// Programs that run with each short connection.
const PROGRAMS: [&str; 2] = ["lifecycle", "rtt"];

/// Each size once, so that rounds interleave.
pub(crate) fn round(report: &mut Report, tcptide: &Tcptide) -> Result<()> {
    let site = Site::new()?;
    for size in SIZES {
        let Size { connections, cgroups, namespaces } = *size;
        let name = format!("{connections} in {cgroups} cgroups, {namespaces} namespaces");
        eprintln!("bench: {name}");
        let crowd = Crowd::open(connections, cgroups, namespaces, 0)?;
        measure(report, &name, tcptide, &site, &crowd).with_context(|| name.clone())?;
        crowd.close()?;
    }
    Ok(())
}

fn measure(report: &mut Report, name: &str, tcptide: &Tcptide, site: &Site, crowd: &Crowd) -> Result<()> {
    let sockets = 2 * crowd.connections();
    let memory = kernel_memory()?;
    let agent = tcptide.agent(["--program-stats", "always"])?;
    let grown = kernel_memory()?.saturating_sub(memory);
    let before = agent.scrape()?;
    site.go(RATE)?;
    let after = agent.scrape()?;
    for program in PROGRAMS {
        let grown = |metric| -> Option<f64> {
            let labels = [("program", program)];
            Some(after.sum(metric, &labels)? - before.sum(metric, &labels)?)
        };
        let runs = grown("tcptide_program_runs_total").context("no runs")?;
        let seconds = grown("tcptide_program_run_seconds_total").context("no run time")?;
        report.add(&format!("{name}: {program}"), "ns/run", seconds * 1e9 / runs);
    }
    for _ in 0..SCRAPES {
        scale::scrape(report, &agent, &format!("{name}: scrape"), crowd)?;
    }
    let (most, _) = resident(agent.pid()).context("the agent is gone")?;
    report.add(&format!("{name}: agent, resident"), "MiB", most as f64 / f64::from(1 << 20));
    report.add(&format!("{name}: kernel memory for each socket"), "bytes", grown as f64 / sockets as f64);
    let established = after.select("tcptide_connections", &[("state", "established")]);
    let of_crowd = established.filter(|sample| sample.label("container").contains("crowd"));
    let seen: f64 = of_crowd.map(|sample| sample.value).sum();
    report.check(&format!("{name}: established"), seen as u64, sockets);
    agent.stop()?.success().map(drop)
}
