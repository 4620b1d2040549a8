//! `tcptide containers`: how every cgroup was identified, and from what.

use std::time::Duration;

use clap::CommandFactory as _;
use model::container::Container;

use super::{kubernetes, print, runtime};
use crate::{
    agent::query,
    answer::containers::{Containers, identified},
    args::ContainersArgs,
    client::Remote,
    output::{
        say,
        table::{Cell, Column},
    },
    session::directory,
};

/// Nothing else is waited for here, so runtimes get more time than in other commands.
const PATIENCE: Duration = Duration::from_secs(2);

const COLUMNS: &[Column] = &[
    Column::left("NAME").shrinks_to(10),
    Column::left("RUNTIME"),
    Column::left("ID").shrinks_to(12).rank(1),
    Column::left("IMAGE").shrinks_to(8).rank(2),
    Column::left("POD").shrinks_to(8).rank(3),
    Column::left("NAMESPACE").shrinks_to(8).rank(3),
    Column::left("OWNER").wide_only(),
    Column::right("CGROUP ID").rank(4),
    Column::left("CGROUP").shrinks_to(12).rank(1),
];

pub(crate) fn run(args: &ContainersArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    if let Some(agent) = agent {
        let Containers { containers } = agent.get("containers", &query::Containers::command(), &[], &[])?;
        return print(args.output.output, &containers, COLUMNS, |one| row(&one.container));
    }
    let directory = directory(&args.output.runtimes)?;
    directory.settle(PATIENCE);
    let all = identified(&directory, args.all);
    print(args.output.output, &all, COLUMNS, |one| row(&one.container))?;
    if all.is_empty() {
        say!("no containers on this host (--all shows every cgroup)");
    }
    for status in directory.statuses() {
        say!("{}", runtime(&status));
    }
    say!("kubernetes: {}", kubernetes(directory.kubernetes().as_ref()));
    Ok(())
}

fn row(container: &Container) -> Vec<Cell> {
    vec![
        container.name.clone().into(),
        container.runtime.map(|runtime| runtime.to_string()).into(),
        container.id.as_deref().map(|id| id.chars().take(12).collect::<String>()).into(),
        container.image.clone().into(),
        container.pod.clone().into(),
        container.namespace.clone().into(),
        container.owner.as_ref().map(ToString::to_string).into(),
        container.cgroup_id.to_string().into(),
        container.cgroup_path.clone().into(),
    ]
}
