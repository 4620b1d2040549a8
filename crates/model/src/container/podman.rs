//! Podman, rootful and rootless: `libpod-<id>.scope` or `libpod-<id>`, `libpod-payload-<id>` with
//! `--cgroups=split` (Quadlet units), `conmon` in `libpod-conmon-<id>.scope`, pods in
//! `[<slice>-]libpod_pod_<id>.slice`.

use super::path::{Step, is_id, prefixed_id, short_id};
use super::{Identity, Runtime, Verdict};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    match prefixed_id(step.name)? {
        ("libpod" | "libpod-payload", id) => {
            Some(Verdict::by_id(Runtime::Podman, id, pod_id(step.holder()).map(str::to_owned)))
        }
        ("libpod-conmon", _) => Some(Verdict::Monitor),
        _ => None,
    }
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
