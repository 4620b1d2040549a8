//! How many instructions the same work takes while nobody watches, and while tcptide or another tool does: the bench, in a
//! guest whose clock shows a nanosecond for each instruction. What differs between two runs is a few in a thousand.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use functional::process::output;
use serde::Deserialize;

use super::Results;
use crate::plan::{Line, Watched};

/// As the bench calls them.
const AGENT: &str = "agent, not scraped";
const TRACE: &str = "trace -o json";
const REQUESTS: &str = "a request and its answer";
const CONNECTIONS: &str = "connect, request, answer, close";

/// What may be added, %: by whom, to what. A bound that is to be higher is changed in the commit that needs it.
const BOUNDS: &[(&str, &str, f64)] =
    &[(AGENT, REQUESTS, 4.0), (AGENT, CONNECTIONS, 11.0), (TRACE, REQUESTS, 4.0), (TRACE, CONNECTIONS, 15.0)];

/// What `bench overhead --json` prints, as far as it is read here.
#[derive(Deserialize)]
struct Comparison {
    rows: Vec<Row>,
    left_out: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Row {
    work: String,
    subject: String,
    us: Median,
    added_percent: Option<Median>,
}

#[derive(Deserialize)]
struct Median {
    median: f64,
}

/// Of tcptide, and of empty programs on its hooks, held to the bounds.
pub(super) fn tell(results: &mut Results) -> Result<String> {
    let (watched, _) = compare("floor,agent-idle,trace")?;
    results.send(&Line::Overhead(watched.clone()))?;
    for &(subject, work, most) in BOUNDS {
        let added = watched.iter().find(|w| w.subject == subject && w.work == work).and_then(|w| w.added);
        let added = added.with_context(|| format!("{subject}: {work}: not measured"))?;
        ensure!(added <= most, "{subject}: {work}: {added:+.2} %, at most {most} % is allowed");
    }
    Ok(String::new())
}

/// Of other tools. What they take to read what their programs tell is not in it.
pub(super) fn peers(results: &mut Results) -> Result<String> {
    let (watched, left_out) = compare("tcplife,tcpstates,tcprtt,tcpconnlat,tcptop,rezolus")?;
    results.send(&Line::Overhead(watched))?;
    Ok(left_out)
}

fn compare(subjects: &str) -> Result<(Vec<Watched>, String)> {
    let work = "requests,connections";
    let mut bench = Command::new("bench");
    bench.args(["overhead", "--short", "--json", "--pairs", "3", "--work", work, "--subjects", subjects]);
    let comparison: Comparison =
        serde_json::from_str(&output(&mut bench)?).context("reading what the bench printed")?;
    let watched = comparison.rows.into_iter().map(|row| Watched {
        work: row.work,
        subject: row.subject,
        // A microsecond of the guest's clock is a thousand of them.
        instructions: row.us.median * 1e3,
        added: row.added_percent.map(|added| added.median),
    });
    let left_out = comparison.left_out.iter().map(|(subject, why)| format!("{subject} left out: {why}"));
    Ok((watched.collect(), left_out.collect::<Vec<_>>().join("\n")))
}
