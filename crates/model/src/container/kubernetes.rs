//! Kubernetes pods: the cgroup of the pod, and containers that only the pod above gives away.
//!
//! cgroupfs driver: `/kubepods[/<qos>]/pod<uid>/<id>`; systemd driver:
//! `kubepods[-<qos>]-pod<uid with _ for ->.slice/<runtime>-<id>.scope`. Guaranteed pods have no
//! `QoS` part; `kind` puts `kubelet` before it; the UID of a static pod is a hash without dashes.

use super::path::{Step, is_hex, is_id, is_uuid};
use super::{Identity, Runtime, Verdict};

/// A bare id directly below a pod: containerd or cri-dockerd with the cgroupfs driver, which the path
/// cannot tell apart.
pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    if !is_id(step.name) {
        return None;
    }
    let uid = pod_uid(step.above, step.parent())?;
    Some(Verdict::by_id(Runtime::Kubernetes, step.name, Some(uid)))
}

/// The pod's own cgroup, which holds processes only with sandboxed runtimes (gVisor, Kata).
pub(super) fn pod(step: &Step) -> Option<Identity> {
    let uid = pod_uid(step.path, step.name)?;
    Some(Identity {
        runtime: Runtime::Kubernetes,
        id: None,
        name: format!("pod:{uid}"),
        pod_uid: Some(uid),
        container_path: step.path.to_owned(),
    })
}

/// The UID of the pod whose cgroup is called `name`, on `path`.
pub(super) fn pod_uid(path: &str, name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => {
            let (qos, uid) = slice.rsplit_once("-pod")?;
            qos.contains("kubepods").then(|| uid.replace('_', "-"))?
        }
        None => name.strip_prefix("pod")?.to_owned(),
    };
    // API servers accept any UID a client invents; below `kubepods` nothing else is called pod….
    let plain = || uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let known = is_uuid(&uid) || is_hex(&uid, 32);
    (known || !uid.is_empty() && plain() && path.contains("kubepods")).then_some(uid)
}
