//! What looking costs when there are many connections.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use functional::{
    http,
    process::Reading,
    samples::Scrape,
    tcptide::{Agent, Tcptide},
    terminal::Terminal,
};
use rustix::process::Signal;

use crate::{
    accounting::{cpu_of, kernel_memory, resident},
    command::run,
    crowd::Crowd,
    figures::Report,
};

/// How many connections the limits are meant for.
const LIMIT_CONNECTIONS: u64 = 50_000;
/// A walk of the kernel over so many connections, ms.
const WALK_LIMIT_MS: f64 = 100.0;
/// The agent's memory, MiB.
const RESIDENT_LIMIT_MIB: f64 = 64.0;
/// From the start to the first event seen, ms.
const START_LIMIT_MS: f64 = 1000.0;
/// What a scrape may take beyond what the agent has, MiB, and how long, ms: of so many cgroups.
const SCRAPE_LIMIT_MIB: f64 = 16.0;
const SCRAPE_LIMIT_MS: f64 = 100.0;
const LIMIT_CGROUPS: usize = 1000;
/// `--help`, ms.
const HELP_LIMIT_MS: f64 = 10.0;
/// What the live screen may take, percent of a CPU, with so many connections in so many cgroups; its terminal's columns and
/// rows; until its lists are full; and for how long it is measured.
const SCREEN_LIMIT_PERCENT: f64 = 2.0;
const SCREEN_CONNECTIONS: u64 = 20_000;
const TERMINAL: (u16, u16) = (200, 50);
const SCREEN_SETTLE: Duration = Duration::from_secs(4);
const SCREEN: Duration = Duration::from_secs(10);
/// Scrapes of an agent after its first.
const SCRAPES: u32 = 4;
/// Every cgroup has series of its own.
pub(crate) const ALL_SERIES: [&str; 2] = ["--metrics.max-series", "100000000"];
/// Other ways to be answered, with the headers that ask for them.
const ENCODINGS: [(&str, &str); 3] = [
    ("gzip", "Accept-Encoding: gzip\r\n"),
    ("protobuf", PROTOBUF),
    (
        "protobuf, gzip",
        "Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited\r\n\
         Accept-Encoding: gzip\r\n",
    ),
];
const PROTOBUF: &str =
    "Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited\r\n";
/// The kernel frees the last one's storage after its end, on the CPUs that the next one needs.
const SETTLE: Duration = Duration::from_secs(1);

/// How long it takes to begin, on this host as it is.
pub(crate) fn starts(report: &mut Report, tcptide: &Tcptide, repeat: u64) -> Result<()> {
    for _ in 0..repeat {
        let help = run(&mut tcptide.command(["--help"]))?;
        report.add_limited("--help", "ms", ms(help.took), Some(HELP_LIMIT_MS));
        start(report, "trace: start to attached, empty host", &["trace"], tcptide)?;
        let agent = ["agent", "--web.listen-address", "127.0.0.1:0"];
        start(report, "agent: start to attached, empty host", &agent, tcptide)?;
    }
    Ok(())
}

fn start(report: &mut Report, name: &str, args: &[&str], tcptide: &Tcptide) -> Result<()> {
    thread::sleep(SETTLE);
    let start = Instant::now();
    let reading = Reading::start(&mut tcptide.command(args))?;
    reading.stderr().wait_for("`tcptide: attached`", Duration::from_secs(30), |line| {
        line.contains("tcptide: attached")
    })?;
    report.add_limited(name, "ms", ms(start.elapsed()), Some(START_LIMIT_MS));
    reading.signal(Signal::INT)?;
    reading.wait(Duration::from_secs(15)).map(drop)
}

/// Everything once, so that rounds interleave.
pub(crate) fn round(report: &mut Report, tcptide: &Tcptide, crowd: &Crowd, edges: bool) -> Result<()> {
    commands(report, tcptide)?;
    ss(report, crowd, "-tin")?;
    start(report, "trace: start to attached", &["trace"], tcptide)?;
    thread::sleep(SETTLE);
    screen(report, tcptide, crowd, "top", None)?;
    agent(report, tcptide, crowd, edges)
}

