//! CRI-O: `crio-<id>.scope` or `crio-<id>`, with its monitor in `crio-conmon-<id>.scope`.

use super::path::{Step, prefixed_id};
use super::{Runtime, Verdict, kubernetes};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    match prefixed_id(step.name)? {
        ("crio", id) => {
            Some(Verdict::by_id(Runtime::CriO, id, kubernetes::pod_uid(step.above, step.holder())))
        }
        ("crio-conmon", _) => Some(Verdict::Monitor),
        _ => None,
    }
}
