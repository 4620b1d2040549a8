//! Real containers of LXC and systemd-nspawn: told by their names, and apart from what starts them.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::connections::Connections;
use functional::netns::Netns;
use functional::process::wait_until;
use functional::runtime::Machines;
use functional::tcptide::Tcptide;
use functional::witness::sockets;
use functional::workload;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const AT: &str = "127.0.0.1:90";

#[test]
fn lxc_and_nspawn_are_told_by_name() {
    let machines = Machines::new().unwrap();
    let netns = Netns::new("machines").unwrap();
    let own = format!("story{}", std::process::id());
    let unit = Cgroup::new(format!("{own}-ns.service")).unwrap();
    let lxc = format!("{own}-lxc");
    machines.lxc(&netns, &lxc, &["/bin/workload", "serve", "--listen", AT]).unwrap();
    wait_until("the server to listen", SOON, || {
        Ok((!sockets(&netns, &["state", "listening"])?.is_empty()).then_some(()))
    })
    .unwrap();
    let hold = ["/bin/workload", "hold", "--to", AT, "--count", "3"];
    let client = machines.nspawn(&netns, &unit, &hold).unwrap();
    client.ready(SOON).unwrap();
    // Who is in neither, beside what keeps the second.
    let host = Cgroup::unique("machines-host").unwrap();
    let knock = workload::command(["hold", "--to", AT, "--count", "1"]).unwrap();
    let aside = workload::Running::start(&mut host.wrap(&netns.wrap(&knock))).unwrap();
    aside.ready(SOON).unwrap();

    let now = Connections::now(&netns, &[]).unwrap();
    let named = |name: &str, path: &str| {
        let its = now.only(|end| end.container.name == name);
        assert!(its.0.iter().all(|end| end.cgroup() == path), "{its:?}");
        its.0.len()
    };
    assert_eq!(named(&lxc, &format!("/lxc.payload.{lxc}")), 4);
    assert_eq!(named(&format!("{own}-ns"), &format!("/{own}-ns.service/payload")), 3);
    assert_eq!(named(host.path().to_str().unwrap(), host.path().to_str().unwrap()), 1);
    assert_eq!(now.0.len(), 8);

    let all = Tcptide::find().unwrap().run(["containers", "-o", "json"]).unwrap().success().unwrap();
    let all = all.json().unwrap();
    let runtime = |name: &str| {
        let its = all.as_array().unwrap().iter().filter(|one| one["name"] == name);
        its.map(|one| one["runtime"].clone()).collect::<Vec<Value>>()
    };
    assert_eq!([runtime(&lxc), runtime(&format!("{own}-ns"))], [["lxc"], ["nspawn"]]);
}
