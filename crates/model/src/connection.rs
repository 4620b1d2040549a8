//! One connection as people and programs meet it: the object that every command and the API print.
//!
//! What was not measured is absent. `_us` numbers are whole microseconds, times RFC 3339 in UTC.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    container::Container,
    drop,
    filter::Subject,
    histogram::{Histogram, Scale},
    record::{self, congestion, direction, event, fast_open, limit, reason, retransmit, window},
};

/// What the kernel's monotonic clock showed at a known time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The time.
    pub at: Timestamp,
    /// `CLOCK_MONOTONIC` at that time, ns.
    pub monotonic_ns: u64,
}

impl Clock {
    /// The time at which the monotonic clock showed this.
    pub fn time(&self, monotonic_ns: u64) -> Timestamp {
        let offset = i128::from(monotonic_ns) - i128::from(self.monotonic_ns);
        Timestamp::from_nanosecond(self.at.as_nanosecond() + offset).unwrap_or(self.at)
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first SYN was sent, or a passive connection came out of its listener.
    Open,
    /// The handshake is complete.
    Established,
    /// An established connection ended.
    Close,
    /// A connect ended without being established.
    Fail,
    /// A segment was sent again.
    Retransmit,
    /// A RST was sent or received.
    Reset,
    /// The kernel dropped a packet of the connection.
    Drop,
    /// A receive window was seen closed.
    ZeroWindow,
    /// It is in another state, which none of the others stands for: on its way to its end.
    State,
}

impl Event {
    /// All of them, in the order of [`record::event`].
    pub const ALL: [Self; event::EVENTS] = [
        Self::Open,
        Self::Established,
        Self::Close,
        Self::Fail,
        Self::Retransmit,
        Self::Reset,
        Self::Drop,
        Self::ZeroWindow,
        Self::State,
    ];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Established => "established",
            Self::Close => "close",
            Self::Fail => "fail",
            Self::Retransmit => "retransmit",
            Self::Reset => "reset",
            Self::Drop => "drop",
            Self::ZeroWindow => "zero_window",
            Self::State => "state",
        }
    }

    /// Its bit in a set of events.
    pub fn bit(self) -> u32 {
        1 << (self as u32)
    }
}

/// Who began the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// This side called `connect()`.
    Active,
    /// The peer did.
    Passive,
}

impl Direction {
    /// By the number in a record, [`record::direction`].
    pub fn of(number: u8) -> Option<Self> {
        match usize::from(number) {
            direction::DIRECTION_ACTIVE => Some(Self::Active),
            direction::DIRECTION_PASSIVE => Some(Self::Passive),
            _ => None,
        }
    }

    /// As the far end sees it.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Active => Self::Passive,
            Self::Passive => Self::Active,
        }
    }

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
        }
    }
}

/// The names of TCP states by the kernel's numbers (`include/net/tcp_states.h`); `None`: no state, or none that a socket
/// with an owner can be in.
pub const STATE_NAMES: [Option<&str>; record::STATES] = [
    None,
    Some("established"),
    Some("syn_sent"),
    Some("syn_recv"),
    Some("fin_wait1"),
    Some("fin_wait2"),
    Some("time_wait"),
    Some("close"),
    Some("close_wait"),
    Some("last_ack"),
    Some("listen"),
    Some("closing"),
    None,
];

/// The states that resets have, by the same numbers: 0 is for no socket.
pub const RESET_STATE_NAMES: [&str; record::STATES] = {
    let mut names = ["none"; record::STATES];
    let mut i = 1;
    while i < names.len() {
        names[i] = match STATE_NAMES[i] {
            Some(name) => name,
            None => "half_open",
        };
        i += 1;
    }
    names
};

/// `TCP_INFINITE_SSTHRESH`.
const NO_SSTHRESH: u32 = 0x7fff_ffff;

/// The kernel's number of the LISTEN state.
pub const LISTEN: u8 = 10;

/// Why connections end, by [`record::reason`].
pub const REASON_NAMES: [&str; reason::REASONS] = [
    "normal",
    "reset_sent",
    "reset_received",
    "timeout",
    "refused",
    "unreachable",
    "canceled",
    "address_unavailable",
    "error",
    "orphaned",
];

/// Kinds of retransmission, by [`record::retransmit`].
pub const RETRANSMIT_NAMES: [&str; retransmit::RETRANSMITS] =
    ["rto", "tlp", "fast", "syn", "synack", "other"];

