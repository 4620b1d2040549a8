//! Containers, and how they were identified.

use std::sync::Arc;

use model::container::{Container, Labels};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{identity::Directory, owners::is_container};

/// A container with all that is known of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Identified {
    #[serde(flatten)]
    pub(crate) container: Arc<Container>,
    /// Annotations the runtime keeps for it, and for its pod under other keys, as CRI tells them.
    #[serde(default, skip_serializing_if = "no_labels")]
    pub(crate) annotations: Labels,
}

fn no_labels(labels: &Labels) -> bool {
    labels.is_empty()
}

/// Those of this host; with `all`, other cgroups, too.
pub(crate) fn identified(directory: &Directory, all: bool) -> Vec<Identified> {
    let mut found: Vec<Arc<Container>> = directory.all();
    found.retain(|container| all || is_container(container));
    found.sort_by(|a, b| (a.runtime, &a.name, &a.cgroup_path).cmp(&(b.runtime, &b.name, &b.cgroup_path)));
    let of =
        |container: Arc<Container>| Identified { annotations: Arc::clone(&container.annotations), container };
    found.into_iter().map(of).collect()
}

/// What an agent tells of containers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Containers {
    pub(crate) containers: Vec<Identified>,
}
