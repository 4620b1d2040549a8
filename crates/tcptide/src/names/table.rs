//! The names that containers have looked up, by address.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// The most addresses that are kept of one container, and of all.
const MOST_OF_ONE: usize = 4096;
const MOST: usize = 65_536;
/// The most names that are kept of one address.
const MOST_NAMES: usize = 8;
/// The most names that are told of one address.
const TOLD: usize = 3;
/// A name may be used for so long at least, ns: whoever asked connects, and tries again.
const LEAST_NS: u64 = 30 * 1_000_000_000;

/// Names by container and address.
#[derive(Debug)]
pub(super) struct Table {
    /// By the container's cgroup.
    containers: HashMap<u64, Looked>,
    addresses: usize,
    most_of_one: usize,
    most: usize,
    /// Counts the answers, so that the oldest is known.
    answers: u64,
}

/// What one container has looked up.
#[derive(Debug, Default)]
struct Looked {
    by_address: HashMap<IpAddr, Names>,
    /// Addresses by the answer that named them last.
    by_answer: BTreeMap<u64, IpAddr>,
}

#[derive(Debug, Default)]
struct Names {
    answer: u64,
    /// The one that was told last comes last.
    names: Vec<Told>,
}

#[derive(Debug)]
struct Told {
    name: Arc<str>,
    /// From when until when it may be used: `CLOCK_MONOTONIC`, ns.
    from: u64,
    until: u64,
}

impl Looked {
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.by_answer.pop_first();
        oldest.is_some_and(|(_, address)| self.by_address.remove(&address).is_some())
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::bounded(MOST_OF_ONE, MOST)
    }
}

impl Table {
    fn bounded(most_of_one: usize, most: usize) -> Self {
        Self { containers: HashMap::new(), addresses: 0, most_of_one, most, answers: 0 }
    }

    /// A container was told at this time that the name has the address, for so many seconds.
    pub(super) fn add(&mut self, container: u64, name: &Arc<str>, address: IpAddr, seconds: u32, at_ns: u64) {
        self.answers += 1;
        let looked = self.containers.entry(container).or_default();
        let before = looked.by_address.len();
        let known = looked.by_address.entry(address).or_default();
        looked.by_answer.remove(&known.answer);
        known.answer = self.answers;
        looked.by_answer.insert(self.answers, address);
        let until = at_ns.saturating_add((u64::from(seconds) * 1_000_000_000).max(LEAST_NS));
        let from = match known.names.iter().position(|told| told.name == *name) {
            // It has had it all the while.
            Some(at) => {
                let told = known.names.remove(at);
                if told.until >= at_ns { told.from } else { at_ns }
            }
            None => at_ns,
        };
        if known.names.len() >= MOST_NAMES {
            known.names.remove(0);
        }
        known.names.push(Told { name: name.clone(), from, until });
        self.addresses += looked.by_address.len() - before;
        if looked.by_address.len() > self.most_of_one && looked.drop_oldest() {
            self.addresses -= 1;
        }
        while self.addresses > self.most {
            // Whoever asks most gives way first.
            let most = self.containers.values_mut().max_by_key(|looked| looked.by_address.len());
            if !most.is_some_and(Looked::drop_oldest) {
                return;
            }
            self.addresses -= 1;
        }
    }

    /// What the container calls an address, as of a time: the names that it might use then, if there are several; the last
    /// one that it was told, if it might use none any more.
    pub(super) fn name(&self, container: u64, address: IpAddr, at_ns: u64) -> Option<String> {
        let names = &self.containers.get(&container)?.by_address.get(&address)?.names;
        let usable: Vec<_> = names.iter().filter(|told| told.from <= at_ns && at_ns <= told.until).collect();
        let names = match usable.as_slice() {
            [] => return Some(names.iter().rfind(|told| told.from <= at_ns)?.name.to_string()),
            names => names,
        };
        let mut text: Vec<_> = names.iter().map(|told| &*told.name).collect();
        text.sort_unstable();
        if text.len() > TOLD {
            text.truncate(TOLD);
            text.push("...");
        }
        Some(text.join("|"))
    }

    /// Forgets containers that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        self.containers.retain(|container, _| is_there(*container));
        self.addresses = self.containers.values().map(|looked| looked.by_address.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0xc000_0200 + n).into()
    }

    fn add(table: &mut Table, container: u64, name: &str, of: u32, seconds: u32, at: u64) {
        table.add(container, &name.into(), address(of), seconds, at * SECOND);
    }

    #[test]
    fn each_container_has_its_own_names() {
        let mut table = Table::default();
        add(&mut table, 1, "db", 1, 60, 100);
        add(&mut table, 2, "cache", 1, 60, 100);
        let name = |container, at| table.name(container, address(1), at * SECOND);
        assert_eq!(
            [name(1, 110), name(2, 110), name(3, 110)],
            [Some("db".into()), Some("cache".into()), None]
        );
        assert_eq!(name(1, 99), None, "it was not told yet");
        assert_eq!(name(1, 10_000).as_deref(), Some("db"), "who keeps it for longer still means it");
        table.retain(|container| container == 2);
        assert_eq!((table.containers.len(), table.addresses), (1, 1));
    }

    #[test]
    fn names_that_cannot_be_told_apart_are_all_told() {
        let mut table = Table::default();
        add(&mut table, 1, "b", 1, 60, 100);
        add(&mut table, 1, "a", 1, 60, 130);
        let name = |table: &Table, at| table.name(1, address(1), at * SECOND).unwrap();
        assert_eq!([120, 140, 170, 500].map(|at| name(&table, at)), ["b", "a|b", "a", "a"]);
        for n in 0..20 {
            add(&mut table, 1, &format!("n{n:02}"), 1, 600, 1000);
        }
        assert_eq!(name(&table, 1001), "n12|n13|n14|...");
        // Asked for again in time, it is the same name all the while.
        add(&mut table, 1, "z", 2, 60, 2000);
        add(&mut table, 1, "z", 2, 60, 2050);
        assert_eq!(table.name(1, address(2), 2010 * SECOND).as_deref(), Some("z"));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut table = Table::bounded(10, 25);
        for container in 1..=4 {
            for n in 0..100 {
                add(&mut table, container, "x", n, 60, 100);
                assert!(table.addresses <= 25);
            }
        }
        let of: Vec<_> = (1..=4).map(|container| table.containers[&container].by_address.len()).collect();
        assert_eq!((of.iter().sum::<usize>(), table.addresses), (25, 25), "{of:?}");
        assert!(of.iter().all(|&n| (1..=10).contains(&n)), "{of:?}");
        assert!(table.name(4, address(99), 100 * SECOND).is_some(), "the last one is there");
        for looked in table.containers.values() {
            assert_eq!(looked.by_address.len(), looked.by_answer.len());
        }
    }
}