/// What became of TCP Fast Open, by [`record::fast_open`]; `None`: it was not tried.
pub const FAST_OPEN_NAMES: [Option<&str>; fast_open::FAST_OPENS] =
    [None, Some("used"), Some("no_cookie"), Some("not_taken"), Some("syn_lost")];

/// Whose resets and closed windows there are.
const SIDE_NAMES: [&str; 4] = ["sent", "received", "peer", "own"];

/// Congestion avoidance states, by `enum tcp_ca_state`.
const CA_STATE_NAMES: [&str; 5] = ["open", "disorder", "cwr", "recovery", "loss"];

/// One of the words in this file's tables and in [`drop::NAMES`].
pub type Word = &'static str;

/// What is no such word, as of a newer version.
const UNKNOWN: Word = "unknown";

fn known(text: &str) -> Word {
    let states = STATE_NAMES.iter().chain(&FAST_OPEN_NAMES).copied().flatten();
    let names = [&REASON_NAMES[..], &RETRANSMIT_NAMES, &CA_STATE_NAMES, &drop::NAMES, &SIDE_NAMES];
    states.chain(names.into_iter().flatten().copied()).find(|word| *word == text).unwrap_or(UNKNOWN)
}

fn word<'de, D: Deserializer<'de>>(from: D) -> Result<Word, D::Error> {
    Ok(known(&String::deserialize(from)?))
}

fn word_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Word>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.as_deref().map(known))
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its id in the host's namespace.
    pub pid: u32,
    /// Its command name, 15 bytes at most.
    pub comm: String,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// IPv4 inside IPv6 is IPv4.
    pub address: IpAddr,
    /// Absent before the kernel has chosen one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What the address is called; of the far end only, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whose it is; of the far end only, where its socket is on this host and was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Arc<Container>>,
}

/// Segments sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retransmits {
    /// All: `tcp_sock.total_retrans`.
    pub total: u32,
    /// After the retransmission timer.
    pub rto: u32,
    /// Tail loss probes.
    pub tlp: u32,
    /// In recovery.
    pub fast: u32,
    /// SYNs.
    pub syn: u32,
    /// SYN-ACKs.
    pub synack: u32,
    /// Those that the kernel counted and told nothing of; rare, and absent where there is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub other: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_false(b: &bool) -> bool {
    !*b
}

/// Round-trip time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rtt {
    /// Smoothed: `tcp_sock.srtt_us` / 8.
    pub srtt_us: u32,
    /// Windowed minimum: `tcp_sock.rtt_min`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_us: Option<u32>,
    /// Mean deviation: `tcp_sock.mdev_us` / 4.
    pub var_us: u32,
    /// Of the segment that was acknowledged last: `tcp_sock.rack.rtt_us`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_us: Option<u32>,
    /// Of the handshake, where it was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<u32>,
    /// How long segments wait on their way: `srtt_us` less `min_us`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queueing_us: Option<u32>,
}

/// Time with data to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limited {
    /// All of it, us: what the next two have is part of it, as in `ss -i`.
    pub busy: u64,
    /// Waiting for the peer's receive window, us.
    pub rwnd: u64,
    /// Waiting for room in the own send buffer, us: the application wrote less than the path would take.
    pub sndbuf: u64,
}

/// What became of segments on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Path {
    /// Segments that the sender held for lost: `tcp_sock.lost`.
    pub lost: u32,
    /// Segments that arrived more than once, as the peer said: `tcp_sock.dsack_dups`. Sent again without need.
    pub duplicates: u32,
    /// Times that segments were found to arrive in another order: `tcp_sock.reord_seen`.
    pub reorderings: u32,
    /// Segments delivered with a congestion mark: `tcp_sock.delivered_ce`; only with ECN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ce_marked: Option<u32>,
}

/// Times that a receive window was seen closed, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ZeroWindows {
    /// The peer's: it does not read what it is sent. 65535: as often or more often.
    pub peer: u32,
    /// Time that it was closed, us, to a tick of the kernel's clock; 4294967295: as long or longer.
    pub peer_us: u32,
    /// The own: this side's application does not read. Seen when a segment arrives meanwhile, or at a look.
    pub own: u32,
    /// Time that it was closed, as above.
    pub own_us: u32,
}

/// A congestion avoidance state's share of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CongestionState {
    /// Times that it was entered; 65535: as often or more often.
    pub entered: u32,
    /// Time in it, us, up to when it was left last; 4294967295: as long or longer.
    pub us: u32,
}

