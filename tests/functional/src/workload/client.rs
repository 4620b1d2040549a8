//! The clients: many short connections, many idle ones, one with small requests, one with a lot, one that speaks when
//! told to.
//!
//! All use blocking sockets, one thread each (or a few), because a blocking `connect` is what the
//! connect latency of most programs is made of.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::net::sockopt::{
    Timeout, set_socket_linger, set_socket_send_buffer_size, set_socket_timeout, set_tcp_nodelay,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::process::{Resource, getrlimit};

use super::{Counts, Quantiles, SMALLEST_FRAME};

/// Bytes moved by one system call.
const CHUNK: usize = 64 * 1024;

/// Whom to connect to, and how.
#[derive(Clone, Debug)]
pub struct Client {
    /// The server.
    pub to: SocketAddr,
    /// Source addresses, used in turn; the kernel's choice if empty.
    ///
    /// A bound source port stays taken for a minute after a close (`TIME_WAIT`), so a list is for
    /// many connections at a time, not for many after one another.
    pub from: Vec<IpAddr>,
    /// The longest any `connect`, read or write may take.
    pub timeout: Duration,
    /// Close with a reset (`SO_LINGER` of zero) instead of a FIN.
    pub reset: bool,
    /// `SO_SNDBUF` in bytes, of which the kernel makes twice as many; its own choice if `None`.
    pub send_buffer: Option<usize>,
}

impl Client {
    /// The plain client for a server: any source address, 5 s patience, orderly close.
    pub fn new(to: SocketAddr) -> Self {
        Self { to, from: Vec::new(), timeout: Duration::from_secs(5), reset: false, send_buffer: None }
    }

    /// Connects; `number` picks the source address.
    fn connect(&self, number: u64) -> io::Result<TcpStream> {
        let family = if self.to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket: OwnedFd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        if !self.from.is_empty() {
            let source = self.from[(number % self.from.len() as u64) as usize];
            bind(&socket, &SocketAddr::new(source, 0))?;
        }
        // The send timeout holds for connect, too.
        set_socket_timeout(&socket, Timeout::Send, Some(self.timeout))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(self.timeout))?;
        if let Some(bytes) = self.send_buffer {
            set_socket_send_buffer_size(&socket, bytes)?;
        }
        connect(&socket, &self.to)?;
        set_tcp_nodelay(&socket, true)?;
        if self.reset {
            set_socket_linger(&socket, Some(Duration::ZERO))?;
        }
        Ok(TcpStream::from(socket))
    }
}

/// Many connections after one another: connect, one request, its answer, close.
#[derive(Clone, Debug)]
pub struct Churn {
    /// Connections per second, all threads together.
    pub rate: f64,
    /// No connection is started after this time.
    pub limit: Duration,
    /// No more than so many; `rate` times `limit` if `None`.
    pub count: Option<u64>,
    /// Length of a request in bytes, at least [`SMALLEST_FRAME`].
    pub bytes: u64,
    /// Threads that connect. One does several thousand per second over loopback.
    pub threads: u32,
}

impl Churn {
    /// At this rate for so long, one thread, requests of 64 bytes.
    pub fn new(rate: f64, limit: Duration) -> Self {
        Self { rate, limit, count: None, bytes: 64, threads: 1 }
    }
}

/// Opens and closes connections at a steady rate and returns what happened.
///
/// A connection that is late is made at once, so the rate is held on average as long as the
/// machine can; `seconds` and the counts tell what it was.
pub fn churn(client: &Client, churn: &Churn) -> Counts {
    let threads = u64::from(churn.threads.max(1));
    let start = Instant::now();
    let total = churn.count.unwrap_or((churn.rate * churn.limit.as_secs_f64()).round() as u64);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|own| {
                scope.spawn(move || {
                    let numbers = (own..total).step_by(threads as usize);
                    churn_some(client, churn, start, numbers)
                })
            })
            .collect();
        let mut counts = Counts::default();
        let mut connects = Vec::new();
        for worker in workers {
            // A panic in a worker is a panic of the workload.
            let (more, durations) = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            counts.add(&more);
            connects.extend(durations);
        }
        counts.connect_us = Quantiles::of(connects);
        counts.seconds = start.elapsed().as_secs_f64();
        counts
    })
}

