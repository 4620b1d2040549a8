//! Kinds of TCP that differ in how they begin: Fast Open, and MPTCP.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use functional::connections::{Connections, Trace, own_cgroup};
use functional::netns::{Netns, add_address, veth_pair};
use functional::process::{output, wait_until};
use functional::tcptide::Tcptide;
use functional::witness::NetCounters;
use rustix::net::{
    AddressFamily, Protocol, SendFlags, Shutdown, SocketFlags, SocketType, accept, bind, connect, listen,
    sendto, shutdown, socket_with,
};

/// `MSG_FASTOPEN`: connects, with the data in the SYN if there is a cookie.
const FAST_OPEN: SendFlags = SendFlags::from_bits_retain(0x2000_0000);
/// `net.ipv4.tcp_fastopen`: clients and servers, and every listener.
const EVERYWHERE: &str = "1027";
const CLIENTS_ONLY: &str = "1";

fn stream(family: AddressFamily, protocol: Option<Protocol>) -> OwnedFd {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, protocol).unwrap()
}

/// Says so much with the SYN, and closes in order.
fn speak(netns: &Netns, listener: &TcpListener, bytes: &[u8]) {
    let at = listener.local_addr().unwrap();
    let client = netns
        .enter(|| {
            let client = stream(AddressFamily::INET, None);
            assert_eq!(sendto(&client, bytes, FAST_OPEN, &at)?, bytes.len());
            Ok(client)
        })
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    shutdown(&client, Shutdown::Write).unwrap();
    let mut read = Vec::new();
    server.read_to_end(&mut read).unwrap();
    assert_eq!(read, bytes);
}

#[test]
fn fast_open_is_told_with_its_outcome() {
    let netns = Netns::new("fast-open").unwrap();
    netns.sysctl("net.ipv4.tcp_fastopen", EVERYWHERE).unwrap();
    let agent = Tcptide::find().unwrap().agent([""; 0]).unwrap();
    let trace = Trace::start(&netns, &["--events", "close"]).unwrap();
    let before = NetCounters::of(&netns).unwrap();
    let listener = netns.enter(|| Ok(TcpListener::bind("127.0.0.1:7000")?)).unwrap();
    speak(&netns, &listener, b"first");
    speak(&netns, &listener, b"second");
    // The client has a cookie, and the server has no use for it any more.
    netns.sysctl("net.ipv4.tcp_fastopen", CLIENTS_ONLY).unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    let listener = netns.enter(|| Ok(TcpListener::bind(at)?)).unwrap();
    speak(&netns, &listener, b"third");
    trace.wait_for("close", 6).unwrap();
    let closed = trace.end().unwrap();
    let told = |side: &str| -> Vec<_> {
        closed.only(|c| c.direction() == side).0.iter().map(|c| c.fast_open.clone()).collect()
    };
    let [no_cookie, used, not_taken] = ["no_cookie", "used", "not_taken"].map(|name| Some(name.to_owned()));
    assert_eq!(told("active"), [no_cookie, used.clone(), not_taken]);
    assert_eq!(told("passive"), [None, used, None]);
    assert!(closed.0.iter().all(|c| c.reason() == "normal"), "{:?}", closed.reasons());
    let sizes = ["first", "second", "third"].map(|text| text.len() as u64);
    let active: Vec<_> = closed.only(|c| c.direction() == "active").0.iter().map(|c| c.sent_bytes).collect();
    let passive: Vec<_> =
        closed.only(|c| c.direction() == "passive").0.iter().map(|c| c.received_bytes).collect();
    assert_eq!((active.as_slice(), passive.as_slice()), (&sizes[..], &sizes[..]));

    let kernel = NetCounters::of(&netns).unwrap().since(&before);
    let of = |name: &str| kernel.get(&format!("TcpExtTCPFastOpen{name}"));
    assert_eq!((of("CookieReqd"), of("Active"), of("ActiveFail"), of("Passive")), (1, 1, 1, 1));
    let scrape = agent.scrape().unwrap();
    let cgroup = own_cgroup().unwrap();
    let counted =
        |result| scrape.sum("tcptide_fast_open_total", &[("container", cgroup.as_str()), ("result", result)]);
    assert_eq!(["no_cookie", "used", "not_taken"].map(counted), [Some(1.0), Some(2.0), Some(1.0)]);
}

