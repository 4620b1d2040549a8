//! `tcptide doctor`: what this kernel and these privileges allow, program by program.

use std::{io::Write as _, time::Duration};

use anyhow::bail;
use model::mountinfo::CgroupLayout;
use probe::{Kernel, Monitor, Options, Owner, check_privileges};
use serde::Serialize;

use super::{kubernetes, reconcile, runtime};
use crate::{
    answer::programs::Program,
    args::{DoctorArgs, RuntimeArgs},
    output::{
        style::Role,
        table::{Cell, Column, Table},
        writer::{Output, Screen},
    },
    privileges::{OF_PROGRAMS, of_names},
    session::{self, directory, owner},
};

const COLUMNS: &[Column] = &[
    Column::left("PROGRAM"),
    Column::left("HOOK").shrinks_to(10).rank(2),
    Column::left("STATUS").shrinks_to(20),
    Column::left("NEED").rank(3),
    Column::right("INSTRUCTIONS").rank(4),
    Column::left("FEEDS").shrinks_to(16).rank(1),
];

#[derive(Serialize)]
struct Finding {
    /// What was looked at.
    subject: &'static str,
    ok: bool,
    /// What was found, and what to do.
    text: String,
}

#[derive(Serialize)]
struct Report {
    findings: Vec<Finding>,
    programs: Vec<Program>,
}

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    if args.reconcile {
        return reconcile::run(args);
    }
    let mut report = Report { findings: Vec::new(), programs: Vec::new() };
    let mut found = |subject, result: Result<String, String>| {
        let ok = result.is_ok();
        report.findings.push(Finding { subject, ok, text: result.unwrap_or_else(|text| text) });
        ok
    };
    let version = env!("CARGO_PKG_VERSION");
    found("tcptide", Ok(version.to_owned()));
    let kernel = Kernel::look().map(|kernel| format!("Linux {}, with BTF", kernel.release));
    let mut able = found("kernel", kernel.map_err(|e| e.to_string()));
    able &= check_privileges().is_ok();
    found(
        "privileges",
        check_privileges().map_err(|e| e.to_string()).and_then(|missing| match session::without(&missing) {
            None => Ok("all that are needed".to_owned()),
            Some(text) => Err(text),
        }),
    );
    found("agent", Ok(kept(&args.output.runtimes)));
    let directory = directory(&args.output.runtimes)?;
    found("cgroups", cgroups(directory.layout()));
    directory.settle(Duration::from_secs(2));
    for status in directory.statuses() {
        // A runtime that is not there is nothing to mend.
        found("runtime", Ok(runtime(&status)));
    }
    let status = directory.kubernetes();
    let text = kubernetes(status.as_ref());
    found("kubernetes", if status.is_none_or(|status| status.is_whole()) { Ok(text) } else { Err(text) });
    if able {
        let options = Options {
            totals: true,
            events: u32::MAX,
            samples: true,
            rows: 1,
            filter_cgroups: true,
            owner: owner(directory.layout()),
            dns: directory.layout().unified().map(|mount| mount.point.clone()),
            ..Options::default()
        };
        let begun = std::time::Instant::now();
        match Monitor::start(&options) {
            Ok(monitor) => {
                let took = begun.elapsed();
                found("monitor", Ok(format!("attached in {} ms", took.as_millis())));
                report.programs = monitor.programs().into_iter().map(|one| Program::of(one, false)).collect();
            }
            Err(error) => able = found("monitor", Err(error.to_string())),
        }
    }
    print(args, &report)?;
    if !able {
        bail!("this host cannot be monitored: see above");
    }
    Ok(())
}

/// What `tcptide agent` keeps.
fn kept(runtimes: &RuntimeArgs) -> String {
    let all = OF_PROGRAMS.iter().chain(of_names(runtimes));
    let all: Vec<_> = all.map(|(_, capability)| capability.to_string()).collect();
    format!("gives up all capabilities once it is attached, but {}", all.join(", "))
}

fn cgroups(layout: &CgroupLayout) -> Result<String, String> {
    match (layout, owner(layout)) {
        (CgroupLayout::Unified { mount }, _) => Ok(format!("cgroup2 at {}", mount.point.display())),
        (CgroupLayout::Hybrid { mount, .. }, _) => {
            Ok(format!("cgroup2 at {}, beside version 1", mount.point.display()))
        }
        (CgroupLayout::V1Only { .. }, Owner::Task { controller }) => Err(format!(
            "only version 1: a socket does not know its cgroup, so its owner is the {controller} cgroup of the task that \
             connects; an accepted connection has no owner before its task is seen to use or close it, and one that was \
             there before has that of a process that holds it"
        )),
        (CgroupLayout::V1Only { .. }, Owner::Socket) => {
            Err("only version 1, without the memory and pids controllers: owners cannot be told".to_owned())
        }
        (CgroupLayout::None, _) => {
            Err("no hierarchy is mounted: containers are shown by cgroup id only".to_owned())
        }
    }
}

fn print(args: &DoctorArgs, report: &Report) -> anyhow::Result<()> {
    let mut out = Output::stdout();
    let format = args.output.output;
    if let Some(encoding) = format.encoding() {
        encoding.item(&mut out, report)?;
        out.flush()?;
        return Ok(());
    }
    let screen = Screen::detect();
    for Finding { subject, ok, text } in &report.findings {
        let mark = screen
            .palette
            .paint(Some(if *ok { Role::Good } else { Role::Bad }), if *ok { "ok" } else { "!!" })
            .into_owned();
        writeln!(out, "{mark}  {subject:<11} {text}")?;
    }
    if !report.programs.is_empty() {
        let mut table = Table::new(COLUMNS, format.is_wide());
        for program in &report.programs {
            let status = match &program.reason {
                Some(reason) => Cell::new(&format!("{}: {reason}", program.status)).role(Role::Bad),
                None => Cell::new(program.status).role(Role::Good),
            };
            table.push(vec![
                program.name.into(),
                program.hook.into(),
                status,
                if program.required { "required" } else { "optional" }.into(),
                program.instructions.map(|n| n.to_string()).into(),
                program.feeds.into(),
            ]);
        }
        write!(out, "\n{}", table.render(&screen))?;
    }
    out.flush()?;
    Ok(())
}
