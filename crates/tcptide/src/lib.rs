//! tcptide: per-container TCP monitoring for Linux with eBPF.
//!
//! The program `tcptide` is [`main`]. Nothing else is for others, but `fuzz` for the fuzzer.

mod agent;
mod answer;
mod args;
mod client;
mod command;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod identity;
mod names;
mod namespaces;
mod output;
mod owners;
mod peers;
mod privileges;
mod reconcile;
mod session;

use std::{env, process::ExitCode};

use crate::{args::Command, client::Remote, output::say};

/// Does what the command line says.
pub fn main() -> ExitCode {
    let (cli, matches) = match config::command_line(&env::args_os().collect::<Vec<_>>()) {
        Ok(given) => given,
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(usage) => usage.exit(),
            Err(error) => {
                say!("{error:#}");
                return ExitCode::FAILURE;
            }
        },
    };
    start_logging();
    let command = config::registry();
    let given = matches.subcommand().and_then(|(name, given)| Some((given, command.find_subcommand(name)?)));
    let result = match given.map(|(given, command)| Remote::of(given, command)).transpose() {
        Ok(agent) => run(cli.command, agent.flatten()),
        Err(error) => Err(error),
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

/// Runs a command, with the agent that it is to ask instead.
fn run(command: Command, agent: Option<Remote>) -> anyhow::Result<()> {
    let asked = agent.as_ref();
    match command {
        Command::Trace(args) => command::trace::run(&args, asked),
        Command::Connlat(args) => command::connlat::run(&args, asked),
        Command::Rtt(args) => command::rtt::run(&args, asked),
        Command::Conns(args) => command::conns::run(&args, asked),
        Command::Top(args) => command::top::run(&args, agent),
        Command::States(args) => command::states::run(&args, asked),
        Command::Listen(args) => command::listen::run(&args, asked),
        Command::Explain(args) => command::explain::run(&args, asked),
        Command::Map(args) => command::map::run(&args, asked),
        Command::Containers(args) => command::containers::run(&args, asked),
        Command::Agent(args) => agent::run(&args),
        Command::Doctor(args) => command::doctor::run(&args),
        Command::Completions { shell } => command::completions::run(shell),
        Command::Man { folder } => command::completions::man(&folder),
    }
}

/// Warnings go to stderr; `TCPTIDE_LOG=debug` tells more.
fn start_logging() {
    let level = env::var("TCPTIDE_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(tracing::Level::WARN);
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(output::log::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(colour)
        .init();
}
