//! `tcptide doctor --reconcile`: one comparison of what tcptide counts with what the kernel counts, for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    thread,
};

use model::{container::Container, record};
use probe::Options;
use serde::Serialize;

use super::print;
use crate::{
    args::{DoctorArgs, FilterArgs},
    namespaces::{ALL, Readings},
    output::{
        say,
        style::Role,
        table::{Cell, Column},
    },
    reconcile::{self, Comparison, Fate, Namespace, PATIENCE, Reason, Reconciler},
    session::Session,
};

const COLUMNS: &[Column] = &[
    Column::left("NETNS").rank(3),
    Column::left("WHERE").shrinks_to(12).rank(2),
    Column::left("CONTAINERS").shrinks_to(10).rank(4),
    Column::left("COUNTER").shrinks_to(12),
    Column::right("KERNEL"),
    Column::right("TCPTIDE"),
    Column::right("DIFFERENCE"),
    Column::left("WHY").shrinks_to(20),
    Column::left("PATH").wide_only(),
];

fn sentence(fate: Fate) -> &'static str {
    match fate {
        Fate::Compared => "",
        Fate::Appeared => "appeared meanwhile: what its counters were is not known",
        Fate::Gone => "gone: its counters went with it",
        Fate::Replaced => "gone, and another one has its number",
        Fate::Unlisted => "came and went, or neither a process nor a mount leads to it",
        Fate::Unreadable => "its counters could not be read",
        Fate::LeftOut => "left out: there are too many",
    }
}

/// Containers seen, by namespace.
type Seen = BTreeMap<u64, BTreeSet<String>>;

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let options = reconcile::options(Options { buffer: args.buffer << 20, ..Options::default() });
    let mut session = Session::start(&FilterArgs::default(), &args.output, options)?;
    let mut reconciler = Reconciler::new()?;
    let mut seen = Seen::new();
    turn(&mut reconciler, &mut session, &mut seen)?;
    session.announce();
    let counting = std::cell::RefCell::new((&mut reconciler, &mut seen));
    session.stream(
        Some(args.duration),
        |one| {
            let (reconciler, seen) = &mut *counting.borrow_mut();
            reconciler.event(one.record);
            note(seen, one.record, one.container);
            Ok(())
        },
        |_| {
            counting.borrow_mut().0.settle();
            Ok(())
        },
    )?;
    turn(&mut reconciler, &mut session, &mut seen)?;
    thread::sleep(PATIENCE);
    session.fetch(|one| {
        reconciler.event(one.record);
        note(&mut seen, one.record, one.container);
        Ok(())
    })?;
    let mut all = reconciler.compare(&session.monitor)?;
    for namespace in &mut all {
        namespace.containers = seen.remove(&namespace.netns).unwrap_or_default();
    }
    show(args, &all)?;
    session.report_losses();
    Ok(())
}

fn turn(reconciler: &mut Reconciler, session: &mut Session, seen: &mut Seen) -> anyhow::Result<()> {
    let Session { monitor, directory, .. } = session;
    let read = || {
        let readings = Readings::take(ALL)?;
        for (netns, error) in &readings.failed {
            say!("cannot read the counters of network namespace {netns}: {error}");
        }
        Ok(readings)
    };
    reconciler.turn(monitor, read, |row| note(seen, row, &directory.resolve(row.cgroup_id)))
}

fn note(seen: &mut Seen, record: &record::Connection, container: &Arc<Container>) {
    let names = seen.entry(record.netns.into()).or_default();
    if !names.contains(&container.name) {
        names.insert(container.name.clone());
    }
}

fn show(args: &DoctorArgs, all: &[Namespace]) -> anyhow::Result<()> {
    let format = args.output.output;
    if format.encoding().is_some() {
        return print(format, all, COLUMNS, |_| Vec::new());
    }
    let rows: Vec<_> = all.iter().flat_map(|namespace| rows(namespace, format.is_wide())).collect();
    print::<Row<'_>>(format, &rows, COLUMNS, cells)?;
    say!("{}", summary(all));
    Ok(())
}

fn summary(all: &[Namespace]) -> String {
    let lines = || all.iter().flat_map(|namespace| &namespace.counters);
    let count = |wanted: &dyn Fn(&Comparison) -> bool| lines().filter(|line| wanted(line)).count();
    let quiet = all.iter().filter(|namespace| rows(namespace, false).is_empty()).count();
    format!(
        "{} counters agree, {} differ for a reason, {} without; in {quiet} network namespaces nothing was counted",
        count(&|line| line.difference == 0 && !is_quiet(line)),
        count(&|line| line.difference != 0 && line.explained),
        count(&|line| !line.explained),
    )
}

/// A row of the table: a counter, or the fate of a namespace without any.
#[derive(Serialize)]
struct Row<'a> {
    namespace: &'a Namespace,
    line: Option<&'a Comparison>,
}

/// What has not moved is left out, but for a wide table.
fn rows(namespace: &Namespace, all: bool) -> Vec<Row<'_>> {
    if namespace.fate != Fate::Compared {
        return vec![Row { namespace, line: None }];
    }
    let lines = namespace.counters.iter().filter(|line| all || !is_quiet(line));
    lines.map(|line| Row { namespace, line: Some(line) }).collect()
}

fn is_quiet(line: &Comparison) -> bool {
    line.kernel == 0 && line.tcptide == 0
}

fn cells(row: &Row<'_>) -> Vec<Cell> {
    let Row { namespace, line } = row;
    let containers: Vec<_> = namespace.containers.iter().map(String::as_str).collect();
    let number = |n: fn(&Comparison) -> i64| Cell::from(line.map(|line| n(line).to_string()));
    let (role, why) = match line {
        None => (Role::Warn, sentence(namespace.fate).to_owned()),
        Some(line) if line.difference == 0 => (Role::Good, String::new()),
        Some(line) if line.explained => (Role::Warn, reasons(&line.because)),
        Some(line) if line.because.is_empty() => (Role::Bad, "no reason is known".to_owned()),
        Some(line) => (Role::Bad, format!("not enough: {}", reasons(&line.because))),
    };
    vec![
        namespace.netns.to_string().into(),
        namespace.path.as_deref().map(place).into(),
        containers.join(",").into(),
        line.map(|line| line.counter.clone()).into(),
        number(|line| line.kernel),
        number(|line| line.tcptide),
        number(|line| line.difference).role(role),
        Cell::from(why).role(role),
        namespace.path.as_deref().map(|path| path.display().to_string()).into(),
    ]
}

fn reasons(all: &[Reason]) -> String {
    let one = |Reason { reason, up_to }: &Reason| match up_to {
        Some(up_to) => format!("{reason} (up to {up_to})"),
        None => (*reason).to_owned(),
    };
    all.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// The name that somebody gave a namespace, or a process that lives in it.
fn place(path: &Path) -> String {
    let process = path.strip_prefix("/proc").ok().and_then(|rest| rest.to_str()?.strip_suffix("/ns/net"));
    match process {
        Some(pid) => {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("pid {pid} {}", comm.trim_end()).trim_end().to_owned()
        }
        None => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
    }
}
