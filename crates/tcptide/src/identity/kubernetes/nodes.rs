//! The cluster's nodes and their addresses, as of the last list.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::objects::{self, Key, Node};

/// The most nodes kept.
const MOST_NODES: usize = 20_000;

/// See the module.
#[derive(Default)]
pub(super) struct Nodes {
    by_name: HashMap<Arc<str>, Vec<IpAddr>>,
    /// How many nodes have each address.
    addresses: HashMap<IpAddr, usize>,
    /// Those that others named and the list did not.
    missing: HashSet<Arc<str>>,
}

impl Nodes {
    pub(super) fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(super) fn have(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Something is on this node.
    pub(super) fn note(&mut self, name: &Arc<str>) {
        if !self.knows(name) && self.missing.len() < MOST_NODES {
            self.missing.insert(name.clone());
        }
    }

    /// Whether nodes were named that the last list did not have.
    pub(super) fn are_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    pub(super) fn put(&mut self, node: &Node) {
        let name: Arc<str> = node.metadata.name.as_str().into();
        self.remove(&name);
        self.missing.remove(&name);
        if self.by_name.len() >= MOST_NODES {
            return;
        }
        let addresses = objects::addresses(node.status.addresses.iter().map(|address| &address.address));
        for address in &addresses {
            *self.addresses.entry(*address).or_default() += 1;
        }
        self.by_name.insert(name, addresses);
    }

    fn remove(&mut self, name: &str) {
        for address in self.by_name.remove(name).unwrap_or_default() {
            if let Some(count) = self.addresses.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.addresses.remove(&address);
                }
            }
        }
    }

    /// Forgets the nodes that are not listed, and which ones were missing: what is not in the list is not there.
    pub(super) fn keep(&mut self, listed: &HashSet<Key>) {
        let listed: HashSet<&str> = listed.iter().map(|(_, name)| &**name).collect();
        let gone = self.by_name.keys().filter(|node| !listed.contains(&***node));
        for node in gone.cloned().collect::<Vec<_>>() {
            self.remove(&node);
        }
        self.missing.clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn node(name: &str, address: &str) -> Node {
        let addresses =
            json!([{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]);
        from_value(json!({"metadata": {"name": name}, "status": {"addresses": addresses}})).unwrap()
    }

    #[test]
    fn an_address_is_a_nodes_as_long_as_one_has_it() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut nodes = Nodes::default();
        nodes.note(&"a".into());
        assert!(nodes.are_missing());
        nodes.put(&node("a", "192.0.2.1"));
        nodes.note(&"a".into());
        assert!(!nodes.are_missing() && nodes.knows("a"));
        // Made anew under another name, while the old one is still there.
        nodes.put(&node("b", "192.0.2.1"));
        nodes.put(&node("b", "192.0.2.1"));
        nodes.keep(&HashSet::from([("".into(), "b".into())]));
        assert!(!nodes.knows("a") && nodes.have(address("192.0.2.1")));
        nodes.put(&node("b", "192.0.2.2"));
        assert!(!nodes.have(address("192.0.2.1")) && nodes.have(address("192.0.2.2")));
        nodes.note(&"c".into());
        nodes.keep(&HashSet::new());
        assert!(!nodes.are_missing() && nodes.addresses.is_empty());
    }
}
