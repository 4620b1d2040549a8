//! Second witnesses: what `ss` says of sockets, and what the kernel counted in a namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::netns::Netns;
use crate::process::{output, require};

/// A TCP socket as `ss -tinmpHe` shows it. What `ss` did not show is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Socket {
    /// As `ss` names it: `ESTAB`, `LISTEN`, `SYN-SENT`, `TIME-WAIT`.
    pub state: String,
    /// Bytes not read yet, or for a listener connections not accepted yet.
    pub recv_q: u64,
    /// Bytes not acknowledged yet, or for a listener the accept queue's limit.
    pub send_q: u64,
    /// Local end; `*` is `[::]`, and an IPv4 address in an IPv6 socket is IPv4.
    pub local: SocketAddr,
    /// Far end.
    pub peer: SocketAddr,
    /// The socket's cookie (`sk:`).
    pub cookie: Option<u64>,
    /// The socket's cgroup, as a path.
    pub cgroup: Option<String>,
    /// Processes that have it open: name and pid.
    pub processes: Vec<(String, u32)>,
    /// All `key:value` items, such as `rto`, `segs_out`, `bytes_retrans`, and rates: `pacing_rate 800bps`.
    pub items: BTreeMap<String, String>,
    /// Words of their own, such as `ecn`, `sack`, `cubic`.
    pub flags: BTreeSet<String>,
}

impl Socket {
    /// An item that is a plain number.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.items.get(key)?.parse().ok()
    }

    /// Smoothed round trip time, in milliseconds.
    pub fn rtt_ms(&self) -> Option<f64> {
        self.items.get("rtt")?.split('/').next()?.parse().ok()
    }

    /// The round trip time's mean deviation, in milliseconds.
    pub fn rtt_var_ms(&self) -> Option<f64> {
        self.items.get("rtt")?.split('/').nth(1)?.parse().ok()
    }

    /// Smallest round trip time, in milliseconds.
    pub fn min_rtt_ms(&self) -> Option<f64> {
        self.number("minrtt")
    }

    /// Bytes sent, retransmitted ones included; 0 is not shown by `ss`.
    pub fn bytes_sent(&self) -> u64 {
        self.count("bytes_sent")
    }

    /// Bytes acknowledged by the peer, as `tcp_info` counts them: the SYN is one.
    pub fn bytes_acked(&self) -> u64 {
        self.count("bytes_acked")
    }

    /// Bytes received in order.
    pub fn bytes_received(&self) -> u64 {
        self.count("bytes_received")
    }

    /// Segments retransmitted during the connection's life.
    pub fn retransmits(&self) -> u64 {
        self.items.get("retrans").and_then(|both| both.split('/').nth(1)?.parse().ok()).unwrap_or(0)
    }

    /// Congestion window, in segments.
    pub fn cwnd(&self) -> Option<u64> {
        self.items.get("cwnd")?.parse().ok()
    }

    /// A time that `ss` shows in milliseconds, maybe with its share, such as `rwnd_limited:96ms(50.0%)`; 0 is not
    /// shown by `ss`.
    pub fn ms(&self, key: &str) -> u64 {
        let text = self.items.get(key).and_then(|value| value.split("ms").next());
        text.and_then(|ms| ms.parse().ok()).unwrap_or(0)
    }

    /// A rate, in bytes per second. Its limit, which may follow, is left out.
    pub fn bytes_per_s(&self, key: &str) -> Option<u64> {
        let rate = self.items.get(key)?.split('/').next()?;
        rate.strip_suffix("bps")?.parse::<u64>().ok().map(|bits| bits / 8)
    }

    /// Packets that the socket turned away (`d` of `skmem`); of a listener SYNs and completed handshakes.
    pub fn drops(&self) -> Option<u64> {
        let memory = self.items.get("skmem")?.trim_matches(['(', ')']);
        memory.split(',').find_map(|item| item.strip_prefix('d'))?.parse().ok()
    }

    /// A counter; `ss` leaves out those that are zero.
    pub fn count(&self, key: &str) -> u64 {
        self.items.get(key).and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

/// The TCP sockets of a namespace; `filter` is more arguments for `ss`, such as
/// `["state", "established", "dport", "=", ":80"]`. Without one: all but listeners.
pub fn sockets(netns: &Netns, filter: &[&str]) -> Result<Vec<Socket>> {
    require("ss", "iproute2")?;
    let mut command = netns.wrap(Command::new("ss").args(["-tinmpHeO"]).args(filter));
    parse_ss(&output(&mut command)?)
}

/// Parses the output of `ss -tinmpHe`, one socket on one line (`-O`) or with its details on a
/// second, indented line. An error names the line that is not of that format.
pub fn parse_ss(text: &str) -> Result<Vec<Socket>> {
    let mut joined: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match joined.last_mut() {
            Some(last) if line.starts_with([' ', '\t']) => {
                last.push(' ');
                last.push_str(line);
            }
            _ => joined.push(line.to_owned()),
        }
    }
    joined.iter().map(|line| socket(line).with_context(|| format!("ss: `{line}`"))).collect()
}

