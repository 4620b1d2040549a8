//! What tcptide costs: with many live connections ([`scale`]) and with many short ones ([`churn`]).
//!
//! Everything happens in network namespaces and cgroups of its own, takes about three minutes, and ends by itself.
//! The binary is the one that the environment variable `TCPTIDE` names, else the one beside this program.

mod accounting;
mod churn;
mod command;
mod crowd;
mod figures;
mod scale;
mod witnesses;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use functional::{require_root, serial, tcptide::Tcptide};

use crate::{
    crowd::Crowd,
    figures::{Machine, Report},
};

#[derive(Parser)]
#[command(about = "What tcptide costs with many connections, and with many short ones", version)]
struct Args {
    /// Live connections; each is two sockets on this host.
    #[arg(long, default_value_t = 50_000)]
    connections: u64,
    /// Cgroups that own them: one half the clients', the other the servers'.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..))]
    cgroups: u64,
    /// Network namespaces that they are spread over.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    namespaces: u64,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// Short connections per second; none leaves that part out.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = [5_000, 10_000])]
    rates: Vec<u64>,
    /// One JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints, and returns whether every count was right and every limit was kept.
fn run(args: &Args) -> Result<bool> {
    require_root()?;
    let tcptide = Tcptide::find()?;
    let _alone = serial("bench")?;
    let mut report = Report::new(Machine::look(&tcptide)?);

    eprintln!("bench: an empty host");
    scale::starts(&mut report, &tcptide, args.repeat)?;
    if args.connections > 0 {
        eprintln!("bench: opening {} connections", args.connections);
        let crowd = Crowd::open(args.connections, args.cgroups, args.namespaces)?;
        for round in 1..=args.repeat {
            eprintln!("bench: round {round} of {}", args.repeat);
            scale::round(&mut report, &tcptide, &crowd)?;
        }
        // It looks through the files of all processes for each namespace: once is enough.
        scale::ss(&mut report, &crowd, "-tinp")?;
        eprintln!("bench: comparing with ss");
        witnesses::compare(&mut report, &tcptide, &crowd)?;
        crowd.close()?;
    }
    for round in 1..=args.repeat.min(churn::MOST_ROUNDS) {
        for &rate in &args.rates {
            eprintln!("bench: {rate} connections per second, round {round}");
            churn::round(&mut report, &tcptide, rate)?;
        }
    }

    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(report.is_good())
}
