//! What became of every program on this kernel, as `tcptide doctor` tells it.

use anyhow::{Context, Result, ensure};
use functional::tcptide::Tcptide;
use serde_json::Value;

use super::Results;
use crate::plan::{Boot, Line, Program};

pub(super) fn tell(boot: Boot, results: &mut Results) -> Result<String> {
    let report = Tcptide::find()?.run(["doctor", "-o", "json"])?.success()?.json()?;
    let programs: Vec<Program> = serde_json::from_value(report["programs"].clone())
        .context("reading the programs in doctor's report")?;
    results.send(&Line::Programs(programs.clone()))?;
    ensure!(!programs.is_empty(), "doctor told of no program");
    for program in &programs {
        let reason = program.reason.as_deref().unwrap_or_default();
        ensure!(program.status != "refused", "{} was refused: {reason}", program.name);
        // Only required ones take no kernel's lack for an answer, and then doctor would have failed.
        ensure!(!reason.is_empty() || program.status != "unsupported", "{}: no reason", program.name);
        // The one is for version 1, the others hang on a cgroup2 hierarchy.
        let off = match program.name.as_str() {
            "used" => boot != Boot::CgroupV1,
            "dns_query" | "dns_answer" => boot == Boot::CgroupV1,
            _ => false,
        };
        ensure!((program.status == "off") == off, "{} is {}", program.name, program.status);
    }
    cgroups(boot, &report)?;
    Ok(String::new())
}

/// With version 1 only, doctor says what that loses.
fn cgroups(boot: Boot, report: &Value) -> Result<()> {
    let findings = report["findings"].as_array().context("doctor told of no findings")?;
    let finding =
        findings.iter().find(|finding| finding["subject"] == "cgroups").context("no word about cgroups")?;
    let says = |text: &str| finding["text"].as_str().is_some_and(|found| found.contains(text));
    if boot == Boot::CgroupV1 {
        ensure!(finding["ok"] == false && says("only version 1") && says("owner"), "{finding}");
    } else {
        ensure!(finding["ok"] == true && says("cgroup2 at /sys/fs/cgroup"), "{finding}");
    }
    Ok(())
}
