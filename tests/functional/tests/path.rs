//! What a path does to segments, as both ends see it: losses, doubles, another order, queues, congestion marks.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use functional::connections::{Connection, Connections, Limited, Path};
use functional::forwarder::{Counters, Direction, Impairment};
use functional::packet::{is_syn, is_syn_ack};
use functional::process::wait_until;
use functional::tcptide::Tcptide;
use functional::witness::{Socket, TELLS_OF_DROPS, kernel};

mod two_ends;

use two_ends::{Ends, SOON, SOUND, Told};

const BYTES: u64 = 3_000_000;
const DSACKS: &[&str] = &["TcpExtTCPDSACKRecv", "TcpExtTCPDSACKOfoRecv"];
const RECOVERIES: &[&str] = &["TcpExtTCPSackRecovery", "TcpExtTCPRenoRecovery"];
const REORDERINGS: &[&str] = &["TcpExtTCPSACKReorder", "TcpExtTCPTSReorder", "TcpExtTCPRenoReorder"];

/// A path of so long each way, which does nothing else.
fn of_ms(ms: u64) -> Impairment {
    Impairment { delay: Duration::from_millis(ms), seed: 7, ..Impairment::default() }
}

/// What was seen of a client that sent all its bytes to a server.
struct Carried {
    client: Told,
    server: Told,
    /// When all was acknowledged.
    seen: Socket,
    looked: Connection,
    /// What happened to packets on their way to the server.
    there: Counters,
}

/// Sends bytes over a path of which the way to the server does what is told.
fn carry(number: u8, there: Impairment) -> Carried {
    let ends = Ends::new(number, there, of_ms(there.delay.as_millis() as u64), |client, server| {
        for end in [client, server] {
            end.sysctl("net.ipv4.tcp_ecn", if there.mark > 0.0 { "1" } else { "0" }).unwrap();
        }
        // What fills the path's queue.
        client.sysctl("net.ipv4.tcp_wmem", "4096 16384 262144").unwrap();
    });
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    client.say(BYTES);
    let seen = ends.acknowledged(BYTES);
    let looked = ends.client.look();
    client.close();
    let there = ends.path.counters(Direction::AToB);
    let [client, to] = ends.end();
    server.finish().unwrap();
    assert_eq!((client.close().bytes(), to.close().bytes()), ((BYTES, 0), (0, BYTES)));
    assert_eq!(client.close().acked_bytes, BYTES);
    Carried { client, server: to, seen, looked, there }
}

fn us(ms: Option<f64>) -> u64 {
    (ms.unwrap() * 1e3).round() as u64
}

impl Carried {
    /// Nobody was kept waiting by a window, and the receiver saw nothing that only a sender can see.
    fn is_the_paths_own(&self) {
        self.client.has_open_windows();
        self.server.has_open_windows();
        let Path { lost, duplicates, reorderings, .. } = self.server.close().path;
        assert_eq!((lost, duplicates, reorderings), (0, 0, 0));
        let Limited { busy, rwnd, .. } = self.client.close().limited_us;
        assert!(busy * 1000 >= self.seen.ms("busy") && rwnd == self.seen.ms("rwnd_limited") * 1000);
        // While nothing moves, a look shows what `ss` does.
        let (now, seen) = (&self.looked, &self.seen);
        assert_eq!(Some(now.cwnd), seen.cwnd());
        assert_eq!(now.ssthresh.unwrap_or(0), seen.count("ssthresh"));
        assert_eq!(now.delivery_rate, seen.bytes_per_s("delivery_rate"));
        assert_eq!(now.pacing_rate, seen.bytes_per_s("pacing_rate"));
        // The usual one is not shown by ss.
        assert_eq!(now.reordering, seen.count("reordering").max(3));
        let rtt = now.rtt.unwrap();
        assert_eq!((rtt.srtt_us, rtt.min_us), (us(seen.rtt_ms()), Some(us(seen.min_rtt_ms()))));
        assert_eq!(rtt.queueing_us, Some(rtt.srtt_us - rtt.min_us.unwrap()));
    }
}

