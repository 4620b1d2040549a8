//! The agent's settings. Its flags are the registry of all: a variable of the environment and a key of a file stand for each,
//! and their values go the way of the flags' own, so that whatever a flag checks is checked of them, too.
//!
//! A flag on the command line comes before the environment, that before the file, and that before the default.

use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fmt, fs, iter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::{
    Arg, ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use model::container::{nearest, sanitize};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::args::{Cli, Command};

/// The flags that have no place in a file: where it is, and what to do with it.
const NOT_IN_A_FILE: &[&str] = &["config.file", "check-config"];
/// What asks for something else than to run is asked for on the command line only.
const NOT_IN_THE_ENVIRONMENT: &[&str] = &["check-config"];

/// What each setting was given as: the words, by flag.
pub(crate) type Values = BTreeMap<String, Vec<OsString>>;

/// The command line with all that stands behind it; the agent's flags with their variables.
pub(crate) fn registry() -> clap::Command {
    Cli::command().mut_subcommand("agent", |agent| agent.mut_args(with_variable))
}

/// What was asked for. An error that is clap's own is one of the command line.
pub(crate) fn command_line(words: &[OsString]) -> anyhow::Result<(Cli, ArgMatches)> {
    if words.get(1).is_none_or(|word| word != "agent") {
        let matches = registry().try_get_matches_from(words)?;
        return Ok((Cli::from_arg_matches(&matches)?, matches));
    }
    // What is missing may stand in the file; all that is wrong is found by the second look.
    let first = registry().ignore_errors(true).try_get_matches_from(words)?;
    let file = first.subcommand().and_then(|(_, agent)| agent.get_one("config_file"));
    let file = file.map(|path: &PathBuf| File::read(path)).transpose()?;
    let mut all = words.to_vec();
    if let (Some(file), Some((_, given))) = (&file, first.subcommand()) {
        all.splice(2..2, file.words(given));
    }
    let matches =
        registry().try_get_matches_from(all).map_err(|error| explain(error, file.as_ref(), &first))?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let (Command::Agent(args), Some((_, given))) = (&mut cli.command, matches.subcommand()) {
        args.values = values(given);
    }
    Ok((cli, matches))
}

/// The flags whose values differ.
pub(crate) fn changed(old: &Values, new: &Values) -> Vec<String> {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    names.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
}

fn values(given: &ArgMatches) -> Values {
    let agent = agent();
    let args = agent
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?, given.get_raw(arg.get_id().as_str())?)));
    args.map(|(name, values)| (name.to_owned(), values.map(ToOwned::to_owned).collect())).collect()
}

/// The agent's part of the registry, by itself and without the environment.
fn agent() -> clap::Command {
    Cli::command().find_subcommand("agent").cloned().unwrap_or_default()
}

/// A flag's variable: `TCPTIDE_WEB_LISTEN_ADDRESS` of `--web.listen-address`.
fn variable(name: &str) -> Option<String> {
    let name = Some(name).filter(|name| !NOT_IN_THE_ENVIRONMENT.contains(name))?;
    Some(format!("TCPTIDE_{}", name.to_uppercase().replace(['.', '-'], "_")))
}

fn with_variable(arg: Arg) -> Arg {
    let Some(variable) = arg.get_long().and_then(variable) else { return arg };
    // For clap a flag that is there is on, whatever its variable says.
    let is_off = matches!(Shape::of(&arg), Shape::Switch | Shape::OptionalText)
        && env::var_os(&variable).is_some_and(|value| value == "false");
    if is_off { arg } else { arg.env(variable).hide_env_values(true) }
}

/// How a setting's value is written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Switch,
    Number,
    Text,
    /// Off, on with the default, or on with this.
    OptionalText,
    List,
}

