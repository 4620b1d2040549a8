//! LXC, and LXD or Incus on top of it: `lxc.payload.<name>`, `lxc.payload/<name>`, `lxc/<name>`.
//!
//! LXD and Incus call an instance outside their default project `<project>_<name>`. LXC names may
//! hold `_` too, so the name is shown as it is. `lxc.monitor…` is the host's `lxc-start`.

use super::path::Step;
use super::{Runtime, Verdict};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    if step.parent() == "lxc.monitor" || step.name.starts_with("lxc.monitor.") {
        return Some(Verdict::Monitor);
    }
    let name = match step.parent() {
        "lxc" | "lxc.payload" => step.name,
        _ => step.name.strip_prefix("lxc.payload.").filter(|name| !name.is_empty())?,
    };
    Some(Verdict::by_name(Runtime::Lxc, name.to_owned()))
}
