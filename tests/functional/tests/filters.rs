//! What a person asked for is told, all of it, and nothing else is.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::connections::{Connections, Trace};
use functional::netns::{Netns, add_address};
use functional::process::output;
use functional::sweep::own_name;
use functional::tcptide::Tcptide;
use functional::witness::NetCounters;
use functional::workload::{self, Churn, Client, Counts, Running, ServeOptions, Server, churn};
use rustix::process::{Pid, Signal, kill_process};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn path(cgroup: &Cgroup) -> &str {
    cgroup.path().to_str().unwrap()
}

fn serve(netns: &Netns, at: &str) -> Server {
    let at = address(at);
    netns.enter(|| Server::start(at, ServeOptions::default())).unwrap()
}

/// So many connections from this process.
fn connect(netns: &Netns, to: &str, count: u64) {
    let plan = Churn { count: Some(count), ..Churn::new(1e6, Duration::from_secs(60)) };
    let client = Client::new(address(to));
    let counts = netns.enter(|| Ok(churn(&client, &plan))).unwrap();
    assert_eq!((counts.opened, counts.failures()), (count, 0), "{counts:?}");
}

/// So many connections from a process in that cgroup. Returns its id, too.
fn connect_from(cgroup: &Cgroup, netns: &Netns, to: &str, count: u64) -> (Counts, u32) {
    let count = count.to_string();
    let args = ["churn", "--to", to, "--rate", "1000", "--seconds", "20", "--count", &count];
    let client = Running::start(&mut cgroup.wrap(&netns.wrap(&workload::command(args).unwrap()))).unwrap();
    let pid = client.pid();
    (client.wait(Duration::from_secs(30)).unwrap(), pid)
}

/// Lets `happen` what some filters look at, and returns what each was told.
fn told<const N: usize>(netns: &Netns, filters: [&[&str]; N], happen: impl FnOnce()) -> [Connections; N] {
    let all = Trace::start(netns, &[]).unwrap();
    let traces = filters.map(|filter| Trace::start(netns, filter).unwrap());
    let before = NetCounters::of(netns).unwrap();
    happen();
    // Each reader comes by on its own; when all has been told to the one, it has to the others.
    let kernel = NetCounters::of(netns).unwrap().since(&before);
    let ends = usize::try_from(kernel.get("TcpActiveOpens") + kernel.get("TcpPassiveOpens")).unwrap();
    all.wait_for("close", ends).unwrap();
    traces.map(|trace| trace.end().unwrap())
}

/// The ports of servers, as both ends of connections see them.
fn services(told: &Connections) -> BTreeSet<(String, u16)> {
    let ends = told.0.iter().map(|end| match end.direction() {
        "active" => ("active".to_owned(), end.peer.port.unwrap()),
        _ => ("passive".to_owned(), end.local.port.unwrap()),
    });
    ends.collect()
}

fn both_ends(ports: &[u16]) -> BTreeSet<(String, u16)> {
    ports
        .iter()
        .flat_map(|&port| ["active", "passive"].map(|direction| (direction.to_owned(), port)))
        .collect()
}

#[test]
fn a_port_is_that_of_either_end() {
    let netns = Netns::new("ports").unwrap();
    let servers = ["127.0.0.1:7001", "127.0.0.1:7002", "[::1]:7003"];
    let _serving = servers.map(|at| serve(&netns, at));
    let filters: [&[&str]; 4] =
        [&["--port", "7001"], &["--port", "7001,7003"], &["--port", "!7001"], &["--port", "7001,7002,!7002"]];
    let told = told(&netns, filters, || servers.iter().for_each(|to| connect(&netns, to, 3)));
    let expected: [&[u16]; 4] = [&[7001], &[7001, 7003], &[7002, 7003], &[7001]];
    for (told, expected) in told.iter().zip(expected) {
        assert_eq!(services(told), both_ends(expected));
        for event in ["open", "established", "close"] {
            assert_eq!(told.events(event).0.len(), 2 * 3 * expected.len(), "{event} {expected:?}");
        }
    }

    let live = servers.map(|to| {
        let to = address(to);
        netns.enter(|| Ok(TcpStream::connect(to)?)).unwrap()
    });
    let ephemeral = live[1].local_addr().unwrap().port().to_string();
    for (port, expected) in
        [("7001,7002", &[7001, 7002][..]), ("!7002", &[7001, 7003]), (&ephemeral, &[7002])]
    {
        let now = Connections::now(&netns, &["--port", port]).unwrap();
        assert_eq!(services(&now), both_ends(expected), "{port}");
        let ss = netns.wrap(Command::new("ss").args(["-tnH", "state", "established"]));
        let seen = output(&mut { ss }).unwrap();
        assert_eq!((now.0.len(), seen.lines().count()), (2 * expected.len(), 6));
    }
}