/// The live screen, once a second, with programs of its own or an agent's numbers.
fn screen(
    report: &mut Report,
    tcptide: &Tcptide,
    crowd: &Crowd,
    name: &str,
    agent: Option<&Agent>,
) -> Result<()> {
    let mut args = vec!["top".to_owned(), "--interval".to_owned(), "1s".to_owned()];
    args.extend(
        agent.into_iter().flat_map(|agent| ["--connect".to_owned(), format!("http://{}", agent.address())]),
    );
    let mut terminal = Terminal::start(&tcptide.command(&args), TERMINAL.0, TERMINAL.1)?;
    terminal.wait_for_text("CONTAINER")?;
    thread::sleep(SCREEN_SETTLE);
    let (began, before) = (Instant::now(), cpu_of(terminal.pid())?);
    thread::sleep(SCREEN);
    let cpu = cpu_of(terminal.pid())?.saturating_sub(before);
    let percent = 100.0 * cpu.as_secs_f64() / began.elapsed().as_secs_f64();
    let is_meant = crowd.cgroups().len() <= LIMIT_CGROUPS && crowd.connections() <= SCREEN_CONNECTIONS;
    report.add_limited(
        &format!("{name}: CPU, each second"),
        "%",
        percent,
        is_meant.then_some(SCREEN_LIMIT_PERCENT),
    );
    terminal.press("q")?;
    terminal.wait().map(drop)
}

fn commands(report: &mut Report, tcptide: &Tcptide) -> Result<()> {
    for (command, shown) in [("conns", "conns -o json"), ("states", "states -o json")] {
        thread::sleep(SETTLE);
        let ran = run(&mut tcptide.command([command, "-o", "json"]))?;
        report.add(shown, "ms", ms(ran.took));
        report.add(&format!("{shown}: CPU"), "ms", ms(ran.cpu));
        report.add(&format!("{shown}: resident"), "MiB", mib(ran.resident));
        report.add(&format!("{shown}: written"), "MiB", mib(ran.written));
    }
    Ok(())
}

/// The same question asked of ss, which sees one network namespace at a time.
pub(crate) fn ss(report: &mut Report, crowd: &Crowd, flags: &str) -> Result<()> {
    let (mut took, mut cpu, mut written) = (Duration::ZERO, Duration::ZERO, 0);
    for netns in crowd.namespaces() {
        let ran = run(&mut netns.wrap(Command::new("ss").args([flags, "-H"])))?;
        took += ran.took;
        cpu += ran.cpu;
        written += ran.written;
    }
    let name = format!("ss {flags}, all namespaces");
    report.add(&name, "ms", ms(took));
    report.add(&format!("{name}: CPU"), "ms", ms(cpu));
    report.add(&format!("{name}: written"), "MiB", mib(written));
    Ok(())
}

