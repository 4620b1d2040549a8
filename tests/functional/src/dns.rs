//! A DNS server that answers what a story wants, and lookups of it: messages put together by hand, as a second opinion on
//! what tcptide makes of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
/// A pointer to the question's name.
const QUESTION: [u8; 2] = [0xc0, 12];
/// How long a server sleeps between two looks for somebody.
const PAUSE: Duration = Duration::from_millis(2);

/// What is answered to a name.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    /// What the name is an alias of, if it is.
    pub alias: Option<String>,
    /// Its addresses, or those of what it is an alias of.
    pub addresses: Vec<IpAddr>,
    /// Seconds.
    pub ttl: u32,
    /// Before the answer another one comes, with another number, that this name has the addresses.
    pub forged: Option<String>,
}

impl Zone {
    /// A name with addresses, for a minute.
    pub fn new(addresses: &[&str]) -> Self {
        let addresses = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        Self { addresses, ttl: 60, ..Self::default() }
    }
}

/// A server over UDP and TCP, until it is dropped.
#[derive(Debug)]
pub struct Server {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves these names at an address in a network namespace.
    pub fn start(netns: &Netns, at: &str, zones: &[(&str, Zone)]) -> Result<Self> {
        let at: SocketAddr = at.parse().context("an address with its port")?;
        let (udp, tcp) = netns.enter(|| Ok((UdpSocket::bind(at)?, TcpListener::bind(at)?)))?;
        udp.set_read_timeout(Some(PAUSE))?;
        tcp.set_nonblocking(true)?;
        let zones: BTreeMap<String, Zone> =
            zones.iter().map(|(name, zone)| ((*name).to_owned(), zone.clone())).collect();
        let zones = Arc::new(zones);
        let end = Arc::new(AtomicBool::new(false));
        let threads = vec![
            thread::spawn({
                let (end, zones) = (end.clone(), zones.clone());
                move || serve_udp(&udp, &zones, &end)
            }),
            thread::spawn({
                let (end, zones) = (end.clone(), zones);
                move || serve_tcp(&tcp, &zones, &end)
            }),
        ];
        Ok(Self { end, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, zones: &BTreeMap<String, Zone>, end: &AtomicBool) {
    let mut query = [0; 512];
    while !end.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
        for answer in answers(&query[..length], zones) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn serve_tcp(listener: &TcpListener, zones: &BTreeMap<String, Zone>, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(PAUSE);
            continue;
        };
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_nodelay(true);
        let Ok(query) = read_frame(&mut stream) else { continue };
        for answer in answers(&query, zones) {
            // In two segments.
            let (first, second) = answer.split_at(answer.len() / 2);
            let _ = stream.write_all(&frame_of(&answer)[..2 + first.len()]);
            thread::sleep(Duration::from_millis(30));
            let _ = stream.write_all(second);
        }
    }
}

fn frame_of(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap_or(0).to_be_bytes(), message].concat()
}

fn read_frame(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// The answers to a query: a forged one first, if that is asked for.
fn answers(query: &[u8], zones: &BTreeMap<String, Zone>) -> Vec<Vec<u8>> {
    let Some((name, end)) = question(query) else { return Vec::new() };
    let Some(zone) = zones.get(&name) else { return Vec::new() };
    let id = u16::from_be_bytes([query[0], query[1]]);
    let forged = zone.forged.iter().map(|other| message(id ^ 1, &labels(other), zone));
    let own = &query[12..end - 4];
    forged.chain([message(id, own, zone)]).collect()
}

/// The name that is asked for, and where the question ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let mut at = 12;
    let mut name = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name.join("."), at + 4));
        }
        name.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
}

fn labels(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap_or(0)], label.as_bytes()].concat())
        .collect();
    bytes.push(0);
    bytes
}

/// A whole answer about this name, which it has as it goes over the wire.
fn message(id: u16, name: &[u8], zone: &Zone) -> Vec<u8> {
    let records = zone.addresses.len() + usize::from(zone.alias.is_some());
    let mut message = Vec::new();
    for word in [id, 0x8180, 1, u16::try_from(records).unwrap_or(0), 0, 0] {
        message.extend(word.to_be_bytes());
    }
    message.extend(name);
    message.extend([0, 1, 0, 1]);
    let mut owner = QUESTION.to_vec();
    if let Some(alias) = &zone.alias {
        let alias = labels(alias);
        record(&mut message, &owner, CNAME, zone.ttl, &alias);
        owner = alias;
    }
    for address in &zone.addresses {
        match address {
            IpAddr::V4(v4) => record(&mut message, &owner, A, zone.ttl, &v4.octets()),
            IpAddr::V6(v6) => record(&mut message, &owner, AAAA, zone.ttl, &v6.octets()),
        }
    }
    message
}

fn record(message: &mut Vec<u8>, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) {
    message.extend(owner);
    message.extend(kind.to_be_bytes());
    message.extend(1_u16.to_be_bytes());
    message.extend(ttl.to_be_bytes());
    message.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
    message.extend(data);
}

/// Asks a server for a name, as a stub resolver does, and returns the length of its answer.
pub fn lookup(server: SocketAddr, name: &str, tcp: bool) -> Result<u64> {
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or(1);
    let mut query = Vec::new();
    for word in [id, 0x0100, 1, 0, 0, 0] {
        query.extend(word.to_be_bytes());
    }
    query.extend(labels(name));
    query.extend([0, 1, 0, 1]);
    if tcp {
        let mut stream = TcpStream::connect(server).context("connecting to the server")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&frame_of(&query))?;
        return Ok(read_frame(&mut stream)?.len() as u64);
    }
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(&query, server).context("asking the server")?;
    let mut answer = [0; 4096];
    loop {
        let length = socket.recv(&mut answer).context("waiting for the answer")?;
        if length < 12 {
            bail!("an answer of {length} bytes");
        }
        // Another number is somebody else's answer.
        if answer[..2] == id.to_be_bytes() {
            return Ok(length as u64);
        }
    }
}