/// Congestion avoidance states other than open: `tcp_cong_state_set`, since Linux 5.19.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CongestionStates {
    /// Something arrived out of order, or is missing.
    pub disorder: CongestionState,
    /// The window is made smaller, for a congestion mark or a local queue.
    pub cwr: CongestionState,
    /// What was lost is sent again.
    pub recovery: CongestionState,
    /// The retransmission timer has expired.
    pub loss: CongestionState,
}

/// How long received data waited until the application read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadDelay {
    /// Times that there was something to read after nothing had been.
    pub times: u32,
    /// From each of these to the next read, us, added up.
    pub total_us: u64,
}

/// What lies in buffers, and how much the receivers would take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Buffered {
    /// Received and not read by the application, bytes: `tcp_sock.rcv_nxt - copied_seq`.
    pub unread: u32,
    /// Written by the application and not sent yet, bytes: `tcp_sock.write_seq - snd_nxt`.
    pub unsent: u32,
    /// What the peer would take beyond what it acknowledged, bytes: `tcp_sock.snd_wnd`.
    pub send_window: u32,
    /// What this side has told the peer that it would take, bytes: `tcp_sock.rcv_wnd`.
    pub receive_window: u32,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Close {
    /// One of [`REASON_NAMES`].
    #[serde(deserialize_with = "word")]
    pub reason: Word,
    /// The state it was in, one of [`STATE_NAMES`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "word_or_none")]
    pub state: Option<Word>,
    /// The socket's error, as in errno(3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<u16>,
}

/// What a connection had carried when it was adopted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Before {
    /// Payload bytes sent, each once.
    pub sent_bytes: u64,
    /// Payload bytes acknowledged.
    pub acked_bytes: u64,
    /// Payload bytes received in order.
    pub received_bytes: u64,
    /// Segments sent.
    pub segments_out: u32,
    /// Segments received.
    pub segments_in: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Segments that the sender held for lost.
    pub lost: u32,
    /// Segments that arrived more than once.
    pub duplicates: u32,
    /// Times that segments were found to arrive in another order.
    pub reorderings: u32,
}

/// One connection at one moment.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Connection {
    /// When this was so.
    pub time: Timestamp,
    /// What happened; absent where nothing did and somebody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
    /// Whether it was there before the monitor: counters run from the adoption, and when it opened is not known.
    pub preexisting: bool,
    /// Whose it is.
    pub container: Arc<Container>,
    /// The process that connected or that was seen to use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Inode number of its network namespace.
    pub netns: u32,
    /// The socket's cookie, as `ss -e` shows it in hexadecimal.
    pub cookie: u64,
    /// Who began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// TCP state, one of [`STATE_NAMES`].
    #[serde(deserialize_with = "word")]
    pub state: Word,
    /// This end.
    pub local: Endpoint,
    /// The far end.
    pub peer: Endpoint,
    /// When the first SYN was sent, or the passive connection came into being.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_at: Option<Timestamp>,
    /// From the first SYN to the completed handshake; active side only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    /// From the SYN received to the completed handshake; passive side only. After a SYN cookie it may be too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<u32>,
    /// From the completed handshake to `accept()`; passive side only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_wait_us: Option<u32>,
    /// Whether it was no more than that: the kernel takes no program at `accept()`, and so it is the time until the
    /// connection was first seen in use.
    #[serde(default, skip_serializing_if = "is_false")]
    pub accept_wait_is_bound: bool,
    /// Whether it still waits for that.
    #[serde(default, skip_serializing_if = "is_false")]
    pub waits_for_accept: bool,
    /// From the completed handshake to the first payload received. Absent before that, and where the payload came with
    /// the handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u32>,
    /// From the last data sent to the next data received, the latest of these times: an answer, as far as TCP can tell.
    /// Active side only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_us: Option<u32>,
    /// How long received data waited to be read; absent where that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_delay: Option<ReadDelay>,
    /// From the opening to the end, or to now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Payload bytes sent, each once.
    pub sent_bytes: u64,
    /// Payload bytes that the peer acknowledged.
    pub acked_bytes: u64,
    /// Payload bytes received in order.
    pub received_bytes: u64,
    /// Segments sent, empty and repeated ones too.
    pub segments_out: u32,
    /// Segments received.
    pub segments_in: u32,
    /// Segments sent again.
    pub retransmits: Retransmits,
    /// Round-trip time; absent before the first sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt: Option<Rtt>,
    /// Congestion window, segments.
    pub cwnd: u32,
    /// Slow start threshold, segments; absent before the first loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssthresh: Option<u32>,
    /// The path's rate as last measured, bytes per second: `tcp_sock.rate_delivered`, `rate_interval_us`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_rate: Option<u64>,
    /// The rate that the kernel reckons with for pacing, bytes per second: `sock.sk_pacing_rate`; absent where there is
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pacing_rate: Option<u64>,
    /// Segment size for sending, bytes.
    pub mss: u32,
    /// Congestion control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// Congestion avoidance state.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "word_or_none")]
    pub ca_state: Option<Word>,
    /// The states other than open; absent before Linux 5.19, and where only a single look was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion_states: Option<CongestionStates>,
    /// Reordering that the connection reckons with, segments.
    pub reordering: u32,
    /// What became of segments on their way.
    pub path: Path,
    /// Time with data to send, and what it waited for: `tcp_sock.chrono_stat`.
    pub limited_us: Limited,
    /// Times that a receive window was seen closed; absent where only a single look, or the making of connections alone, was
    /// asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_windows: Option<ZeroWindows>,
    /// What lies in buffers; absent for a listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffered: Option<Buffered>,
    /// Packets that the socket has turned away since it was made, most often what it had already: `sock.sk_drops`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_packets: Option<u32>,
    /// Whether both ends agreed on ECN.
    pub ecn: bool,
    /// What became of TCP Fast Open, one of [`FAST_OPEN_NAMES`]; absent where it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "word_or_none")]
    pub fast_open: Option<Word>,
    /// Which MPTCP connection this is a subflow of: the token that `ss -M -i` shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mptcp_token: Option<String>,
    /// What a retransmit ([`RETRANSMIT_NAMES`]), a reset (`sent`, `received`), a drop ([`drop::NAMES`]) or a closed
    /// window (`peer`, `own`) was; of a state, the one before.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "word_or_none")]
    pub kind: Option<Word>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close: Option<Close>,
    /// What it had carried before it was adopted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// A listener's queues: connections that wait for `accept()`, and half-open ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<Queues>,
}