#[test]
fn a_lost_segment_is_held_for_lost_and_sent_again() {
    let carried = carry(70, Impairment { drop: 0.02, ..of_ms(5) });
    carried.is_the_paths_own();
    let close = carried.client.close();
    let dropped = carried.there.dropped;
    assert!(dropped > 20, "{dropped}");
    let Path { lost, duplicates, reorderings, ce_marked } = close.path;
    // What was lost at the end of all is sent again as a probe, before it is held for lost; what a busy machine makes
    // late, without need.
    assert!(lost + close.retransmits.tlp >= dropped && lost < dropped + 20, "{lost} {dropped} {close:?}");
    assert!(close.retransmits.total >= dropped && close.retransmits.fast > 0, "{dropped} {close:?}");
    assert_eq!(close.retransmits.total, carried.client.end.kernel(&["TcpRetransSegs"]));
    assert_eq!(reorderings, carried.seen.count("reord_seen"));
    let states = close.congestion_states.unwrap();
    assert_eq!(states.recovery.entered, carried.client.end.kernel(RECOVERIES));
    // Each takes a round trip at least.
    assert!(
        states.recovery.us >= states.recovery.entered * 10_000 && states.recovery.entered > 0,
        "{states:?}"
    );
    assert!(states.recovery.us + states.loss.us <= close.duration_us.unwrap() && states.cwr.entered == 0);
    // Some may have been told of after that.
    assert!(duplicates >= carried.seen.count("dsack_dups"), "{close:?}");
    assert!(reorderings == 0 && ce_marked.is_none() && carried.looked.ssthresh.is_some(), "{close:?}");
}

#[test]
fn a_loss_of_ten_percent_each_way_needs_timers_too() {
    let lossy = Impairment { drop: 0.1, ..of_ms(5) };
    let ends = Ends::new(80, lossy, lossy, |_, _| {});
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    client.say(400_000);
    ends.acknowledged(400_000);
    client.close();
    let dropped = ends.path.counters(Direction::AToB).dropped;
    let [client, to] = ends.end();
    server.finish().unwrap();
    let close = client.close();
    let Path { lost, reorderings, .. } = close.path;
    // By far more than one in a hundred.
    assert!((close.segments_out / 25..close.segments_out / 2).contains(&lost), "{close:?}");
    assert!(lost + close.retransmits.tlp + close.retransmits.syn + 2 >= dropped, "{dropped} {close:?}");
    assert_eq!(close.retransmits.total, client.end.kernel(&["TcpRetransSegs"]));
    assert_eq!(reorderings, client.end.kernel(REORDERINGS));
    let timers = client.end.kernel(&["TcpExtTCPTimeouts", "TcpExtTCPLossProbes"]);
    assert!(timers > 0 && close.congestion_states.unwrap().recovery.entered > 0, "{close:?}");
    client.has_open_windows();
    to.has_open_windows();
}

#[test]
fn a_damaged_segment_is_dropped_for_its_checksum_and_sent_again() {
    let carried = carry(81, Impairment { corrupt: 0.02, ..of_ms(5) });
    carried.is_the_paths_own();
    let (close, damaged) = (carried.client.close(), carried.there.corrupted);
    assert!(damaged > 20, "{damaged}");
    assert_eq!(carried.server.end.kernel(&["TcpInCsumErrors"]), damaged);
    let server = &carried.server;
    let dropped = |labels: &[(&str, &str)]| {
        server.scrape.sum("tcptide_dropped_packets_total", labels).unwrap_or(0.0) as u64
    };
    assert_eq!(dropped(&[("reason", "tcp_csum")]), damaged);
    if kernel().unwrap() >= TELLS_OF_DROPS {
        let own = ("container", server.end.cgroup.path().to_str().unwrap());
        assert_eq!(dropped(&[own, ("reason", "tcp_csum")]), damaged);
    }
    let Path { lost, reorderings, .. } = close.path;
    assert!(lost + close.retransmits.tlp >= damaged && lost < damaged + 20, "{damaged} {close:?}");
    assert!(close.retransmits.total >= damaged && reorderings == 0, "{damaged} {close:?}");
}

