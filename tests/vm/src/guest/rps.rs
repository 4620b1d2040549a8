//! Thousands of connections whose packets are processed on either CPU, so that they interrupt programs at their work on
//! the other: see docs/decisions/0003-nested-state-changes.md.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use functional::cgroup::Cgroup;
use functional::process::wait_until;
use functional::samples::Scrape;
use functional::tcptide::Tcptide;
use functional::workload::{Running, command};

const SPREAD: &str = "/sys/class/net/lo/queues/rx-0/rps_cpus";
/// Connections a second, and for how many seconds.
const CHURN: [&str; 6] = ["--rate", "2000", "--seconds", "10", "--threads", "2"];

pub(super) fn tell(preemptible: bool) -> Result<String> {
    // Each flow falls to one of the two CPUs.
    fs::write(SPREAD, "3").context(SPREAD)?;
    let [server_cgroup, client_cgroup] = [Cgroup::unique("server")?, Cgroup::unique("client")?];
    let agent = Tcptide::find()?.agent([""; 0])?;
    let server = Running::start(&mut server_cgroup.wrap(&command(["serve", "--listen", "127.0.0.1:0"])?))?;
    let to = server.listening()?.to_string();
    let churn = command([&["churn", "--to", &to][..], &CHURN].concat())?;
    let client = Running::start(&mut client_cgroup.wrap(&churn))?.wait(Duration::from_secs(60))?;
    let accepted = server.finish()?.accepted;
    ensure!(
        client.failures() == 0 && client.opened == accepted && client.opened > 0,
        "{client:?}, {accepted} accepted"
    );

    let count =
        |scrape: &Scrape, name: &str, labels: &[(&str, &str)]| scrape.sum(name, labels).unwrap_or(0.0) as u64;
    let ours = |scrape: &Scrape, name: &str, more: &[(&str, &str)]| -> u64 {
        let of = |cgroup: &Cgroup| {
            let path = cgroup.path().to_string_lossy();
            count(scrape, name, &[&[("container", &*path)], more].concat())
        };
        of(&server_cgroup) + of(&client_cgroup)
    };
    let look = || {
        let scrape = agent.scrape()?;
        let told = [
            ours(&scrape, "tcptide_opened_total", &[("direction", "active")]),
            ours(&scrape, "tcptide_opened_total", &[("direction", "passive")]),
            ours(&scrape, "tcptide_closed_total", &[]),
        ];
        let misses = ["lifecycle", "lifecycle_nested"]
            .map(|program| count(&scrape, "tcptide_program_misses_total", &[("program", program)]));
        anyhow::Ok((told, misses))
    };
    let happened = [client.opened, client.opened, 2 * client.opened];
    // The last packets may be on their way.
    let settled =
        wait_until("all to be counted", Duration::from_secs(5), || Ok((look()?.0 == happened).then_some(())));
    let (told, [missed, missed_too]) = look()?;
    fs::write(SPREAD, "0").context(SPREAD)?;

    let remark = format!(
        "of {happened:?} opened actively, passively and closed {told:?} were counted; {missed} runs of lifecycle and \
         {missed_too} of lifecycle_nested were skipped"
    );
    ensure!(missed > 0, "nothing was interrupted, which proves nothing: {remark}");
    if !preemptible {
        ensure!(settled.is_ok(), "{remark}");
        return Ok(remark);
    }
    let missing: u64 = happened.iter().zip(told).map(|(happened, told)| happened.saturating_sub(told)).sum();
    let too_many = happened.iter().zip(told).any(|(&happened, told)| told > happened);
    ensure!(!too_many && missing <= missed.min(missed_too), "{remark}");
    Ok(remark)
}