fn churn_some(
    client: &Client,
    churn: &Churn,
    start: Instant,
    numbers: impl Iterator<Item = u64>,
) -> (Counts, Vec<Duration>) {
    let mut counts = Counts::default();
    let mut connects = Vec::new();
    let mut buffer = vec![0; CHUNK];
    for number in numbers {
        let planned = Duration::from_secs_f64(number as f64 / churn.rate);
        thread::sleep(planned.saturating_sub(start.elapsed()));
        if start.elapsed() >= churn.limit {
            break;
        }
        let began = Instant::now();
        let outcome = client.connect(number).and_then(|stream| {
            connects.push(began.elapsed());
            counts.opened += 1;
            exchange(&stream, churn.bytes, &mut counts, &mut buffer)
        });
        match outcome {
            Ok(()) => counts.closed += 1,
            Err(error) => counts.fail(&error),
        }
    }
    (counts, connects)
}

/// Connections that are open and say nothing unless told to. Closed on [`Held::close`] or `Drop`.
#[derive(Debug)]
pub struct Held {
    connections: Vec<TcpStream>,
    /// The one that speaks next.
    next: usize,
    counts: Counts,
    start: Instant,
}

impl Held {
    /// Opens `count` connections, none later than `limit` from now.
    ///
    /// An error if this process may not open so many files: see [`connections_per_process`].
    pub fn open(client: &Client, count: u64, limit: Duration) -> Result<Self> {
        if count > connections_per_process() {
            bail!(
                "one process may hold {} connections here, not {count}: use several",
                connections_per_process()
            );
        }
        let mut held =
            Self { connections: Vec::new(), next: 0, counts: Counts::default(), start: Instant::now() };
        let mut connects = Vec::new();
        for number in 0..count {
            let began = Instant::now();
            if held.start.elapsed() >= limit {
                break;
            }
            match client.connect(number) {
                Ok(stream) => {
                    held.counts.opened += 1;
                    connects.push(began.elapsed());
                    held.connections.push(stream);
                }
                Err(error) => held.counts.fail(&error),
            }
        }
        held.counts.connect_us = Quantiles::of(connects);
        Ok(held)
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The connections, to ask them for their addresses, or to speak.
    pub fn connections(&self) -> &[TcpStream] {
        &self.connections
    }

    /// Sends `requests` and waits for the answer to each, on the connections in turn.
    pub fn speak(&mut self, requests: u64) {
        let mut buffer = [0; SMALLEST_FRAME as usize];
        for _ in 0..requests {
            let Some(stream) = self.connections.get(self.next) else { return };
            if let Err(error) = exchange(stream, SMALLEST_FRAME, &mut self.counts, &mut buffer) {
                self.counts.fail(&error);
            }
            self.next = (self.next + 1) % self.connections.len();
        }
    }

    /// Closes them all.
    pub fn close(mut self) -> Counts {
        self.counts.closed += self.connections.len() as u64;
        self.connections.clear();
        self.counts.seconds = self.start.elapsed().as_secs_f64();
        std::mem::take(&mut self.counts)
    }
}

/// How many connections one process can hold: its limit of open files, less some for itself.
pub fn connections_per_process() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(100)
}

/// One connection with small requests, each sent when the last was answered.
#[derive(Clone, Debug)]
pub struct PingPong {
    /// Requests.
    pub count: u64,
    /// Length of a request in bytes, at least [`SMALLEST_FRAME`].
    pub bytes: u64,
    /// Pause after an answer.
    pub interval: Duration,
    /// End after so long in any case.
    pub limit: Duration,
}

/// Sends requests over one connection and measures their round trips.
pub fn ping_pong(client: &Client, plan: &PingPong) -> Counts {
    let mut round_trips = Vec::new();
    let mut counts = on_one_connection(client, |stream, counts, start| {
        let mut buffer = vec![0; CHUNK];
        for number in 0..plan.count {
            if start.elapsed() >= plan.limit {
                break;
            }
            if number > 0 {
                thread::sleep(plan.interval);
            }
            let began = Instant::now();
            exchange(stream, plan.bytes, counts, &mut buffer)?;
            round_trips.push(began.elapsed());
        }
        Ok(())
    });
    counts.round_trip_us = Quantiles::of(round_trips);
    counts
}

