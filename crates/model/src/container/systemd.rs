//! systemd units that are no container.
//!
//! The unit nearest to the root owns everything below it, except that `user@<uid>.service` is itself a
//! service manager: below it the user's own units are told apart. Slices only group, so a cgroup in a
//! slice without a unit stays a plain cgroup.

use super::path::{Step, steps};
use super::{Identity, Runtime};

/// Kinds of unit that run processes in a cgroup of their own.
const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The unit that owns `path`, named as `systemctl` takes it (escapes kept).
pub(super) fn unit(path: &str) -> Option<Identity> {
    let mut manager = None;
    for step in steps(path).filter(is_unit) {
        if !step.name.starts_with("user@") {
            return Some(identity(&step));
        }
        manager = manager.or(Some(step));
    }
    manager.as_ref().map(identity)
}

fn is_unit(step: &Step) -> bool {
    KINDS.iter().any(|kind| step.name.len() > kind.len() && step.name.ends_with(kind))
}

fn identity(step: &Step) -> Identity {
    // systemd puts `_` before names that could clash with a file of the cgroup file system.
    let name = step.name.strip_prefix('_').unwrap_or(step.name);
    Identity {
        runtime: Runtime::Systemd,
        id: None,
        name: name.to_owned(),
        pod_uid: None,
        container_path: step.path.to_owned(),
    }
}