/// A listener's queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Queues {
    /// Established, not accepted: `sock.sk_ack_backlog`.
    pub accept: u32,
    /// How many there may be: `sock.sk_max_ack_backlog`. One more is let in.
    pub limit: u32,
    /// Half-open: `request_sock_queue.qlen`.
    pub syn: u32,
    /// Packets turned away since it listens: `sock.sk_drops`. SYNs, last segments of handshakes (each may count twice), and
    /// SYNs that came again: more than `ListenDrops` of the kernel's own.
    pub drops: u32,
    /// Times that the accept queue was full when somebody came, SYNs and last segments of handshakes, since the opening or
    /// the adoption. Absent where the kernel takes no such program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overflows: Option<u32>,
}

impl Connection {
    /// What a record means. `container` is the owner that belongs to the record's cgroup. A record that is no event
    /// is a row of a walk.
    pub fn new(r: &record::Connection, clock: &Clock, container: Arc<Container>, is_event: bool) -> Self {
        let flag = |flag: u8| r.flags & flag != 0;
        let event = if is_event { Event::ALL.get(usize::from(r.event)).copied() } else { None };
        let preexisting = flag(record::FLAG_PREEXISTING);
        let [rto, tlp, fast, syn, synack, other] = r.retransmits_by_kind;
        Self {
            time: clock.time(r.time_ns),
            event,
            preexisting,
            container,
            process: (r.pid != 0).then(|| Process { pid: r.pid, comm: text(&r.comm) }),
            netns: r.netns,
            cookie: r.cookie,
            direction: Direction::of(r.direction),
            state: STATE_NAMES.get(usize::from(r.state)).copied().flatten().unwrap_or(UNKNOWN),
            local: local(r),
            peer: peer(r),
            opened_at: (r.opened_ns != 0).then(|| clock.time(r.opened_ns)),
            connect_us: connect_us(r),
            handshake_us: (r.handshake_us != 0).then_some(r.handshake_us),
            accept_wait_us: (r.accept_wait_us != 0).then_some(r.accept_wait_us),
            accept_wait_is_bound: r.accept_wait_us != 0 && flag(record::FLAG_ACCEPT_BOUND),
            waits_for_accept: waits_for_accept(r),
            first_byte_us: (r.first_byte_us != 0).then_some(r.first_byte_us),
            response_us: (r.response_us != 0).then_some(r.response_us),
            read_delay: is_seen(r.reads).then_some(ReadDelay { times: r.reads, total_us: r.read_delay_us }),
            duration_us: (r.opened_ns != 0).then(|| r.time_ns.saturating_sub(r.opened_ns) / 1000),
            sent_bytes: r.since.sent_bytes,
            acked_bytes: r.since.acked_bytes,
            received_bytes: r.since.received_bytes,
            segments_out: r.since.segments_out,
            segments_in: r.since.segments_in,
            retransmits: Retransmits { total: r.since.retransmits, rto, tlp, fast, syn, synack, other },
            rtt: rtt(r),
            cwnd: r.cwnd,
            ssthresh: (r.ssthresh < NO_SSTHRESH).then_some(r.ssthresh),
            delivery_rate: (r.delivery_rate != 0).then_some(r.delivery_rate),
            pacing_rate: (r.pacing_rate != 0 && r.pacing_rate != u64::MAX).then_some(r.pacing_rate),
            mss: r.mss,
            congestion: Some(text(&r.congestion)).filter(|name| !name.is_empty()),
            ca_state: CA_STATE_NAMES.get(usize::from(r.ca_state)).copied(),
            congestion_states: congestion_states(r),
            reordering: r.reordering,
            path: Path {
                lost: r.since.lost,
                duplicates: r.since.duplicates,
                reorderings: r.since.reorderings,
                ce_marked: (r.ecn != 0).then_some(r.since.ce_marked),
            },
            limited_us: Limited {
                busy: r.limited_us.iter().fold(0, |sum, us| sum.saturating_add(*us)),
                rwnd: r.limited_us[limit::LIMIT_RWND],
                sndbuf: r.limited_us[limit::LIMIT_SNDBUF],
            },
            zero_windows: zero_windows(r),
            buffered: (r.state != LISTEN).then_some(Buffered {
                unread: r.unread,
                unsent: r.unsent,
                send_window: r.send_window,
                receive_window: r.receive_window,
            }),
            dropped_packets: (r.state != LISTEN).then_some(r.drops),
            ecn: r.ecn != 0,
            fast_open: FAST_OPEN_NAMES.get(usize::from(r.fast_open)).copied().flatten(),
            mptcp_token: (r.mptcp_token != 0).then(|| format!("{:08x}", r.mptcp_token)),
            kind: event.and_then(|event| kind(event, r.detail)),
            close: close(r, event),
            before: preexisting.then_some(Before {
                sent_bytes: r.before.sent_bytes,
                acked_bytes: r.before.acked_bytes,
                received_bytes: r.before.received_bytes,
                segments_out: r.before.segments_out,
                segments_in: r.before.segments_in,
                retransmits: r.before.retransmits,
                lost: r.before.lost,
                duplicates: r.before.duplicates,
                reorderings: r.before.reorderings,
            }),
            queues: (r.state == LISTEN).then_some(Queues {
                accept: r.accept_queue,
                limit: r.accept_limit,
                syn: r.syn_queue,
                drops: r.drops,
                overflows: is_seen(r.overflows).then_some(r.overflows),
            }),
        }
    }
}

