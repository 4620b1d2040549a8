//! The command line: what can be asked, and how.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use model::{
    connection::Event,
    container::Container,
    filter::{CgroupRef, Filter, List, Pattern},
};

use crate::{agent::Limits, config::Values, output::format::Format};

/// Per-container TCP monitoring for Linux with eBPF.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Connections as they open, fail and close, with times and bytes
    Trace(TraceArgs),
    /// How long connections take to be established, one by one and as a distribution
    Connlat(ConnlatArgs),
    /// Distribution of round-trip times, by container, peer, port or edge
    Rtt(RttArgs),
    /// Live connections
    Conns(ConnsArgs),
    /// The live screen: containers with their rates, round-trip times and troubles, down to one connection
    Top(TopArgs),
    /// Who talks to whom: containers, their peers, and what goes between them
    Map(MapArgs),
    /// Sockets by container and TCP state
    States(StatesArgs),
    /// Listening sockets: how full their queues are, and what they turned away
    Listen(ListenArgs),
    /// What holds connections back: the network, the peer or the container itself, with the numbers that led there
    Explain(ExplainArgs),
    /// How every cgroup was identified, and from what
    Containers(ContainersArgs),
    /// The daemon: Prometheus metrics over HTTP
    Agent(AgentArgs),
    /// What this kernel and these privileges allow, program by program
    Doctor(DoctorArgs),
    /// A script for a shell that completes commands and options
    Completions {
        /// Whose
        shell: clap_complete::Shell,
    },
    /// Write manual pages, for packages
    #[command(hide = true)]
    Man {
        /// Where to
        folder: PathBuf,
    },
}

/// Which connections.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters (lists with commas; a leading ! excludes)")]
pub(crate) struct FilterArgs {
    #[command(flatten)]
    edge: EdgeFilterArgs,
    /// Processes by id
    #[arg(long, value_name = "PIDS")]
    pid: Option<List<u32>>,
}

impl FilterArgs {
    pub(crate) fn filter(&self) -> Filter {
        Filter { pid: self.pid.clone().unwrap_or_default(), ..self.edge.filter() }
    }
}

/// Which connections, by what edges are told by, too.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters (lists with commas; a leading ! excludes)")]
pub(crate) struct EdgeFilterArgs {
    #[command(flatten)]
    owner: OwnerFilterArgs,
    /// Ports of either end
    #[arg(long, value_name = "PORTS")]
    port: Option<List<u16>>,
    /// Addresses of the far end, as networks: 10.0.0.0/8,!10.1.0.0/16
    #[arg(long, value_name = "CIDRS")]
    peer: Option<List<ipnet::IpNet>>,
}

impl EdgeFilterArgs {
    pub(crate) fn filter(&self) -> Filter {
        Filter {
            port: self.port.clone().unwrap_or_default(),
            peer: self.peer.clone().unwrap_or_default(),
            ..self.owner.filter()
        }
    }
}

/// Which containers.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters (lists with commas; a leading ! excludes)")]
pub(crate) struct OwnerFilterArgs {
    /// Containers by name (with *), or by the beginning of their id
    #[arg(long, value_name = "NAMES", allow_hyphen_values = true)]
    container: Option<List<Pattern>>,
    /// Kubernetes pods by name (with *)
    #[arg(long, value_name = "NAMES")]
    pod: Option<List<Pattern>>,
    /// Kubernetes namespaces by name (with *)
    #[arg(long, value_name = "NAMES")]
    namespace: Option<List<Pattern>>,
    /// Cgroups by path, with all below it, or by id
    #[arg(long, value_name = "PATHS")]
    cgroup: Option<List<CgroupRef>>,
}

impl OwnerFilterArgs {
    pub(crate) fn filter(&self) -> Filter {
        let this = self.clone();
        Filter {
            container: this.container.unwrap_or_default(),
            pod: this.pod.unwrap_or_default(),
            namespace: this.namespace.unwrap_or_default(),
            cgroup: this.cgroup.unwrap_or_default(),
            ..Filter::default()
        }
    }
}

/// Which far ends.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters (lists with commas; a leading ! excludes)")]
pub(crate) struct PeerArgs {
    /// Containers at the far end, by name (with *), or by the beginning of their id: where that end is on this host
    #[arg(long, value_name = "NAMES", allow_hyphen_values = true)]
    peer_container: Option<List<Pattern>>,
}