fn socket(line: &str) -> Result<Socket> {
    let mut words = line.split_whitespace();
    let mut next = |what: &str| words.next().with_context(|| format!("no {what}"));
    // With a state in the filter `ss` leaves the column out.
    let first = next("state")?;
    let (state, recv_q) = if first.parse::<u64>().is_ok() {
        (String::new(), first)
    } else {
        (first.to_owned(), next("Recv-Q")?)
    };
    let mut socket = Socket {
        state,
        recv_q: recv_q.parse().context("Recv-Q")?,
        send_q: next("Send-Q")?.parse().context("Send-Q")?,
        local: address(next("local address")?)?,
        peer: address(next("peer address")?)?,
        cookie: None,
        cgroup: None,
        processes: Vec::new(),
        items: BTreeMap::new(),
        flags: BTreeSet::new(),
    };
    let mut before = "";
    for word in words {
        let name = std::mem::replace(&mut before, word);
        let Some((key, value)) = word.split_once(':') else {
            if word.ends_with("bps") {
                socket.flags.remove(name);
                socket.items.insert(name.to_owned(), word.to_owned());
            } else {
                socket.flags.insert(word.to_owned());
            }
            continue;
        };
        match key {
            "users" => socket.processes = processes(value),
            "sk" => socket.cookie = u64::from_str_radix(value, 16).ok(),
            "cgroup" => socket.cgroup = Some(value.to_owned()),
            _ => drop(socket.items.insert(key.to_owned(), value.to_owned())),
        }
    }
    Ok(socket)
}

/// `127.0.0.1:80`, `127.0.0.1%lo:80`, `[::1]:80`, `*:80`, `0.0.0.0:*`.
fn address(text: &str) -> Result<SocketAddr> {
    let (host, port) = text.rsplit_once(':').ok_or_else(|| anyhow!("no port in the address {text}"))?;
    let port = if port == "*" { 0 } else { port.parse().with_context(|| format!("the port {port}"))? };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = host.split('%').next().unwrap_or(host);
    let ip = match host {
        "*" => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        host => host.parse::<IpAddr>().with_context(|| format!("the address {host}"))?.to_canonical(),
    };
    Ok(SocketAddr::new(ip, port))
}

/// `(("nc",pid=12,fd=3),("nc",pid=13,fd=3))`
fn processes(text: &str) -> Vec<(String, u32)> {
    text.split("(\"")
        .skip(1)
        .filter_map(|one| {
            let (name, rest) = one.split_once("\",pid=")?;
            let pid = rest.split(',').next()?.parse().ok()?;
            Some((name.to_owned(), pid))
        })
        .collect()
}

/// The running kernel's major and minor version.
pub fn kernel() -> Result<(u32, u32)> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("a kernel without a version: {release}"),
    }
}

/// The tracepoint tells of RSTs for no socket, too.
pub const TELLS_OF_STRAY_RESETS: (u32, u32) = (6, 10);
/// The tracepoint tells which socket a packet was dropped for.
pub const TELLS_OF_DROPS: (u32, u32) = (6, 11);

/// Counters of a namespace by the names that `nstat` uses: `TcpRetransSegs`, `TcpExtTCPTimeouts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetCounters(pub BTreeMap<String, i64>);

impl NetCounters {
    /// Reads `/proc/net/snmp`, `netstat` and `snmp6` of the namespace.
    pub fn of(netns: &Netns) -> Result<Self> {
        netns.enter(Self::here)
    }

    /// As [`of`](Self::of), for the calling thread's namespace.
    pub fn here() -> Result<Self> {
        let mut counters = BTreeMap::new();
        for file in ["snmp", "netstat", "snmp6"] {
            // `/proc/net` is the namespace of the process's first thread, which need not be ours.
            let path = format!("/proc/thread-self/net/{file}");
            match fs::read_to_string(&path) {
                Ok(text) if file == "snmp6" => counters.extend(parse_plain(&text)),
                Ok(text) => counters.extend(parse_paired(&text)),
                // A kernel without IPv6.
                Err(_) if file == "snmp6" => {}
                Err(error) => return Err(error).with_context(|| format!("reading {path}")),
            }
        }
        Ok(Self(counters))
    }

    /// One counter; one the kernel does not have is 0, as `nstat` shows none.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// What was added since `before`; counters that stayed are left out.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(name, now)| (name.clone(), now - before.get(name)));
        Self(grown.filter(|&(_, difference)| difference != 0).collect())
    }
}