/// A new agent: its start, its first scrape, more of them, its memory.
fn agent(report: &mut Report, tcptide: &Tcptide, crowd: &Crowd, edges: bool) -> Result<()> {
    thread::sleep(2 * SETTLE);
    let memory = kernel_memory()?;
    let start = Instant::now();
    let args = ALL_SERIES.iter().copied().chain(edges.then_some("--edges"));
    let agent = tcptide.agent(args)?;
    report.add_limited("agent: start to attached", "ms", ms(start.elapsed()), Some(START_LIMIT_MS));
    let grown = kernel_memory()?.saturating_sub(memory);
    let (_, now) = resident(agent.pid()).context("the agent is gone")?;
    report.add("agent: resident before the first scrape", "MiB", mib(now));

    let mut most = now;
    let mut scraped = |report: &mut Report, name| -> Result<Scrape> {
        let before = forget_most(agent.pid())?;
        let scrape = scrape(report, &agent, name, crowd)?;
        let (peak, _) = resident(agent.pid()).context("the agent is gone")?;
        most = most.max(peak);
        let limit = few_cgroups(crowd).then_some(SCRAPE_LIMIT_MIB);
        report.add_limited(&format!("{name}: memory beyond"), "MiB", mib(peak.saturating_sub(before)), limit);
        Ok(scrape)
    };
    let first = scraped(report, "agent: first scrape")?;
    let sockets = first.sum("tcptide_walk_sockets", &[]).context("no tcptide_walk_sockets")?;
    for _ in 0..SCRAPES {
        thread::sleep(Duration::from_millis(100));
        scraped(report, "agent: later scrape")?;
    }
    for (name, headers) in ENCODINGS {
        for _ in 0..SCRAPES {
            thread::sleep(Duration::from_millis(100));
            let cpu = cpu_of(agent.pid())?;
            let http::Answer { body, took, .. } = http::get_bytes(agent.address(), "/metrics", headers)?;
            let cpu = cpu_of(agent.pid())?.saturating_sub(cpu);
            report.add(&format!("agent: scrape, {name}"), "ms", ms(took));
            report.add(&format!("agent: scrape, {name}: CPU of the agent"), "ms", ms(cpu));
            report.add(&format!("agent: scrape, {name}: answer"), "KiB", body.len() as f64 / 1024.0);
        }
    }
    screen(report, tcptide, crowd, "top --connect", Some(&agent))?;
    let (peak, _) = resident(agent.pid()).context("the agent is gone")?;
    let most = most.max(peak);
    report.add_limited("agent: resident, at most", "MiB", mib(most), Some(RESIDENT_LIMIT_MIB));
    report.add("kernel memory for each socket", "bytes", grown as f64 / sockets);
    agent.stop()?.success().map(drop)
}

pub(crate) fn scrape(report: &mut Report, agent: &Agent, name: &str, crowd: &Crowd) -> Result<Scrape> {
    let cpu = cpu_of(agent.pid())?;
    let http::Answer { body, took, .. } = http::get_bytes(agent.address(), "/metrics", "")?;
    let cpu = cpu_of(agent.pid())?.saturating_sub(cpu);
    let text = String::from_utf8(body)?;
    let scrape = Scrape::parse(&text)?;
    let one = |metric| scrape.sum(metric, &[]).with_context(|| format!("the agent has no {metric}"));
    let (seconds, sockets) = (one("tcptide_walk_duration_seconds")?, one("tcptide_walk_sockets")?);
    report.add_limited(name, "ms", ms(took), few_cgroups(crowd).then_some(SCRAPE_LIMIT_MS));
    report.add(&format!("{name}: CPU of the agent"), "ms", ms(cpu));
    report.add(&format!("{name}: answer"), "KiB", text.len() as f64 / 1024.0);
    report.add(&format!("{name}: sockets walked"), "", sockets);
    // The limit is for all sockets of so many connections, both ends.
    let limit = (crowd.connections() <= LIMIT_CONNECTIONS).then_some(WALK_LIMIT_MS);
    report.add_limited(&format!("{name}: walk in the kernel"), "ms", seconds * 1e3, limit);
    let each = seconds / sockets;
    report.add(&format!("{name}: walk for each socket"), "us", each * 1e6);
    report.add(&format!("{name}: walk for each 50,000 sockets"), "ms", each * 50_000.0 * 1e3);
    Ok(scrape)
}

/// Whether the limits of a scrape are meant for so many, with no more than a hundred connections each.
fn few_cgroups(crowd: &Crowd) -> bool {
    let cgroups = crowd.cgroups().len();
    cgroups <= LIMIT_CGROUPS && crowd.connections() <= LIMIT_CONNECTIONS
}

/// Has the most memory that a process has had counted anew; returns what it has now.
fn forget_most(pid: u32) -> Result<u64> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("counting memory anew")?;
    Ok(resident(pid).context("the agent is gone")?.1)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
