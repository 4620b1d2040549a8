//! Networks that the kernel's own netem plays between two namespaces: which signals rise, and which do not.
//!
//! [`path`](../path.rs) tells of such networks with a forwarder in user space, which every kernel takes. Here nothing but
//! the kernel touches a packet, and its own counters of the network say what happened to them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;

use functional::connections::Connection;
use functional::netns::{Netns, veth_pair};
use functional::process::{output, wait_until};
use functional::samples::Scrape;
use functional::witness::Socket;
use serde::Deserialize;

mod two_ends;

use two_ends::{Between, Ends, SOON, Told};

const DSACKS: &[&str] = &["TcpExtTCPDSACKRecv", "TcpExtTCPDSACKOfoRecv"];
const REORDERINGS: &[&str] = &["TcpExtTCPSACKReorder", "TcpExtTCPTSReorder", "TcpExtTCPRenoReorder"];
const TIMERS: &[&str] = &["TcpExtTCPTimeouts", "TcpExtTCPLossProbes"];

/// One end of a veth pair, with netem for what leaves by it.
struct Port {
    netns: String,
    device: String,
}

/// What a qdisc counted.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Qdisc {
    packets: u64,
    drops: u64,
    backlog: u64,
}

impl Port {
    fn tc(&self, args: &[&str]) -> String {
        output(Command::new("tc").args(["-n", &self.netns]).args(args)).unwrap()
    }

    /// From now on.
    fn netem(&self, script: &str) {
        let script: Vec<_> = script.split_whitespace().collect();
        let netem = ["qdisc", "replace", "dev", &self.device, "root", "netem", "limit", "10000"];
        self.tc(&[&netem[..], &script].concat());
    }

    fn counts(&self) -> Qdisc {
        let told = self.tc(&["-s", "-j", "qdisc", "show", "dev", &self.device, "root"]);
        serde_json::from_str::<[Qdisc; 1]>(&told).unwrap()[0]
    }

    /// So that nothing but TCP is on the wire, one segment a packet: packets can be counted.
    fn prepare(&self, other: Ipv4Addr, mac: &str) {
        let ip = |args: &str| {
            let args = args.split_whitespace();
            output(Command::new("ip").args(["-n", &self.netns]).args(args)).unwrap()
        };
        let device = &self.device;
        ip(&format!("link set {device} gso_max_segs 1"));
        ip(&format!("neighbour replace {other} lladdr {mac} dev {device} nud permanent"));
        self.netem("");
    }

    fn mac(&self) -> String {
        #[derive(Deserialize)]
        struct Link {
            address: String,
        }
        let show = ["-n", &self.netns, "-j", "link", "show", &self.device];
        let told = output(Command::new("ip").args(show)).unwrap();
        serde_json::from_str::<[Link; 1]>(&told).unwrap()[0].address.clone()
    }
}

/// A veth pair.
struct Wire {
    client: Port,
    server: Port,
}

impl Wire {
    fn join(client: &Netns, server: &Netns, [at_client, at_server]: [Ipv4Addr; 2]) -> Self {
        let [own, other] = [at_client, at_server].map(|at| format!("{at}/24"));
        for netns in [client, server] {
            netns.sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
        }
        let pair = veth_pair(client, &[&own], server, &[&other]).unwrap();
        let port = |netns: &Netns, device| Port { netns: netns.name().to_owned(), device };
        let wire = Self { client: port(client, pair.a), server: port(server, pair.b) };
        wire.client.prepare(at_server, &wire.server.mac());
        wire.server.prepare(at_client, &wire.client.mac());
        wire
    }
}

impl Between for Wire {
    fn is_whole(&self) {}
}

fn ends(number: u8, there: &str, back: &str) -> Ends<Wire> {
    let ends = Ends::joined(number, Wire::join);
    ends.path.client.netem(there);
    ends.path.server.netem(back);
    ends
}

/// What was seen of a client that sent all its bytes to a server.
struct Carried {
    client: Told,
    server: Told,
    /// When all was acknowledged.
    seen: Socket,
    /// What was on its way to the server.
    there: Qdisc,
}