#[test]
fn a_peer_is_the_far_end_of_either_family() {
    let netns = Netns::new("peers").unwrap();
    for own in ["198.18.30.1/32", "198.18.30.5/32", "198.18.31.1/32", "fd00:30::1/128", "fd00:31::1/128"] {
        add_address(&netns, "lo", own).unwrap();
    }
    // A client of an own address has that address, too: both ends have the same peer.
    let servers = [
        "198.18.30.1:7001",
        "198.18.30.5:7002",
        "198.18.31.1:7003",
        "[fd00:30::1]:7004",
        "[fd00:31::1]:7005",
    ];
    let _serving = servers.map(|at| serve(&netns, at));
    let mapped = serve(&netns, "[::]:7006");
    let filters: [&[&str]; 7] = [
        &["--peer", "198.18.30.0/24"],
        &["--peer", "198.18.30.0/24,!198.18.30.4/30"],
        &["--peer", "!198.18.30.0/23"],
        &["--peer", "fd00:30::/64"],
        &["--peer", "198.18.31.1/32,fd00:30::/31"],
        &["--peer", "!::/0"],
        &["--peer", "198.18.30.5/32,!198.18.30.0/24"],
    ];
    let told = told(&netns, filters, || {
        for to in servers {
            connect(&netns, to, 2);
        }
        connect(&netns, "198.18.31.1:7006", 2);
    });
    let expected: [&[u16]; 7] = [
        &[7001, 7002],
        &[7001],
        &[7004, 7005],
        &[7004],
        &[7003, 7004, 7005, 7006],
        // IPv4 inside IPv6 is IPv4.
        &[7001, 7002, 7003, 7006],
        &[],
    ];
    for ((told, expected), filter) in told.iter().zip(expected).zip(filters) {
        assert_eq!(services(told), both_ends(expected), "{filter:?}");
        assert_eq!(told.0.len(), 2 * 2 * 3 * expected.len(), "{filter:?}");
        assert!(told.0.iter().all(|end| end.local.address == end.peer.address));
    }
    mapped.stop().unwrap();

    let v6: SocketAddr = address(servers[3]);
    let _live = netns.enter(|| Ok(TcpStream::connect(v6)?)).unwrap();
    let peers = |filter| Connections::now(&netns, &["--peer", filter]).unwrap().0.len();
    assert_eq!(["fd00:30::1/128", "fd00:31::/64", "0.0.0.0/0", "!fd00::/8"].map(peers), [2, 0, 0, 0]);
}

#[test]
fn a_cgroup_is_all_that_lies_below_it() {
    let netns = Netns::new("subtree").unwrap();
    let top = own_name("subtree");
    let parent = Cgroup::new(&top).unwrap();
    let child = Cgroup::new(format!("{top}/child")).unwrap();
    let sibling = Cgroup::unique("subtree-not").unwrap();
    let id = child.id().unwrap().to_string();
    let _server = serve(&netns, "127.0.0.1:7000");
    let (parents, but) = (path(&parent), format!("{},!{}", path(&parent), path(&child)));
    let not = format!("!{}", path(&parent));
    let filters: [&[&str]; 4] = [
        &["--cgroup", parents],
        &["--cgroup", &but],
        &["--cgroup", &id],
        &["--cgroup", &not, "--port", "7000"],
    ];
    let mut late = None;
    let told = told(&netns, filters, || {
        for cgroup in [&parent, &child, &sibling] {
            connect_from(cgroup, &netns, "127.0.0.1:7000", 3);
        }
        let deeper = Cgroup::new(format!("{top}/late/deeper")).unwrap();
        connect_from(&deeper, &netns, "127.0.0.1:7000", 3);
        late = Some(deeper);
    });
    let late = late.unwrap();
    let [parent, child, sibling, late] = [&parent, &child, &sibling, &late].map(path);
    // What the server accepted is this test's own.
    let expected = [vec![parent, child, late], vec![parent, late], vec![child], vec![sibling]];
    for ((told, expected), filter) in told.iter().zip(expected).zip(filters) {
        let told = told.only(|end| end.direction() == "active");
        let owners: BTreeSet<_> = told.0.iter().map(|end| end.cgroup().to_owned()).collect();
        assert_eq!(owners, expected.iter().map(|&path| path.to_owned()).collect(), "{filter:?}");
        assert_eq!(told.0.len(), 3 * 3 * expected.len(), "{filter:?}");
    }
    assert_eq!(told[3].only(|end| end.direction() == "passive").0.len(), 4 * 3 * 3);
}

