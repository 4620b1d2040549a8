//! What following short connections costs: the workload alone, then with `trace -o json`, then with the agent.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use functional::{
    cgroup::Cgroup,
    connections::inode,
    netns::Netns,
    process::Lines,
    tcptide::Tcptide,
    workload::{self, Counts, Running},
};
use probe::Floor;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    accounting::{cpu_of, cpu_of_ended_children},
    figures::Report,
};

/// How long connections are made in one go.
const SECONDS: u64 = 4;
/// Clients, each with a server address of its own: the ports of closed connections are not free for a minute.
const CLIENTS: u64 = 4;
/// So many runs of a program make an average.
const ENOUGH: f64 = 100.0;
/// `open`, `established` and `close`, of both ends.
const EVENTS_OF_A_CONNECTION: u64 = 6;
/// Within this, the events that there are have been fetched.
const QUIET: Duration = Duration::from_millis(300);
/// How long starting and ending may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The workload alone, and with each of the two.
pub(crate) fn round(report: &mut Report, tcptide: &Tcptide, rate: u64) -> Result<()> {
    let site = Site::new()?;
    let went = site.go(rate)?;
    went.report(report, &format!("{rate}/s alone"));
    floor(report, rate, &site)?;
    traced(report, tcptide, rate, &site)?;
    watched(report, tcptide, rate, &site, "agent", &[])?;
    watched(report, tcptide, rate, &site, "agent --read-delay", &["--read-delay"])
}

/// Where the workload is.
pub(crate) struct Site {
    cgroup: Cgroup,
    netns: Netns,
}

/// What the workload did in one go.
pub(crate) struct Went {
    /// Both sides together.
    counts: Counts,
    /// CPU time of both sides, and of the stack on their behalf.
    cpu: Duration,
}

impl Site {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { cgroup: Cgroup::unique("churn")?, netns: Netns::new("churn")? })
    }

    /// Makes connections for some seconds, one request and its answer each.
    pub(crate) fn go(&self, rate: u64) -> Result<Went> {
        let start = |args: &[&str]| {
            Running::start(&mut self.cgroup.wrap(&self.netns.wrap(&workload::command(args)?)))
        };
        let cpu = cpu_of_ended_children()?;
        let server = start(&["serve", "--listen", "0.0.0.0:0", "--seconds", "60"])?;
        let port = server.listening()?.port();
        let (rate, seconds) = ((rate as f64 / CLIENTS as f64).to_string(), SECONDS.to_string());
        let clients = (1..=CLIENTS).map(|number| {
            let to = format!("127.0.0.{number}:{port}");
            start(&["churn", "--to", &to, "--rate", &rate, "--seconds", &seconds])
        });
        let clients = clients.collect::<Result<Vec<_>>>()?;
        let mut counts = Counts::default();
        for client in clients {
            counts.add(&client.wait(PATIENCE)?);
        }
        let seconds = counts.seconds;
        counts.add(&server.finish()?);
        counts.seconds = seconds;
        if counts.opened != counts.accepted || counts.failures() > 0 {
            bail!("{} opened, {} accepted, failed: {:?}", counts.opened, counts.accepted, counts.failed);
        }
        Ok(Went { counts, cpu: cpu_of_ended_children()?.saturating_sub(cpu) })
    }
}

impl Went {
    fn report(&self, report: &mut Report, name: &str) {
        let opened = self.counts.opened as f64;
        report.add(&format!("{name}: connections"), "/s", opened / self.counts.seconds);
        report.add(&format!("{name}: CPU of the workload"), "us/conn", self.cpu.as_secs_f64() * 1e6 / opened);
    }

    /// Adds what tcptide itself took meanwhile.
    fn report_tcptide(&self, report: &mut Report, name: &str, cpu: Duration) {
        let (cpu, counts) = (cpu.as_secs_f64(), &self.counts);
        report.add(&format!("{name}: CPU of tcptide"), "us/conn", cpu * 1e6 / counts.opened as f64);
        report.add(&format!("{name}: CPU of tcptide"), "% of one", cpu * 100.0 / counts.seconds);
    }
}

/// Empty programs on the same hooks: what measuring itself takes of a run.
fn floor(report: &mut Report, rate: u64, site: &Site) -> Result<()> {
    let name = format!("{rate}/s with empty programs");
    let programs = Floor::attach(true)?;
    site.go(rate)?.report(report, &name);
    for (hook, ns, runs) in programs.cost()?.into_iter().filter(|(_, _, runs)| *runs as f64 >= ENOUGH) {
        report.add(&format!("{name}: {hook}"), "ns/run", ns as f64 / runs as f64);
    }
    Ok(())
}

fn traced(report: &mut Report, tcptide: &Tcptide, rate: u64, site: &Site) -> Result<()> {
    let name = format!("{rate}/s with trace");
    let trace = Trace::start(tcptide, &site.netns)?;
    let before = cpu_of(trace.child.id())?;
    let went = site.go(rate)?;
    trace.settle();
    let cpu = cpu_of(trace.child.id())?.saturating_sub(before);
    let told = Arc::clone(&trace.told);
    let lost = trace.end()?;
    went.report(report, &name);
    went.report_tcptide(report, &name, cpu);
    let opened = went.counts.opened;
    let (events, closes) = (told.events.load(Ordering::Relaxed), told.closes.load(Ordering::Relaxed));
    report.add(&format!("{name}: events"), "/s", events as f64 / went.counts.seconds);
    report.add(&format!("{name}: written"), "MiB/s", told.mib() / went.counts.seconds);
    report.add(&format!("{name}: events lost"), "", lost as f64);
    report.check(&format!("{name}: events told or lost"), events + lost, opened * EVENTS_OF_A_CONNECTION);
    if lost == 0 {
        report.check(&format!("{name}: closes"), closes, opened * 2);
    }
    Ok(())
}

