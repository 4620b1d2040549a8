//! The packets themselves as the witness: what tshark reads out of a capture of the same connection.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use functional::forwarder::{DEVICE, Impairment};
use functional::process::{Reading, output, wait_until};
use functional::tcptide::Tcptide;
use functional::witness::sockets;
use rustix::process::Signal;
use serde_json::Value;

mod two_ends;

use two_ends::{End, Ends, SOON, Told};

/// By then dumpcap has the last packet: it reads ten times a second.
const HANDED_OVER: Duration = Duration::from_secs(1);
/// Payload of a full segment on this path.
const MSS: f64 = 1448.0;
/// What tshark calls a segment that was sent before. Where it leaves, none is only out of order.
const SENT_AGAIN: &str = "tcp.analysis.retransmission || tcp.analysis.fast_retransmission || \
     tcp.analysis.spurious_retransmission || tcp.analysis.out_of_order";

/// Captures what passes the device of one end into a file.
fn capture(end: &End, file: &Path) -> Reading {
    let mut dumpcap = end.netns.command("dumpcap");
    dumpcap.args(["-q", "-P", "-s", "128", "-i", DEVICE, "-w"]).arg(file);
    let capture = Reading::start(&mut dumpcap).unwrap();
    let begun = |line: &str| line.starts_with("File: ");
    capture.stderr().wait_for("dumpcap to begin", SOON, begun).unwrap();
    capture
}

/// The numbers that tshark has in one field, of the packets that pass a filter.
fn numbers(file: &Path, filter: &str, field: &str) -> Vec<f64> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(file).args(["-Y", filter, "-T", "fields", "-e", field]);
    output(&mut tshark).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// A connection over a path, as the packets tell of it and as tcptide does.
struct Witnessed {
    told: Told,
    /// The summary of `tcptide rtt`.
    rtt: Value,
    sent_again: u64,
    segments: u64,
    /// RTTs of all acknowledgements to the client.
    rtts_us: Vec<f64>,
}

/// The client says so much, as often, and waits each time until all has arrived.
fn witness(number: u8, there: Impairment, back: Impairment, bytes: u64, times: u64) -> Witnessed {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("capture.pcap");
    let ends = Ends::new(number, there, back, |client, _| {
        client.sysctl("net.ipv4.tcp_wmem", "4096 16384 131072").unwrap();
    });
    let cgroup = ends.client.cgroup.path().to_str().unwrap().to_owned();
    let rtt = Tcptide::find().unwrap().spawn(["rtt", "-o", "json", "--cgroup", &cgroup]).unwrap();
    rtt.wait_ready().unwrap();
    let capturing = capture(&ends.client, &file);
    let server = ends.listen();
    let mut client = ends.speaker(&[]);
    for said in 1..=times {
        client.say(bytes);
        ends.acknowledged(said * bytes);
    }
    client.close();
    let is_over = || Ok(sockets(&ends.client.netns, &["exclude", "time-wait"])?.is_empty().then_some(()));
    wait_until("the connection to end", SOON, is_over).unwrap();
    // The kernel hands packets over some time later, and only while the device is there.
    thread::sleep(HANDED_OVER);
    capturing.signal(Signal::INT).unwrap();
    capturing.wait(SOON).unwrap();
    let [told, _at_server] = ends.end();
    server.finish().unwrap();
    let lines = rtt.interrupt().unwrap().success().unwrap().json_lines().unwrap();
    let rtt = lines.into_iter().rfind(|line| line["summary"] == true).unwrap();
    let ours = format!("ip.src == 198.18.{number}.1");
    // Segments of one kind may be captured as one packet, before the device takes them apart.
    let count = |filter: &str| -> u64 {
        numbers(&file, filter, "tcp.len").iter().map(|len| (len / MSS).ceil().max(1.0) as u64).sum()
    };
    Witnessed {
        sent_again: count(&format!("{ours} && ({SENT_AGAIN})")),
        segments: count(&ours),
        rtts_us: numbers(&file, &format!("!({ours}) && tcp.analysis.ack_rtt"), "tcp.analysis.ack_rtt")
            .into_iter()
            .map(|seconds| seconds * 1e6)
            .collect(),
        told,
        rtt,
    }
}

#[test]
fn retransmissions_are_those_on_the_wire() {
    let way = Impairment { delay: Duration::from_millis(20), seed: 11, ..Impairment::default() };
    let seen = witness(64, Impairment { drop: 0.04, ..way }, way, 1_000_000, 1);
    let close = seen.told.close();
    assert!(close.retransmits.total > 15, "{close:?}");
    assert_eq!((close.retransmits.total, close.segments_out), (seen.sent_again, seen.segments), "{close:?}");
}

#[test]
fn round_trips_are_those_on_the_wire() {
    const TIMES: u64 = 60;
    let way = |seed| Impairment {
        delay: Duration::from_millis(10),
        jitter: Duration::from_millis(20),
        seed,
        ..Impairment::default()
    };
    let seen = witness(65, way(12), way(13), 100, TIMES);
    let (ours, theirs) = (seen.rtt["rtt"]["p50_us"].as_f64().unwrap(), median(seen.rtts_us.clone()));
    let samples = seen.rtt["rtt"]["count"].as_u64().unwrap();
    // With one segment at a time, each acknowledgement is a round trip: those of the SYN, and of the FIN that comes too late.
    let acknowledgements = seen.rtts_us.len() as u64;
    assert!(
        acknowledgements >= TIMES && samples.abs_diff(acknowledgements) <= 2,
        "{samples} {acknowledgements}"
    );
    // A slot is 41 % wide, and the median is somewhere in it.
    assert!((ours / theirs - 1.0).abs() < 0.25, "{ours} {theirs}");
    // The least of all is the same one.
    let least = seen.rtts_us.iter().copied().fold(f64::MAX, f64::min);
    let min = seen.told.close().rtt.unwrap().min_us.unwrap() as f64;
    assert!((min - least).abs() < 1000.0, "{min} {least}");
}
