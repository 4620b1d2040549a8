//! Amazon ECS, where Docker runs the containers below a folder or slice of the task.
//!
//! EC2: `/ecs/<task>/<id>`, `/ecs/<cluster>/<task>/<id>`, `ecstasks-<task>.slice/docker-<id>.scope`.
//! Fargate: `/ecs/<task>/<task>-<number>`.

use super::path::{Step, is_hex, is_id, is_uuid, prefixed_id, short_id};
use super::{Runtime, Verdict};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    let task = task(step)?;
    let pod_uid = Some(task.to_owned());
    if let Some(number) = fargate_number(step.name, task) {
        return Some(Verdict::Container {
            runtime: Runtime::Ecs,
            id: Some(step.name.to_owned()),
            // The first 12 digits are the task's, the same for all its containers.
            name: format!("{}-{number}", short_id(task)),
            pod_uid,
        });
    }
    let id = match prefixed_id(step.name) {
        Some(("docker", id)) => id,
        _ => is_id(step.name).then_some(step.name)?,
    };
    Some(Verdict::by_id(Runtime::Ecs, id, pod_uid))
}

/// The task this cgroup lies directly below.
fn task<'a>(step: &Step<'a>) -> Option<&'a str> {
    let slice = step.holder().strip_prefix("ecstasks-").and_then(|rest| rest.strip_suffix(".slice"));
    let folder = || {
        let mut above = step.above.rsplit('/');
        let task = above.next()?;
        above.take(2).any(|name| name == "ecs").then_some(task)
    };
    slice.or_else(folder).filter(|task| is_hex(task, 32) || is_uuid(task))
}

fn fargate_number<'a>(name: &'a str, task: &str) -> Option<&'a str> {
    let number = name.strip_prefix(task)?.strip_prefix('-')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(number)
}