/// What a filter looks at in a record.
pub fn subject<'a>(r: &record::Connection, container: &'a Container) -> Subject<'a> {
    Subject {
        cgroup_id: Some(r.cgroup_id),
        pid: (r.pid != 0).then_some(r.pid),
        local_port: (r.local_port != 0).then_some(r.local_port),
        peer_port: (r.peer_port != 0).then_some(r.peer_port),
        peer_addr: Some(address(&r.peer_address)),
        ..container.subject()
    }
}

/// This end of a record's connection.
pub fn local(r: &record::Connection) -> Endpoint {
    endpoint(&r.local_address, r.local_port)
}

/// The far end of a record's connection.
pub fn peer(r: &record::Connection) -> Endpoint {
    endpoint(&r.peer_address, r.peer_port)
}

fn endpoint(ip: &[u8; 16], port: u16) -> Endpoint {
    Endpoint { address: address(ip), port: (port != 0).then_some(port), name: None, container: None }
}

/// When it opened, or when this was recorded of one that nobody saw open: `CLOCK_MONOTONIC`, ns.
pub fn since_ns(r: &record::Connection) -> u64 {
    if r.opened_ns == 0 { r.time_ns } else { r.opened_ns }
}

/// From the first SYN to the completed handshake, for a connection that this side began.
pub fn connect_us(r: &record::Connection) -> Option<u64> {
    let active = Direction::of(r.direction) == Some(Direction::Active);
    (active && r.opened_ns != 0 && r.established_ns != 0)
        .then(|| r.established_ns.saturating_sub(r.opened_ns) / 1000)
}