/// Sends bytes over a network that does this to what is on its way to the server, and that to what is on its way back.
fn carry(number: u8, bytes: u64, there: &str, back: &str) -> Carried {
    let ends = ends(number, there, back);
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    client.say(bytes);
    let seen = ends.acknowledged(bytes);
    client.close();
    ends.closed();
    let there = ends.path.client.counts();
    let [client, to] = ends.end();
    server.finish().unwrap();
    let carried = Carried { client, server: to, seen, there };
    let (from, to) = (carried.client.close(), carried.server.close());
    assert_eq!((from.bytes(), to.bytes(), from.acked_bytes), ((bytes, 0), (0, bytes), bytes));
    for told in [&carried.client, &carried.server] {
        agrees(told);
        assert_eq!(told.close().reason(), "normal");
    }
    carried
}

/// What tcptide counted is what the kernel did.
fn agrees(told: &Told) {
    let Connection { path, retransmits, .. } = told.close();
    assert_eq!(retransmits.total, retransmits.of_all_kinds());
    assert_eq!(retransmits.total, told.end.kernel(&["TcpRetransSegs"]));
    assert_eq!(path.reorderings, told.end.kernel(REORDERINGS));
    // One acknowledgement may tell of several.
    assert!(path.duplicates >= told.end.kernel(DSACKS), "{path:?}");
    assert!(retransmits.rto == 0 || told.end.kernel(&["TcpExtTCPTimeouts"]) > 0, "{retransmits:?}");
}

/// Segments sent again, of one kind.
fn counted(told: &Told, kind: &str) -> u64 {
    told.end.counted(&told.scrape, "tcptide_retransmitted_segments_total", &[("kind", kind)]) as u64
}

/// RSTs sent for no socket in an end's namespace.
fn strays(told: &Told) -> u64 {
    let container = told.end.cgroup.path().to_str().unwrap();
    let of = |state| {
        let labels = [("container", container), ("direction", "sent"), ("state", state)];
        told.scrape.sum("tcptide_resets_by_state_total", &labels).unwrap_or(0.0) as u64
    };
    of("none") + of("time_wait")
}

/// The signals of something wrong that rose at an end.
fn risen(told: &Told) -> BTreeMap<&'static str, u64> {
    let Connection { path, retransmits, zero_windows, .. } = told.close();
    // Those of its connections: what comes when they are gone is answered with more, for no socket.
    let resets = told.end.counted(&told.scrape, "tcptide_resets_total", &[]) as u64 - strays(told);
    let all = [
        ("lost", path.lost),
        ("duplicates", path.duplicates),
        ("reorderings", path.reorderings),
        ("congestion marks", path.ce_marked.unwrap_or(0)),
        ("retransmits", retransmits.total),
        ("SYN-ACKs again", counted(told, "synack")),
        ("zero windows", zero_windows.peer + zero_windows.own),
        ("resets", resets),
    ];
    all.into_iter().filter(|&(_, count)| count > 0).collect()
}

/// No signals but these rose. Where a timer sent something again, for an emulated processor may stand still for as
/// long, its signals may have risen, too: that they are the kernel's is checked with each end.
fn only(told: &Told, signals: &[&str]) {
    let of_timers: &[&str] = match told.end.kernel(TIMERS) {
        0 => &[],
        _ => &["retransmits", "lost", "duplicates"],
    };
    let risen = risen(told);
    for signal in risen.keys() {
        assert!(signals.contains(signal) || of_timers.contains(signal), "{signal}: {risen:?}");
    }
    for signal in signals {
        assert!(risen.contains_key(signal), "{signal} did not rise: {risen:?}");
    }
}

/// Packets that the kernel dropped anywhere, for this reason.
fn dropped(scrape: &Scrape, reason: &str) -> u64 {
    const DROPPED: &str = "tcptide_dropped_packets_total";
    assert!(scrape.has(DROPPED));
    // A reason that there was none of is not told.
    scrape.sum(DROPPED, &[("reason", reason)]).unwrap_or(0.0) as u64
}

