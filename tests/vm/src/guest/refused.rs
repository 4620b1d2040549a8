//! Where tcptide cannot work it says so: each command that looks at sockets in one sentence, with status 1.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use functional::process::{output, shown};
use functional::tcptide::{Output, Tcptide};

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// The commands that look at sockets.
const WATCHING: [&[&str]; 6] = [
    &["trace", "--duration", "1s"],
    &["connlat", "--duration", "1s"],
    &["rtt", "--duration", "1s"],
    &["conns"],
    &["states"],
    &["agent", "--web.listen-address", "127.0.0.1:0"],
];

pub(super) fn too_old() -> Result<String> {
    let release = output(Command::new("uname").arg("-r"))?;
    all_say(&format!("kernel {release} is too old: tcptide needs Linux 5.15 or newer"), |command| command)
}

/// From here on; nothing lifts it.
pub(super) fn lockdown() -> Result<String> {
    fs::write(LOCKDOWN, "confidentiality").context(LOCKDOWN)?;
    all_say(
        "kernel lockdown is in confidentiality mode, which forbids BPF programs to read kernel memory",
        |command| command,
    )
}

/// The kernel's description of its types is hidden from the command alone.
pub(super) fn no_btf() -> Result<String> {
    let hide = "mount -t tmpfs tmpfs /sys/kernel/btf && exec \"$0\" \"$@\"";
    all_say("this kernel has no BTF (/sys/kernel/btf/vmlinux cannot be read: ", |command| {
        let mut hidden = Command::new("unshare");
        hidden.args(["--mount", "sh", "-c", hide]).arg(command.get_program()).args(command.get_args());
        hidden
    })
}

fn all_say(sentence: &str, place: impl Fn(Command) -> Command) -> Result<String> {
    let tcptide = Tcptide::find()?;
    let run = |args: &[&str]| -> Result<(String, Output)> {
        let mut command = place(tcptide.command(args));
        Ok((shown(&command), Tcptide::run_command(&mut command)?))
    };
    let mut remark = String::new();
    for args in WATCHING {
        let (line, ran) = run(args)?;
        ensure!(ran.status.code() == Some(1) && ran.stdout.is_empty(), "`{line}`: {ran:?}");
        let one = ran.stderr.len() == 1 && ran.stderr[0].starts_with(&format!("tcptide: {sentence}"));
        ensure!(one, "`{line}` said {:?}", ran.stderr);
        remark.clone_from(&ran.stderr[0]);
    }
    let (line, ran) = run(&["doctor", "-o", "json"])?;
    let findings = ran.json()?["findings"].clone();
    let says = |finding: &serde_json::Value| {
        finding["ok"] == false && finding["text"].as_str().is_some_and(|text| text.starts_with(sentence))
    };
    let said = findings.as_array().context("doctor told of no findings")?.iter().any(says);
    ensure!(ran.status.code() == Some(1) && said, "`{line}`: {}: {findings}", ran.status);
    // Cgroups are there to be read in any case.
    let (line, ran) = run(&["containers", "--all"])?;
    ensure!(ran.status.success(), "`{line}`: {ran:?}");
    Ok(remark)
}