impl PeerArgs {
    /// Whether a far end is asked for; `None` where it is not known whose it is.
    pub(crate) fn matches(&self, container: Option<&Container>) -> bool {
        let (name, id) = (container.map(|c| c.name.as_str()), container.and_then(|c| c.id.as_deref()));
        self.peer_container.as_ref().is_none_or(|list| list.matches(|pattern| pattern.is_of(name, id)))
    }

    /// Whether any is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.peer_container.is_none()
    }
}

/// The same for streams.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters (lists with commas; a leading ! excludes)")]
pub(crate) struct StreamPeerArgs {
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
    /// Tell whose the far ends are although there are filters or other --events: all connections of this host have to be
    /// followed then
    #[arg(long)]
    peers: bool,
    /// Take names of far ends from the DNS answers that containers get, too: a program looks at each packet of this host
    #[arg(long)]
    pub(crate) dns: bool,
}

impl StreamPeerArgs {
    /// Whether far ends are asked for by name, or at all.
    pub(crate) fn are_asked_for(&self) -> bool {
        self.peers || !self.peer.is_empty()
    }
}

/// How to print, and whom to ask for names.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// How to print; streams print one JSON object a line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) runtimes: RuntimeArgs,
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RuntimeArgs {
    /// Socket of a container runtime to ask for names, instead of the usual ones; may be repeated. Docker's and
    /// Podman's API, and CRI (containerd, CRI-O); one without the usual name is asked in both ways
    #[arg(long = "runtime-socket", value_name = "PATH")]
    pub(crate) sockets: Vec<PathBuf>,
    /// How to reach the Kubernetes API server, for what pods belong to and names in the cluster [default: the service
    /// account, in a pod that has one]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// What Kubernetes calls this node [default: NODE_NAME of the environment, else the host's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
}

/// Which agent to ask.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "A running agent")]
pub(crate) struct ConnectArgs {
    /// Ask the agent at this address instead of loading programs, such as http://127.0.0.1:9836: that needs no privileges
    #[arg(long, value_name = "URL")]
    connect: Option<String>,
    /// Certificates (PEM) of who signed the agent's, instead of those that this host trusts
    #[arg(long = "connect-ca", value_name = "FILE", requires = "connect")]
    connect_ca: Option<PathBuf>,
    /// Certificate (PEM, with those between it and its authority) for an agent that asks clients for theirs
    #[arg(long = "connect-cert", value_name = "FILE", requires_all = ["connect", "connect_key"])]
    connect_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long = "connect-key", value_name = "FILE", requires = "connect_cert")]
    connect_key: Option<PathBuf>,
}

impl RuntimeArgs {
    /// Whether sockets are named, here or in the environment, beside those that are usual.
    pub(crate) fn are_named(&self) -> bool {
        let variables = ["DOCKER_HOST", "CONTAINER_RUNTIME_ENDPOINT", "XDG_RUNTIME_DIR"];
        !self.sockets.is_empty() || variables.into_iter().any(|name| std::env::var_os(name).is_some())
    }
}

/// What the live screen shows first, and whence.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Look this often, such as 500ms, 2s
    #[arg(long, value_name = "TIME", default_value = "1s", allow_hyphen_values = true, value_parser = refresh)]
    pub(crate) interval: Duration,
    /// Sort the containers by this
    #[arg(long, value_enum, value_name = "COLUMN", default_value_t = TopColumn::Connections)]
    pub(crate) sort: TopColumn,
    /// Look twice, an interval apart, print what the screen would show, and end: for scripts
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) filter: OwnerFilterArgs,
    #[command(flatten)]
    pub(crate) runtimes: RuntimeArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// A column of the containers, in the order in which they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopColumn {
    /// The name
    Container,
    /// Live connections
    Connections,
    /// Bytes sent a second
    Out,
    /// Bytes received a second
    In,
    /// Median round-trip time
    P50,
    /// 99th percentile of round-trip times
    P99,
    /// The share of segments that were sent again
    Retransmits,
    /// Failed connects a second
    Failed,
    /// What holds it back
    Limit,
}

/// How long a stream runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct StreamArgs {
    /// End after this time, such as 10s, 500ms, 2m; without it, Ctrl-C ends it
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Room for events between two looks at them, MiB (a power of two)
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = buffer)]
    pub(crate) buffer: u32,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) events: EventArgs,
    /// Measure how long received data waits to be read, too (it costs something with every receive)
    #[arg(long = "read-delay")]
    pub(crate) read_delay: bool,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) peers: StreamPeerArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Which events.
