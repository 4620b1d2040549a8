//! What might lead to a wrong owner and must not: pids and cgroups that come again, sockets that are inherited or passed
//! on, processes that move. `docs/attribution.md` says what is shown in each case.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, sink};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::connections::{Connection, Connections, Trace};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::Tcptide;
use functional::witness::sockets;
use functional::workload::{self, Running, Taker};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(10);
const AT: &str = "127.0.0.1:7000";

/// A host of the story's own, with cgroups on it.
struct Host<const N: usize> {
    netns: Netns,
    cgroups: [Cgroup; N],
}

impl<const N: usize> Host<N> {
    fn new(story: &str) -> Self {
        let cgroups = std::array::from_fn(|n| Cgroup::unique(&format!("{story}-{n}")).unwrap());
        Self { netns: Netns::new(story).unwrap(), cgroups }
    }

    /// A listener that this process makes as a member of the cgroup.
    fn listen(&self, cgroup: &Cgroup) -> TcpListener {
        cgroup.host(|| self.netns.enter(|| Ok(TcpListener::bind(AT)?))).unwrap()
    }

    /// A connection that this process makes as a member of the cgroup.
    fn connect(&self, cgroup: &Cgroup) -> TcpStream {
        cgroup.host(|| self.netns.enter(|| Ok(TcpStream::connect(AT)?))).unwrap()
    }

    fn workload(&self, cgroup: &Cgroup, args: &[&str]) -> Command {
        cgroup.wrap(&self.netns.wrap(&workload::command(args).unwrap()))
    }

    fn run(&self, cgroup: &Cgroup, args: &[&str]) -> Running {
        Running::start(&mut self.workload(cgroup, args)).unwrap()
    }

    /// So many connections after one another.
    fn churn(&self, cgroup: &Cgroup, count: &str) {
        let churn = ["churn", "--to", AT, "--rate", "200", "--seconds", "10", "--count", count];
        let counts = self.run(cgroup, &churn).wait(SOON).unwrap();
        assert_eq!((counts.opened.to_string(), counts.failures()), (count.to_owned(), 0));
    }

    /// So many connections that are held.
    fn hold(&self, cgroup: &Cgroup, count: &str) -> Running {
        let client = self.run(cgroup, &["hold", "--to", AT, "--count", count]);
        client.ready(SOON).unwrap();
        client
    }

    fn now(&self) -> Connections {
        Connections::now(&self.netns, &[]).unwrap()
    }

    /// An orphan: a connection full of unsent data whose process was killed. Returns its own address, the far end, and
    /// the pid of who was killed.
    fn orphan(&self, cgroup: &Cgroup, listener: &TcpListener) -> (SocketAddr, TcpStream, u32) {
        let at = listener.local_addr().unwrap().to_string();
        let client = self.run(cgroup, &["stream", "--to", &at, "--bytes", "100000000", "--no-answer"]);
        let far = listener.accept().unwrap().0;
        let local = far.peer_addr().unwrap();
        let of_client = |state: &str| {
            let filter = ["state", state, "sport", "=", &format!(":{}", local.port())];
            Ok(sockets(&self.netns, &filter)?.pop().filter(|socket| socket.send_q > 0))
        };
        wait_until("data that does not go out", SOON, || of_client("established")).unwrap();
        let pid = client.pid();
        drop(client);
        wait_until("the orphan", SOON, || of_client("fin-wait-1")).unwrap();
        (local, far, pid)
    }
}

fn id(cgroup: &Cgroup) -> Option<u64> {
    cgroup.id().ok()
}

fn process(end: &Connection) -> Option<(u32, &str)> {
    end.process.as_ref().map(|process| (process.pid, process.comm.as_str()))
}

/// How many of the connections are each cgroup's.
fn counted<const N: usize>(connections: &Connections, cgroups: [&Cgroup; N]) -> [usize; N] {
    cgroups.map(|cgroup| connections.only(|end| end.container.cgroup_id == id(cgroup)).0.len())
}

/// A process with a pid that was another's.
struct Successor(Child);

