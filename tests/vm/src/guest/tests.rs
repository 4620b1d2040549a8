//! A test of the functional tests, in a process and a cgroup of its own.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use functional::cgroup::Cgroup;
use functional::process::Reading;

/// How long a test may take: several times what the longest takes in a guest.
const LIMIT: Duration = Duration::from_secs(120);
/// How many of a failed test's lines are kept, from its panic on, and how long each may be.
const LINES: usize = 25;
const WIDTH: usize = 1000;

/// Told once more if it fails: an emulated CPU may stand still for longer than a story expects. What is broken is broken
/// twice.
pub(super) fn tell(file: &str, test: &str) -> Result<String> {
    match run(file, test) {
        Ok(()) => Ok(String::new()),
        Err(first) => run(file, test).map(|()| format!("at the second try; at the first: {first:#}")),
    }
}

fn run(file: &str, test: &str) -> Result<()> {
    // Whatever the test leaves running ends with it.
    let cgroup = Cgroup::unique("story")?;
    let mut command = Command::new(format!("/bin/tests/{file}"));
    command.args(["--exact", test, "--include-ignored", "--test-threads=1"]);
    let ended = Reading::start(&mut cgroup.wrap(&command))?.wait(LIMIT)?;
    if ended.status.success() && ended.stdout.iter().any(|line| line.contains("test result: ok. 1 passed")) {
        return Ok(());
    }
    let said: Vec<_> = ended.stdout.iter().chain(&ended.stderr).filter(|line| !line.is_empty()).collect();
    let panic = said.iter().position(|line| line.contains("panicked at")).unwrap_or(0);
    let first = said[panic..].iter().take(LINES);
    let first: Vec<String> = first.map(|line| line.chars().take(WIDTH).collect()).collect();
    bail!("{}\n{}", ended.status, first.join("\n"))
}
