//! `tcptide explain` on connections that are held back in a known way.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use functional::forwarder::{Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::Tcptide;
use functional::witness::sockets;
use functional::workload::{self, Running};
use rustix::net::sockopt::set_socket_send_buffer_size;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// What is said of the sockets of this port, for so long.
fn explain(port: u16, duration: &str) -> Vec<Value> {
    let port = port.to_string();
    let args = ["explain", "-o", "json", "--duration", duration, "--port", &port];
    let said = Tcptide::find().unwrap().run(args).unwrap().success().unwrap().json().unwrap();
    said.as_array().unwrap().clone()
}

/// The causes of the socket that has this local port (and far port), the gravest first.
fn causes(said: &[Value], local: u16, peer: Option<u16>) -> Vec<String> {
    let is_it = |one: &&Value| {
        let connection = &one["connection"];
        connection["local"]["port"] == local && peer.is_none_or(|peer| connection["peer"]["port"] == peer)
    };
    let one = said.iter().find(is_it).unwrap_or_else(|| panic!("no {local} -> {peer:?} in {said:?}"));
    let verdicts = one["verdicts"].as_array().unwrap();
    verdicts.iter().map(|verdict| verdict["cause"].as_str().unwrap().to_owned()).collect()
}

fn port(address: std::io::Result<SocketAddr>) -> u16 {
    address.unwrap().port()
}

#[test]
fn who_does_not_read_and_who_does_not_accept_is_told() {
    let netns = Netns::new("explain").unwrap();
    let said = netns
        .enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let to = listener.local_addr()?;
            let [mut full, idle] = [TcpStream::connect(to)?, TcpStream::connect(to)?];
            let (unread, _) = listener.accept()?;
            let (idle_too, _) = listener.accept()?;
            // As much as goes in, and what does not waits.
            full.set_nonblocking(true)?;
            let much = vec![0; 65536];
            while full.write(&much).is_ok() {}
            // The kernel makes it 128; that many and one more fit.
            let waiting: Vec<_> = (0..129).map(|_| TcpStream::connect(to)).collect::<Result<_, _>>()?;
            // Its SYN is turned away.
            let refused = std::thread::spawn(move || TcpStream::connect_timeout(&to, SOON * 3));
            std::thread::sleep(Duration::from_millis(200));
            let said = explain(to.port(), "3s");

            let (listening, full_port) = (to.port(), port(full.local_addr()));
            assert_eq!(causes(&said, full_port, None), ["receiver_slow"]);
            assert_eq!(causes(&said, listening, Some(full_port)), ["slow_to_read"]);
            assert_eq!(causes(&said, port(idle.local_addr()), None), ["nothing_to_send"]);
            assert_eq!(causes(&said, listening, Some(port(idle.local_addr()))), ["nothing_to_send"]);
            assert_eq!(causes(&said, listening, Some(port(waiting[0].local_addr()))), ["slow_to_accept"]);
            let listens: Vec<_> =
                said.iter().filter(|one| one["connection"]["state"] == "listen").cloned().collect();
            assert_eq!(causes(&listens, listening, None), ["slow_to_accept"]);
            let asking = said.iter().find(|one| one["connection"]["state"] == "syn_sent");
            assert_eq!(asking.unwrap()["verdicts"][0]["cause"], "no_answer", "{asking:?}");
            drop((unread, idle_too, waiting, listener));
            drop(refused.join());
            Ok(said)
        })
        .unwrap();
    // Those held back come first.
    assert_ne!(said[0]["verdicts"][0]["cause"], "nothing_to_send");
}