#[test]
fn a_connection_without_fast_open_says_nothing_of_it() {
    let netns = Netns::new("no-fast-open").unwrap();
    let trace = Trace::start(&netns, &["--events", "close"]).unwrap();
    let listener = netns.enter(|| Ok(TcpListener::bind("127.0.0.1:7000")?)).unwrap();
    let at = listener.local_addr().unwrap();
    drop(netns.enter(|| Ok(std::net::TcpStream::connect(at)?)).unwrap());
    drop(listener.accept().unwrap());
    trace.wait_for("close", 2).unwrap();
    let closed = trace.end().unwrap();
    assert!(closed.0.iter().all(|c| c.fast_open.is_none() && c.mptcp_token.is_none()));
}

/// The tokens that `ss` shows of MPTCP connections.
fn tokens(netns: &Netns) -> Vec<String> {
    let text = output(netns.command("ss").args(["-M", "-n", "-i", "-H", "-O"])).unwrap();
    let tokens = text.split_whitespace().filter_map(|word| word.strip_prefix("token:"));
    tokens.map(|token| format!("{token:0>8}")).collect()
}

#[test]
fn subflows_are_tied_to_their_mptcp_connection() {
    let [near, far] = ["mptcp-a", "mptcp-b"].map(|name| Netns::new(name).unwrap());
    let pair = veth_pair(&near, &["198.18.90.1/24"], &far, &["198.18.90.2/24"]).unwrap();
    add_address(&near, &pair.a, "198.18.91.1/24").unwrap();
    add_address(&far, &pair.b, "198.18.91.2/24").unwrap();
    for netns in [&near, &far] {
        netns.sysctl("net.mptcp.enabled", "1").unwrap();
        netns.ip(&["mptcp", "limits", "set", "subflows", "2", "add_addr_accepted", "2"]).unwrap();
    }
    near.ip(&["mptcp", "endpoint", "add", "198.18.91.1", "subflow"]).unwrap();
    let trace = Trace::start(&near, &["--events", "close"]).unwrap();
    let at: SocketAddr = "198.18.90.2:7000".parse().unwrap();
    let mptcp = || stream(AddressFamily::INET, Some(rustix::net::ipproto::MPTCP));
    let listener = far
        .enter(|| {
            let listener = mptcp();
            bind(&listener, &at)?;
            listen(&listener, 1)?;
            Ok(listener)
        })
        .unwrap();
    let client = near
        .enter(|| {
            let client = mptcp();
            connect(&client, &at)?;
            Ok(client)
        })
        .unwrap();
    let server = accept(&listener).unwrap();
    // The second subflow is made once data has gone both ways.
    rustix::io::write(&client, b"?").unwrap();
    rustix::io::read(&server, &mut [0; 1]).unwrap();
    rustix::io::write(&server, b"!").unwrap();
    rustix::io::read(&client, &mut [0; 1]).unwrap();
    let subflows = |netns: &Netns| Connections::now(netns, &[]).unwrap();
    wait_until("a second subflow", std::time::Duration::from_secs(20), || {
        let established = subflows(&near).only(|c| c.state == "established");
        Ok((established.0.len() == 2).then_some(()))
    })
    .unwrap();
    for netns in [&near, &far] {
        let token = tokens(netns);
        assert_eq!(token.len(), 1, "{token:?}");
        let told: Vec<_> = subflows(netns).0.into_iter().map(|c| c.mptcp_token.unwrap()).collect();
        assert_eq!(told, vec![token[0].clone(); 2]);
    }
    drop((client, server, listener));
    trace.wait_for("close", 2).unwrap();
    trace.end().unwrap();
}