/// One connection with one large request.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Length of the request in bytes, at least [`SMALLEST_FRAME`].
    pub bytes: u64,
    /// Bytes per second to send at; as fast as TCP takes them if `None`.
    pub rate: Option<u64>,
    /// Wait for an answer. To be false if the server gives none.
    pub answer: bool,
}

/// Sends one large request, and takes the answer.
pub fn stream(client: &Client, plan: &Stream) -> Counts {
    on_one_connection(client, |stream, counts, start| {
        let mut buffer = vec![0; CHUNK];
        send_frame(stream, plan.bytes, counts, &mut buffer, |sent| {
            if let Some(rate) = plan.rate.filter(|&rate| rate > 0) {
                let planned = Duration::from_secs_f64(sent as f64 / rate as f64);
                thread::sleep(planned.saturating_sub(start.elapsed()));
            }
        })?;
        if plan.answer { receive_frame(stream, counts, &mut buffer) } else { Ok(()) }
    })
}

/// Sends a request of so many bytes for each number that comes, and closes after the last. For a server that does not
/// answer.
pub fn speak(client: &Client, lengths: impl Iterator<Item = io::Result<u64>>) -> Counts {
    on_one_connection(client, |stream, counts, _| {
        let mut buffer = vec![0; CHUNK];
        for length in lengths {
            send_frame(stream, length?, counts, &mut buffer, |_| {})?;
        }
        Ok(())
    })
}

fn on_one_connection(
    client: &Client,
    talk: impl FnOnce(&TcpStream, &mut Counts, Instant) -> io::Result<()>,
) -> Counts {
    let start = Instant::now();
    let mut counts = Counts::default();
    let outcome = client.connect(0).and_then(|stream| {
        counts.connect_us = Quantiles::of(vec![start.elapsed()]);
        counts.opened += 1;
        talk(&stream, &mut counts, start)
    });
    match outcome {
        Ok(()) => counts.closed += 1,
        Err(error) => counts.fail(&error),
    }
    counts.seconds = start.elapsed().as_secs_f64();
    counts
}

/// One request and its answer.
fn exchange(stream: &TcpStream, bytes: u64, counts: &mut Counts, buffer: &mut [u8]) -> io::Result<()> {
    send_frame(stream, bytes, counts, buffer, |_| {})?;
    receive_frame(stream, counts, buffer)
}

/// Sends a frame; `pace` is told before each write how much has been sent.
fn send_frame(
    mut stream: &TcpStream,
    length: u64,
    counts: &mut Counts,
    buffer: &mut [u8],
    pace: impl Fn(u64),
) -> io::Result<()> {
    let length = length.max(SMALLEST_FRAME);
    buffer[..SMALLEST_FRAME as usize].copy_from_slice(&length.to_be_bytes());
    let mut sent = 0;
    while sent < length {
        pace(sent);
        let begin = sent.min(SMALLEST_FRAME) as usize;
        let end = buffer.len().min(begin + (length - sent) as usize);
        let count = retried(|| stream.write(&buffer[begin..end]))? as u64;
        sent += count;
        counts.bytes_sent += count;
    }
    counts.requests += 1;
    Ok(())
}

fn receive_frame(mut stream: &TcpStream, counts: &mut Counts, buffer: &mut [u8]) -> io::Result<()> {
    let mut head = [0; SMALLEST_FRAME as usize];
    let mut received = 0;
    let mut length = SMALLEST_FRAME;
    while received < length {
        let count = retried(|| stream.read(buffer))?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        counts.bytes_received += count as u64;
        if received < SMALLEST_FRAME {
            let at = received as usize;
            let taken = count.min(head.len() - at);
            head[at..at + taken].copy_from_slice(&buffer[..taken]);
            if at + taken == head.len() {
                length = u64::from_be_bytes(head).max(SMALLEST_FRAME);
            }
        }
        received += count as u64;
    }
    Ok(())
}

/// Repeats what a signal interrupted.
fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