#[test]
fn jitter_spreads_round_trips_and_nothing_else_rises() {
    const REQUESTS: u64 = 40;
    let unsteady = Impairment { jitter: Duration::from_millis(20), ..of_ms(10) };
    let ends = Ends::new(82, unsteady, unsteady, |_, _| {});
    let (counts, [client, to]) = ends.ask(REQUESTS);
    client.is_sound();
    to.is_sound();
    // One for each request, and for the handshake.
    let count = client.end.counted(&client.scrape, "tcptide_rtt_seconds_count", &[]) as u64;
    assert!((REQUESTS / 2..=REQUESTS + 2).contains(&count), "{count}");
    // From 20 ms to 60 ms.
    let rtts = client.rtts();
    let below = |bound: f64| -> u64 {
        rtts.iter().filter(|&&(up_to, _)| up_to <= bound).map(|&(_, count)| count).sum()
    };
    assert!(below(0.0157) == 0 && below(0.04) > 0 && below(0.04) < count, "{} {count}", below(0.04));
    let (rtt, seen) = (client.close().rtt.unwrap(), counts.round_trip_us.unwrap());
    assert!((20_000..=seen.min.ceil() as u64).contains(&rtt.min_us.unwrap()), "{rtt:?} {seen:?}");
    assert!(rtt.queueing_us.unwrap() > 1000, "{rtt:?}");
}

#[test]
fn a_doubled_segment_is_a_duplicate_and_no_loss() {
    let carried = carry(71, Impairment { duplicate: 0.05, ..of_ms(20) });
    carried.is_the_paths_own();
    let close = carried.client.close();
    let duplicates = close.path.duplicates;
    // Of a doubled SYN or FIN nobody tells, and an acknowledgement may tell of the last double only.
    let (doubled, again) = (carried.there.duplicated, close.retransmits.total);
    assert!(doubled > 50 && duplicates >= doubled / 2, "{doubled} {close:?}");
    assert!(duplicates <= doubled + again, "{doubled} {close:?}");
    assert_eq!(duplicates, carried.client.end.kernel(DSACKS));
    carried.client.is_lossless();
}

#[test]
fn an_overtaken_segment_is_a_reordering() {
    let carried = carry(72, Impairment { reorder: 0.02, ..of_ms(40) });
    carried.is_the_paths_own();
    let close = carried.client.close();
    let Path { lost, duplicates, reorderings, .. } = close.path;
    assert_eq!(reorderings, carried.client.end.kernel(REORDERINGS));
    // Two held back at a time are seen as one, and what nobody overtakes is not held back.
    let held_back = carried.there.held_back;
    assert!(
        (held_back / 2..=held_back).contains(&reorderings) && held_back > 20,
        "{held_back} {reorderings}"
    );
    assert!(carried.looked.reordering > 3, "{:?}", carried.looked);
    // Until the first is recognized, the sender takes it for lost.
    assert!(lost <= 10 && duplicates <= lost + close.retransmits.tlp, "{close:?}");
    assert_eq!(reorderings, carried.seen.count("reord_seen"));
    // Some may have been told of after that.
    assert!(duplicates >= carried.seen.count("dsack_dups"), "{close:?}");
}

#[test]
fn a_queue_on_the_path_is_the_rtt_above_the_least() {
    let (base, rate) = (Duration::from_millis(10), 1_000_000);
    let carried = carry(73, Impairment { rate_bytes_per_s: Some(rate), ..of_ms(5) });
    carried.is_the_paths_own();
    let [looked, closed] = [&carried.looked, carried.client.close()].map(|end| end.rtt.unwrap());
    assert!(u128::from(looked.min_us.unwrap()) >= base.as_micros());
    // The send buffer's worth of packets waits in front of the path.
    let queueing = looked.queueing_us.unwrap();
    assert!((20_000..1_000_000).contains(&queueing), "{queueing}");
    // Before there was a queue.
    let (handshake, connect) = (closed.handshake_us.unwrap(), carried.client.close().connect_us.unwrap());
    assert!((10_000..=connect).contains(&handshake), "{handshake} {connect}");
    // The one at the end is the only sample where nobody looked.
    let told = &carried.client;
    let counted = |name| told.end.counted(&told.scrape, name, &[]);
    assert_eq!(counted("tcptide_queueing_delay_seconds_count") as u64, 1);
    let sum = counted("tcptide_queueing_delay_seconds_sum") * 1e6;
    assert_eq!(sum.round() as u64, closed.queueing_us.unwrap());
    assert_eq!(closed.queueing_us, Some(closed.srtt_us - closed.min_us.unwrap()));
    // Acknowledgements meet no queue.
    let back = carried.server.close().rtt.unwrap();
    assert!(back.queueing_us.unwrap() < queueing / 2, "{back:?}");
    assert!(carried.client.close().limited_us.busy > BYTES * 1_000_000 / rate * 9 / 10);
    told.is_lossless();
}