impl Successor {
    /// Starts the command until it gets that pid, which somebody else may be given first.
    fn start(pid: u32, command: &mut Command) -> Self {
        let mut start = || {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
            Ok(Some(Self(command.stdin(Stdio::piped()).spawn()?)).filter(|child| child.0.id() == pid))
        };
        wait_until("the same pid", SOON, &mut start).unwrap()
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads to the end, whatever that is.
fn empty(mut far: TcpStream) {
    let _ = std::io::copy(&mut far, &mut sink());
}

#[test]
fn a_pid_that_was_given_again_brings_nobody_anything() {
    let host = Host::<3>::new("pids");
    let [before, after, server] = &host.cgroups;
    let listener = host.listen(server);
    let trace = Trace::start(&host.netns, &[]).unwrap();
    let (orphan, far, pid) = host.orphan(before, &listener);
    let hold = ["hold", "--to", AT, "--count", "1"];
    let _successor = Successor::start(pid, &mut host.workload(after, &hold));
    let second = listener.accept().unwrap().0.peer_addr().unwrap();

    // Who looks now finds a process with that pid, and it is the other connection's.
    let now = host.now();
    let told = |all: &Connections, of: SocketAddr| {
        let one = all.at(of).one().unwrap().clone();
        (one.container.cgroup_id, one.process.map(|process| process.pid))
    };
    assert_eq!([told(&now, orphan), told(&now, second)], [(id(before), None), (id(after), Some(pid))]);
    let of_pid = Connections::now(&host.netns, &["--pid", &pid.to_string()]).unwrap();
    assert!(of_pid.one().unwrap().is_at(second));

    // Who was there from the beginning knows that both had it.
    empty(far);
    trace.wait_for("close", 2).unwrap();
    let all = trace.end().unwrap();
    assert_eq!(told(&all.events("close"), orphan), (id(before), Some(pid)));
    assert_eq!(told(&all.events("established"), second), (id(after), Some(pid)));
}

#[test]
fn a_cgroup_that_was_made_again_gets_nothing_of_the_one_before() {
    let host = Host::<1>::new("again");
    let server = host.run(&host.cgroups[0], &["serve", "--listen", AT]);
    server.listening().unwrap();
    let aside = host.netns.enter(|| Ok(TcpListener::bind("127.0.0.1:7001")?)).unwrap();
    // A container with something inside, which its runtime makes anew when it is started again.
    let name = format!("story{}", std::process::id());
    let path = format!("lxc.payload.{name}");
    let make = || [Cgroup::new(&path).unwrap(), Cgroup::new(format!("{path}/inner")).unwrap()];
    let trace = Trace::start(&host.netns, &["--events", "close"]).unwrap();
    let agent = Tcptide::find().unwrap().agent(["--metrics.grace", "1m"]).unwrap();
    let [outer, inner] = make();
    let (orphan, far, _) = host.orphan(&inner, &aside);
    // Two more stay behind in TIME_WAIT.
    host.churn(&inner, "2");
    assert_eq!(sockets(&host.netns, &["state", "time-wait"]).unwrap().len(), 2);
    let [old_outer, old_inner] = [id(&outer), id(&inner)];
    drop((inner, outer));
    for n in 0..100 {
        Cgroup::unique(&format!("passing-{n}")).unwrap();
    }
    let [outer, inner] = make();
    let new = id(&outer);
    let held = host.hold(&inner, "3");

    // Who comes now knows the new one only: the old connection has its cgroup's number, and no name.
    let now = host.now();
    let left = now.at(orphan).one().unwrap().container.clone();
    assert_eq!((left.cgroup_id, left.cgroup_path.as_deref()), (old_inner, None));
    assert_eq!(left.name, format!("cgroup:{}", old_inner.unwrap()));
    assert_eq!(now.only(|end| end.container.cgroup_id == new).0.len(), 3);
    assert_eq!(now.0.len(), 1 + 1 + 3 + 3, "nothing of TIME_WAIT: {now:?}");

    // Who was there before knows both.
    held.finish().unwrap();
    empty(far);
    trace.wait_for("close", 4 + 1 + 1 + 6).unwrap();
    let closes = trace.end().unwrap();
    for (of, count) in [(old_outer, 3), (new, 3)] {
        let closes = closes.only(|end| end.container.cgroup_id == of);
        assert_eq!(closes.0.len(), count);
        assert!(closes.0.iter().all(|end| end.container.name == name), "{closes:?}");
    }
    assert_eq!(closes.at(orphan).one().unwrap().container.cgroup_id, old_outer);
    // They have one name, and so one series.
    let scrape = agent.scrape().unwrap();
    let labels = [("container", name.as_str())];
    let ids: BTreeSet<Option<u64>> = scrape
        .select("tcptide_container_info", &labels)
        .map(|one| one.label("cgroup_id").parse().ok())
        .collect();
    assert_eq!(ids, BTreeSet::from([old_outer, new]));
    assert_eq!(scrape.sum("tcptide_opened_total", &labels), Some(6.0));
}

#[test]
fn a_connection_that_is_passed_on_stays_its_maker_s() {
    let host = Host::<3>::new("passed");
    let [maker, holder, server] = &host.cgroups;
    let listener = host.listen(server);
    let trace = Trace::start(&host.netns, &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let counter = Taker::at(folder.path().join("counter")).unwrap();
    let first = host.run(maker, &["pass", "--to", AT, "--by", counter.path().to_str().unwrap()]);
    let pid = first.pid();
    holder
        .host(|| {
            let passed = counter.take()?;
            first.wait(SOON)?;
            let (mut far, local) = listener.accept()?;
            std::io::Write::write_all(&mut &passed, b"from whom?")?;
            far.read_exact(&mut [0; 10])?;
            // Who comes now: the owner is the same; the process is who has it.
            let now = host.now().at(local).one()?.clone();
            assert_eq!(now.container.cgroup_id, id(maker));
            assert_eq!(now.process.as_ref().map(|process| process.pid), Some(std::process::id()));
            assert_eq!(now.before.map(|before| before.sent_bytes), Some(10));
            assert_eq!(counted(&host.now(), [maker, holder, server]), [1, 0, 1]);
            drop(passed);
            trace.wait_for("close", 1)
        })
        .unwrap();
    // Who was there before: who connected.
    let close = trace.end().unwrap();
    let close = close.only(|end| end.is("close") && end.direction() == "active").one().unwrap().clone();
    assert_eq!((close.container.cgroup_id, process(&close)), (id(maker), Some((pid, "workload"))));
    assert_eq!(close.sent_bytes, 10);
}

#[test]
fn what_workers_accept_is_the_listener_s() {
    let host = Host::<4>::new("prefork");
    let [master, one, two, client] = &host.cgroups;
    let listener = host.listen(master);
    let serve = |cgroup| {
        let mut command = host.workload(cgroup, &["serve", "--inherited"]);
        let worker = Running::inheriting(&mut command, &listener).unwrap();
        worker.listening().unwrap();
        worker
    };
    // The second gets its share while the first stands still.
    let workers = [serve(one), serve(two)];
    let _held: Vec<_> = (0..2)
        .map(|n| {
            let other = Pid::from_raw(workers[1 - n].pid().cast_signed()).unwrap();
            kill_process(other, Signal::STOP).unwrap();
            let held = host.hold(client, "3");
            wait_until("who accepts", SOON, || {
                let seen = sockets(&host.netns, &["state", "established", "sport", "=", ":7000"])?;
                Ok(seen.iter().all(|socket| !socket.processes.is_empty()).then_some(()))
            })
            .unwrap();
            kill_process(other, Signal::CONT).unwrap();
            held
        })
        .collect();
    let now = host.now();
    assert_eq!(counted(&now, [master, one, two, client]), [6, 0, 0, 6]);
    for worker in &workers {
        let its = |end: &Connection| end.process.as_ref().is_some_and(|process| process.pid == worker.pid());
        let its = now.only(its);
        assert_eq!(its.0.len(), 3);
        assert_eq!(counted(&its, [master]), [3]);
    }
}

#[test]
fn what_listeners_with_one_port_accept_is_each_one_s_own() {
    let host = Host::<3>::new("reuseport");
    let [one, two, client] = &host.cgroups;
    let serve = |cgroup| {
        let server = host.run(cgroup, &["serve", "--listen", AT, "--reuse-port"]);
        server.listening().unwrap();
        server
    };
    let servers = [(serve(one), one), (serve(two), two)];
    let held = host.hold(client, "40");
    let seen = wait_until("all to be accepted", SOON, || {
        let seen = sockets(&host.netns, &["state", "established", "sport", "=", ":7000"])?;
        Ok((seen.len() == 40 && seen.iter().all(|socket| !socket.processes.is_empty())).then_some(seen))
    })
    .unwrap();
    let now = host.now();
    for (server, cgroup) in &servers {
        let its: Vec<_> = seen
            .iter()
            .filter(|socket| socket.processes.iter().any(|(_, pid)| *pid == server.pid()))
            .collect();
        assert!(its.len() > 3, "both had some: {}", its.len());
        assert_eq!(counted(&now, [cgroup]), [its.len()]);
        for socket in its {
            let told = now.only(|end| Some(end.cookie) == socket.cookie).one().unwrap().clone();
            assert_eq!(told.container.cgroup_id, id(cgroup));
        }
    }
    drop(held);
}

#[test]
fn what_a_service_accepts_on_a_socket_made_for_it_is_the_maker_s() {
    let host = Host::<3>::new("activated");
    let [manager, service, client] = &host.cgroups;
    let listener = host.listen(manager);
    let trace = Trace::start(&host.netns, &["--events", "close"]).unwrap();
    // The manager waits for the first connection, and starts the service then.
    let held = host.hold(client, "2");
    let serve = ["serve", "--inherited"];
    let server = Running::inheriting(&mut host.workload(service, &serve), &listener).unwrap();
    server.listening().unwrap();
    drop(listener);
    let accepted = wait_until("the service to accept", SOON, || {
        let now = host.now().only(|end| end.direction() == "passive");
        Ok(now.0.iter().all(|end| end.process.is_some()).then_some(now))
    })
    .unwrap();
    let listeners = Connections::listeners(&host.netns, &[]).unwrap();
    let listener = listeners.one().unwrap().clone();
    for end in accepted.0.iter().chain([&listener]) {
        assert_eq!((end.container.cgroup_id, process(end)), (id(manager), Some((server.pid(), "workload"))));
    }
    assert_eq!(accepted.0.len(), 2);
    held.finish().unwrap();
    trace.wait_for("close", 4).unwrap();
    let closed = trace.end().unwrap();
    assert_eq!(counted(&closed, [manager, service, client]), [2, 0, 2]);
    let passive = closed.only(|end| end.direction() == "passive");
    assert!(passive.0.iter().all(|end| process(end) == Some((server.pid(), "workload"))), "{passive:?}");
}

#[test]
fn a_process_that_moves_leaves_its_connections_where_they_were_made() {
    let host = Host::<3>::new("moves");
    let [server, before, after] = &host.cgroups;
    let listener = host.listen(server);
    let trace = Trace::start(&host.netns, &[]).unwrap();
    let old = host.connect(before);
    let (new, accepted) = after
        .host(|| {
            let new = host.netns.enter(|| Ok(TcpStream::connect(AT)?))?;
            let accepted = [listener.accept()?.0, listener.accept()?.0];
            // Who comes now finds this process, which has moved, behind both.
            let now = host.now();
            assert_eq!(counted(&now, [server, before, after]), [2, 1, 1]);
            for (stream, cgroup) in [(&old, before), (&new, after)] {
                let end = now.at(stream.local_addr()?);
                let end = end.one()?;
                assert_eq!(end.container.cgroup_id, id(cgroup));
                assert_eq!(end.process.as_ref().map(|process| process.pid), Some(std::process::id()));
            }
            Ok((new, accepted))
        })
        .unwrap();
    drop((old, new, accepted));
    trace.wait_for("close", 4).unwrap();
    let closed = trace.end().unwrap().events("close");
    assert_eq!(counted(&closed, [server, before, after]), [2, 1, 1]);
}