/// Round-trip time, if there has been a sample.
pub fn rtt(r: &record::Connection) -> Option<Rtt> {
    let known = |us: u32| (us != 0 && us != u32::MAX).then_some(us);
    known(r.srtt_us).map(|srtt_us| Rtt {
        srtt_us,
        min_us: known(r.min_rtt_us),
        var_us: r.rttvar_us,
        last_us: known(r.last_rtt_us),
        handshake_us: known(r.handshake_rtt_us),
        queueing_us: known(r.min_rtt_us).map(|min| srtt_us.saturating_sub(min)),
    })
}

/// Whether the peer's connect is done and this side's application has not taken it: ESTABLISHED or CLOSE_WAIT, and no
/// process holds it.
pub fn waits_for_accept(r: &record::Connection) -> bool {
    matches!(r.state, 1 | 8) && r.flags & record::FLAG_UNHELD != 0
}

/// Whether somebody watched for what is counted here.
fn is_seen(count: u32) -> bool {
    count as usize != record::NOT_SEEN
}

fn zero_windows(r: &record::Connection) -> Option<ZeroWindows> {
    let [peer, own] = [window::WINDOW_PEER, window::WINDOW_OWN];
    r.zero_windows.iter().copied().all(is_seen).then(|| ZeroWindows {
        peer: r.zero_windows[peer],
        peer_us: r.zero_window_us[peer],
        own: r.zero_windows[own],
        own_us: r.zero_window_us[own],
    })
}

fn congestion_states(r: &record::Connection) -> Option<CongestionStates> {
    let state =
        |which: usize| CongestionState { entered: r.congestion_entered[which], us: r.congestion_us[which] };
    (r.state != LISTEN && r.congestion_entered.iter().copied().all(is_seen)).then(|| CongestionStates {
        disorder: state(congestion::CONGESTION_DISORDER),
        cwr: state(congestion::CONGESTION_CWR),
        recovery: state(congestion::CONGESTION_RECOVERY),
        loss: state(congestion::CONGESTION_LOSS),
    })
}

/// The RTT samples that a record carries.
pub fn rtt_samples(r: &record::Connection) -> Option<Histogram> {
    (r.flags & record::FLAG_SAMPLES != 0)
        .then(|| Histogram::from_counts(&Scale::RTT, r.rtt.slots.map(u64::from), r.rtt.sum_us))
}

fn close(r: &record::Connection, event: Option<Event>) -> Option<Close> {
    matches!(event, Some(Event::Close | Event::Fail)).then(|| Close {
        reason: REASON_NAMES.get(usize::from(r.reason)).copied().unwrap_or("error"),
        state: STATE_NAMES.get(usize::from(r.state_before)).copied().flatten(),
        errno: (r.error != 0).then_some(r.error),
    })
}

fn kind(event: Event, detail: u8) -> Option<Word> {
    let [sent, received, peer, own] = SIDE_NAMES;
    match event {
        Event::Retransmit => RETRANSMIT_NAMES.get(usize::from(detail)).copied(),
        Event::Reset if detail == 1 => Some(sent),
        Event::Reset => Some(received),
        Event::Drop => drop::NAMES.get(usize::from(detail)).copied(),
        Event::ZeroWindow if usize::from(detail) == window::WINDOW_PEER => Some(peer),
        Event::ZeroWindow => Some(own),
        Event::State => STATE_NAMES.get(usize::from(detail)).copied().flatten(),
        _ => None,
    }
}

fn address(bytes: &[u8; 16]) -> IpAddr {
    IpAddr::from(Ipv6Addr::from(*bytes)).to_canonical()
}