#[test]
fn a_cgroup_that_comes_later_is_waited_for() {
    let netns = Netns::new("later").unwrap();
    let _server = serve(&netns, "127.0.0.1:7000");
    // Several tries: how soon after its cgroup a connection comes is chance.
    for _ in 0..5 {
        let name = own_name("comes-later");
        let trace = Trace::start(&netns, &["--cgroup", &format!("/{name}")]).unwrap();
        let cgroup = Cgroup::new(&name).unwrap();
        connect_from(&cgroup, &netns, "127.0.0.1:7000", 3);
        trace.wait_for("close", 3).unwrap();
        let output = trace.output().unwrap();
        assert!(output.stderr.iter().any(|line| line.contains("there is no cgroup")), "{:?}", output.stderr);
        let told = Connections::of_stream(&netns, &output.stdout).unwrap();
        assert_eq!(told.0.len(), 9, "{:?}", told.names());
        assert!(told.0.iter().all(|end| end.cgroup() == path(&cgroup)));
    }
}

#[test]
fn a_process_is_followed_and_combined_with_the_rest() {
    let netns = Netns::new("pid").unwrap();
    let cgroup = Cgroup::unique("pid").unwrap();
    let _serving = ["127.0.0.1:7001", "127.0.0.1:7002"].map(|at| serve(&netns, at));
    let pid = std::process::id().to_string();
    let (own, other) = (["--pid", &pid], format!("!{pid}"));
    let filters: [&[&str]; 4] = [
        &own,
        &["--pid", &other, "--cgroup", path(&cgroup)],
        &["--pid", &pid, "--port", "7002", "--peer", "127.0.0.0/8", "--cgroup", "/"],
        &["--pid", &pid, "--cgroup", path(&cgroup)],
    ];
    let told = told(&netns, filters, || {
        connect(&netns, "127.0.0.1:7001", 3);
        connect(&netns, "127.0.0.1:7002", 4);
        let (counts, other) = connect_from(&cgroup, &netns, "127.0.0.1:7001", 5);
        assert_eq!((counts.opened, other == std::process::id()), (5, false));
    });
    let counts = told.each_ref().map(|told| {
        let active = told.only(|end| end.direction() == "active");
        ["open", "established", "close"].map(|event| active.events(event).0.len())
    });
    assert_eq!(counts, [[7; 3], [5; 3], [4; 3], [0; 3]]);
    // Which process is behind an accepted connection shows when that process closes it.
    assert_eq!(told[0].only(|end| end.direction() == "passive").events("close").0.len(), 12);
    assert!(
        told[0]
            .0
            .iter()
            .all(|end| end.process.as_ref().is_some_and(|process| process.pid.to_string() == pid))
    );
}

