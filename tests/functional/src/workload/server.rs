//! The server side: one thread, an epoll loop, any number of connections.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use super::{Counts, SMALLEST_FRAME};

const LISTENER: u64 = 0;
const STOP: u64 = 1;
const FIRST_CONNECTION: u64 = 2;
/// Bytes moved by one system call.
const CHUNK: usize = 64 * 1024;

/// How a server answers, and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct ServeOptions {
    /// Length of every answer, in bytes: 0 for none, else at least [`SMALLEST_FRAME`]; as long as
    /// the request if `None`.
    pub bytes_back: Option<u64>,
    /// End after so many connections.
    pub count: Option<u64>,
    /// End after so long in any case.
    pub limit: Duration,
    /// Share the port with other processes that ask for the same (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// The accept queue's limit as given to `listen`.
    pub backlog: i32,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            bytes_back: None,
            count: None,
            limit: Duration::from_secs(300),
            reuse_port: false,
            backlog: 4096,
        }
    }
}

/// A server in a thread of the story. Ended on `Drop`.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: UnixStream,
    thread: Option<JoinHandle<Result<Counts>>>,
}

impl Server {
    /// Listens on `address` (port 0: any), in the calling thread's network namespace.
    pub fn start(address: SocketAddr, options: ServeOptions) -> Result<Self> {
        let listener = listen_on(address, options).with_context(|| format!("listening on {address}"))?;
        Self::on(listener, options)
    }

    /// Serves on a listener that somebody else made.
    pub fn on(listener: TcpListener, options: ServeOptions) -> Result<Self> {
        listener.set_nonblocking(true).context("making the listener non-blocking")?;
        let address = listener.local_addr().context("asking for the listener's address")?;
        let (stop, stopped) = UnixStream::pair().context("making a pair of sockets")?;
        let serving = Serving::new(listener, stopped, options)?;
        let thread = Some(thread::spawn(move || serving.run()));
        Ok(Self { address, stop, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A descriptor that ends the server when a byte is written to it, as a signal handler may.
    pub fn stopper(&self) -> io::Result<OwnedFd> {
        Ok(self.stop.try_clone()?.into())
    }

    /// Ends it now. Connections still open are closed, and not counted as closed.
    pub fn stop(mut self) -> Result<Counts> {
        self.ask_to_stop();
        self.join()
    }

    /// Waits until it ends by itself: its count of connections is closed, or its time is over.
    pub fn wait(mut self) -> Result<Counts> {
        self.join()
    }

    fn ask_to_stop(&self) {
        let _ = (&self.stop).write(&[1]);
    }

    fn join(&mut self) -> Result<Counts> {
        let thread = self.thread.take().context("the server has ended already")?;
        thread.join().map_err(|_| anyhow!("the server's thread panicked"))?
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen_on(address: SocketAddr, options: ServeOptions) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, options.reuse_port)?;
    bind(&socket, &address)?;
    listen(&socket, options.backlog)?;
    Ok(TcpListener::from(socket))
}

/// One connection and how far it is.
struct Connection {
    stream: TcpStream,
    phase: Phase,
}

/// Where in the exchange of frames a connection is.
#[derive(Clone, Copy)]
enum Phase {
    /// The first bytes of a request: its length.
    Head { bytes: [u8; SMALLEST_FRAME as usize], have: usize },
    /// Its filler, of which so much is to come. The whole request is `length` long.
    Body { left: u64, length: u64 },
    /// Our answer, of which so much has been written.
    Answer { written: u64, length: u64 },
}

const START: Phase = Phase::Head { bytes: [0; SMALLEST_FRAME as usize], have: 0 };

/// What a connection waits for, or that it is over.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    Read,
    Write,
    Closed,
}

struct Serving {
    listener: TcpListener,
    epoll: OwnedFd,
    /// Kept open as long as epoll watches it.
    _stop: UnixStream,
    options: ServeOptions,
    connections: HashMap<u64, Connection>,
    next_token: u64,
    counts: Counts,
    buffer: Vec<u8>,
}

impl Serving {
    fn new(listener: TcpListener, stop: UnixStream, options: ServeOptions) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("making an epoll")?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)
            .and_then(|()| epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN))
            .context("watching the listener")?;
        Ok(Self {
            listener,
            epoll,
            _stop: stop,
            options,
            connections: HashMap::new(),
            next_token: FIRST_CONNECTION,
            counts: Counts::default(),
            buffer: vec![0; CHUNK],
        })
    }

    fn run(mut self) -> Result<Counts> {
        let start = Instant::now();
        let mut events = Vec::with_capacity(256);
        loop {
            self.counts.seconds = start.elapsed().as_secs_f64();
            let left = self.options.limit.saturating_sub(start.elapsed());
            if left.is_zero() || self.is_done() {
                return Ok(self.counts);
            }
            let timeout =
                Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("waiting for connections"),
            }
            for event in &events {
                match event.data.u64() {
                    STOP => return Ok(self.counts),
                    LISTENER => self.accept_all()?,
                    token => self.proceed(token),
                }
            }
        }
    }

    fn is_done(&self) -> bool {
        let enough = |count| self.counts.accepted >= count && self.connections.is_empty();
        self.options.count.is_some_and(enough)
    }

    fn accept_all(&mut self) -> Result<()> {
        while self.options.count.is_none_or(|count| self.counts.accepted < count) {
            match self.listener.accept() {
                Ok((stream, _)) => self.add(stream)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => self.counts.fail(&error),
                // Most likely EMFILE: those who wait go on waiting, which the story should see.
                Err(error) => return Err(error).context("accepting a connection"),
            }
        }
        if self.options.count.is_some_and(|count| self.counts.accepted >= count) {
            // A level-triggered listener with more waiting would keep the loop busy.
            let _ = epoll::delete(&self.epoll, &self.listener);
        }
        Ok(())
    }

    fn add(&mut self, stream: TcpStream) -> Result<()> {
        self.counts.accepted += 1;
        stream.set_nonblocking(true).context("making a connection non-blocking")?;
        let token = self.next_token;
        self.next_token += 1;
        epoll::add(&self.epoll, &stream, EventData::new_u64(token), EventFlags::IN)
            .context("watching a connection")?;
        let connection = Connection { stream, phase: START };
        self.connections.insert(token, connection);
        Ok(())
    }

    /// Reads and writes what can be now.
    fn proceed(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let was_writing = matches!(connection.phase, Phase::Answer { .. });
        let next = connection.proceed(self.options.bytes_back, &mut self.counts, &mut self.buffer);
        match next {
            Ok(Next::Closed) => {
                self.counts.closed += 1;
                self.connections.remove(&token);
            }
            Ok(next) if (next == Next::Write) != was_writing => {
                let flags = if next == Next::Write { EventFlags::OUT } else { EventFlags::IN };
                let data = EventData::new_u64(token);
                if epoll::modify(&self.epoll, &connection.stream, data, flags).is_err() {
                    self.connections.remove(&token);
                }
            }
            Ok(_) => {}
            Err(error) => {
                self.counts.fail(&error);
                self.connections.remove(&token);
            }
        }
    }
}