/// A C string in a field of fixed length.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const CLOCK: Clock = Clock { at: Timestamp::UNIX_EPOCH, monotonic_ns: 1_000_000_000 };

    fn mapped(v4: [u8; 4]) -> [u8; 16] {
        std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets()
    }

    fn record() -> record::Connection {
        record::Connection {
            time_ns: 3_000_000_000,
            opened_ns: 2_000_000_000,
            established_ns: 2_000_750_000,
            cookie: 77,
            local_address: mapped([10, 0, 0, 1]),
            peer_address: mapped([10, 0, 0, 2]),
            peer_port: 80,
            min_rtt_us: u32::MAX,
            direction: direction::DIRECTION_ACTIVE as u8,
            state: 1,
            ..record::Connection::default()
        }
    }

    fn json(record: &record::Connection, is_event: bool) -> Value {
        let container = Arc::new(Container::unknown(9));
        serde_json::to_value(Connection::new(record, &CLOCK, container, is_event)).unwrap()
    }

    #[test]
    fn what_is_not_measured_is_absent() {
        let row = json(&record(), false);
        for absent in ["event", "process", "rtt", "congestion", "kind", "close", "before", "queues"] {
            assert_eq!(row.get(absent), None, "{absent}");
        }
        assert_eq!(row["local"], json!({ "address": "10.0.0.1" }));
        assert_eq!(row["peer"], json!({ "address": "10.0.0.2", "port": 80 }));
    }

    #[test]
    fn words_of_a_newer_version_are_unknown_ones() {
        let mut row = json(&record(), false);
        row["state"] = json!("napping");
        row["kind"] = json!("new");
        let read: Connection = serde_json::from_value(row).unwrap();
        assert_eq!((read.state, read.kind), (UNKNOWN, Some(UNKNOWN)));
    }

    #[test]
    fn times_come_from_the_monotonic_clock() {
        let row = json(&record(), false);
        assert_eq!(row["time"], "1970-01-01T00:00:02Z");
        assert_eq!(row["opened_at"], "1970-01-01T00:00:01Z");
        assert_eq!((&row["connect_us"], &row["duration_us"]), (&json!(750), &json!(1_000_000)));
        let before_the_clock = record::Connection { time_ns: 0, opened_ns: 0, ..record() };
        assert_eq!(json(&before_the_clock, false)["time"], "1969-12-31T23:59:59Z");
    }

    #[test]
    fn only_the_active_side_has_a_connect_latency() {
        let passive = record::Connection { direction: direction::DIRECTION_PASSIVE as u8, ..record() };
        assert_eq!(connect_us(&passive), None);
        assert_eq!(connect_us(&record::Connection { opened_ns: 0, ..record() }), None);
        assert_eq!(connect_us(&record::Connection { established_ns: 0, ..record() }), None);
    }

    #[test]
    fn a_failed_connect_says_why() {
        let failed = record::Connection {
            event: event::EVENT_FAIL as u8,
            reason: reason::REASON_REFUSED as u8,
            error: 111,
            ..record()
        };
        assert_eq!(json(&failed, true)["close"], json!({ "reason": "refused", "errno": 111 }));
        assert_eq!(json(&failed, true)["event"], "fail");
    }

    #[test]
    fn an_adopted_connection_says_what_it_had_carried() {
        let mut adopted = record::Connection { flags: record::FLAG_PREEXISTING, opened_ns: 0, ..record() };
        adopted.before.sent_bytes = 10;
        adopted.since.sent_bytes = 3;
        let row = json(&adopted, false);
        assert_eq!((&row["preexisting"], &row["sent_bytes"]), (&json!(true), &json!(3)));
        assert_eq!(row["before"]["sent_bytes"], 10);
        assert_eq!((row.get("opened_at"), row.get("duration_us")), (None, None));
    }

    proptest! {
        /// Whatever the kernel side hands over, it is told without a panic, and can be read back.
        #[test]
        fn any_bytes_have_a_meaning(
            bytes in proptest::array::uniform8(any::<u8>()), times in proptest::array::uniform3(any::<u64>()),
            addresses in proptest::array::uniform2(any::<[u8; 16]>()), comm: [u8; 16], is_event: bool,
        ) {
            let [event, state, direction, reason, ca_state, flags, detail, error] = bytes;
            let [time_ns, opened_ns, established_ns] = times;
            let [local_address, peer_address] = addresses;
            let record = record::Connection {
                event, state, direction, reason, ca_state, flags, detail, error: error.into(),
                time_ns, opened_ns, established_ns, local_address, peer_address, comm,
                ..record::Connection::default()
            };
            let told = json(&record, is_event);
            let read: Connection = serde_json::from_value(told.clone()).unwrap();
            prop_assert_eq!(serde_json::to_value(read).unwrap(), told);
        }
    }
}