fn us(ms: Option<f64>) -> u64 {
    (ms.unwrap() * 1e3).round() as u64
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn a_delay_is_in_every_round_trip_and_nothing_else_rises() {
    let carried = carry(100, 100_000, "delay 20ms", "delay 20ms");
    let (close, seen) = (carried.client.close(), &carried.seen);
    let rtt = close.rtt.unwrap();
    assert!(rtt.min_us.unwrap() >= 40_000 && close.connect_us.unwrap() >= 40_000, "{close:?}");
    assert!(rtt.min_us.unwrap() <= us(seen.min_rtt_ms()), "{rtt:?} {seen:?}");
    let rtts = carried.client.rtts();
    assert!(!rtts.is_empty() && rtts.iter().all(|&(up_to, _)| up_to > 0.04), "{rtts:?}");
    only(&carried.client, &[]);
    only(&carried.server, &[]);
    assert_eq!(carried.there.drops, 0);
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn jitter_spreads_round_trips_and_reorders_nothing_that_goes_alone() {
    const REQUESTS: u64 = 40;
    let ends = ends(101, "delay 25ms 10ms", "delay 25ms 10ms");
    let (counts, [client, to]) = ends.ask(REQUESTS);
    for told in [&client, &to] {
        agrees(told);
        only(told, &[]);
    }
    // From 30 ms to 70 ms, and one for each request and the handshake.
    let (rtts, seen) = (client.rtts(), counts.round_trip_us.unwrap());
    let count: u64 = rtts.iter().map(|(_, count)| count).sum();
    assert!((REQUESTS / 2..=REQUESTS + 2).contains(&count), "{rtts:?}");
    assert!(rtts.len() >= 2 && rtts[0].0 < 0.07, "{rtts:?}");
    let rtt = client.close().rtt.unwrap();
    let min = rtt.min_us.unwrap();
    assert!((30_000..=seen.min.ceil() as u64).contains(&min), "{rtt:?} {seen:?}");
    assert_eq!(rtt.queueing_us, Some(rtt.srtt_us - min));
    assert!(rtt.srtt_us > min, "{rtt:?}");
}

/// What did not arrive was held for lost, and sent again.
fn was_mended(close: &Connection, missing: u64) {
    let (lost, again) = (close.path.lost, close.retransmits);
    // Unless it was the acknowledgement that ends the handshake, or the last of all.
    let at_least = missing.saturating_sub(2);
    assert!(missing > 0 && again.total >= at_least, "{missing} {close:?}");
    // What was lost at the end of all is sent again as a probe, before it is held for lost.
    assert!(lost + again.tlp >= at_least, "{missing} {close:?}");
}

/// What was lost on the way to the server is what its sender held for lost, and sent again.
fn is_a_loss(carried: &Carried) {
    let (close, drops) = (carried.client.close(), carried.there.drops);
    was_mended(close, drops);
    assert!(close.ssthresh.is_some(), "{close:?}");
    let signals = risen(&carried.client);
    assert!(
        signals.keys().all(|signal| ["lost", "retransmits", "duplicates"].contains(signal)),
        "{signals:?}"
    );
    assert!(signals.contains_key("lost") && signals.contains_key("retransmits"));
    // The receiver had nothing to send again, but maybe a SYN-ACK and its FIN.
    assert!(carried.server.close().path.duplicates + carried.server.close().path.reorderings == 0);
    assert!(carried.server.close().retransmits.fast == 0);
    // The queue's drops have their reason.
    let told = carried.client.end.counted(
        &carried.client.scrape,
        "tcptide_dropped_packets_total",
        &[("reason", "qdisc_drop")],
    );
    assert_eq!(told as u64, drops);
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn a_loss_of_one_percent_is_mended_without_the_timer() {
    let carried = carry(102, 1_500_000, "delay 5ms loss 1%", "delay 5ms");
    is_a_loss(&carried);
    let (close, drops) = (carried.client.close(), carried.there.drops);
    let again = close.retransmits;
    assert!(again.fast > again.rto + again.tlp, "{close:?}");
    // One in a hundred, by chance twice or three times as many.
    assert!(close.path.lost * 30 < close.segments_out && again.total < drops * 2 + 20, "{close:?}");
    only(&carried.server, &[]);
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn a_loss_of_ten_percent_each_way_needs_timers_too() {
    let carried = carry(103, 400_000, "delay 5ms loss 10%", "delay 5ms loss 10%");
    is_a_loss(&carried);
    let close = carried.client.close();
    // By far more than one in a hundred.
    assert!((close.segments_out / 25..close.segments_out / 2).contains(&close.path.lost), "{close:?}");
    assert!(carried.client.end.kernel(TIMERS) > 0, "{close:?}");
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn what_overtakes_by_far_is_a_reordering_and_sent_again_without_need() {
    let carried = carry(104, 600_000, "delay 20ms reorder 10%", "delay 5ms");
    let close = carried.client.close();
    assert!(close.path.reorderings > 0 && close.reordering > 3, "{close:?}");
    assert_eq!(close.reordering, carried.seen.count("reordering"));
    // What was sent again had only been overtaken.
    let (again, duplicates) = (close.retransmits.total, close.path.duplicates);
    assert!(again > 0 && duplicates * 2 >= again, "{close:?}");
    assert_eq!(carried.there.drops, 0);
    only(&carried.server, &[]);
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn neighbours_that_change_places_are_reorderings_and_hardly_a_loss() {
    let carried = carry(111, 600_000, "delay 20ms 2ms", "delay 5ms");
    let close = carried.client.close();
    assert!(close.path.reorderings > 0, "{close:?}");
    assert_eq!(close.reordering, carried.seen.count("reordering"));
    // Until the first is recognized, the sender takes some for lost, and sends them without need.
    let (lost, again, sent) = (close.path.lost, close.retransmits.total, close.segments_out);
    assert!(lost * 10 < sent && close.path.duplicates <= again, "{close:?}");
    assert_eq!(carried.there.drops, 0);
    only(&carried.server, &[]);
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn what_comes_twice_is_a_duplicate_and_no_loss() {
    let carried = carry(105, 600_000, "delay 10ms duplicate 10%", "delay 10ms");
    let close = carried.client.close();
    let doubled = carried.there.packets - carried.client.end.kernel(&["TcpOutSegs"]);
    let (duplicates, again) = (close.path.duplicates, close.retransmits.total);
    // Of a doubled SYN, acknowledgement or FIN nobody tells, and an acknowledgement may tell of the last double only.
    assert!(
        doubled > 10 && duplicates >= doubled / 2 && duplicates <= doubled + again,
        "{doubled} {close:?}"
    );
    only(&carried.client, &["duplicates"]);
    only(&carried.server, &[]);
    carried.client.is_lossless();
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn what_is_damaged_is_dropped_for_its_checksum_and_sent_again() {
    let carried = carry(106, 600_000, "delay 5ms corrupt 5%", "delay 5ms");
    let close = carried.client.close();
    // One bit of a packet, in an Ethernet or IP header at times, of which TCP never knows.
    let counters = ["TcpInCsumErrors", "IpExtInCsumErrors"];
    let [tcp, ip] = counters.map(|counter| carried.server.end.kernel(&[counter]));
    assert!(tcp > 0, "{close:?}");
    let scrape = &carried.server.scrape;
    assert_eq!([dropped(scrape, "tcp_csum"), dropped(scrape, "ip_csum")], [tcp, ip]);
    assert_eq!((carried.there.drops, dropped(scrape, "qdisc_drop")), (0, 0));
    was_mended(close, tcp + ip);
    let signals = risen(&carried.client);
    assert!(
        signals.keys().all(|signal| ["lost", "retransmits", "duplicates"].contains(signal)),
        "{signals:?}"
    );
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn a_slow_link_with_a_deep_queue_is_queueing_delay_and_no_loss() {
    const BYTES: u64 = 400_000;
    // 250,000 bytes a second.
    let ends = ends(107, "rate 2mbit", "");
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    client.say(BYTES);
    // Sixty full packets, which take a third of a second.
    let deep = wait_until("a queue", SOON, || {
        let queue = ends.path.client.counts().backlog;
        Ok((queue > 90_000).then_some(queue))
    });
    let seen = ends.acknowledged(BYTES);
    client.close();
    let [client, to] = ends.end();
    server.finish().unwrap();
    let (close, rtt) = (client.close(), client.close().rtt.unwrap());
    assert!(deep.is_ok() && us(seen.rtt_ms()) >= 200_000, "{deep:?} {seen:?}");
    let (min, queueing) = (rtt.min_us.unwrap(), rtt.queueing_us.unwrap());
    assert!(queueing >= 200_000 && queueing > 5 * min, "{rtt:?}");
    // The send buffer's worth leaves as fast as the link lets it.
    assert!(close.limited_us.busy > BYTES * 4 * 9 / 10, "{close:?}");
    // Answers meet no queue.
    assert!(to.close().rtt.unwrap().queueing_us.unwrap() < queueing / 2, "{:?}", to.close().rtt);
    for told in [&client, &to] {
        agrees(told);
        only(told, &[]);
        told.is_lossless();
    }
}

/// Connects while one port loses everything, until it has lost something.
fn connect_over(number: u8, lossy: fn(&Wire) -> &Port) -> [Told; 2] {
    let ends = ends(number, "", "");
    let server = ends.listen();
    lossy(&ends.path).netem("loss 100%");
    let mut client = ends.speaker(&[]);
    wait_until("a loss", SOON, || Ok((lossy(&ends.path).counts().drops > 0).then_some(()))).unwrap();
    lossy(&ends.path).netem("loss 0%");
    client.say(10_000);
    ends.acknowledged(10_000);
    client.close();
    let both = ends.end();
    server.finish().unwrap();
    both.iter().for_each(agrees);
    let [client, server] = both.each_ref().map(Told::close);
    assert_eq!((client.bytes(), server.bytes()), ((10_000, 0), (0, 10_000)));
    // The kernel waits for so long.
    assert!(client.connect_us.unwrap() >= 1_000_000, "{client:?}");
    both
}

/// All that was sent again were SYNs.
fn sent_syns_again(told: &Told) {
    let Connection { retransmits, path, .. } = told.close();
    let syns = retransmits.syn;
    assert!(syns > 0 && syns == told.end.kernel(&["TcpExtTCPSynRetrans"]), "{retransmits:?}");
    assert_eq!((counted(told, "syn"), path.lost), (syns, syns));
    let signals = risen(told);
    assert!(signals.keys().all(|signal| ["lost", "retransmits"].contains(signal)), "{signals:?}");
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn a_lost_syn_is_sent_again_and_nobody_else_notices() {
    let [client, server] = connect_over(108, |wire| &wire.client);
    sent_syns_again(&client);
    assert_eq!(client.end.kernel(&["TcpRetransSegs"]), client.close().retransmits.syn);
    only(&server, &[]);
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn a_lost_syn_ack_is_sent_again_by_its_listener() {
    let [client, server] = connect_over(109, |wire| &wire.server);
    let synacks = counted(&server, "synack");
    assert!(synacks > 0, "{:?}", server.close());
    assert_eq!(server.end.kernel(&["TcpExtTCPSynRetrans"]), synacks);
    only(&server, &["SYN-ACKs again"]);
    // Whichever timer was first: a SYN may have gone out again, too.
    let signals = risen(&client);
    assert!(signals.keys().all(|signal| ["lost", "retransmits"].contains(signal)), "{signals:?}");
    assert_eq!(client.close().retransmits.syn, client.end.kernel(&["TcpExtTCPSynRetrans"]));
}

#[test]
#[ignore = "needs netem: make test-vm runs it"]
fn a_blackhole_is_timers_and_an_end_by_timeout() {
    let ends = ends(110, "", "");
    ends.client.netns.sysctl("net.ipv4.tcp_retries2", "3").unwrap();
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    client.say(10_000);
    ends.acknowledged(10_000);
    ends.path.client.netem("loss 100%");
    ends.path.server.netem("loss 100%");
    client.say(10_000);
    wait_until("the client to give up", SOON, || Ok(ends.client.open()?.is_empty().then_some(()))).unwrap();
    let in_the_hole = ends.path.client.counts().drops;
    // The server knows of nothing.
    assert_eq!(ends.server.ss().state, "ESTAB");
    client.say(10_000);
    let counts = client.given_up();
    assert_eq!(counts.failed.get("ETIMEDOUT").copied(), Some(1), "{counts:?}");
    // Until it speaks itself.
    ends.path.client.netem("loss 0%");
    ends.path.server.netem("loss 0%");
    server.finish().unwrap();
    let [client, server] = ends.end();
    let close = client.close();
    assert_eq!((close.reason(), close.close.as_ref().unwrap().errno), ("timeout", Some(110)));
    assert_eq!((close.sent_bytes, close.acked_bytes), (20_000, 10_000));
    assert_eq!(client.end.kernel(&["TcpExtTCPAbortOnTimeout"]), 1);
    let again = close.retransmits;
    assert!(again.rto >= 3 && again.fast + again.syn == 0, "{again:?}");
    // And what was sent first.
    assert!(in_the_hole > again.total, "{in_the_hole} {again:?}");
    agrees(&client);
    only(&client, &["lost", "retransmits"]);
    assert_eq!((server.close().bytes(), server.close().reason()), ((0, 10_000), "reset_received"));
    only(&server, &["resets"]);
}
