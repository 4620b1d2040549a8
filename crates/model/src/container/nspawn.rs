//! Machines of `systemd-machined`: `systemd-nspawn@<name>.service` and `machine-<name>.scope`.
//!
//! On cgroup2 `systemd-nspawn` splits its unit into `payload`, the container, and `supervisor`, itself.
//! With `--keep-unit` the two lie in the unit it was started from, or in the root.

use super::path::{Step, unescape_unit};
use super::{Runtime, Verdict};

pub(super) fn verdict(step: &Step) -> Option<Verdict> {
    match step.name {
        "payload" => return payload(step.parent()),
        "supervisor" => return machine(step.parent()).map(|_| Verdict::Monitor),
        _ => {}
    }
    if let Some(name) = libvirt_lxc(step.name) {
        return Some(Verdict::by_name(Runtime::Lxc, name));
    }
    let name = machine(step.name)?;
    match step.below {
        // The container, if this is the way to it, begins one step further down.
        Some("supervisor" | "payload") => None,
        _ => Some(Verdict::by_name(Runtime::Nspawn, name)),
    }
}

/// The container in `payload`, named by the unit around it.
fn payload(parent: &str) -> Option<Verdict> {
    if let Some(name) = machine(parent) {
        return Some(Verdict::by_name(Runtime::Nspawn, name));
    }
    let name = match parent {
        "" => "payload",
        unit => unit.strip_suffix(".service").or_else(|| unit.strip_suffix(".scope"))?,
    };
    let name = unescape_unit(name);
    let pod_uid = None;
    (!name.is_empty()).then_some(Verdict::Container { runtime: Runtime::Nspawn, id: None, name, pod_uid })
}

/// The name of the nspawn machine that a unit was made for.
fn machine(unit: &str) -> Option<String> {
    let template = unit.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service"));
    let name = template.map(unescape_unit).or_else(|| registered(unit))?;
    (!name.is_empty()).then_some(name)
}

/// The name in `machine-<name>.scope`, unless libvirt registered it, as `<driver>-<number>-<name>`: a
/// virtual machine (`qemu`) is no container, and one of its LXC driver is not nspawn's.
fn registered(unit: &str) -> Option<String> {
    let name = scope(unit)?;
    let libvirt = name.starts_with("qemu-") || libvirt_lxc(unit).is_some();
    (!libvirt).then_some(name)
}

/// The name of a container that libvirt's LXC driver made.
fn libvirt_lxc(unit: &str) -> Option<String> {
    let machine = scope(unit)?;
    let (number, name) = machine.strip_prefix("lxc-")?.split_once('-')?;
    let numbered = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (numbered && !name.is_empty()).then(|| name.to_owned())
}

fn scope(unit: &str) -> Option<String> {
    Some(unescape_unit(unit.strip_prefix("machine-")?.strip_suffix(".scope")?))
}