impl Shape {
    fn of(arg: &Arg) -> Self {
        let kind = arg.get_value_parser().type_id();
        let numbers = [TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()];
        match arg.get_action() {
            ArgAction::SetTrue => Self::Switch,
            ArgAction::Append => Self::List,
            _ if arg.get_num_args().is_some_and(|number| number.min_values() == 0) => Self::OptionalText,
            _ if numbers.iter().any(|number| kind == *number) => Self::Number,
            _ => Self::Text,
        }
    }
}

/// What is expected of a setting, with its default as the example.
struct Expected<'a>(&'a Arg);

impl fmt::Display for Expected<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match Shape::of(self.0) {
            Shape::Switch => "true or false",
            Shape::Number => "a whole number",
            Shape::Text => "a string",
            Shape::OptionalText => "true, false or a string",
            Shape::List => "an array of strings",
        })?;
        match (self.0.get_default_values().first(), self.0.get_value_names()) {
            (Some(default), _) if self.0.get_action().takes_values() => {
                write!(to, ", such as {}", written(self.0, &default.to_string_lossy()))
            }
            (None, Some([name, ..])) if Shape::of(self.0) != Shape::Switch => write!(to, " ({name})"),
            _ => Ok(()),
        }
    }
}

/// A value as a file has it.
fn written(arg: &Arg, value: &str) -> String {
    match Shape::of(arg) {
        Shape::Switch | Shape::Number => value.to_owned(),
        Shape::Text | Shape::OptionalText => format!("{value:?}"),
        Shape::List => format!("[{value:?}]"),
    }
}

/// A file with settings.
#[derive(Debug)]
struct File {
    name: String,
    entries: Vec<Entry>,
}

/// One setting of a file.
#[derive(Debug)]
struct Entry {
    name: String,
    line: usize,
    /// The flag that it stands for; none if it is off.
    words: Vec<OsString>,
    /// The flags that it needs.
    needs: Vec<String>,
}

impl File {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the settings in {} (--config.file)", path.display()))?;
        Self::parse(path.display().to_string(), &text)
    }

    fn parse(name: String, text: &str) -> anyhow::Result<Self> {
        let line = |at: usize| text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(String::new(), |span| format!(":{}", line(span.start)));
            anyhow!("{name}{at}: this is no TOML: {}", error.message().trim().replace('\n', ", "))
        })?;
        let mut keys = Vec::new();
        let agent = agent();
        leaves(table.get_ref(), "", &agent, &mut keys);
        // In the file's own order.
        keys.sort_by_key(|(_, key, _)| key.start);
        let mut entries = Vec::new();
        for (key, at, value) in keys {
            let line = line(at.start);
            let entry =
                Entry::new(&agent, &key, line, value).map_err(|why| anyhow!("{name}:{line}: {why:#}"))?;
            entries.push(entry);
        }
        Ok(Self { name, entries })
    }

    /// Its settings as flags, but for those that the command line or the environment has.
    fn words(&self, given: &ArgMatches) -> Vec<OsString> {
        let agent = agent();
        let is_given = |name: &str| {
            let on_command_line = agent.get_arguments().any(|arg| {
                arg.get_long() == Some(name)
                    && given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
            });
            on_command_line || variable(name).is_some_and(|variable| env::var_os(variable).is_some())
        };
        let own = self.entries.iter().filter(|entry| !is_given(&entry.name));
        own.flat_map(|entry| entry.words.iter().cloned()).collect()
    }
}

type Key<'a> = (String, std::ops::Range<usize>, &'a DeValue<'a>);

/// Every key with a value, by its whole name. A table that no flag is in counts as one, too.
fn leaves<'a>(table: &'a DeTable<'a>, within: &str, agent: &clap::Command, to: &mut Vec<Key<'a>>) {
    for (key, value) in table {
        let name = format!("{within}{}", key.get_ref());
        let inside = format!("{name}.");
        let is_known = agent.get_arguments().filter_map(Arg::get_long).any(|flag| flag.starts_with(&inside));
        match value.get_ref() {
            DeValue::Table(table) if is_known || !table.is_empty() => leaves(table, &inside, agent, to),
            value => to.push((name, Spanned::span(key), value)),
        }
    }
}

