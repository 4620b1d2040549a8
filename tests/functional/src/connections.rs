//! The connection objects that tcptide prints, read by the names of its documentation alone, and
//! the stories' way to them: `trace` around what happens in one network namespace.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::netns::Netns;
use crate::process::output;
use crate::tcptide::{Output, Streaming, Tcptide};

/// One connection, as an event or at a look. What was not measured is `None`.
#[derive(Clone, Debug, Deserialize)]
pub struct Connection {
    /// RFC 3339.
    pub time: String,
    /// `open`, `established`, `close`, `fail`, `retransmit`, `reset`.
    pub event: Option<String>,
    /// There before tcptide was.
    pub preexisting: bool,
    /// Whose it is.
    pub container: Container,
    /// The process behind it.
    pub process: Option<Process>,
    /// The network namespace's inode number.
    pub netns: u64,
    /// The socket's cookie.
    pub cookie: u64,
    /// `active` or `passive`.
    pub direction: Option<String>,
    /// In lower case with `_`: `established`, `syn_sent`, `fin_wait1`.
    pub state: String,
    /// This end.
    pub local: End,
    /// The far end.
    pub peer: End,
    /// RFC 3339.
    pub opened_at: Option<String>,
    /// Duration of the handshake, active side.
    pub connect_us: Option<u64>,
    /// From the SYN received to the completed handshake, passive side.
    pub handshake_us: Option<u64>,
    /// From then to `accept()`, passive side.
    pub accept_wait_us: Option<u64>,
    /// Whether it was no more than that.
    #[serde(default)]
    pub accept_wait_is_bound: bool,
    /// Nobody has accepted it yet.
    #[serde(default)]
    pub waits_for_accept: bool,
    /// From the last data sent to the next received, active side.
    pub response_us: Option<u64>,
    /// How long data waited to be read.
    pub read_delay: Option<ReadDelay>,
    /// Since the opening.
    pub duration_us: Option<u64>,
    /// Payload sent, each byte once.
    pub sent_bytes: u64,
    /// Payload acknowledged.
    pub acked_bytes: u64,
    /// Payload received.
    pub received_bytes: u64,
    /// Segments sent.
    pub segments_out: u64,
    /// Segments received.
    pub segments_in: u64,
    /// Segments sent again.
    pub retransmits: Retransmits,
    /// Round-trip time.
    pub rtt: Option<Rtt>,
    /// Congestion window, segments.
    pub cwnd: u64,
    /// Slow start threshold, segments.
    pub ssthresh: Option<u64>,
    /// Bytes per second that the path last delivered.
    pub delivery_rate: Option<u64>,
    /// Bytes per second that the kernel paces by.
    pub pacing_rate: Option<u64>,
    /// Reordering that the connection reckons with, segments.
    pub reordering: u64,
    /// What became of segments on their way.
    pub path: Path,
    /// Time with data to send.
    pub limited_us: Limited,
    /// Times that a receive window was seen closed; 0 where nobody watched.
    #[serde(default)]
    pub zero_windows: ZeroWindows,
    /// What lies in buffers; a listener has none.
    pub buffered: Option<Buffered>,
    /// Congestion states other than open.
    pub congestion_states: Option<CongestionStates>,
    /// Both ends agreed on ECN.
    pub ecn: bool,
    /// What became of Fast Open.
    pub fast_open: Option<String>,
    /// The MPTCP connection that this is a subflow of.
    pub mptcp_token: Option<String>,
    /// What a retransmit or a reset was.
    pub kind: Option<String>,
    /// How it ended.
    pub close: Option<Close>,
    /// What it had carried before tcptide was there.
    pub before: Option<Before>,
    /// A listener's queues.
    pub queues: Option<Queues>,
}

/// The owner of a connection.
#[derive(Clone, Debug, Deserialize)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The cgroup's id.
    pub cgroup_id: Option<u64>,
    /// The cgroup's path.
    pub cgroup_path: Option<String>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command name.
    pub comm: String,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Its port, if it had one by then.
    pub port: Option<u16>,
}

/// Segments sent again, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Retransmits {
    /// All of them.
    pub total: u64,
    /// After the retransmission timer.
    pub rto: u64,
    /// Tail loss probes.
    pub tlp: u64,
    /// In recovery.
    pub fast: u64,
    /// SYNs.
    pub syn: u64,
    /// SYN-ACKs.
    pub synack: u64,
    /// Those that the kernel counted and told nothing of; absent where there is none.
    #[serde(default)]
    pub other: u64,
}

impl Retransmits {
    /// The kinds together.
    pub fn of_all_kinds(&self) -> u64 {
        self.rto + self.tlp + self.fast + self.syn + self.synack + self.other
    }
}

