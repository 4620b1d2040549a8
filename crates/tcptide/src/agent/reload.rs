//! New settings while the agent runs: on SIGHUP the file is read again. What can change does; of the rest it is said that it
//! needs a restart. A file in which anything is wrong changes nothing.

use std::{env, ffi::OsString, time::Duration};

use jiff::Timestamp;

use super::{gauge::Gauge, series::Selection};
use crate::{
    args::{AgentArgs, Command},
    config::{self, Values},
    output::say,
};

/// The settings that can change, by their flags.
pub(crate) const RELOADABLE: &[&str] = &[
    "metrics.grace",
    "metrics.max-series",
    "metrics.include-container",
    "metrics.exclude-container",
    "metrics.min-age",
];

/// The same with their values.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) grace: Duration,
    pub(crate) max_series: usize,
    pub(crate) selection: Selection,
}

impl From<&AgentArgs> for Live {
    fn from(args: &AgentArgs) -> Self {
        let selection = Selection {
            include: args.include.clone().unwrap_or_default(),
            exclude: args.exclude.clone().unwrap_or_default(),
            min_age: args.min_age.unwrap_or_default(),
        };
        Self { grace: args.grace, max_series: args.max_series as usize, selection }
    }
}

/// How the last reading of the file went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastReload {
    pub(crate) successful: bool,
    /// When one last succeeded.
    pub(crate) success: Timestamp,
}

impl LastReload {
    pub(crate) fn success() -> Self {
        Self { successful: true, success: Timestamp::now() }
    }
}

/// Reads the file again and tells the gauge.
pub(crate) struct Reloader {
    words: Vec<OsString>,
    running: Values,
    last: LastReload,
    gauge: Gauge,
}

impl Reloader {
    /// None without a file: there is nothing to read again.
    pub(crate) fn new(args: &AgentArgs, gauge: &Gauge) -> Option<Self> {
        args.config_file.as_ref()?;
        let (running, last) = (args.values.clone(), LastReload::success());
        gauge.change(Live::from(args).into(), last);
        Some(Self { words: env::args_os().collect(), running, last, gauge: gauge.clone() })
    }

    /// Reads the file again; returns in a sentence what became of it.
    pub(crate) fn reload(&mut self) -> &'static str {
        match config::command_line(&self.words).map(|(cli, _)| cli.command) {
            Ok(Command::Agent(args)) => {
                self.take(&args);
                "the settings were read again"
            }
            // The words are the same as ever.
            Ok(_) => "the settings stay as they were",
            Err(error) => {
                self.last.successful = false;
                self.gauge.change(None, self.last);
                tracing::error!("the settings stay as they were: {}", in_a_line(&error));
                "the settings stay as they were: what is wrong stands in the log"
            }
        }
    }

    fn take(&mut self, args: &AgentArgs) {
        let (now, later): (Vec<_>, Vec<_>) = config::changed(&self.running, &args.values)
            .into_iter()
            .partition(|name| RELOADABLE.contains(&name.as_str()));
        self.last = LastReload::success();
        self.gauge.change(Live::from(args).into(), self.last);
        let mut told = Vec::new();
        for name in now {
            let values = args.values.get(&name).cloned().unwrap_or_default();
            told.push(format!("{name} is {}", values.join(" ".as_ref()).to_string_lossy()));
            self.running.insert(name, values);
        }
        say!(
            "the settings were read again: {}",
            if told.is_empty() { "nothing changes".to_owned() } else { told.join(", ") }
        );
        for name in later {
            tracing::warn!("needs a restart: {name}");
        }
    }
}

/// An error of the command line has lines of its own about usage.
fn in_a_line(error: &anyhow::Error) -> String {
    match error.downcast_ref::<clap::Error>() {
        Some(usage) => {
            let text = usage.to_string();
            text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
        }
        None => format!("{error:#}"),
    }
}