impl Connection {
    /// Reads and writes until one of them would block.
    fn proceed(
        &mut self,
        bytes_back: Option<u64>,
        counts: &mut Counts,
        buffer: &mut [u8],
    ) -> io::Result<Next> {
        loop {
            let writing = matches!(self.phase, Phase::Answer { .. });
            let progress = if writing {
                self.write(counts, buffer).map(|()| true)
            } else {
                self.read(bytes_back, counts, buffer)
            };
            match progress {
                Ok(true) => {}
                Ok(false) => return Ok(Next::Closed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(if writing { Next::Write } else { Next::Read });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads once; `false` if the peer has closed between two requests.
    fn read(&mut self, bytes_back: Option<u64>, counts: &mut Counts, buffer: &mut [u8]) -> io::Result<bool> {
        let length = self.stream.read(buffer)?;
        if length == 0 {
            return match self.phase {
                Phase::Head { have: 0, .. } => Ok(false),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        counts.bytes_received += length as u64;
        let request = self.phase.after(&buffer[..length])?;
        self.phase = match request {
            Phase::Body { left: 0, length } => {
                counts.requests += 1;
                match bytes_back.unwrap_or(length) {
                    0 => START,
                    length => Phase::Answer { written: 0, length: length.max(SMALLEST_FRAME) },
                }
            }
            unfinished => unfinished,
        };
        Ok(true)
    }

    fn write(&mut self, counts: &mut Counts, buffer: &mut [u8]) -> io::Result<()> {
        let Phase::Answer { written, length } = &mut self.phase else { return Ok(()) };
        let skipped = (*written).min(SMALLEST_FRAME) as usize;
        buffer[..SMALLEST_FRAME as usize].copy_from_slice(&length.to_be_bytes());
        let end = buffer.len().min(skipped + (*length - *written) as usize);
        let count = self.stream.write(&buffer[skipped..end])? as u64;
        counts.bytes_sent += count;
        *written += count;
        if written == length {
            self.phase = START;
        }
        Ok(())
    }
}

impl Phase {
    /// The phase of a request after `bytes` more of it; more than the request is an error, as
    /// clients wait for the answer before they go on.
    fn after(self, bytes: &[u8]) -> io::Result<Self> {
        let more = bytes.len() as u64;
        match self {
            Self::Head { bytes: mut head, have } => {
                let taken = bytes.len().min(head.len() - have);
                head[have..have + taken].copy_from_slice(&bytes[..taken]);
                let have = have + taken;
                if have < head.len() {
                    return Ok(Self::Head { bytes: head, have });
                }
                let length = u64::from_be_bytes(head).max(SMALLEST_FRAME);
                Self::Body { left: length - SMALLEST_FRAME, length }.after(&bytes[taken..])
            }
            Self::Body { left, length } if more <= left => Ok(Self::Body { left: left - more, length }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