#[test]
fn who_reads_late_is_told() {
    let netns = Netns::new("explain-late").unwrap();
    netns
        .enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let to = listener.local_addr()?;
            let (mut client, other) = (TcpStream::connect(to)?, TcpStream::connect(to)?);
            let [(mut late, _), (in_time, _)] = [listener.accept()?, listener.accept()?];
            let [from, other_from] = [&client, &other].map(|end| port(end.local_addr()));
            let writing = thread::spawn(move || {
                // Until the reader has gone.
                while client.write_all(&[0; 1000]).is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let over = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&over);
            let reading = thread::spawn(move || {
                while !seen.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(150));
                    assert!(late.read(&mut vec![0; 100_000]).unwrap() > 0);
                }
            });
            let said = explain(to.port(), "3s");
            over.store(true, Ordering::Relaxed);
            assert_eq!(causes(&said, to.port(), Some(from)), ["slow_to_read"], "{said:?}");
            // Its acknowledgements come late, which nobody is to blame for.
            let sender = causes(&said, from, None).remove(0);
            assert!(["round_trips", "nothing_to_send"].contains(&sender.as_str()), "{sender}");
            assert_eq!(causes(&said, to.port(), Some(other_from)), ["nothing_to_send"]);
            reading.join().unwrap();
            writing.join().unwrap();
            drop((other, in_time));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_small_send_buffer_is_told() {
    let [a, b] = ["explain-a", "explain-b"].map(|name| Netns::new(name).unwrap());
    let [at_a, at_b] = [1, 2].map(|host| Ipv4Addr::new(198, 18, 66, host));
    let way = Impairment { delay: Duration::from_millis(20), ..Impairment::default() };
    let _path = Forwarder::between(&a, at_a.into(), &b, at_b.into(), way).unwrap();
    let listener = b.enter(|| Ok(TcpListener::bind((at_b, 0))?)).unwrap();
    let at = listener.local_addr().unwrap();
    let mut client = a.enter(|| Ok(TcpStream::connect(at)?)).unwrap();
    set_socket_send_buffer_size(&client, 4096).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let from = port(client.local_addr());
    let reading = thread::spawn(move || while server.read(&mut vec![0; 100_000]).unwrap() > 0 {});
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                client.write_all(&vec![0; 100_000]).unwrap();
            }
            drop(client);
        });
        let said = explain(at.port(), "3s");
        over.store(true, Ordering::Relaxed);
        let causes = causes(&said, from, None);
        assert_eq!(causes, ["send_buffer"], "{said:?}");
    });
    reading.join().unwrap();
}

/// A sender of one long stream over a path, and what is said of it.
fn stream(number: u8, impairment: Impairment) -> Vec<String> {
    let [a, b] = ["explain-a", "explain-b"].map(|name| Netns::new(name).unwrap());
    // Not the host's choice, which may pace.
    a.sysctl("net.ipv4.tcp_congestion_control", "reno").unwrap();
    let [at_a, at_b] = [1, 2].map(|host| Ipv4Addr::new(198, 18, number, host));
    let _path = Forwarder::between(&a, at_a.into(), &b, at_b.into(), impairment).unwrap();
    let at = SocketAddr::from((at_b, 7000 + u16::from(number)));
    let serve = workload::command(["serve", "--listen", &at.to_string(), "--bytes-back", "1"]).unwrap();
    let server = Running::start(&mut b.wrap(&serve)).unwrap();
    server.listening().unwrap();
    let stream = ["stream", "--to", &at.to_string(), "--bytes", "500000000"];
    let client = Running::start(&mut a.wrap(&workload::command(stream).unwrap())).unwrap();
    let sending = wait_until("the stream", SOON, || {
        let sockets = sockets(&a, &["state", "established"])?;
        Ok(sockets.into_iter().find(|socket| socket.bytes_sent() > 100_000))
    })
    .unwrap();
    let said = explain(at.port(), "3s");
    let causes = causes(&said, sending.local.port(), None);
    println!("{said:?}");
    client.finish().ok();
    server.finish().ok();
    causes
}

#[test]
fn a_path_that_loses_segments_is_told() {
    let delay = Duration::from_millis(5);
    let causes = stream(61, Impairment { drop: 0.05, delay, seed: 7, ..Impairment::default() });
    assert!(causes.contains(&"network_loss".to_owned()), "{causes:?}");
    assert!(!causes.contains(&"receiver_slow".to_owned()), "{causes:?}");
}

#[test]
fn a_path_with_a_deep_queue_is_told() {
    let narrow = Impairment {
        rate_bytes_per_s: Some(1_000_000),
        queue_bytes: Some(100_000_000),
        delay: Duration::from_millis(5),
        ..Impairment::default()
    };
    let causes = stream(62, narrow);
    assert!(causes.contains(&"network_delay".to_owned()), "{causes:?}");
    assert!(!causes.contains(&"network_loss".to_owned()), "{causes:?}");
}

#[test]
fn a_clean_path_is_not_blamed() {
    let causes = stream(63, Impairment { delay: Duration::from_millis(20), ..Impairment::default() });
    for blamed in ["network_loss", "slow_to_read", "no_answer"] {
        assert!(!causes.contains(&blamed.to_owned()), "{causes:?}");
    }
}

#[test]
fn an_unknown_cookie_is_an_error() {
    let output =
        Tcptide::find().unwrap().run(["explain", "18446744073709551615", "--duration", "100ms"]).unwrap();
    assert!(output.stderr.join(" ").contains("no connection has the cookie"), "{output:?}");
}