#[derive(Debug, Clone, Args)]
pub(crate) struct EventArgs {
    /// Which events, a list: open,established,close,fail,retransmit,reset,drop,zero-window,state
    #[arg(long, value_name = "EVENTS", value_delimiter = ',', value_enum,
          default_values_t = [EventArg::Open, EventArg::Established, EventArg::Close, EventArg::Fail])]
    events: Vec<EventArg>,
}

impl EventArgs {
    /// A bit for each.
    pub(crate) fn bits(&self) -> u32 {
        self.events.iter().fold(0, |set, event| set | event.event().bit())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EventArg {
    Open,
    Established,
    Close,
    Fail,
    Retransmit,
    Reset,
    Drop,
    ZeroWindow,
    State,
}

impl EventArg {
    fn event(self) -> Event {
        match self {
            Self::Open => Event::Open,
            Self::Established => Event::Established,
            Self::Close => Event::Close,
            Self::Fail => Event::Fail,
            Self::Retransmit => Event::Retransmit,
            Self::Reset => Event::Reset,
            Self::Drop => Event::Drop,
            Self::ZeroWindow => Event::ZeroWindow,
            Self::State => Event::State,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConnlatArgs {
    /// Only connections that took at least this long, such as 10ms
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) min: Option<Duration>,
    /// Show the distribution this often, instead of each connection
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) interval: Option<Duration>,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) peers: StreamPeerArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What one distribution is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// The container
    Container,
    /// The far end's address
    Peer,
    /// The service's port: the far end's of a connection that this side began, else this side's
    Port,
    /// Container, direction, far end's address and service's port
    Edge,
}

#[derive(Debug, Args)]
pub(crate) struct RttArgs {
    /// What one distribution is about
    #[arg(long, value_enum, default_value_t = By::Container)]
    pub(crate) by: By,
    /// Show the distributions this often [default on a terminal: 2s]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) interval: Option<Duration>,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) peers: StreamPeerArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LookArgs {
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StatesArgs {
    #[command(flatten)]
    pub(crate) look: LookArgs,
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListenArgs {
    /// Watch for so long, such as 10s: how long connections wait for accept(), and what is turned away meanwhile
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConnsArgs {
    /// Listening sockets too
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) look: LookArgs,
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// Watch for so long, such as 10s: what is opened, fails and is carried meanwhile
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Ask a running agent with --edges what was counted in this time up to now, such as 10m [default for --connect:
    /// http://127.0.0.1:9836]
    #[arg(long, value_name = "TIME", conflicts_with = "duration", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) since: Option<Duration>,
    /// With --duration, take names from the DNS answers that containers get, too: a program looks at each packet of this host
    #[arg(long, requires = "duration")]
    pub(crate) dns: bool,
    /// Draw it instead, as text for Graphviz or Mermaid
    #[arg(long, value_enum, value_name = "LANGUAGE", conflicts_with = "output")]
    pub(crate) draw: Option<Drawing>,
    /// Show so many edges, those with the most connections; the others are added up as ~other
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_edges: u32,
    #[command(flatten)]
    pub(crate) look: LookArgs,
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
}

/// A language for graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Drawing {
    /// Graphviz: `tcptide map --draw dot | dot -Tsvg`
    Dot,
    /// Mermaid, as many pages of Markdown show it
    Mermaid,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// One connection, by its socket's cookie (`tcptide conns -o wide`)
    #[arg(value_name = "COOKIE")]
    pub(crate) connection: Option<u64>,
    /// How long to look, such as 10s
    #[arg(long, value_name = "TIME", default_value = "5s", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) duration: Duration,
    /// Show so many connections, those held back most first
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    pub(crate) top: usize,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ContainersArgs {
    /// Every cgroup, not only containers
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Compare what tcptide counts with the kernel's own counters, in every network namespace
    #[arg(long)]
    pub(crate) reconcile: bool,
    /// How long to count before comparing, such as 10s or 1m; Ctrl-C ends it earlier
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "reconcile", allow_hyphen_values = true,
          value_parser = duration)]
    pub(crate) duration: Duration,
    /// Room for events between two looks at them, MiB (a power of two)
    #[arg(long, value_name = "MIB", default_value_t = 64, requires = "reconcile", value_parser = buffer)]
    pub(crate) buffer: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Settings in TOML: keys are the names of these flags. A flag, then the environment, comes before the file
    #[arg(long = "config.file", value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// Check all settings, and end
    #[arg(long = "check-config")]
    pub(crate) check_config: bool,
    /// What each setting was given as
    #[arg(skip)]
    pub(crate) values: Values,
    /// Where to serve; `[::]:9836` is every address of this host
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = "127.0.0.1:9836")]
    pub(crate) listen: SocketAddr,
    /// TLS, users and headers, in the format of Prometheus' exporter-toolkit: docs/security.md tells more
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub(crate) web_config: Option<PathBuf>,
    /// Most HTTP connections at a time; one more is turned away
    #[arg(long = "web.max-connections", value_name = "NUMBER", default_value_t = 40,
          value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// How long a request may take to arrive, without its body, which nobody reads
    #[arg(long = "web.read-timeout", value_name = "TIME", default_value = "10s", allow_hyphen_values = true, value_parser = duration)]
    read_timeout: Duration,
    /// How long an answer may take, from the request to the last byte sent
    #[arg(long = "web.write-timeout", value_name = "TIME", default_value = "2m", allow_hyphen_values = true, value_parser = duration)]
    write_timeout: Duration,
    /// How long a connection may stay open with nothing asked
    #[arg(long = "web.idle-timeout", value_name = "TIME", default_value = "2m", allow_hyphen_values = true, value_parser = duration)]
    idle_timeout: Duration,
    /// How long the series of a removed container stay
    #[arg(long = "metrics.grace", value_name = "TIME", default_value = "5m", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) grace: Duration,
    /// Most cgroups with series of their own; the rest is ~other
    #[arg(long = "metrics.max-cgroups", value_name = "NUMBER", default_value_t = 4096,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_cgroups: u32,
    /// Most series of an answer, with --edges half of them for these. The most active containers and edges have their own; the
    /// rest is added up in ~other
    #[arg(long = "metrics.max-series", value_name = "NUMBER", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    pub(crate) max_series: u32,
    /// Only these containers have series of their own, by name (with *); the rest is ~other
    #[arg(long = "metrics.include-container", value_name = "NAMES")]
    pub(crate) include: Option<List<Pattern>>,
    /// These containers have none of their own, by name (with *): they are in ~other
    #[arg(long = "metrics.exclude-container", value_name = "NAMES")]
    pub(crate) exclude: Option<List<Pattern>>,
    /// A container that came after the start has series of its own when it was seen for so long; until then it is in ~other
    #[arg(long = "metrics.min-age", value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) min_age: Option<Duration>,
    /// Leave these labels out of edges and of tcptide_container_info; what differs in them alone is one
    #[arg(long = "metrics.drop-labels", value_name = "LABELS", value_delimiter = ',')]
    pub(crate) drop_labels: Vec<DroppedLabel>,
    /// Which histograms are told: native ones go where Prometheus asks for protobuf, classic ones into every format
    #[arg(long = "metrics.histograms", value_name = "KIND", default_value = "both")]
    pub(crate) histograms: Histograms,
    /// How fine the classic buckets are; native ones are as fine as is counted
    #[arg(long = "metrics.resolution", value_name = "STEP", default_value = "octave")]
    pub(crate) resolution: Resolution,
    /// Count by edge, too: who talks to whom. The beginning and the end of each connection is an event then, which costs
    #[arg(long)]
    pub(crate) edges: bool,
    /// Most edges with series of their own; the rest is each container's ~other
    #[arg(long = "metrics.max-edges", value_name = "NUMBER", default_value_t = 4096, requires = "edges",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_edges: u32,
    /// With --edges, take names from the DNS answers that containers get: a program looks at each packet of this host
    #[arg(long, requires = "edges")]
    pub(crate) dns: bool,
    /// How long to remember what each container counted every 5 s, for the web page, and with --edges who talked to whom, for
    /// `tcptide map --since`; 0 for no history of containers, which saves a look at all sockets every 5 s
    #[arg(long, value_name = "TIME", default_value = "1h", allow_hyphen_values = true, value_parser = duration_or_none)]
    pub(crate) history: Duration,
    /// Most network namespaces to read the kernel's own counters of
    #[arg(long = "metrics.max-namespaces", value_name = "NUMBER", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_namespaces: u32,
    /// Most sockets to follow at a time, each for half a KiB of the kernel's memory while it lives, and 16 bytes for the room;
    /// what finds none is counted, and in no other figure. No less than twice as many as there are at the start
    #[arg(long = "max-sockets", value_name = "NUMBER", default_value_t = probe::MAX_SOCKETS,
          value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub(crate) max_sockets: u32,
    /// Compare what tcptide counts with the kernel's own counters all the time, this often; every connection is an event
    /// then, which costs [default: 10s]
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "10s",
          value_parser = interval)]
    pub(crate) reconcile: Option<Duration>,
    /// Measure how long received data waits to be read, too (it costs something with every receive)
    #[arg(long = "read-delay")]
    pub(crate) read_delay: bool,
    /// When the kernel measures the run time of the BPF programs, which costs some 80 ns a run
    #[arg(long = "program-stats", value_name = "WHEN", default_value = "sample")]
    pub(crate) program_stats: ProgramStats,
    #[command(flatten)]
    pub(crate) runtimes: RuntimeArgs,
}