/// Round-trip time.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Rtt {
    /// Smoothed.
    pub srtt_us: u64,
    /// Minimum.
    pub min_us: Option<u64>,
    /// Of the handshake.
    pub handshake_us: Option<u64>,
    /// Smoothed less minimum.
    pub queueing_us: Option<u64>,
}

/// What became of segments on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Path {
    /// Held for lost by the sender.
    pub lost: u64,
    /// Arrived more than once, as the peer said.
    pub duplicates: u64,
    /// Times that segments were found to arrive in another order.
    pub reorderings: u64,
    /// Delivered with a congestion mark; only with ECN.
    pub ce_marked: Option<u64>,
}

/// Time with data to send, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Limited {
    /// All of it, with what follows.
    pub busy: u64,
    /// Waiting for the peer's window.
    pub rwnd: u64,
    /// Waiting for room in the own send buffer.
    pub sndbuf: u64,
}

/// Times that a receive window was seen closed, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ZeroWindows {
    /// The peer's.
    pub peer: u64,
    /// In microseconds.
    pub peer_us: u64,
    /// The own.
    pub own: u64,
    /// In microseconds.
    pub own_us: u64,
}

impl ZeroWindows {
    /// How often: the peer's, the own.
    pub fn times(&self) -> (u64, u64) {
        (self.peer, self.own)
    }
}

/// A congestion state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct CongestionState {
    /// Times that it was entered.
    pub entered: u64,
    /// Time in it, in microseconds.
    pub us: u64,
}

/// Congestion states other than open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct CongestionStates {
    /// Out of order, or missing.
    pub disorder: CongestionState,
    /// A congestion mark, or a local queue.
    pub cwr: CongestionState,
    /// Losses are mended.
    pub recovery: CongestionState,
    /// The timer has expired.
    pub loss: CongestionState,
}

impl CongestionStates {
    /// Each with its name.
    pub fn by_name(&self) -> [(&'static str, CongestionState); 4] {
        [("disorder", self.disorder), ("cwr", self.cwr), ("recovery", self.recovery), ("loss", self.loss)]
    }
}

/// Received data that was read later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ReadDelay {
    /// How often there was something to read after nothing had been.
    pub times: u64,
    /// From these to the next read, added up, in microseconds.
    pub total_us: u64,
}

/// Bytes in buffers, and those that the receivers would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Buffered {
    /// Received, not read.
    pub unread: u64,
    /// Written, not sent.
    pub unsent: u64,
    /// The peer's window.
    pub send_window: u64,
    /// The own window.
    pub receive_window: u64,
}

/// A listener's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Queues {
    /// Established, not accepted.
    pub accept: u64,
    /// How many of these there may be.
    pub limit: u64,
    /// Half-open.
    pub syn: u64,
    /// SYNs and completed handshakes turned away.
    pub drops: u64,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Close {
    /// Why.
    pub reason: String,
    /// The socket's error.
    pub errno: Option<u64>,
}

/// What a connection had carried when it was adopted.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Before {
    /// Payload sent, each byte once.
    pub sent_bytes: u64,
    /// Payload acknowledged.
    pub acked_bytes: u64,
    /// Payload received.
    pub received_bytes: u64,
}

impl Connection {
    /// Whether this is that event.
    pub fn is(&self, event: &str) -> bool {
        self.event.as_deref() == Some(event)
    }

    /// `active`, `passive`, or nothing.
    pub fn direction(&self) -> &str {
        self.direction.as_deref().unwrap_or_default()
    }

    /// Why it ended, or nothing.
    pub fn reason(&self) -> &str {
        self.close.as_ref().map_or("", |close| &close.reason)
    }

    /// The owner's cgroup path, or nothing.
    pub fn cgroup(&self) -> &str {
        self.container.cgroup_path.as_deref().unwrap_or_default()
    }

    /// Sent and received bytes.
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent_bytes, self.received_bytes)
    }

    /// Whether this end has that address and port.
    pub fn is_at(&self, local: SocketAddr) -> bool {
        self.local == End { address: local.ip(), port: Some(local.port()) }
    }
}

/// Connections in the order they were told.
#[derive(Clone, Debug, Default)]
pub struct Connections(pub Vec<Connection>);

impl Connections {
    /// Those in one network namespace, out of a stream's lines.
    pub fn of_stream(netns: &Netns, lines: &[String]) -> Result<Self> {
        // Only what is of the namespace: the machine may do much else meanwhile.
        let netns = inode(netns)?;
        let mark = format!("\"netns\":{netns},");
        let parse = |line: &String| serde_json::from_str(line).with_context(|| format!("no event: {line}"));
        Ok(Self(lines.iter().filter(|line| line.contains(&mark)).map(parse).collect::<Result<_>>()?))
    }

