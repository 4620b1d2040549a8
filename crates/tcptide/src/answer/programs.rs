//! BPF programs, and what became of them.

use probe::{ProgramStats, Status};
use schemars::JsonSchema;
use serde::Serialize;

/// A BPF program.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// Where it hangs.
    pub(crate) hook: &'static str,
    /// One word: `attached`, `standby`, `unsupported`, `refused` or `off`.
    pub(crate) status: &'static str,
    /// Why it is not attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Whether there is nothing to show without it.
    pub(crate) required: bool,
    /// What is told by it.
    pub(crate) feeds: &'static str,
    /// What the verifier looked at while loading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instructions: Option<u32>,
    /// What the kernel's compiler made of it: `bpf_prog_info.jited_prog_len`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) machine_code_bytes: Option<u32>,
    /// How often it ran while run times were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) runs: Option<u64>,
    /// How long it ran then, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_seconds: Option<f64>,
}

impl Program {
    /// With its run times, if they were measured.
    pub(crate) fn of(stats: ProgramStats, is_measured: bool) -> Self {
        let measured = stats.run.filter(|_| is_measured);
        Self {
            name: stats.program.name,
            hook: stats.program.hook,
            status: stats.status.word(),
            reason: match stats.status {
                Status::Unsupported(reason) | Status::Refused(reason) => Some(reason),
                Status::Attached | Status::Standby | Status::Off => None,
            },
            required: stats.program.required,
            feeds: stats.program.feeds,
            instructions: stats.run.map(|run| run.verified_instructions).filter(|n| *n > 0),
            machine_code_bytes: stats.run.map(|run| run.machine_code_bytes).filter(|n| *n > 0),
            runs: measured.map(|run| run.runs),
            run_seconds: measured.map(|run| run.run_time_ns as f64 / 1e9),
        }
    }
}

/// What an agent tells of programs.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Programs {
    pub(crate) programs: Vec<Program>,
}