impl Entry {
    fn new(agent: &clap::Command, name: &str, line: usize, value: &DeValue<'_>) -> anyhow::Result<Self> {
        let shown = sanitize(name);
        let flags =
            || agent.get_arguments().filter_map(Arg::get_long).filter(|flag| !NOT_IN_A_FILE.contains(flag));
        if NOT_IN_A_FILE.contains(&name) {
            bail!("{shown} has no place in a file: it is a flag of the command line");
        }
        let Some(arg) = agent.get_arguments().find(|arg| arg.get_long() == Some(name)) else {
            let inside = format!("{name}.");
            let within: Vec<_> = flags().filter(|flag| flag.starts_with(&inside)).collect();
            if !within.is_empty() {
                bail!("{shown} is a table and no setting; in it there are {}", within.join(", "));
            }
            match nearest(name, flags()).first() {
                None => bail!("there is no setting {shown}; `tcptide agent --help` lists all"),
                Some(meant) => bail!("there is no setting {shown}; did you mean {meant}?"),
            }
        };
        let found = show(value);
        let wrong = || anyhow!("{shown} = {found} is of the wrong type; expected: {}", Expected(arg));
        let words = words(arg, name, value).ok_or_else(wrong)?;
        let needs = match agent.clone().try_get_matches_from(iter::once("agent".into()).chain(words.clone()))
        {
            Ok(_) => Vec::new(),
            // Others may have it.
            Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => named(&error),
            Err(error) => bail!("{shown} = {found}: {}; expected: {}", reason(&error), Expected(arg)),
        };
        Ok(Self { name: name.to_owned(), line, words, needs })
    }
}

/// A setting as words of a command line; `None` if it is of the wrong type.
fn words(arg: &Arg, name: &str, value: &DeValue<'_>) -> Option<Vec<OsString>> {
    let with = |value: &str| vec![OsString::from(format!("--{name}={value}"))];
    match (Shape::of(arg), value) {
        (Shape::Switch | Shape::OptionalText, DeValue::Boolean(false)) => Some(Vec::new()),
        (Shape::Switch | Shape::OptionalText, DeValue::Boolean(true)) => {
            Some(vec![format!("--{name}").into()])
        }
        (Shape::Text | Shape::OptionalText, DeValue::String(text)) => Some(with(text)),
        (Shape::Number, DeValue::Integer(number)) => {
            // What is larger is told by its own text that it is too large.
            let plain = i128::from_str_radix(number.as_str(), number.radix());
            Some(with(&plain.map_or_else(|_| number.to_string(), |number| number.to_string())))
        }
        (Shape::List, DeValue::Array(all)) => {
            let all = all.iter().map(|one| Some(with(one.get_ref().as_str()?)));
            Some(all.collect::<Option<Vec<_>>>()?.concat())
        }
        _ => None,
    }
}

/// A value as a file has it, no longer than a person wants to read.
fn show(value: &DeValue<'_>) -> String {
    const LONGEST: usize = 60;
    let text = match value {
        DeValue::String(text) => format!("{:?}", sanitize(text)),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(all) => {
            let shown: Vec<_> = all.iter().take(LONGEST).map(|one| show(one.get_ref())).collect();
            format!("[{}]", shown.join(", "))
        }
        DeValue::Table(_) => "{…}".to_owned(),
    };
    if text.chars().count() <= LONGEST { text } else { text.chars().take(LONGEST).chain(['…']).collect() }
}

/// The flags that clap names in an error, without their dashes and values.
fn named(error: &clap::Error) -> Vec<String> {
    let bare = |text: &String| {
        let text = text.trim_start_matches('-');
        text.split([' ', '=', '[']).next().unwrap_or_default().to_owned()
    };
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(one)) => vec![bare(one)],
        Some(ContextValue::Strings(all)) => all.iter().map(bare).collect(),
        _ => Vec::new(),
    }
}

