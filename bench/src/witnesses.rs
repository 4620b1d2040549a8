//! Whether what tcptide says of the crowd is what `ss` says, socket by socket and container by container.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use functional::{
    connections::{Connections, inode},
    netns::Netns,
    tcptide::Tcptide,
    witness::{Socket, sockets},
};
use serde_json::Value;

use crate::{crowd::Crowd, figures::Report, scale::ALL_SERIES};

/// Sockets by cgroup and state.
type States = BTreeMap<(String, String), u64>;

/// Adds the comparisons to the report.
pub(crate) fn compare(report: &mut Report, tcptide: &Tcptide, crowd: &Crowd) -> Result<()> {
    let mut seen = Vec::new();
    for netns in crowd.namespaces() {
        seen.push((inode(netns)?, sockets_of(netns)?));
    }
    let of_crowd: Vec<_> = crowd.cgroups().iter().map(|cgroup| cgroup.path().display().to_string()).collect();
    connections(report, &seen)?;

    let mut expected = States::new();
    for socket in seen.iter().flat_map(|(_, sockets)| sockets) {
        let cgroup = socket.cgroup.clone().unwrap_or_default();
        *expected.entry((cgroup, state_name(&socket.state))).or_default() += 1;
    }
    expected.retain(|(cgroup, _), _| of_crowd.contains(cgroup));
    let states = states(tcptide, &of_crowd)?;
    let gauge = gauge(tcptide, &of_crowd)?;
    for (name, found) in [("states", states), ("agent's gauge", gauge)] {
        for state in ["established", "listen"] {
            let all =
                |states: &States| states.iter().filter(|((_, s), _)| s == state).map(|(_, n)| n).sum::<u64>();
            report.check(&format!("{name}: sockets in {state}"), all(&found), all(&expected));
        }
        let right = expected.iter().filter(|(key, n)| found.get(*key) == Some(n)).count();
        report.check(
            &format!("{name}: containers and states with the same count"),
            right as u64,
            expected.len() as u64,
        );
        report.check(
            &format!("{name}: containers and states named"),
            found.len() as u64,
            expected.len() as u64,
        );
    }
    Ok(())
}

fn sockets_of(netns: &Netns) -> Result<Vec<Socket>> {
    sockets(netns, &["-a"])
}

/// `conns`: the same sockets with the same owners, bytes and processes.
fn connections(report: &mut Report, seen: &[(u64, Vec<Socket>)]) -> Result<()> {
    let all = Connections::everywhere(&[])?;
    let mut rows = 0;
    let mut by_cookie = HashMap::new();
    for connection in all.0.iter().filter(|c| seen.iter().any(|(netns, _)| *netns == c.netns)) {
        rows += 1;
        by_cookie.insert((connection.netns, connection.cookie), connection);
    }
    let live = seen.iter().flat_map(|(netns, sockets)| {
        sockets.iter().filter(|socket| socket.state != "LISTEN").map(move |socket| (*netns, socket))
    });
    let (mut sockets, mut found, mut owned, mut held) = (0, 0, 0, 0);
    for (netns, socket) in live {
        sockets += 1;
        let Some(connection) = socket.cookie.and_then(|cookie| by_cookie.get(&(netns, cookie))) else {
            continue;
        };
        found += u64::from(connection.state == state_name(&socket.state));
        owned += u64::from(socket.cgroup.as_deref() == Some(connection.cgroup()));
        let holds = |pid| socket.processes.iter().any(|(_, holder)| *holder == pid);
        held += u64::from(connection.process.as_ref().is_some_and(|process| holds(process.pid)));
    }
    report.check("conns: sockets of the crowd", rows, sockets);
    report.check("conns: with ss's cookie and state", found, sockets);
    report.check("conns: with ss's cgroup", owned, sockets);
    report.check("conns: with ss's process", held, sockets);
    Ok(())
}

/// `states -o json`, by cgroup path.
fn states(tcptide: &Tcptide, of_crowd: &[String]) -> Result<States> {
    let rows = tcptide.run(["states", "-o", "json"])?.success()?.json()?;
    let mut states = States::new();
    for row in rows.as_array().context("states is no list")? {
        let path = row.pointer("/container/cgroup_path").and_then(Value::as_str).unwrap_or_default();
        if !of_crowd.iter().any(|own| own == path) {
            continue;
        }
        for (state, count) in row["states"].as_object().context("a row without states")? {
            states.insert((path.to_owned(), state.clone()), count.as_u64().context("a count")?);
        }
    }
    Ok(states)
}

/// `tcptide_connections`; a cgroup outside of any runtime has its path for a name.
fn gauge(tcptide: &Tcptide, of_crowd: &[String]) -> Result<States> {
    let agent = tcptide.agent(ALL_SERIES)?;
    let scrape = agent.scrape()?;
    let mut states = States::new();
    for sample in scrape.select("tcptide_connections", &[]).filter(|sample| sample.value > 0.0) {
        let container = sample.label("container");
        if of_crowd.iter().any(|own| own == container) {
            states.insert((container.to_owned(), sample.label("state").to_owned()), sample.value as u64);
        }
    }
    agent.stop()?.success()?;
    Ok(states)
}

/// `ESTAB` of ss is `established`; the others differ in case and hyphens: `FIN-WAIT-1` is `fin_wait1`.
fn state_name(ss: &str) -> String {
    match ss {
        "ESTAB" => "established".to_owned(),
        "UNCONN" => "close".to_owned(),
        other => other.to_lowercase().replace('-', "_").replace("wait_", "wait"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_named_alike() {
        let names = [
            "ESTAB",
            "LISTEN",
            "SYN-SENT",
            "FIN-WAIT-1",
            "FIN-WAIT-2",
            "TIME-WAIT",
            "CLOSE-WAIT",
            "LAST-ACK",
        ];
        let expected = [
            "established",
            "listen",
            "syn_sent",
            "fin_wait1",
            "fin_wait2",
            "time_wait",
            "close_wait",
            "last_ack",
        ];
        assert_eq!(names.map(state_name), expected);
    }
}
