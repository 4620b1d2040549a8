//! Who keeps a connection waiting: the peer that does not read, the own send buffer, or nobody.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use functional::connections::{Buffered, Connections, Limited, ZeroWindows};
use functional::forwarder::Impairment;
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::Tcptide;
use functional::witness::sockets;
use functional::workload::Running;
use rustix::process::{Pid, Signal, kill_process};

mod two_ends;

use two_ends::{End, Ends, SOON, SOUND, Speaker};

/// Longer than the kernel waits before it asks whether a closed window is open again (200 ms, then 400 ms).
const A_PROBE: Duration = Duration::from_millis(800);
/// What a look, from the adoption before it, takes at most.
const A_LOOK_US: u64 = 300_000;
/// More than a small receive buffer takes.
const TOO_MUCH: u64 = 400_000;

const ADVERTISED: &[&str] = &["TcpExtTCPToZeroWindowAdv"];

fn signal(process: &Running, signal: Signal) {
    kill_process(Pid::from_raw(process.pid().cast_signed()).unwrap(), signal).unwrap();
}

/// A server whose receive buffer does not grow, so that a stopped one is full soon.
fn with_a_small_receive_buffer(number: u8) -> Ends {
    Ends::new(number, Impairment::default(), Impairment::default(), |_, server| {
        server.sysctl("net.ipv4.tcp_rmem", "4096 131072 131072").unwrap();
    })
}

/// Stops the server and has the client say more than it can take; returns when that began, once the window has been
/// closed for a while.
fn stall(ends: &Ends, client: &mut Speaker, server: &Running) -> Instant {
    let since = Instant::now();
    signal(server, Signal::STOP);
    let before = ends.server.kernel(ADVERTISED);
    client.say(TOO_MUCH);
    wait_until("the window to be closed", SOON, || {
        Ok((ends.server.kernel(ADVERTISED) > before).then_some(()))
    })
    .unwrap();
    thread::sleep(A_PROBE);
    since
}

/// In the middle of a stall, what tcptide says at a look is what `ss` says.
fn a_look_shows_full_buffers(ends: &Ends) {
    let (at_client, at_server) = (ends.client.ss(), ends.server.ss());
    let (sender, receiver) = (ends.client.look(), ends.server.look());
    let (unread, unsent) = (at_server.recv_q, at_client.count("notsent"));
    let other_way = at_server.count("snd_wnd");
    assert!(unread > 0 && unsent > 0 && other_way > 0 && at_client.count("snd_wnd") == 0);
    let expected = Buffered { unread: 0, unsent, send_window: 0, receive_window: other_way };
    assert_eq!(sender.buffered, Some(expected));
    let expected = Buffered { unread, unsent: 0, send_window: other_way, receive_window: 0 };
    assert_eq!(receiver.buffered, Some(expected));
    // Nobody watched before this look, so how often is not known.
    assert_eq!([sender.zero_windows, receiver.zero_windows], [ZeroWindows::default(); 2]);
    assert!(sender.limited_us.busy < A_LOOK_US && receiver.limited_us == Limited::default());
}

/// The agent has as many closed windows, and as much time lost to them, as the kernel.
fn the_agent_is_up_to_date(ends: &Ends, stalls: u64) {
    let advertised = ends.server.kernel(ADVERTISED);
    let earlier = ends.client.ss().ms("rwnd_limited") as f64 / 1e3;
    let scrape = ends.agent.scrape().unwrap();
    let later = ends.client.ss().ms("rwnd_limited") as f64 / 1e3;
    let limited = ends.client.counted(&scrape, "tcptide_limited_seconds_total", &[("by", "rwnd")]);
    assert!((earlier..=later).contains(&limited), "{earlier} {limited} {later}");
    let closed = |end: &End, of| end.counted(&scrape, "tcptide_zero_windows_total", &[("of", of)]) as u64;
    assert_eq!((closed(&ends.client, "peer"), closed(&ends.client, "own")), (advertised, 0));
    // Those in which no segment came are not seen: none of the stalls.
    assert_eq!(closed(&ends.server, "peer"), 0);
    assert!((stalls..=advertised).contains(&closed(&ends.server, "own")), "{stalls} {advertised}");
}