#[test]
fn what_nobody_asked_for_takes_no_room() {
    let netns = Netns::new("flood").unwrap();
    let cgroup = Cgroup::unique("flood").unwrap();
    for own in ["198.18.32.1/32", "198.18.33.1/32"] {
        add_address(&netns, "lo", own).unwrap();
    }
    let wanted = serve(&netns, "198.18.33.1:7001");
    let _foreign = serve(&netns, "198.18.32.1:7002");
    let filters: [&[&str]; 3] =
        [&["--port", "7001"], &["--peer", "198.18.33.0/24"], &["--cgroup", path(&cgroup)]];
    let traces = filters.map(|filter| Trace::start(&netns, &[&["--buffer", "1"], filter].concat()).unwrap());
    // While nobody reads, the buffer must hold all that is wanted, and the flood is many times its size.
    let signal = |signal| {
        for trace in &traces {
            kill_process(Pid::from_raw(i32::try_from(trace.pid()).unwrap()).unwrap(), signal).unwrap();
        }
    };
    signal(Signal::STOP);
    connect(&netns, "198.18.32.1:7002", 5_000);
    let (counts, _) = connect_from(&cgroup, &netns, "198.18.33.1:7001", 20);
    signal(Signal::CONT);
    assert_eq!((counts.opened, wanted.stop().unwrap().accepted), (20, 20));
    for (trace, filter) in traces.into_iter().zip(filters) {
        trace.wait_for("close", if filter[0] == "--cgroup" { 20 } else { 40 }).unwrap();
        let output = trace.output().unwrap();
        assert_eq!(output.stderr.len(), 1, "nothing was lost: {:?}", output.stderr);
        let told = Connections::of_stream(&netns, &output.stdout).unwrap();
        assert_eq!(told.0.len(), if filter[0] == "--cgroup" { 60 } else { 120 }, "{filter:?}");
        assert!(services(&told).iter().all(|(_, port)| *port == 7001), "{filter:?}");
    }
}

#[test]
fn a_filter_that_matches_nothing_says_so() {
    let tcptide = Tcptide::find().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let nobody: IpAddr = "198.18.255.254".parse().unwrap();
    for command in ["conns", "states"] {
        let args = [command, "-o", "json", "--port", &port, "--peer", &nobody.to_string()];
        let output = tcptide.run(args).unwrap().success().unwrap();
        assert_eq!(output.json().unwrap(), serde_json::json!([]));
        let said = output.stderr.join("\n");
        assert!(said.contains(&format!("nothing matches port {port}")), "{said}");
        assert!(said.contains("without the filter there are"), "{said}");

        let output = tcptide.run([command, "--cgroup", "/no/such/cgroup"]).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            output.stderr.join("\n").contains("there is no cgroup /no/such/cgroup"),
            "{:?}",
            output.stderr
        );
    }
    for (wrong, what) in
        [("--port=0", "0"), ("--port=70000", "70000"), ("--peer=nonsense", "nonsense"), ("--pid=-1", "-1")]
    {
        let output = tcptide.run(["conns", wrong]).unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(output.stderr.join("\n").contains(what), "{wrong}: {:?}", output.stderr);
    }
}

/// The status of tcptide in a pipeline whose reader leaves, and what all of it said on stderr.
fn left_alone(netns: &Netns, command: &str, reader: &str, traffic: impl FnOnce()) -> (String, String) {
    let tcptide = Tcptide::find().unwrap();
    let script = format!("\"$0\" {command} 2>&3 | {reader} > /dev/null; echo \"${{PIPESTATUS[0]}}\" >&2");
    let script = format!("exec 3>\"$1\"; {script}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).arg(tcptide.path()).arg(file.path());
    let mut bash = netns.wrap(&bash);
    let running = functional::process::Reading::start(&mut bash).unwrap();
    functional::process::wait_until("the start", Duration::from_secs(20), || {
        let said = std::fs::read_to_string(file.path())?;
        Ok((command.starts_with("conns") || said.contains("attached")).then_some(()))
    })
    .unwrap();
    traffic();
    let ended = running.wait(Duration::from_secs(20)).unwrap();
    (ended.stderr.concat(), std::fs::read_to_string(file.path()).unwrap())
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let netns = Netns::new("head").unwrap();
    let server = serve(&netns, "127.0.0.1:7000");
    for command in ["trace", "trace -o json", "trace -o yaml", "connlat -o json"] {
        let (status, said) = left_alone(&netns, command, "head -n 2", || {
            // Enough for `head` to have what it wants, and for tcptide to notice that it has left.
            for _ in 0..5 {
                connect(&netns, "127.0.0.1:7000", 100);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        assert_eq!((status.as_str(), said.lines().count()), ("0", 1), "{command}: {said}");
    }
    server.stop().unwrap();
    let (status, said) = left_alone(&netns, "conns -o json --all", "true", || ());
    assert_eq!((status.as_str(), said.as_str()), ("0", ""));
}
