//! Machines of `systemd-machined`: `systemd-nspawn@<name>.service` and `machine-<name>.scope`.
//!
//! On cgroup2 `systemd-nspawn` splits its unit into `payload`, the container, and `supervisor`, itself.
//! With `--keep-unit` the two lie in the unit it was started from, or in the root.

use super::path::{Step, unescape_unit};
use super::{Runtime, Verdict};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    if step.name == "payload" {
        return payload(step.parent());
    }
    let machine = machine(step.name)?;
    match step.below {
        // The container, if this is the way to it, begins one step further down.
        Some("payload") => None,
        _ => Some(machine),
    }
}

/// The container in `payload`, named by the unit around it.
fn payload(parent: &str) -> Option<Verdict> {
    if let Some(machine) = machine(parent) {
        return Some(machine);
    }
    let name = match parent {
        "" => "payload",
        unit => unit.strip_suffix(".service").or_else(|| unit.strip_suffix(".scope"))?,
    };
    Some(Verdict::Container { runtime: Runtime::Nspawn, id: None, name: unescape_unit(name), pod_uid: None })
}

/// The machine that a unit was made for. Libvirt registers `qemu-<n>-<name>`, a virtual machine and no
/// container, and `lxc-<n>-<name>`.
fn machine(unit: &str) -> Option<Verdict> {
    let template = || unit.strip_prefix("systemd-nspawn@")?.strip_suffix(".service");
    let scope = || unit.strip_prefix("machine-")?.strip_suffix(".scope");
    let name = unescape_unit(template().or_else(scope)?);
    if name.is_empty() || name.starts_with("qemu-") {
        return None;
    }
    match name.strip_prefix("lxc-").and_then(|rest| rest.split_once('-')) {
        Some((_, name)) if !name.is_empty() => Some(Verdict::by_name(Runtime::Lxc, name.to_owned())),
        _ => Some(Verdict::by_name(Runtime::Nspawn, name)),
    }
}