/// `Tcp: A B` and then `Tcp: 1 2`.
fn parse_paired(text: &str) -> BTreeMap<String, i64> {
    let lines: Vec<_> = text.lines().collect();
    let mut counters = BTreeMap::new();
    for pair in lines.chunks_exact(2) {
        let (Some((group, names)), Some((_, values))) = (pair[0].split_once(':'), pair[1].split_once(':'))
        else {
            continue;
        };
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            if let Ok(value) = value.parse() {
                counters.insert(format!("{group}{name}"), value);
            }
        }
    }
    counters
}

/// `Ip6InReceives 1`
fn parse_plain(text: &str) -> BTreeMap<String, i64> {
    let pairs = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ESTABLISHED: &str = "ESTAB 0 5 198.18.0.1:44444 198.18.0.2:80 users:((\"nc\",pid=12,fd=3),\
        (\"nc\",pid=13,fd=3)) ino:99 sk:1a2b cgroup:/docker/ab <-> ts sack cubic wscale:7,7 rto:304 \
        rtt:100.5/0.25 ato:40 mss:1448 cwnd:10 ssthresh:7 bytes_sent:300 bytes_retrans:100 \
        bytes_acked:101 bytes_received:7 segs_out:4 send 1152000bps \
        pacing_rate 2304000bps/8000000bps \
        delivery_rate 800bps ecn busy:1200ms rwnd_limited:96ms(8.0%) retrans:0/2 minrtt:100.1 \
        skmem:(r0,rb131072,t0,tb87040,f0,w5,o0,bl0,d3)";

    #[test]
    fn an_established_connection_is_read() {
        let sockets = parse_ss(ESTABLISHED).unwrap();
        let socket = &sockets[0];
        assert_eq!((socket.state.as_str(), socket.recv_q, socket.send_q), ("ESTAB", 0, 5));
        assert_eq!(socket.peer, "198.18.0.2:80".parse().unwrap());
        assert_eq!((socket.cookie, socket.cgroup.as_deref()), (Some(0x1a2b), Some("/docker/ab")));
        assert_eq!(socket.processes, [("nc".to_owned(), 12), ("nc".to_owned(), 13)]);
        assert_eq!(
            (socket.rtt_ms(), socket.rtt_var_ms(), socket.min_rtt_ms()),
            (Some(100.5), Some(0.25), Some(100.1))
        );
        assert_eq!((socket.bytes_sent(), socket.bytes_acked(), socket.bytes_received()), (300, 101, 7));
        assert_eq!((socket.retransmits(), socket.cwnd(), socket.count("segs_out")), (2, Some(10), 4));
        assert_eq!(
            (socket.ms("busy"), socket.ms("rwnd_limited"), socket.ms("sndbuf_limited")),
            (1200, 96, 0)
        );
        let rates = ["pacing_rate", "delivery_rate", "absent"].map(|rate| socket.bytes_per_s(rate));
        assert_eq!((rates, socket.drops()), ([Some(288_000), Some(100), None], Some(3)));
        assert_eq!(socket.flags, ["<->", "cubic", "ecn", "sack", "ts"].map(str::to_owned).into());
    }

    #[test]
    fn addresses_of_all_shapes_are_read() {
        for (text, expected) in [
            ("127.0.0.1%lo:80", "127.0.0.1:80"),
            ("[::ffff:198.18.0.1]:80", "198.18.0.1:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("*:80", "[::]:80"),
            ("0.0.0.0:*", "0.0.0.0:0"),
        ] {
            assert_eq!(address(text).unwrap(), expected.parse().unwrap(), "{text}");
        }
        assert!(parse_ss("ESTAB 0 0 nonsense 198.18.0.1:1").is_err());
    }

    #[test]
    fn two_lines_and_no_state_are_read_too() {
        let sockets =
            parse_ss("0 0 [fd00::1]:1 [fd00::2]:2 sk:1\n\t cubic rtt:1/2\n0 0 1.2.3.4:1 1.2.3.5:2\n")
                .unwrap();
        assert_eq!(sockets.len(), 2);
        assert_eq!((sockets[0].rtt_ms(), sockets[1].rtt_ms()), (Some(1.0), None));
    }

    #[test]
    fn counters_have_the_names_of_nstat() {
        let before = NetCounters(parse_paired("Tcp: MaxConn RetransSegs\nTcp: -1 5\n"));
        let after = NetCounters(parse_paired("Tcp: MaxConn RetransSegs\nTcp: -1 8\n"));
        assert_eq!(before.get("TcpMaxConn"), -1);
        assert_eq!(after.since(&before).0, BTreeMap::from([("TcpRetransSegs".to_owned(), 3)]));
        assert_eq!(parse_plain("Ip6InReceives   12\n").get("Ip6InReceives"), Some(&12));
    }

    proptest! {
        #[test]
        fn no_output_makes_the_parser_panic(text in "[A-Z0-9 :*%.\\[\\]()\",a-z=/\n\t]*") {
            let _ = parse_ss(&text);
        }

        #[test]
        fn a_cut_line_never_panics(end in 0..ESTABLISHED.len()) {
            let _ = parse_ss(&ESTABLISHED[..end]);
        }
    }
}
