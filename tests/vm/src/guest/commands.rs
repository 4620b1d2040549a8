//! Every command with what makes other programs of the object: filters in the kernel, rows, samples, read delays. What
//! nobody asked for is dead code to the verifier, so that `doctor` alone does not show that it takes all the rest.

use anyhow::{Result, ensure};
use functional::tcptide::Tcptide;

const STREAM: &[&str] = &["--duration", "100ms"];
const FILTERS: &[&str] = &["--cgroup", "/", "--port", "7000,!7001", "--peer", "127.0.0.0/8,!::1"];
const STREAMS: &[&[&str]] = &[
    &["trace", "--events", "open,established,close,fail,retransmit,reset,drop,zero-window"],
    &["rtt"],
    &["connlat"],
    &["listen"],
    &["explain"],
];
const LOOKS: &[&[&str]] = &[&["conns"], &["states"], &["listen"]];

pub(super) fn tell() -> Result<String> {
    let tcptide = Tcptide::find()?;
    let takes = |args: Vec<&str>| -> Result<()> {
        let ran = tcptide.run(&args)?.success()?;
        let refused: Vec<_> = ran.stderr.iter().filter(|line| line.contains("refused")).collect();
        ensure!(refused.is_empty(), "tcptide {}: {refused:?}", args.join(" "));
        Ok(())
    };
    for command in STREAMS {
        takes([command, STREAM, FILTERS].concat())?;
    }
    for command in LOOKS {
        takes([command, FILTERS].concat())?;
    }
    takes([&["doctor", "--reconcile"], STREAM].concat())?;
    let agent = tcptide.agent(["--read-delay", "--reconcile"])?;
    let scrape = agent.scrape()?;
    let refused = scrape.select("tcptide_program_status", &[("status", "refused")]).count();
    ensure!(refused == 0, "an agent has {refused} programs refused");
    Ok(String::new())
}