/// Which buckets histograms have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Histograms {
    /// Classic and native ones
    Both,
    /// Classic ones only
    Classic,
    /// Native ones only: in text, histograms have no more than their count and sum
    Native,
}

/// How far the bounds of classic buckets are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Resolution {
    /// A factor of 2
    Octave,
    /// A factor of the square root of 2, where it is counted so: twice as many buckets
    HalfOctave,
}

/// A label that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum DroppedLabel {
    /// Of edges: the name of the far end
    PeerName,
    /// Of edges: the server's port
    PeerPort,
    /// Of tcptide_container_info
    Id,
    /// Of tcptide_container_info
    Runtime,
    /// Of tcptide_container_info
    Image,
    /// Of tcptide_container_info
    CgroupId,
    /// Of tcptide_container_info
    CgroupPath,
}

impl AgentArgs {
    /// What the HTTP server may use.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections.into(),
            read: self.read_timeout,
            write: self.write_timeout,
            idle: self.idle_timeout,
        }
    }
}

/// When run times are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgramStats {
    /// For a quarter of a second in every ten seconds
    Sample,
    /// All the time
    Always,
    /// Not at all
    Never,
}

impl From<ProgramStats> for probe::Measure {
    fn from(when: ProgramStats) -> Self {
        match when {
            ProgramStats::Sample => Self::Sample,
            ProgramStats::Always => Self::Always,
            ProgramStats::Never => Self::Never,
        }
    }
}

