//! Docker Engine: `docker-<id>.scope` in any slice, `/docker/<id>`, and build steps.
//!
//! With `--cgroup-parent` and the cgroupfs driver the path is `/<any>/<id>`. No other runtime leaves
//! a bare id below a folder of the user's choice, so this family, asked last, takes those.

use super::path::{Step, is_id, prefixed_id, short_id};
use super::{Runtime, Verdict, kubernetes};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    if let Some(id) = build_id(step) {
        return Some(Verdict::Container {
            runtime: Runtime::Docker,
            id: Some(id.to_owned()),
            name: format!("build:{}", short_id(id)),
            pod_uid: None,
        });
    }
    let id = match prefixed_id(step.name) {
        Some(("docker", id)) => id,
        _ => is_id(step.name).then_some(step.name)?,
    };
    Some(Verdict::by_id(Runtime::Docker, id, kubernetes::pod_uid(step.above, step.holder())))
}

/// A build step of the embedded `BuildKit`: `/docker/buildkit/<id>` or `docker-<id>.scope`, where the
/// id is 25 digits in base 36.
fn build_id<'a>(step: &Step<'a>) -> Option<&'a str> {
    let id = match step.parent() {
        "buildkit" => step.name,
        _ => step.name.strip_prefix("docker-")?.strip_suffix(".scope")?,
    };
    let base36 = id.len() == 25 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z'));
    base36.then_some(id)
}
