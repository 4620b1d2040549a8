//! `tcptide containers`: how every cgroup was identified, and from what.

use std::{sync::Arc, time::Duration};

use model::container::{Container, Labels};
use serde::Serialize;

use super::{kubernetes, print, runtime};
use crate::{
    args::ContainersArgs,
    output::{
        say,
        table::{Cell, Column},
    },
    owners::is_container,
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

/// A container with all that is known of it.
#[derive(Serialize)]
struct Identified {
    #[serde(flatten)]
    container: Arc<Container>,
    #[serde(skip_serializing_if = "no_labels")]
    annotations: Labels,
}

fn no_labels(labels: &Labels) -> bool {
    labels.is_empty()
}

pub(crate) fn run(args: &ContainersArgs) -> anyhow::Result<()> {
    let directory = directory(&args.output.runtimes)?;
    directory.settle(PATIENCE);
    let mut all: Vec<Arc<Container>> = directory.all();
    all.retain(|container| args.all || is_container(container));
    all.sort_by(|a, b| (a.runtime, &a.name, &a.cgroup_path).cmp(&(b.runtime, &b.name, &b.cgroup_path)));
    let of =
        |container: Arc<Container>| Identified { annotations: Arc::clone(&container.annotations), container };
    let all: Vec<_> = all.into_iter().map(of).collect();
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
