//! Where bytes of others come in: each way as a function of bytes, for `make fuzz` and for a short try with every test.
// That is how a finding is told.
#![allow(clippy::missing_panics_doc)]

pub use crate::{
    agent::fuzz::{certificate, http, web_config},
    identity::fuzz::{cri, docker},
    identity::kubernetes::fuzz::kubernetes,
    names::fuzz::{dns, dns_stream, hosts},
};

/// Reads what is read of cgroups, mounts and counters. Whether it is a container's path.
pub fn cgroup_path(bytes: &[u8]) -> bool {
    use model::{
        container::{Container, Runtime, identify, inside, sanitize},
        mountinfo::CgroupLayout,
        snmp::Counters,
    };
    let text = String::from_utf8_lossy(bytes);
    let identity = identify(&text);
    inside(&text, &identity);
    let is_container = !matches!(identity.runtime, Runtime::Cgroup | Runtime::Systemd);
    let container = Container::new(1, identity, None);
    let shown = sanitize(&container.name);
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    assert_eq!(sanitize(&shown), shown);
    let layout = CgroupLayout::parse(&text);
    if let Some(mount) = layout.mount() {
        mount.cgroup_path(&text);
        mount.folder(&text);
    }
    Counters::parse(&text);
    is_container
}

/// A function by its name, which is that of the folder with its seeds in `fuzz/corpus`.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All of them. Each says whether it could make something of the bytes.
pub const TARGETS: [Target; 10] = [
    ("certificate", certificate),
    ("cgroup_path", cgroup_path),
    ("cri", cri),
    ("dns", dns),
    ("dns_stream", dns_stream),
    ("docker", docker),
    ("hosts", hosts),
    ("http", http),
    ("kubernetes", kubernetes),
    ("web_config", web_config),
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

    use super::*;

    /// Tries for each seed.
    const TRIES: u32 = 100;

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
    }

    /// What a fuzzer does most: bytes changed, taken out, put in, and all after some place cut off.
    fn change(seed: &[u8], changes: &[(u8, Index, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for (how, place, new) in changes {
            let at = place.index(bytes.len() + 1);
            match how % 4 {
                0 => drop(bytes.splice(at..(at + new.len()).min(bytes.len()), new.iter().copied())),
                1 => drop(bytes.drain(at..(at + new.len()).min(bytes.len()))),
                2 => drop(bytes.splice(at..at, new.iter().copied())),
                _ => bytes.truncate(at),
            }
        }
        bytes
    }

    #[test]
    fn seeds_are_taken_and_what_is_like_them_does_no_harm() {
        for (target, run) in TARGETS {
            let seeds = seeds(target);
            assert!(!seeds.is_empty(), "{target} has no seeds");
            for seed in &seeds {
                assert!(run(seed), "{target} makes nothing of {:?}", String::from_utf8_lossy(seed));
                let changes = prop::collection::vec(
                    (any::<u8>(), any::<Index>(), prop::collection::vec(any::<u8>(), 1..8)),
                    1..5,
                );
                let mut runner = TestRunner::new(ProptestConfig {
                    cases: TRIES,
                    failure_persistence: None,
                    ..ProptestConfig::default()
                });
                let tried = runner.run(&changes, |changes| {
                    run(&change(seed, &changes));
                    Ok(())
                });
                tried.unwrap_or_else(|error| panic!("{target}: {error}"));
            }
        }
    }

    #[test]
    fn seeds_are_of_targets() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        let folders = fs::read_dir(folder).unwrap().map(|folder| folder.unwrap().file_name());
        let folders: BTreeSet<_> = folders.map(|name| name.into_string().unwrap()).collect();
        assert_eq!(folders, TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect());
    }
}