#[test]
fn a_receiver_that_stops_reading_keeps_its_sender_waiting() {
    const STALLS: u64 = 3;
    let ends = with_a_small_receive_buffer(60);
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    let mut stopped = Duration::ZERO;
    for stalls in 1..=STALLS {
        let since = stall(&ends, &mut client, &server);
        a_look_shows_full_buffers(&ends);
        the_agent_is_up_to_date(&ends, stalls);
        signal(&server, Signal::CONT);
        stopped += since.elapsed();
        ends.acknowledged(stalls * TOO_MUCH);
    }
    let seen = ends.client.ss();
    let advertised = ends.server.kernel(ADVERTISED);
    client.close();
    let [sender, receiver] = ends.end();
    server.finish().unwrap();

    let Limited { busy, rwnd, sndbuf } = sender.close().limited_us;
    assert_eq!((rwnd, sndbuf), (seen.ms("rwnd_limited") * 1000, seen.ms("sndbuf_limited") * 1000));
    // The FIN waits for an acknowledgement, too.
    assert!((seen.ms("busy") * 1000..seen.ms("busy") * 1000 + 100_000).contains(&busy), "{busy} {seen:?}");
    let stopped = stopped.as_micros() as u64 + A_LOOK_US;
    assert!((A_PROBE.as_micros() as u64 * STALLS..=stopped).contains(&rwnd), "{rwnd} of {stopped}");
    assert!(receiver.close().limited_us.busy < 100_000 && receiver.close().limited_us.rwnd == 0);

    assert_eq!(receiver.end.kernel(&["TcpExtTCPFromZeroWindowAdv"]), advertised);
    assert_eq!(sender.close().zero_windows.times(), (advertised, 0));
    let own = receiver.close().zero_windows.own;
    assert!(receiver.close().zero_windows.peer == 0 && (STALLS..=advertised).contains(&own), "{own}");
    // Each window was closed for as long as the server stood still, but for what it took to fill and to open it.
    let least = A_PROBE.as_micros() as u64 * STALLS;
    for closed in [sender.close().zero_windows.peer_us, receiver.close().zero_windows.own_us] {
        assert!((least..=stopped + A_LOOK_US).contains(&closed), "{closed} of {stopped}");
    }
    for (told, kind, times) in [(&sender, "peer", advertised), (&receiver, "own", own)] {
        let kinds: Vec<_> = told.zero_windows.0.iter().map(|event| event.kind.as_deref()).collect();
        assert_eq!(kinds, vec![Some(kind); times as usize]);
    }
    // The kernel may ask whether the last segment before a stall has arrived, which it had.
    sender.is_lossless();
    assert!(sender.close().path.duplicates >= seen.count("dsack_dups"));
    assert_eq!((receiver.close().path, receiver.close().retransmits.total), (SOUND, 0));
}

#[test]
fn a_stall_from_before_is_counted_from_the_adoption_on() {
    let ends = with_a_small_receive_buffer(61);
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    stall(&ends, &mut client, &server);
    let earlier = ends.client.ss().ms("rwnd_limited") as f64 / 1e3;
    let late = Tcptide::find().unwrap().agent([""; 0]).unwrap();
    thread::sleep(A_PROBE);
    let scrape = late.scrape().unwrap();
    let whole = ends.client.ss().ms("rwnd_limited") as f64 / 1e3;
    let limited = |by| ends.client.counted(&scrape, "tcptide_limited_seconds_total", &[("by", by)]);
    let rwnd = limited("rwnd");
    assert!((A_PROBE.as_secs_f64() * 0.9..=whole - earlier).contains(&rwnd), "{rwnd} {earlier} {whole}");
    assert!(limited("nothing") + limited("sndbuf") < 0.1);
    let closed = |end: &End, of: &str| {
        end.counted(&late.scrape().unwrap(), "tcptide_zero_windows_total", &[("of", of)]) as u64
    };
    assert_eq!(closed(&ends.client, "peer"), 1);
    // The receiver's is seen when the sender asks next.
    wait_until("the receiver's closed window", SOON, || Ok((closed(&ends.server, "own") == 1).then_some(())))
        .unwrap();
    signal(&server, Signal::CONT);
    ends.acknowledged(TOO_MUCH);
    client.close();
    let _told = ends.end();
    server.finish().unwrap();
}

