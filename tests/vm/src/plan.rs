//! What crosses between the host and a guest: the plan that the guest finds in its initramfs, and the lines that it
//! sends back, one JSON object each.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the plan is in the guest.
pub(crate) const PLAN: &str = "/plan.json";
/// The serial line of the results: the guest's second, so that no word of the kernel comes in between.
pub(crate) const RESULTS: &str = "/dev/ttyS1";

/// How a guest is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Boot {
    /// As distributions do: cgroup2 only.
    Usual,
    /// With version 1 hierarchies of cgroups (memory, pids) and no cgroup2.
    CgroupV1,
    /// As usual, with one CPU whose clock shows a nanosecond for each instruction.
    Counted,
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usual => "usual boot",
            Self::CgroupV1 => "cgroup v1",
            Self::Counted => "counted instructions",
        })
    }
}

/// What a guest has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// How it was booted.
    pub boot: Boot,
    /// Told one after the other.
    pub stories: Vec<Story>,
}

/// One row of the table of stories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Story {
    /// What became of every program, as `tcptide doctor` tells it.
    Doctor,
    /// A test of the functional tests.
    Functional {
        /// The file that it is in, without `.rs`.
        file: String,
        /// Its name.
        test: String,
    },
    /// Many short connections whose packets are processed on either CPU.
    Rps {
        /// Whether a task may be preempted in the middle of a program (Linux 7.0 and newer), which may cost a few.
        preemptible: bool,
    },
    /// Each command with each filter: the verifier takes what that makes of the programs.
    Commands,
    /// The kernel has not got what tcptide is built on.
    TooOld,
    /// Lockdown forbids what tcptide does.
    Lockdown,
    /// The kernel does not describe its types.
    NoBtf,
    /// Owners are told from version 1 hierarchies.
    CgroupV1,
    /// How many instructions each program takes with short connections.
    Cost,
    /// How many instructions the same work takes while tcptide watches.
    Overhead,
    /// And while other tools do.
    Peers,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Doctor => f.write_str("doctor: no program is refused"),
            Self::Functional { file, test } => write!(f, "{file}: {}", test.replace('_', " ")),
            Self::Commands => f.write_str("commands: with whatever filters, no program is refused"),
            Self::Rps { .. } => {
                f.write_str("rps: every connection is counted while packets interrupt programs")
            }
            Self::TooOld => f.write_str("too old: one sentence says so"),
            Self::Lockdown => f.write_str("lockdown=confidentiality: one sentence says so"),
            Self::NoBtf => f.write_str("no BTF: one sentence says so"),
            Self::CgroupV1 => f.write_str("cgroup v1 only: the process's cgroup is the owner"),
            Self::Cost => f.write_str("cost: every program that short connections run is measured"),
            Self::Overhead => f.write_str("overhead: being watched costs no more than it did"),
            Self::Peers => f.write_str("peers: what being watched by other tools costs"),
        }
    }
}

/// What a guest sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// What `tcptide doctor` said of every program.
    Programs(Vec<Program>),
    /// What a run of each program takes.
    Costs(Vec<Cost>),
    /// What the work takes.
    Overhead(Vec<Watched>),
    /// How a story went.
    Story(Told),
    /// All have been told.
    End,
}

/// How a story went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    /// As in [`Plan::stories`].
    pub story: Story,
    /// A remark, or what went wrong.
    pub outcome: Result<String, String>,
    /// How long it took.
    pub seconds: f64,
}

/// A program in the report of `tcptide doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub name: String,
    /// One word.
    pub status: String,
    /// Why it is not attached.
    pub reason: Option<String>,
    /// Whether there is nothing to show without it.
    pub required: bool,
    /// What the verifier looked at.
    pub instructions: Option<u32>,
}

/// What a program takes with short connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub program: String,
    /// For a connection with both ends on the host.
    pub runs: f64,
    /// Instructions of the CPU for a run, with what the kernel takes to measure it.
    pub instructions: f64,
}

/// What an operation takes while somebody watches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watched {
    pub work: String,
    /// Who watches.
    pub subject: String,
    /// Instructions of the CPU, in both processes and in the kernel on their behalf.
    pub instructions: f64,
    /// What that is above nothing, %; of nothing itself there is none.
    pub added: Option<f64>,
}