#[test]
fn every_look_at_a_connection_that_moved_is_one_sample_of_its_queue() {
    let ends = Ends::new(74, of_ms(5), of_ms(5), |_, _| {});
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    let mut expected = Vec::new();
    let samples = |ends: &Ends| {
        let scrape = ends.agent.scrape().unwrap();
        let of = |name| ends.client.counted(&scrape, name, &[]);
        let sum = of("tcptide_queueing_delay_seconds_sum") * 1e6;
        (of("tcptide_queueing_delay_seconds_count") as usize, sum.round() as u64)
    };
    for said in 1..=3 {
        client.say(10_000);
        ends.acknowledged(said * 10_000);
        expected.push(ends.client.look().rtt.unwrap().queueing_us.unwrap());
        for _ in 0..2 {
            assert_eq!(samples(&ends), (expected.len(), expected.iter().sum()), "{expected:?}");
        }
    }
    client.close();
    let [told, _at_server] = ends.end();
    server.finish().unwrap();
    expected.push(told.close().rtt.unwrap().queueing_us.unwrap());
    let sum = told.end.counted(&told.scrape, "tcptide_queueing_delay_seconds_sum", &[]) * 1e6;
    assert_eq!(sum.round() as u64, expected.iter().sum::<u64>());
}

#[test]
fn a_congestion_mark_is_told_by_its_receiver() {
    let carried = carry(75, Impairment { mark: 0.01, ..of_ms(5) });
    carried.is_the_paths_own();
    let marked = carried.there.marked;
    assert!(marked > 10 && carried.server.end.kernel(&["IpExtInCEPkts"]) == marked, "{marked}");
    let (client, server) = (carried.client.close(), carried.server.close());
    assert!(client.ecn && server.ecn && carried.looked.ecn && carried.seen.flags.contains("ecn"));
    // It says so until the sender has answered: for more segments than were marked.
    let told = client.path.ce_marked.unwrap();
    assert!(told >= marked, "{told} {marked}");
    assert_eq!(told, carried.client.end.kernel(&["TcpExtTCPDeliveredCE"]));
    assert!(told >= carried.seen.count("delivered_ce"), "{told}");
    assert_eq!(server.path.ce_marked, Some(0));
    // The sender slows down, and has nothing to send again.
    assert!(carried.looked.ssthresh.is_some(), "{client:?}");
    let states = client.congestion_states.unwrap();
    assert!(states.cwr.entered > 0 && states.cwr.us > 0 && states.recovery.entered == 0, "{states:?}");
    carried.client.is_lossless();
}

#[test]
fn without_both_ends_there_is_no_ecn() {
    let all = Impairment { mark: 1.0, ..of_ms(5) };
    let ends = Ends::new(76, all, all, |client, server| {
        client.sysctl("net.ipv4.tcp_ecn", "1").unwrap();
        server.sysctl("net.ipv4.tcp_ecn", "0").unwrap();
    });
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    client.say(100_000);
    ends.acknowledged(100_000);
    client.close();
    assert_eq!(ends.path.counters(Direction::AToB).marked, 0);
    let both = ends.end();
    server.finish().unwrap();
    for told in &both {
        assert!(!told.close().ecn);
        assert_eq!(told.close().path.ce_marked, None);
        told.is_sound();
    }
}

/// Loses the first of these packets.
fn lose_one(ends: &Ends, direction: Direction, unlucky: fn(&[u8]) -> bool) {
    let mut lost = false;
    ends.path.drop_if(direction, move |packet| {
        let first = !lost && unlucky(packet);
        lost |= first;
        first
    });
}