fn watched(
    report: &mut Report,
    tcptide: &Tcptide,
    rate: u64,
    site: &Site,
    who: &str,
    args: &[&str],
) -> Result<()> {
    let name = format!("{rate}/s with {who}");
    let agent = tcptide.agent([args, &["--program-stats", "always"]].concat())?;
    let before = cpu_of(agent.pid())?;
    let went = site.go(rate)?;
    let cpu = cpu_of(agent.pid())?.saturating_sub(before);
    let scrape = agent.scrape()?;
    agent.stop()?.success()?;
    went.report(report, &name);
    went.report_tcptide(report, &name, cpu);
    let container = site.cgroup.path().to_string_lossy();
    let counted = |metric| scrape.sum(metric, &[("container", &*container)]).unwrap_or(-1.0) as u64;
    let Counts { opened, bytes_sent, .. } = went.counts;
    for program in scrape.select("tcptide_program_runs_total", &[]).filter(|program| program.value >= ENOUGH)
    {
        let label = program.label("program");
        let seconds = scrape.sum("tcptide_program_run_seconds_total", &[("program", label)]).unwrap_or(0.0);
        report.add(&format!("{name}: {label}"), "ns/run", seconds * 1e9 / program.value);
        report.add(&format!("{name}: {label}"), "runs/conn", program.value / opened as f64);
    }
    report.check(&format!("{name}: opened"), counted("tcptide_opened_total"), opened * 2);
    report.check(&format!("{name}: closed"), counted("tcptide_closed_total"), opened * 2);
    report.check(&format!("{name}: bytes sent"), counted("tcptide_sent_bytes_total"), bytes_sent);
    Ok(())
}

/// What `trace` told of one network namespace.
#[derive(Default)]
struct Told {
    events: AtomicU64,
    closes: AtomicU64,
    /// Of all namespaces.
    bytes: AtomicU64,
}

impl Told {
    fn mib(&self) -> f64 {
        self.bytes.load(Ordering::Relaxed) as f64 / f64::from(1 << 20)
    }

    /// Reads lines and keeps no more than their number: parsing them here would take the CPU from what is measured.
    fn count(&self, pipe: impl Read, netns: u64) -> Result<()> {
        let mark = format!("\"netns\":{netns},");
        let mut lines = BufReader::with_capacity(1 << 20, pipe);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).context("reading the output of trace")? > 0 {
            self.bytes.fetch_add(line.len() as u64, Ordering::Relaxed);
            let text = std::str::from_utf8(&line).context("a line that is no text")?;
            if text.contains(&mark) {
                self.events.fetch_add(1, Ordering::Relaxed);
                let closes = text.contains("\"event\":\"close\"");
                self.closes.fetch_add(closes.into(), Ordering::Relaxed);
            }
            line.clear();
        }
        Ok(())
    }
}

/// `tcptide trace -o json` at work. Killed on `Drop`.
struct Trace {
    child: Child,
    stderr: Lines,
    told: Arc<Told>,
    reader: Option<JoinHandle<Result<()>>>,
}

impl Trace {
    fn start(tcptide: &Tcptide, netns: &Netns) -> Result<Self> {
        let mut child = tcptide
            .command(["trace", "-o", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting trace")?;
        let stdout = child.stdout.take().context("the child has no stdout")?;
        let (stderr, _) = Lines::collect(child.stderr.take().context("the child has no stderr")?);
        let (told, netns) = (Arc::<Told>::default(), inode(netns)?);
        let counting = Arc::clone(&told);
        let reader = Some(thread::spawn(move || counting.count(stdout, netns)));
        let trace = Self { child, stderr, told, reader };
        trace.stderr.wait_for("`tcptide: attached`", PATIENCE, |line| line.contains("tcptide: attached"))?;
        Ok(trace)
    }

    /// Waits until nothing more is told of the namespace.
    fn settle(&self) {
        let start = Instant::now();
        let mut before = None;
        while start.elapsed() < PATIENCE {
            let now = Some(self.told.events.load(Ordering::Relaxed));
            if before == now {
                return;
            }
            before = now;
            thread::sleep(QUIET);
        }
    }

    /// Does what Ctrl-C does; returns how many events it says it lost, on the whole host.
    fn end(mut self) -> Result<u64> {
        kill_process(Pid::from_child(&self.child), Signal::INT).context("interrupting trace")?;
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let status = self.child.wait().context("waiting for trace")?;
        let said = self.stderr.all();
        if !status.success() {
            bail!("trace: {status}: {}", said.join("\n"));
        }
        let lost = said.iter().find(|line| line.contains("connection events were lost"));
        lost.map_or(Ok(0), |line| {
            let number = line.split(' ').nth(1).and_then(|word| word.parse().ok());
            number.with_context(|| format!("no number in `{line}`"))
        })
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_the_namespace_count() {
        let told = Told::default();
        let lines = "{\"event\":\"close\",\"netns\":7,\"a\":1}\n{\"event\":\"open\",\"netns\":7,\"a\":1}\n\
                     {\"event\":\"close\",\"netns\":71,\"a\":1}\n";
        told.count(lines.as_bytes(), 7).unwrap();
        let counts = [&told.events, &told.closes, &told.bytes].map(|n| n.load(Ordering::Relaxed));
        assert_eq!(counts, [2, 1, lines.len() as u64]);
    }
}
