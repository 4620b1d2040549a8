//! containerd, through CRI (`cri-containerd-<id>.scope`) or nerdctl (`nerdctl-<id>.scope`).
//!
//! Without systemd both use the containerd namespace as folder: `/k8s.io/<id>`, `/default/<id>`.
//! CRI with the cgroupfs driver writes a bare id below the pod: see the Kubernetes family.

use super::path::{Step, is_id, prefixed_id};
use super::{Runtime, Verdict, kubernetes};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    let (runtime, id) = match prefixed_id(step.name) {
        Some(("cri-containerd" | "containerd", id)) => (Runtime::Containerd, id),
        Some(("nerdctl", id)) => (Runtime::Nerdctl, id),
        _ if !is_id(step.name) => return None,
        _ => match step.parent() {
            "k8s.io" => (Runtime::Containerd, step.name),
            "default" => (Runtime::Nerdctl, step.name),
            _ => return None,
        },
    };
    Some(Verdict::by_id(runtime, id, kubernetes::pod_uid(step.above, step.holder())))
}