#[test]
fn the_handshakes_rtt_is_the_first_that_the_kernel_measured() {
    const WAY_MS: u64 = 20;
    // A busy machine may add to it, but not the second that it takes to send a SYN again.
    let round_trip = 2 * WAY_MS * 1000..1_000_000;
    let anything: fn(&[u8]) -> bool = |_| false;
    for (unlucky, direction, sent_again) in [
        (anything, Direction::AToB, 0),
        (is_syn, Direction::AToB, 1),
        // Here the sender of the SYN cannot tell what it measures: the answer bears the first SYN's time stamp.
        (is_syn_ack, Direction::BToA, 1),
    ] {
        let ends = Ends::new(77, of_ms(WAY_MS), of_ms(WAY_MS), |_, _| {});
        lose_one(&ends, direction, unlucky);
        let server = ends.listen();
        let client = ends.speaker(&[]);
        wait_until("a connection", SOON, || Ok((ends.server.ss().state == "ESTAB").then_some(()))).unwrap();
        let seen = [&ends.client, &ends.server].map(|end| us(end.ss().rtt_ms()));
        // Found later, nobody knows it any more.
        assert_eq!(ends.client.look().rtt.unwrap().handshake_us, None);
        client.close();
        let both = ends.end();
        server.finish().unwrap();
        let [active, passive] = both.each_ref().map(Told::close);
        let handshakes = [active, passive].map(|end| end.rtt.unwrap().handshake_us.unwrap());
        assert_eq!(handshakes, seen);
        assert!(handshakes.iter().all(|&us| us >= round_trip.start), "{handshakes:?}");
        let connect = active.connect_us.unwrap();
        // The server's handshake begins with the SYN that it received, and is over when its SYN-ACK is answered.
        let took = passive.handshake_us.unwrap();
        assert!(active.handshake_us.is_none());
        if direction == Direction::BToA {
            assert!((900_000..passive.duration_us.unwrap() + connect).contains(&took), "{took}");
        } else {
            assert_eq!(took, handshakes[1]);
        }
        assert!(connect >= sent_again * 1_000_000 + round_trip.start, "{connect}");
        if direction == Direction::AToB {
            assert!(handshakes.iter().all(|us| round_trip.contains(us)), "{handshakes:?}");
        }
        let syns = active.retransmits.syn;
        assert!(syns >= sent_again && active.path.lost == syns, "{active:?}");
    }
}

#[test]
fn a_containers_totals_are_the_sums_of_its_connections_on_a_bad_path() {
    let bad = Impairment { drop: 0.02, duplicate: 0.02, reorder: 0.02, ..of_ms(10) };
    let ends = Ends::new(78, bad, bad, |_, _| {});
    let server = ends.serve(&[]);
    let churn = ["--rate", "1000", "--seconds", "60", "--count", "40", "--threads", "10", "--timeout", "60"];
    let client = ends.start("churn", &[&churn[..], &["--bytes", "100000"]].concat());
    // Whoever looks meanwhile takes nothing away.
    for _ in 0..20 {
        ends.agent.scrape().unwrap();
    }
    let counts = client.wait(SOON * 3).unwrap();
    assert_eq!((counts.closed, counts.failures()), (40, 0), "{counts:?}");
    let both = ends.end();
    server.finish().unwrap();
    for told in &both {
        assert_eq!(told.closed.0.len(), 40);
        let [lost, duplicates, reorderings, again] = [
            told.sum(|close| close.path.lost),
            told.sum(|close| close.path.duplicates),
            told.sum(|close| close.path.reorderings),
            told.sum(|close| close.retransmits.total),
        ];
        assert!(lost > 20 && duplicates > 20 && reorderings > 5, "{lost} {duplicates} {reorderings}");
        assert_eq!(
            (again, reorderings),
            (told.end.kernel(&["TcpRetransSegs"]), told.end.kernel(REORDERINGS))
        );
        // One may be about several segments.
        assert!(duplicates >= told.end.kernel(DSACKS), "{duplicates}");
        told.has_open_windows();
    }
}

#[test]
fn what_was_lost_before_the_adoption_is_not_counted() {
    let ends = Ends::new(79, Impairment { drop: 0.02, ..of_ms(5) }, of_ms(5), |_, _| {});
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    client.say(BYTES);
    ends.acknowledged(BYTES);
    let late = Tcptide::find().unwrap().agent([""; 0]).unwrap();
    let lost = |agent: &functional::tcptide::Agent| {
        ends.client.counted(&agent.scrape().unwrap(), "tcptide_lost_segments_total", &[]) as u64
    };
    let early = lost(&ends.agent);
    assert!(early > 0 && lost(&late) == 0, "{early}");
    client.say(BYTES);
    ends.acknowledged(2 * BYTES);
    let looked = Connections::now(&ends.client.netns, &[]).unwrap();
    assert_eq!(looked.one().unwrap().path, SOUND, "a look counts from itself on");
    let later = lost(&late);
    assert!(later > 0 && later == lost(&ends.agent) - early, "{later} {early}");
    client.close();
    let _told = ends.end();
    server.finish().unwrap();
}
