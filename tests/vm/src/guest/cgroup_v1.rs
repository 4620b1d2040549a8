//! Hierarchies of version 1 only: an owner is the cgroup of the process, in `conns` as in `trace`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use functional::connections::{Connection, Connections};
use functional::process::{output, wait_until};
use functional::tcptide::Tcptide;
use functional::workload::{Running, command};

use super::CGROUPS;

const HELD: usize = 3;
const SOON: Duration = Duration::from_secs(20);

/// Mounts a hierarchy for each controller that tcptide can tell owners from. Since 6.11 a kernel may be built without
/// version 1 of the memory controller, as Debian's are.
pub(super) fn mount() -> Result<()> {
    output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", CGROUPS]))?;
    for controller in ["memory", "pids"] {
        let folder = format!("{CGROUPS}/{controller}");
        fs::create_dir(&folder).with_context(|| folder.clone())?;
        if output(Command::new("mount").args(["-t", "cgroup", "-o", controller, "cgroup", &folder])).is_err()
        {
            fs::remove_dir(&folder)?;
        }
    }
    Ok(())
}

/// The same path in every hierarchy.
struct Cgroup {
    path: &'static str,
    folders: Vec<PathBuf>,
}

impl Cgroup {
    fn new(path: &'static str) -> Result<Self> {
        let mut folders = Vec::new();
        for hierarchy in fs::read_dir(CGROUPS)? {
            let folder = hierarchy?.path().join(path.trim_start_matches('/'));
            fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
            folders.push(folder);
        }
        ensure!(!folders.is_empty(), "this kernel has no version 1 hierarchy to tell owners from");
        Ok(Self { path, folders })
    }

    /// The workload, a member before it is executed.
    fn start(&self, args: &[&str]) -> Result<Running> {
        let workload = command(args)?;
        let enter =
            self.folders.iter().map(|folder| format!("echo $$ > {}/cgroup.procs && ", folder.display()));
        let script = enter.collect::<String>() + r#"exec "$0" "$@""#;
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(workload.get_program()).args(workload.get_args());
        Running::start(&mut shell)
    }
}

pub(super) fn tell() -> Result<String> {
    let (servers, clients) = (Cgroup::new("/servers")?, Cgroup::new("/clients")?);
    let server = servers.start(&["serve", "--listen", "127.0.0.1:0"])?;
    let to = server.listening()?;
    let (to, port) = (to.to_string(), to.port().to_string());
    let owner = |direction: &str| if direction == "active" { clients.path } else { servers.path };
    let is_right = |end: &Connection| end.cgroup() == owner(end.direction());

    let holder = clients.start(&["hold", "--to", &to, "--count", &HELD.to_string()])?;
    holder.ready(SOON)?;
    // The server takes them a moment later.
    wait_until("both ends of all to have their owners", SOON, || {
        let live = Connections::everywhere(&["--port", &port])?.only(|end| end.state == "established");
        Ok((live.0.len() == 2 * HELD && live.0.iter().all(is_right)).then_some(()))
    })
    .with_context(|| format!("conns: {:#?}", Connections::everywhere(&["--port", &port]).map(|all| all.0)))?;
    holder.let_go(SOON)?;

    let trace = Tcptide::find()?.spawn(["trace", "-o", "json", "--port", &port])?;
    trace.wait_ready()?;
    let churn = clients.start(&["churn", "--to", &to, "--rate", "100", "--seconds", "10", "--count", "5"])?;
    let counts = churn.wait(SOON)?;
    let (mut closed, expected) = (0, 2 * counts.closed);
    trace.wait_for_json(SOON, |event| {
        closed += u64::from(event["event"] == "close");
        closed == expected
    })?;
    server.finish()?;
    let events = trace.interrupt()?.success()?.json_lines()?;
    for event in events {
        let event: Connection = serde_json::from_value(event).context("reading an event")?;
        // Who will accept a connection is not known before it is used.
        let known = event.direction() == "active" || event.is("close");
        ensure!(!known || is_right(&event), "trace: {event:#?}");
    }
    Ok(format!("{HELD} live and {} traced connections", counts.closed))
}
