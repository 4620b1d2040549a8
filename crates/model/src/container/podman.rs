//! Podman, rootful and rootless: `libpod-<id>.scope` or `libpod-<id>`, `libpod-payload-<id>` with
//! `--cgroups=split` (Quadlet units), `conmon` in `libpod-conmon-<id>.scope`, pods in
//! `[<slice>-]libpod_pod_<id>.slice`. Rootless with the cgroupfs driver Podman names no cgroup, and the OCI runtime makes
//! `<id>` beside the caller's own, among the units of the user's systemd.

use std::path::Path;

use super::path::{Step, is_id, prefixed_id, short_id};
use super::{Identity, Runtime, Verdict};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    if is_id(step.name) && is_in_a_users_unit(step) {
        return Some(Verdict::by_id(Runtime::Podman, step.name, None));
    }
    match prefixed_id(step.name)? {
        ("libpod" | "libpod-payload", id) => {
            Some(Verdict::by_id(Runtime::Podman, id, pod_id(step.holder()).map(str::to_owned)))
        }
        ("libpod-conmon", _) => Some(Verdict::Monitor),
        _ => None,
    }
}

/// Whether this cgroup lies directly in a slice or service that a user's systemd manages.
fn is_in_a_users_unit(step: &Step) -> bool {
    let parent = Path::new(step.parent()).extension();
    let is_unit = parent.is_some_and(|kind| kind == "slice" || kind == "service");
    is_unit && step.above.split('/').any(|name| name.starts_with("user@") && name.ends_with(".service"))
}

/// The pod's own cgroup.
pub(super) fn pod(step: &Step) -> Option<Identity> {
    let id = pod_id(step.name)?;
    Some(Identity {
        runtime: Runtime::Podman,
        id: None,
        name: format!("pod:{}", short_id(id)),
        pod_uid: Some(id.to_owned()),
        container_path: step.path.to_owned(),
    })
}

fn pod_id(name: &str) -> Option<&str> {
    let (_, id) = name.strip_suffix(".slice").unwrap_or(name).split_once("libpod_pod_")?;
    is_id(id).then_some(id)
}