/// `10s`, `1m30s`, `500ms`, or plain seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected = "a time such as 500ms, 10s, 1m30s or 2h";
    let parsed: jiff::SignedDuration = text
        .parse()
        .or_else(|_| text.parse::<u32>().map(|s| jiff::SignedDuration::from_secs(s.into())))
        .map_err(|_| format!("not {expected}"))?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(format!("must be more than nothing: {expected}")),
    }
}

/// A time, or none.
fn duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}

/// One in which there is something to compare.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_secs(1) { Err("must be a second at least".to_owned()) } else { Ok(interval) }
}

/// One that a person can follow, and the host afford.
fn refresh(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    let most = Duration::from_secs(3600);
    if (Duration::from_millis(100)..=most).contains(&interval) {
        Ok(interval)
    } else {
        Err("must be from 100ms to 1h".to_owned())
    }
}

fn buffer(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(mib) if mib.is_power_of_two() && mib <= 1024 => Ok(mib),
        _ => Err("must be a power of two from 1 to 1024".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::registry;

    #[test]
    fn the_command_line_is_consistent() {
        registry().debug_assert();
    }

    /// `docs/cli.md`.
    fn document() -> String {
        let mut page = String::from("# Commands\n\nGenerated from `crates/tcptide/src/args.rs`.\n");
        let mut cli = registry().term_width(100);
        cli.build();
        for command in cli.get_subcommands_mut().filter(|c| c.get_name() != "help" && !c.is_hide_set()) {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            page.extend(["\n## tcptide ", &name, "\n\n```text\n", &help, "```\n"]);
        }
        page.lines().map(str::trim_end).fold(String::new(), |page, line| page + line + "\n")
    }

    /// `make docs` writes it anew.
    #[test]
    fn the_document_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        if std::env::var_os("TCPTIDE_WRITE_DOCS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), document(), "run `make docs`");
    }

    #[test]
    fn durations() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        for bad in ["", "0", "0s", "-1s", "abc", "10 parsecs", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