    /// What `tcptide conns -o json` with these arguments says of one network namespace.
    pub fn now(netns: &Netns, args: &[&str]) -> Result<Self> {
        let all = Self::everywhere(args)?;
        let netns = inode(netns)?;
        Ok(all.only(|connection| connection.netns == netns))
    }

    /// What `tcptide conns -o json` with these arguments says.
    pub fn everywhere(args: &[&str]) -> Result<Self> {
        Self::told_by("conns", args)
    }

    /// What `tcptide listen -o json` with these arguments says of one network namespace.
    pub fn listeners(netns: &Netns, args: &[&str]) -> Result<Self> {
        let all = Self::told_by("listen", args)?;
        let netns = inode(netns)?;
        Ok(all.only(|connection| connection.netns == netns))
    }

    fn told_by(command: &str, args: &[&str]) -> Result<Self> {
        let args = [&[command, "-o", "json"], args].concat();
        let json = Tcptide::find()?.run(args)?.success()?.json()?;
        Ok(Self(serde_json::from_value(json)?))
    }

    /// Those for which `wanted` holds.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&Connection) -> bool) -> Self {
        Self(self.0.iter().filter(|connection| wanted(connection)).cloned().collect())
    }

    /// All that is told of this event.
    #[must_use]
    pub fn events(&self, event: &str) -> Self {
        self.only(|connection| connection.is(event))
    }

    /// All that is told of the socket with this local address.
    #[must_use]
    pub fn at(&self, local: SocketAddr) -> Self {
        self.only(|connection| connection.is_at(local))
    }

    /// The names of the events, in order.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|connection| connection.event.as_deref().unwrap_or_default()).collect()
    }

    /// Why they ended, in order.
    pub fn reasons(&self) -> Vec<&str> {
        self.0.iter().map(Connection::reason).collect()
    }

    /// The only one. An error shows what there is instead.
    pub fn one(&self) -> Result<&Connection> {
        match self.0.as_slice() {
            [one] => Ok(one),
            others => bail!("not one connection but {}: {others:#?}", others.len()),
        }
    }
}

/// `tcptide trace -o json` at work, of which a story looks at one network namespace.
#[derive(Debug)]
pub struct Trace<'a> {
    netns: &'a Netns,
    streaming: Streaming,
}

impl<'a> Trace<'a> {
    /// Starts it, with more arguments, and waits until nothing is missed any more.
    pub fn start(netns: &'a Netns, args: &[&str]) -> Result<Self> {
        let streaming = Tcptide::find()?.spawn([&["trace", "-o", "json"], args].concat())?;
        streaming.wait_ready()?;
        Ok(Self { netns, streaming })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.streaming.pid()
    }

    /// What was told so far.
    pub fn so_far(&self) -> Result<Connections> {
        Connections::of_stream(self.netns, &self.streaming.stdout())
    }

    /// Waits until the namespace has `count` of this event.
    pub fn wait_for(&self, event: &str, count: usize) -> Result<()> {
        let mark = format!("\"netns\":{},", inode(self.netns)?);
        let event = format!("\"event\":\"{event}\"");
        let mut seen = 0;
        let is_last = |line: &str| {
            seen += usize::from(line.contains(&mark) && line.contains(&event));
            seen == count
        };
        self.streaming.wait_for_line(Duration::from_secs(20), is_last).map(drop).with_context(|| {
            format!("waiting for {count} times {event}; so far {:?}", self.so_far().map(|all| all.0))
        })
    }

    /// Ends it as Ctrl-C does, and returns what was told.
    pub fn end(self) -> Result<Connections> {
        let netns = self.netns;
        Connections::of_stream(netns, &self.output()?.stdout)
    }

    /// Ends it as Ctrl-C does, and returns all of its output.
    pub fn output(self) -> Result<Output> {
        self.streaming.interrupt()?.success()
    }

    /// Lines of stderr so far.
    pub fn stderr(&self) -> Vec<String> {
        self.streaming.stderr()
    }
}

/// The namespace's inode number, as `ls -i` shows it.
pub fn inode(netns: &Netns) -> Result<u64> {
    Ok(std::fs::metadata(netns.path())?.ino())
}

/// The cgroup of this process.
pub fn own_cgroup() -> Result<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(str::to_owned).context("this process is in no cgroup of version 2")
}

/// What `date` makes of a time as tcptide writes it.
pub fn time(text: &str) -> Result<SystemTime> {
    let ns = output(std::process::Command::new("date").args(["-u", "+%s%N", "-d", text]))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(ns.parse()?))
}