/// Why a value is refused, in the flag's own words.
fn reason(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match (error.get(ContextKind::InvalidValue), error.get(ContextKind::ValidValue)) {
        (Some(ContextValue::String(value)), _) if value.is_empty() => "it is empty".to_owned(),
        (_, Some(ContextValue::Strings(valid))) if !valid.is_empty() => {
            format!("not one of {}", valid.join(", "))
        }
        _ => error.kind().to_string(),
    }
}

/// An error of what the file, the environment and the command line say together, with where it comes from.
fn explain(error: clap::Error, file: Option<&File>, first: &ArgMatches) -> anyhow::Error {
    let named = named(&error);
    if error.kind() == ErrorKind::MissingRequiredArgument {
        let entries = file.map(|file| file.entries.iter().map(move |entry| (file, entry)));
        for (File { name, .. }, Entry { name: key, line, needs, .. }) in entries.into_iter().flatten() {
            if let Some(needed) = needs.iter().find(|needed| named.contains(needed)) {
                return anyhow!(
                    "{name}:{line}: {key} needs {needed}, which is given neither here, nor by the environment, nor by a flag"
                );
            }
        }
    }
    let agent = agent();
    let of = |arg: &&Arg| arg.get_long().is_some_and(|name| named.iter().any(|named| named == name));
    if let Some(arg) = agent.get_arguments().find(of)
        && let Some(name) = arg.get_long()
        && let Some(variable) = variable(name)
        && let Some(value) = env::var_os(&variable)
        && first.subcommand().is_some_and(|(_, given)| {
            given.value_source(arg.get_id().as_str()) != Some(ValueSource::CommandLine)
        })
        && matches!(
            error.kind(),
            ErrorKind::ValueValidation | ErrorKind::InvalidValue | ErrorKind::InvalidUtf8
        )
    {
        let value = value.to_string_lossy();
        return anyhow!(
            "{variable}={} in the environment: {}; expected: {}",
            sanitize(&value),
            reason(&error),
            Expected(arg)
        );
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{agent::RELOADABLE, args::AgentArgs};

    fn words(words: &[&str]) -> Vec<OsString> {
        ["tcptide", "agent"].iter().chain(words).map(OsString::from).collect()
    }

    /// A file with every setting and its default, each in a comment: `packaging/tcptide.toml`.
    fn default_file() -> String {
        let mut file = String::from(
            "# Settings of `tcptide agent`, each with its default. Made from its flags by `make docs`; docs/configuration.md says how\n\
             # they go together with flags and the environment. `tcptide agent --check-config --config.file FILE` checks a file.\n",
        );
        let agent = agent();
        let all = || agent.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
        let mut tables = vec![None];
        for table in all().map(|(name, _)| name.rsplit_once('.').map(|(table, _)| table)) {
            if !tables.contains(&table) {
                tables.push(table);
            }
        }
        for table in tables {
            let of = |name: &str| name.rsplit_once('.').map(|(table, _)| table) == table;
            let own: Vec<_> = all().filter(|(name, _)| of(name) && !NOT_IN_A_FILE.contains(name)).collect();
            if let (Some(table), false) = (table, own.is_empty()) {
                file.extend(["\n[", table, "]\n"]);
            }
            for (name, arg) in own {
                let key = name.rsplit('.').next().unwrap_or(name);
                file.extend(["\n", &comment(arg), "#", key, " = ", &default_of(arg), "\n"]);
            }
        }
        file
    }

    /// What a setting is without one.
    fn default_of(arg: &Arg) -> String {
        let word = || {
            arg.get_value_names()
                .and_then(|names| names.first())
                .map_or_else(String::new, ToString::to_string)
        };
        match (arg.get_default_values().first(), Shape::of(arg)) {
            (_, Shape::Switch) | (None, Shape::OptionalText) => "false".to_owned(),
            (default, _) => {
                written(arg, &default.map_or_else(word, |value| value.to_string_lossy().into_owned()))
            }
        }
    }

    /// Its help, in lines of a comment.
    fn comment(arg: &Arg) -> String {
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let values = arg.get_possible_values();
        let values: Vec<_> = values
            .iter()
            .filter(|_| arg.get_action().takes_values())
            .map(|value| (value.get_name(), value.get_help().map(ToString::to_string).unwrap_or_default()))
            .collect();
        let values = values.iter().map(|(name, help)| format!("{name}: {help}"));
        let mut lines = vec![String::from("#")];
        for paragraph in iter::once(help).chain(values) {
            for word in paragraph.split_whitespace() {
                if lines.last().is_some_and(|line| line.chars().count() + word.chars().count() >= 100) {
                    lines.push(String::from("#"));
                }
                if let Some(line) = lines.last_mut() {
                    line.push(' ');
                    line.push_str(word);
                }
            }
            lines.push(String::from("#"));
        }
        lines.pop();
        lines.join("\n") + "\n"
    }

    /// The table of docs/configuration.md.
    fn reference() -> String {
        let mut table = String::from(
            "| key, and flag with `--` before it | variable | default | at run time |\n|---|---|---|---|\n",
        );
        for arg in agent().get_arguments() {
            let Some(name) = arg.get_long() else { continue };
            let in_a_file = !NOT_IN_A_FILE.contains(&name);
            let key = if in_a_file { format!("`{name}`") } else { format!("`--{name}`, no key") };
            let variable = variable(name).map_or_else(String::new, |variable| format!("`{variable}`"));
            let default = match arg.get_default_values().first() {
                Some(_) => format!("`{}`", default_of(arg)),
                None if matches!(Shape::of(arg), Shape::Switch | Shape::OptionalText) && in_a_file => {
                    "`false`".to_owned()
                }
                None => String::new(),
            };
            let change = if RELOADABLE.contains(&name) { "changes" } else { "" };
            table.extend(["| ", &key, " | ", &variable, " | ", &default, " | ", change, " |\n"]);
        }
        table
    }

    fn is_current(path: &str, wanted: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
        if env::var_os("TCPTIDE_WRITE_DOCS").is_some() {
            fs::write(&path, wanted).unwrap();
        }
        assert_eq!(fs::read_to_string(path).unwrap(), wanted, "run `make docs`");
    }

    /// `make docs` writes both anew.
    #[test]
    fn the_default_file_and_the_reference_are_current() {
        is_current("packaging/tcptide.toml", &default_file());
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
        let page = fs::read_to_string(page).unwrap();
        let (begin, end) = ("<!-- from the flags: make docs -->\n", "<!-- to here -->\n");
        let (before, rest) = page.split_once(begin).unwrap();
        let (_, after) = rest.split_once(end).unwrap();
        is_current("docs/configuration.md", &format!("{before}{begin}{}{end}{after}", reference()));
    }

    #[test]
    fn the_default_file_changes_nothing_and_its_defaults_are_the_flags_own() {
        let of = |args: AgentArgs| {
            let mut values = args.values;
            values.remove("config.file");
            values
        };
        let plain = match command_line(&words(&[])).unwrap().0.command {
            Command::Agent(args) => of(args),
            other => panic!("{other:?}"),
        };
        assert_eq!(of(with(&default_file(), &[]).unwrap()), plain);
        // Each as it stands there, but for those that need another.
        let mut all = Vec::new();
        for arg in agent().get_arguments() {
            let name = arg.get_long().unwrap_or_default();
            let is_off = matches!(Shape::of(arg), Shape::Switch | Shape::OptionalText);
            if NOT_IN_A_FILE.contains(&name) || (arg.get_default_values().is_empty() && !is_off) {
                continue;
            }
            let key = name.rsplit('.').next().unwrap_or(name);
            assert!(default_file().contains(&format!("\n#{key} = {}\n", default_of(arg))), "{name}");
            let text = format!("{name} = {}", default_of(arg));
            if File::parse(String::new(), &text).unwrap().entries.iter().all(|entry| entry.needs.is_empty()) {
                all.push(text);
            }
        }
        assert!(all.len() > 6, "{all:?}");
        assert_eq!(of(with(&all.join("\n"), &[]).unwrap()), plain);
    }

    /// The agent's settings with a file and flags.
    fn with(text: &str, flags: &[&str]) -> anyhow::Result<AgentArgs> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tcptide.toml");
        fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        match command_line(&words(&[&["--config.file", file], flags].concat()))?.0.command {
            Command::Agent(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flag_has_a_key_and_none_is_in_the_way_of_another() {
        let agent = agent();
        let names: Vec<_> = agent.get_arguments().filter_map(Arg::get_long).collect();
        assert!(NOT_IN_A_FILE.iter().chain(NOT_IN_THE_ENVIRONMENT).all(|name| names.contains(name)));
        for name in &names {
            let inside = format!("{name}.");
            assert!(!names.iter().any(|other| other.starts_with(&inside)), "{name} is a value and a table");
        }
        let variables: BTreeSet<_> = names.iter().filter_map(|name| variable(name)).collect();
        assert_eq!(variables.len() + NOT_IN_THE_ENVIRONMENT.len(), names.len());
        assert!(variables.contains("TCPTIDE_WEB_LISTEN_ADDRESS"));
    }

    #[test]
    fn a_file_says_what_flags_do() {
        let args = with(
            "edges = true\ndns = true\nreconcile = true\nread-delay = false\nruntime-socket = ['/a', '/b']\n\
             web.listen-address = '[::1]:80'\n[metrics]\ngrace = '1m30s'\nmax-edges = 0x10\n",
            &[],
        )
        .unwrap();
        assert!(args.edges && args.dns && !args.read_delay);
        assert_eq!(args.reconcile, Some(Duration::from_secs(10)));
        assert_eq!(args.runtimes.sockets, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!((args.listen.to_string(), args.grace), ("[::1]:80".to_owned(), Duration::from_secs(90)));
        assert_eq!((args.max_edges, args.max_cgroups), (16, 4096));
        let args = with("reconcile = '1m'", &[]).unwrap();
        assert_eq!((args.reconcile, args.edges), (Some(Duration::from_mins(1)), false));
    }

    #[test]
    fn a_flag_comes_before_the_file() {
        let text = "metrics.grace = '1m'\nruntime-socket = ['/a', '/b']\nreconcile = '1m'";
        let flags = ["--metrics.grace", "2m", "--runtime-socket", "/c", "--reconcile"];
        let args = with(text, &flags).unwrap();
        assert_eq!((args.grace, args.reconcile), (Duration::from_mins(2), Some(Duration::from_secs(10))));
        assert_eq!(args.runtimes.sockets, [PathBuf::from("/c")]);
    }

    #[test]
    fn what_a_flag_needs_may_stand_in_the_file_and_the_other_way_round() {
        assert!(with("edges = true", &["--dns"]).unwrap().dns);
        assert_eq!(with("metrics.max-edges = 5", &["--edges"]).unwrap().max_edges, 5);
        let error = with("\nmetrics.max-edges = 5", &[]).unwrap_err().to_string();
        assert!(error.contains("tcptide.toml:2: metrics.max-edges needs edges"), "{error}");
        assert!(with("edges = false", &["--dns"]).unwrap_err().is::<clap::Error>());
    }

    #[test]
    fn what_changed_is_told_by_its_name() {
        let values = |text| with(text, &[]).unwrap().values;
        let mut old = values("metrics.grace = '1m'\nedges = true");
        let mut new = values("metrics.max-cgroups = 7\nedges = true");
        // Each has a file of its own.
        for values in [&mut old, &mut new] {
            assert!(values.remove("config.file").is_some());
        }
        assert_eq!(changed(&old, &new), ["metrics.grace", "metrics.max-cgroups"]);
        assert_eq!(changed(&old, &old), Vec::<String>::new());
    }

    #[test]
    fn errors_name_the_line_the_key_what_was_found_and_what_is_expected() {
        for (text, error) in [
            ("metrics.grce = '10m'", "1: there is no setting metrics.grce; did you mean metrics.grace?"),
            ("\ngrace = '10m'", "2: there is no setting grace; did you mean metrics.grace?"),
            ("xyzzy = 1", "1: there is no setting xyzzy; `tcptide agent --help` lists all"),
            ("[xyzzy]", "1: there is no setting xyzzy; `tcptide agent --help` lists all"),
            ("edges.x = 1", "1: there is no setting edges.x; did you mean edges?"),
            (
                "check-config = true",
                "1: check-config has no place in a file: it is a flag of the command line",
            ),
            ("config.file = 'x'", "1: config.file has no place in a file: it is a flag of the command line"),
            ("edges = 'yes'", "1: edges = \"yes\" is of the wrong type; expected: true or false"),
            ("node = 1.5", "1: node = 1.5 is of the wrong type; expected: a string (NAME)"),
            (
                "runtime-socket = '/a'",
                "1: runtime-socket = \"/a\" is of the wrong type; expected: an array of strings (PATH)",
            ),
            (
                "runtime-socket = [1]",
                "1: runtime-socket = [1] is of the wrong type; expected: an array of strings (PATH)",
            ),
            (
                "max-sockets = '1'",
                "1: max-sockets = \"1\" is of the wrong type; expected: a whole number, such as 262144",
            ),
            (
                "max-sockets = -1",
                "1: max-sockets = -1: -1 is not in 1..=16777216; expected: a whole number, such as 262144",
            ),
            (
                "[metrics]\n\n  grace = '5 parsecs'",
                "3: metrics.grace = \"5 parsecs\": not a time such as 500ms, 10s, 1m30s or 2h; expected: a string, such as \"5m\"",
            ),
            (
                "program-stats = 'smple'",
                "1: program-stats = \"smple\": not one of sample, always, never; expected: a string, such as \"sample\"",
            ),
            ("kubeconfig = ''", "1: kubeconfig = \"\": it is empty; expected: a string (FILE)"),
            (
                "reconcile = 3",
                "1: reconcile = 3 is of the wrong type; expected: true, false or a string (TIME)",
            ),
            ("edges = true\nedges = true", "2: this is no TOML: duplicate key"),
            ("edges", "1: this is no TOML: key with no value, expected `=`"),
        ] {
            assert_eq!(
                File::parse("f".to_owned(), text).unwrap_err().to_string(),
                format!("f:{error}"),
                "{text}"
            );
        }
        for text in ["web = 1", "[[web]]"] {
            let error = File::parse("f".to_owned(), text).unwrap_err().to_string();
            let expected = "f:1: web is a table and no setting; in it there are web.listen-address";
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = command_line(&words(&["--config.file", "/nonexistent/x.toml"])).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "cannot read the settings in /nonexistent/x.toml (--config.file): No such file or directory (os error 2)"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_text_is_too_much(text in "\\PC{0,40}", key in "[a-z.\\[\\]-]{0,12}", value in "[0-9a-z'\",{}\\[\\]\\\\.-]{0,12}") {
            let _ = File::parse(String::new(), &text);
            let _ = File::parse(String::new(), &format!("{key} = {value}"));
            let _ = File::parse(String::new(), &format!("metrics.grace = {value}\nruntime-socket = [{value}]"));
        }
    }
}
