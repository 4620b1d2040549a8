//! What tcptide costs: `overhead` compares the same work with and without being watched, `scale` has many connections live,
//! `churn` makes many short ones, and `curve` asks what
//! that costs beside few and many others.

mod accounting;
mod churn;
mod command;
mod crowd;
mod curve;
mod figures;
mod overhead;
mod pin;
mod scale;
mod witnesses;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use functional::{require_root, serial, tcptide::Tcptide};
use serde::Serialize;

use crate::{
    crowd::Crowd,
    figures::{Machine, Report},
};

#[derive(Parser)]
#[command(about = "What tcptide costs", version)]
struct Cli {
    #[command(subcommand)]
    part: Part,
    /// One JSON object instead of the table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Part {
    /// The same work, watched by nobody, by empty programs, by tcptide and by other tools in turn.
    Overhead(overhead::Options),
    /// Many live connections: starts, commands, walks and scrapes, beside ss.
    Scale(Scale),
    /// Many short connections, with trace and with the agent.
    Churn(Churn),
    /// What an event costs with few and many containers, connections and namespaces.
    Curve(Curve),
}

#[derive(Args)]
struct Scale {
    /// Live connections; each is two sockets on this host.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
    connections: u64,
    /// Cgroups that own them: one half the clients', the other the servers'.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..))]
    cgroups: u64,
    /// Network namespaces that they are spread over.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    namespaces: u64,
    /// Requests per second, on the connections in turn.
    #[arg(long, default_value_t = 0)]
    request_rate: u64,
    /// The agent counts edges, too.
    #[arg(long)]
    edges: bool,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
}

#[derive(Args)]
struct Churn {
    /// Connections per second.
    #[arg(long, value_delimiter = ',', num_args = 1.., default_values_t = [5_000, 10_000])]
    rates: Vec<u64>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
}

#[derive(Args)]
struct Curve {
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints, and returns whether every count was right and every limit was kept.
fn run(cli: &Cli) -> Result<bool> {
    require_root()?;
    let tcptide = Tcptide::find()?;
    let _alone = serial("bench")?;
    let machine = Machine::look(&tcptide)?;
    match &cli.part {
        Part::Overhead(options) => {
            let comparison = overhead::compare(options, &tcptide, machine)?;
            print(&comparison, cli.json)?;
            Ok(true)
        }
        Part::Scale(options) => {
            let mut report = Report::new(machine);
            scale(&mut report, options, &tcptide)?;
            print(&report, cli.json)?;
            Ok(report.is_good())
        }
        Part::Churn(options) => {
            let mut report = Report::new(machine);
            for round in 1..=options.repeat {
                for &rate in &options.rates {
                    eprintln!("bench: {rate} connections per second, round {round}");
                    churn::round(&mut report, &tcptide, rate)?;
                }
            }
            print(&report, cli.json)?;
            Ok(report.is_good())
        }
        Part::Curve(options) => {
            let mut report = Report::new(machine);
            for round in 1..=options.repeat {
                eprintln!("bench: round {round} of {}", options.repeat);
                curve::round(&mut report, &tcptide)?;
            }
            print(&report, cli.json)?;
            Ok(report.is_good())
        }
    }
}

fn scale(report: &mut Report, options: &Scale, tcptide: &Tcptide) -> Result<()> {
    eprintln!("bench: an empty host");
    scale::starts(report, tcptide, options.repeat)?;
    eprintln!("bench: opening {} connections", options.connections);
    let crowd = Crowd::open(options.connections, options.cgroups, options.namespaces, options.request_rate)?;
    for round in 1..=options.repeat {
        eprintln!("bench: round {round} of {}", options.repeat);
        scale::round(report, tcptide, &crowd, options.edges)?;
    }
    // It looks through the files of all processes for each namespace: once is enough.
    scale::ss(report, &crowd, "-tinp")?;
    eprintln!("bench: comparing with ss");
    witnesses::compare(report, tcptide, &crowd)?;
    crowd.close()
}

fn print(result: &(impl Serialize + std::fmt::Display), json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(result)?);
    } else {
        print!("{result}");
    }
    Ok(())
}
