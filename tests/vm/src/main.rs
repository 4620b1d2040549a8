//! The kernel matrix: tcptide in virtual machines with Debian's kernels, from one that is too old for it to the newest.
//!
//! For each kernel: which BPF programs it takes, whether the functional stories that need no container runtime hold,
//! and what tcptide says where it cannot work. The tables in `docs/kernels.md` are written by `--write`.
//!
//! | module | what it does |
//! |---|---|
//! | [`kernels`] | gets Debian's kernels through apt |
//! | [`programs`] | has cargo build what runs in a guest |
//! | [`stories`] | which stories are told where, and which are left out, and why |
//! | [`initramfs`], [`machine`] | a guest: its file system, and its run under QEMU |
//! | [`plan`] | what host and guest tell each other |
//! | [`guest`] | this program inside a guest |
//! | [`matrix`] | all guests, several at a time |
//! | [`report`], [`page`] | the tables; `docs/kernels.md` as it was |

mod guest;
mod initramfs;
mod kernels;
mod machine;
mod matrix;
mod page;
mod plan;
mod programs;
mod report;
mod stories;

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kernels::{SERIES, Series};
use page::Page;
use stories::Wanted;

#[derive(Parser)]
#[command(about = "Tells tcptide's stories in virtual machines with Debian's kernels", version)]
struct Args {
    #[command(subcommand)]
    guest: Option<Guest>,
    /// Kernels, oldest first [default: all]
    #[arg(value_parser = series)]
    kernels: Vec<&'static Series>,
    /// Write docs/kernels.md anew; takes all kernels
    #[arg(long, conflicts_with = "kernels")]
    write: bool,
    /// Every functional test on every kernel, which takes several times as long: else those about what differs between kernels on each,
    /// and of the others each on one
    #[arg(long, conflicts_with = "only")]
    all: bool,
    /// Only those stories whose row in the table has this in it
    #[arg(long, default_value = "", conflicts_with = "write")]
    only: String,
    /// The Debian mirror with the kernels [default: the one that apt uses here]
    #[arg(long)]
    mirror: Option<String>,
}

#[derive(Subcommand)]
enum Guest {
    /// Tells the stories of the plan; for the first process of a guest
    #[command(hide = true)]
    Guest,
}

fn series(name: &str) -> Result<&'static Series, String> {
    let names = || SERIES.iter().map(|series| series.name).collect::<Vec<_>>().join(", ");
    SERIES.iter().find(|series| series.name == name).ok_or_else(|| format!("there are {}", names()))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.guest.is_some() { guest::run().map(|()| true) } else { run(&args) };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every story held.
fn run(args: &Args) -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let all: Vec<_> = SERIES.iter().collect();
    let wanted = if args.kernels.is_empty() { &all } else { &args.kernels };
    // Both take a while, and neither needs the other.
    let (programs, kernels) = thread::scope(|scope| {
        let kernels = scope.spawn(|| {
            let mirror = args.mirror.clone().map_or_else(kernels::mirror, Ok)?;
            kernels::get_all(wanted, &mirror, &target.join("vm"))
        });
        (programs::build(), kernels.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    let (programs, kernels) = (programs?, kernels?);
    let functional = stories::Functional::list(&programs)?;

    let wanted = Wanted { all: args.all, document: args.write, only: &args.only };
    let results = matrix::run(&kernels, &programs, &functional, wanted)?;
    let page = root.join("docs/kernels.md");
    let before = Page::read(&page);
    let report = report::Report { results: &results, left_out: &functional.left_out, before };
    println!("\n{}", report.tables());
    print!("{}", report.remarks());
    if args.write {
        std::fs::write(&page, report.page()).with_context(|| format!("writing {}", page.display()))?;
    }
    Ok(results.iter().all(matrix::Results::are_good))
}
