//! Query parameters are the commands' options: the same names with `_` for `-`, the same values, the same errors.

use std::time::Duration;

use clap::{
    CommandFactory, FromArgMatches, Parser,
    error::{ContextKind, ErrorKind},
};
use model::{container::nearest, metrics::METRICS};

use super::Refusal;
use crate::{
    answer::totals::Metrics,
    args::{EdgeFilterArgs, EventArgs, FilterArgs, OwnerFilterArgs, PeerArgs, duration},
};

/// The parameter that may stand without a value.
const FLAG: &str = "all";
/// The most connections or edges in an answer.
pub(super) const MOST: u32 = 100_000;

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct Nothing {}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct Connections {
    /// Listening sockets too
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    pub(super) all: bool,
    /// So many at most, those that have carried most
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    pub(super) limit: u32,
    /// Only the one whose socket has this cookie
    #[arg(long, value_name = "COOKIE", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) cookie: Option<u64>,
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    #[command(flatten)]
    pub(super) peer: PeerArgs,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct Watched {
    /// The cookie of its socket
    #[arg(long, value_name = "COOKIE", required = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) cookie: u64,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct States {
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    #[command(flatten)]
    pub(super) peer: PeerArgs,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct Listeners {
    #[command(flatten)]
    pub(super) filter: FilterArgs,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct Containers {
    /// Every cgroup, not only containers
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    pub(super) all: bool,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct Totals {
    /// Only these, a list of their names; without it, all
    #[arg(long, value_name = "METRICS", value_delimiter = ',', value_parser = metric)]
    pub(super) metrics: Vec<usize>,
    #[command(flatten)]
    pub(super) filter: OwnerFilterArgs,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct History {
    /// What was counted in this time, such as 10m, up to now
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub(super) since: Duration,
    /// Steps of so much time, such as 1m; without it, 120 of them at most, of 5 s at least
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) step: Option<Duration>,
    /// So many containers at most, those that sent and received most
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    pub(super) limit: u32,
    /// Only these, a list of their names; without it, all
    #[arg(long, value_name = "METRICS", value_delimiter = ',', value_parser = metric)]
    pub(super) metrics: Vec<usize>,
    #[command(flatten)]
    pub(super) filter: OwnerFilterArgs,
}

/// A metric of a container, by its name.
fn metric(name: &str) -> Result<usize, String> {
    Metrics::place(name).ok_or_else(|| {
        let meant = nearest(name, METRICS.iter().map(|metric| metric.name));
        let meant = meant.first().map_or(String::new(), |meant| format!("; did you mean {meant}?"));
        format!("there is no such metric of containers{meant}")
    })
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
#[allow(clippy::struct_field_names)] // as the parameter is called
pub(crate) struct Edges {
    /// What was counted in this time, such as 10m, up to now; without it, since the agent's start
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) since: Option<Duration>,
    /// So many at most, those with the most connections; the others are added up as ~other
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    pub(super) max_edges: u32,
    #[command(flatten)]
    pub(super) filter: EdgeFilterArgs,
    #[command(flatten)]
    pub(super) peer: PeerArgs,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
#[allow(clippy::struct_field_names)] // as the parameter is called
pub(crate) struct Events {
    #[command(flatten)]
    pub(super) events: EventArgs,
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    #[command(flatten)]
    pub(super) peer: PeerArgs,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct Live {
    /// What to ask again and again: an endpoint below /api/v1 with its parameters, such as /states?container=web; may be
    /// given up to 16 times
    #[arg(long, value_name = "QUESTION", required = true, num_args = 1)]
    pub(super) ask: Vec<String>,
    /// How long after the answers it is asked again, from 1s to 1h
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = interval)]
    pub(super) interval: Duration,
}

/// The most questions of a stream.
pub(super) const QUESTIONS: usize = 16;

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(3600);
    if range.contains(&interval) { Ok(interval) } else { Err("it has to be from 1s to 1h".to_owned()) }
}

/// Reads a query.
pub(super) fn parse<Q: Parser + CommandFactory + FromArgMatches>(query: Option<&str>) -> Result<Q, Refusal> {
    let command = Q::command();
    let name = |arg: &clap::Arg| Some(arg.get_long()?.replace('-', "_"));
    let names: Vec<String> = command.get_arguments().filter_map(name).collect();
    let mut args = Vec::new();
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if !names.iter().any(|known| *known == name) {
            return Err(unknown(&name, &names));
        }
        // `?all` is `?all=true`; what else has no value has an empty one.
        let value = if name == FLAG && value.is_empty() { "true".into() } else { value };
        args.push(format!("--{}={value}", name.replace('_', "-")));
    }
    Q::try_parse_from(args).map_err(|error| Refusal::wrong(explain(&error)))
}

fn unknown(name: &str, names: &[String]) -> Refusal {
    let said = format!("there is no parameter {name:?} here");
    Refusal::wrong(match nearest(name, names.iter().map(String::as_str)).first() {
        Some(meant) => format!("{said}; did you mean {meant}?"),
        None if names.is_empty() => format!("{said}, and no other"),
        None => format!("{said}; there are {}", names.join(", ")),
    })
}

/// `--port <PORTS>` is `port` here.
fn explain(error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string);
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let Some(argument) = context(ContextKind::InvalidArg) else { return first.to_owned() };
    let option = argument.split([' ', '=', '[']).next().unwrap_or_default();
    let name = option.trim_start_matches('-').replace('-', "_");
    if error.kind() == ErrorKind::MissingRequiredArgument {
        return format!("the parameter '{name}' is missing");
    }
    let said = first.replace(&argument, &name);
    match context(ContextKind::ValidValue) {
        Some(values) => format!("{said}: one of {values}"),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<Q: Parser>(query: &str) -> String {
        parse::<Q>(Some(query)).map_or_else(|refusal| refusal.text, |_| String::new())
    }

    #[test]
    fn a_query_is_read_as_options_are() {
        let query: Connections =
            parse(Some("all&limit=7&container=web*,!web-test&port=80&peer_container=a%20b")).unwrap();
        assert!(query.all);
        assert_eq!(query.limit, 7);
        assert_eq!(query.filter.filter().describe(), "container web*, but not web-test; port 80");
        let query: Connections = parse(Some("all=false")).unwrap();
        assert!(!query.all && query.filter.filter().is_empty());
        assert!(parse::<Connections>(None).is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        assert_eq!(
            said::<Connections>("contaner=a"),
            "there is no parameter \"contaner\" here; did you mean container?"
        );
        assert_eq!(said::<Nothing>("a=1"), "there is no parameter \"a\" here, and no other");
        let text = said::<Connections>("port=none");
        assert!(text.contains("'port'") && text.contains("none") && text.contains("80,443"), "{text}");
        let text = said::<Connections>("limit=0");
        assert!(text.contains("'limit'") && text.contains("1..=100000"), "{text}");
        for query in ["peer_container", "container=&namespace=", "limit="] {
            let text = said::<Connections>(query);
            let name = query.split(['=', '&']).next().unwrap();
            assert!(text.contains(name) && !text.contains("--"), "{text}");
        }
        let text = said::<Events>("events=opening");
        assert!(text.contains("open, established"), "{text}");
        assert_eq!(said::<Live>("interval=2s"), "the parameter 'ask' is missing");
        let text = said::<Live>("ask=/states&interval=999ms");
        assert!(text.contains("'interval'") && text.contains("from 1s to 1h"), "{text}");
        let text = said::<Connections>("port=1&port=2");
        assert!(text.contains("port"), "{text}");
    }
}
