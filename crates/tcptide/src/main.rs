//! tcptide: per-container TCP monitoring for Linux with eBPF.

mod agent;
mod args;
mod command;
mod config;
mod identity;
mod names;
mod namespaces;
mod output;
mod owners;
mod peers;
mod reconcile;
mod session;

use std::{env, process::ExitCode};

use crate::{args::Command, output::say};

fn main() -> ExitCode {
    let cli = match config::command_line(&env::args_os().collect::<Vec<_>>()) {
        Ok(cli) => cli,
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(usage) => usage.exit(),
            Err(error) => {
                say!("{error:#}");
                return ExitCode::FAILURE;
            }
        },
    };
    start_logging();
    let result = match cli.command {
        Command::Trace(args) => command::trace::run(&args),
        Command::Connlat(args) => command::connlat::run(&args),
        Command::Rtt(args) => command::rtt::run(&args),
        Command::Conns(args) => command::conns::run(&args),
        Command::States(args) => command::states::run(&args),
        Command::Listen(args) => command::listen::run(&args),
        Command::Explain(args) => command::explain::run(&args),
        Command::Map(args) => command::map::run(&args),
        Command::Containers(args) => command::containers::run(&args),
        Command::Agent(args) => agent::run(&args),
        Command::Doctor(args) => command::doctor::run(&args),
        Command::Completions { shell } => command::completions::run(shell),
        Command::Man { folder } => command::completions::man(&folder),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::writer::reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Warnings go to stderr; `TCPTIDE_LOG=debug` tells more.
fn start_logging() {
    let level = env::var("TCPTIDE_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(tracing::Level::WARN);
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(colour)
        .init();
}