#[test]
fn a_small_send_buffer_keeps_its_own_sender_waiting() {
    const BYTES: u64 = 2_000_000;
    let delay = Impairment { delay: Duration::from_millis(20), ..Impairment::default() };
    let ends = Ends::new(62, delay, delay, |client, _| {
        // One that paces: what leaves when it is due, and not when it is written, lets the kernel see a full buffer of
        // which all is sent.
        client.sysctl("net.ipv4.tcp_congestion_control", "bbr").unwrap();
    });
    let server = ends.listen();
    let mut client = ends.speaker(&["--send-buffer", "16384"]);
    client.say(BYTES);
    let seen = ends.acknowledged(BYTES);
    client.close();
    let [sender, receiver] = ends.end();
    server.finish().unwrap();
    let Limited { busy, rwnd, sndbuf } = sender.close().limited_us;
    assert_eq!((rwnd, sndbuf), (0, seen.ms("sndbuf_limited") * 1000));
    assert!((seen.ms("busy") * 1000..seen.ms("busy") * 1000 + 100_000).contains(&busy), "{busy} {seen:?}");
    // On a fast machine more than a third.
    assert!(sndbuf > busy / 6, "{sndbuf} of {busy}");
    sender.is_sound();
    receiver.is_sound();
}

#[test]
fn an_application_with_little_to_say_waits_for_nobody() {
    let delay = Impairment { delay: Duration::from_millis(20), ..Impairment::default() };
    let ends = Ends::new(63, delay, delay, |_, _| {});
    let server = ends.serve(&[]);
    let client = ends.start("pingpong", &["--count", "5", "--bytes", "5000", "--interval", "200"]);
    assert_eq!(client.wait(SOON).unwrap().requests, 5);
    let [sender, receiver] = ends.end();
    server.finish().unwrap();
    for end in [&sender, &receiver] {
        let Limited { busy, rwnd, sndbuf } = end.close().limited_us;
        assert_eq!((rwnd, sndbuf), (0, 0));
        // A round trip for each of the five, less the clock's ticks.
        assert!((5 * 36_000..end.close().duration_us.unwrap() * 4 / 5).contains(&busy), "{busy}");
        end.is_sound();
    }
}

#[test]
fn bytes_that_wait_in_buffers_are_shown_to_the_byte() {
    let netns = Netns::new("buffers").unwrap();
    let (listener, client) = netns
        .enter(|| {
            let listener = TcpListener::bind("127.0.0.1:7000")?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            Ok((listener, client))
        })
        .unwrap();
    let server = listener.accept().unwrap().0;
    let local = server.local_addr().unwrap();
    for (written, read, unread) in [(0, 0, 0), (1000, 300, 700), (0, 700, 0), (50_000, 1, 49_999)] {
        { &client }.write_all(&vec![7; written]).unwrap();
        { &server }.read_exact(&mut vec![0; read]).unwrap();
        let seen = sockets(&netns, &["state", "established", "sport", "=", ":7000"]).unwrap().remove(0);
        let now = Connections::now(&netns, &[]).unwrap();
        let end = now.at(local).one().unwrap().clone();
        let buffered = end.buffered.unwrap();
        assert_eq!((buffered.unread, buffered.unsent, seen.recv_q), (unread, 0, unread));
        assert_eq!(buffered.send_window, seen.count("snd_wnd"));
        assert!(buffered.receive_window > 0 && end.zero_windows == ZeroWindows::default());
        let client = now.at(client.local_addr().unwrap()).one().unwrap().clone();
        assert_eq!(client.buffered.unwrap().unread, 0);
    }
    let listening = Connections::listeners(&netns, &[]).unwrap();
    assert!(listening.one().unwrap().buffered.is_none());
}
