//! Capabilities that are not needed any more are given up. Each thread has its own, and those that it starts have the same: who
//! gives up before it starts others has given up for them too. docs/security.md has the reasons.

use anyhow::Context as _;
use probe::Capability;
use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

use crate::args::RuntimeArgs;

/// What the thread that owns the programs keeps once they are attached, as far as it has got it.
pub(crate) const OF_PROGRAMS: &[(CapabilitySet, Capability)] = &[
    (
        CapabilitySet::BPF,
        Capability {
            name: "CAP_BPF",
            purpose: "read the maps, have the walk run, and attach lifecycle_nested when it is needed",
        },
    ),
    (
        CapabilitySet::SYS_ADMIN,
        Capability {
            name: "CAP_SYS_ADMIN",
            purpose: "enter network namespaces that are made later, and have run times measured",
        },
    ),
    (
        CapabilitySet::SYS_PTRACE,
        Capability {
            name: "CAP_SYS_PTRACE",
            purpose: "find them, and containers' /etc/hosts, through other users' processes",
        },
    ),
];

/// What the threads keep that talk to container runtimes, if sockets were named: those may be another user's.
const OF_NAMED_SOCKETS: (CapabilitySet, Capability) = (
    CapabilitySet::DAC_OVERRIDE,
    Capability {
        name: "CAP_DAC_OVERRIDE",
        purpose: "reach runtimes' sockets that were named (--runtime-socket, DOCKER_HOST and the like), which may be another user's",
    },
);

/// What they keep with a kubeconfig, for the same reason: it and what it names is read again later.
const OF_KUBECONFIG: (CapabilitySet, Capability) = (
    CapabilitySet::DAC_READ_SEARCH,
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        purpose: "read what a kubeconfig names, which may be another user's",
    },
);

/// What asking for names takes.
pub(crate) fn of_names(runtimes: &RuntimeArgs) -> impl Iterator<Item = &'static (CapabilitySet, Capability)> {
    let sockets = runtimes.are_named().then_some(&OF_NAMED_SOCKETS);
    sockets.into_iter().chain(runtimes.kubeconfig.is_some().then_some(&OF_KUBECONFIG))
}

/// For reading what other users' processes show in `/proc`.
pub(crate) const OF_FILES: CapabilitySet = CapabilitySet::SYS_PTRACE;

/// All of these.
pub(crate) fn set<'a>(of: impl IntoIterator<Item = &'a (CapabilitySet, Capability)>) -> CapabilitySet {
    of.into_iter().fold(CapabilitySet::empty(), |all, (one, _)| all | *one)
}

/// Gives up every capability of the calling thread but these, in all five sets, and for good: programs that it would execute
/// get none either.
pub(crate) fn keep(kept: CapabilitySet) -> anyhow::Result<()> {
    let failed = "cannot give up capabilities";
    set_no_new_privs(true).context(failed)?;
    clear_ambient_capability_set().context(failed)?;
    let known = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for one in known.take_while(|one| capability_is_in_bounding_set(*one).is_ok()) {
        match remove_capability_from_bounding_set(one) {
            // Without CAP_SETPCAP it stays as it is: no_new_privs is enough.
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err(error).context(failed),
        }
    }
    let held = capabilities(None).context(failed)?;
    let left = held.permitted & kept;
    let sets = CapabilitySets {
        effective: held.effective & left,
        permitted: left,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_gone_for_the_thread_and_those_it_starts_only() {
        let sets = || {
            let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let lines = text.lines().filter(|line| line.starts_with("Cap") || line.starts_with("NoNewPrivs"));
            lines.map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect::<Vec<_>>()
        };
        let before = sets();
        let held = capabilities(None).unwrap().permitted;
        let child = std::thread::spawn(move || {
            keep(CapabilitySet::SYS_PTRACE).unwrap();
            std::thread::spawn(sets).join().unwrap()
        });
        let after = child.join().unwrap();
        let left = format!("{:016x}", (held & CapabilitySet::SYS_PTRACE).bits());
        let none = format!("{:016x}", 0);
        // CapInh, CapPrm, CapEff, CapBnd, CapAmb, NoNewPrivs.
        assert_eq!([&after[0], &after[1], &after[4], &after[5]], [&none, &left, &none, "1"]);
        assert!(after[2] == left || after[2] == none, "{after:?}");
        assert!(!held.contains(CapabilitySet::SETPCAP) || after[3] == none, "{after:?}");
        assert_eq!(sets(), before);
    }
}
