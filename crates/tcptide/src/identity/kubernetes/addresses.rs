//! Whose an address is: services by their cluster addresses, pods by their own and by what EndpointSlices say.
//!
//! Nothing is guessed. Pods in their node's network have the node's address, as have the node itself and whatever
//! else runs on it: such an address is a pod's only together with a port that is the pod's. That an address is not
//! a node's is known of the pods of the own node, and elsewhere from the list of nodes.

use std::collections::{HashMap, HashSet, hash_map::Entry};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use super::nodes::Nodes;
use super::objects::{self, EndpointSlice, Key, Pod, Port, Service};

/// The most addresses of services kept.
const MOST_SERVICES: usize = 50_000;
/// The most addresses of pods that EndpointSlices tell of.
const MOST_ENDPOINTS: usize = 100_000;
/// The most addresses of the own node's pods.
const MOST_PODS: usize = 10_000;

/// What an address and a port belong to in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerName {
    /// A service, by one of its cluster addresses.
    Service {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// What the service calls the port, if it has it and gives it a name.
        port: Option<Arc<str>>,
    },
    /// A pod of any node.
    Pod {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
}

impl fmt::Display for PeerName {
    /// `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Service { namespace, name, .. } | Self::Pod { namespace, name }) = self;
        write!(f, "{namespace}/{name}")
    }
}

/// What kind of object an address was learnt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Pod,
    Service,
    Slice,
}

impl Source {
    const ALL: [Self; 3] = [Self::Pod, Self::Service, Self::Slice];

    const fn most(self) -> usize {
        match self {
            Self::Pod => MOST_PODS,
            Self::Service => MOST_SERVICES,
            Self::Slice => MOST_ENDPOINTS,
        }
    }
}

type Ports = Arc<[(u16, Option<Arc<str>>)]>;

/// Whose network an address is in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Nobody else has it.
    Own,
    /// The node's.
    Node,
    /// Either; the pod is on this node.
    On(Option<Arc<str>>),
}

/// That an address belongs to something.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    by: (Source, Key),
    /// Namespace and name of the pod or service.
    of: Key,
    ports: Ports,
    place: Place,
}

impl Claim {
    fn has(&self, port: u16) -> bool {
        self.ports.iter().any(|(number, _)| *number == port)
    }

    fn is_of_same(&self, other: &Self) -> bool {
        let is_service = |claim: &Self| claim.by.0 == Source::Service;
        self.of == other.of && is_service(self) == is_service(other)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Addresses {
    by_address: HashMap<IpAddr, Vec<Claim>>,
    /// The addresses that each object told of, to take them back.
    told: HashMap<(Source, Key), Vec<IpAddr>>,
    counts: HashMap<Source, usize>,
    /// Objects for which there was no room, by a hash.
    left_out: HashMap<Source, HashSet<u64>>,
    hasher: RandomState,
    pub(super) nodes: Nodes,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Addresses of services.
    pub(crate) services: usize,
    /// Addresses of pods in EndpointSlices.
    pub(crate) endpoints: usize,
    /// Services and EndpointSlices for which there was no room.
    pub(crate) left_out: usize,
}

impl Addresses {
    /// The only pod or service that this address can be, or is at this port.
    pub(super) fn name_of(&self, address: IpAddr, port: u16) -> Option<PeerName> {
        let address = address.to_canonical();
        let claims = self.by_address.get(&address)?;
        let mut at_port = claims.iter().filter(|claim| claim.has(port)).peekable();
        let claim = if at_port.peek().is_some() {
            only(at_port)?
        } else {
            only(claims.iter())
                .filter(|claim| claim.by.0 == Source::Service || self.is_own(address, claims))?
        };
        let (namespace, name) = claim.of.clone();
        Some(match claim.by.0 {
            Source::Service => {
                let of_port = claim.ports.iter().find(|(number, _)| *number == port);
                PeerName::Service { namespace, name, port: of_port.and_then(|(_, name)| name.clone()) }
            }
            Source::Pod | Source::Slice => PeerName::Pod { namespace, name },
        })
    }

    /// Whether none of these claims to one pod is for its node's address.
    fn is_own(&self, address: IpAddr, claims: &[Claim]) -> bool {
        let known = |claim: &Claim| match &claim.place {
            Place::Own => true,
            Place::Node => false,
            Place::On(node) => node.as_ref().is_some_and(|node| self.nodes.knows(node)),
        };
        !self.nodes.have(address)
            && claims.iter().all(|claim| claim.place != Place::Node)
            && claims.iter().any(known)
    }

    pub(super) fn put_service(&mut self, service: &Service) {
        let spec = &service.spec;
        let alone = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_empty());
        let addresses = objects::addresses(spec.cluster_ips.iter().chain(alone));
        let key = service.metadata.key();
        let ports = ports(&spec.ports);
        let claim = Claim { by: (Source::Service, key.clone()), of: key, ports, place: Place::Own };
        let claims = addresses.into_iter().map(|address| (address, claim.clone())).collect();
        self.put(claim.by, claims);
    }

    pub(super) fn put_slice(&mut self, slice: &EndpointSlice) {
        let by = (Source::Slice, slice.metadata.key());
        let ports = ports(&slice.ports);
        let mut claims = Vec::new();
        // The pods of a slice are on a few nodes and in one namespace.
        let mut texts: HashSet<Arc<str>> = HashSet::new();
        let mut shared = |text: &str| match texts.get(text) {
            Some(known) => known.clone(),
            None => {
                let text: Arc<str> = text.into();
                texts.insert(text.clone());
                text
            }
        };
        for endpoint in &slice.endpoints {
            let Some(pod) = endpoint.target_ref.as_ref().filter(|of| of.kind == "Pod") else { continue };
            let namespace = if pod.namespace.is_empty() { &slice.metadata.namespace } else { &pod.namespace };
            let of = (shared(namespace), pod.name.as_str().into());
            let node = endpoint.node_name.as_deref().map(&mut shared);
            if let Some(node) = &node {
                self.nodes.note(node);
            }
            let claim = Claim { by: by.clone(), of, ports: ports.clone(), place: Place::On(node) };
            let addresses = objects::addresses(&endpoint.addresses);
            claims.extend(addresses.into_iter().map(|address| (address, claim.clone())));
        }
        self.put(by, claims);
    }

    pub(super) fn put_pod(&mut self, pod: &Pod) {
        let key = pod.metadata.key();
        // One that is over keeps addresses that may be another pod's by now.
        let own = pod.status.pod_ips.iter().filter(|_| !pod.status.is_over());
        let addresses = objects::addresses(own.map(|address| &address.ip));
        let place = if pod.spec.host_network { Place::Node } else { Place::Own };
        let claim = Claim { by: (Source::Pod, key.clone()), of: key, ports: Arc::new([]), place };
        let claims = addresses.into_iter().map(|address| (address, claim.clone())).collect();
        self.put(claim.by, claims);
    }

    /// An object says all this now, and nothing else that it said before. What has no room is left out whole.
    fn put(&mut self, by: (Source, Key), claims: Vec<(IpAddr, Claim)>) {
        self.remove(by.0, &by.1);
        if claims.is_empty() {
            return;
        }
        let count = self.counts.entry(by.0).or_default();
        if *count + claims.len() > by.0.most() {
            let hash = self.hasher.hash_one(&by.1);
            self.left_out.entry(by.0).or_default().insert(hash);
            return;
        }
        *count += claims.len();
        self.told.insert(by, claims.iter().map(|(address, _)| *address).collect());
        for (address, claim) in claims {
            match self.by_address.entry(address) {
                // Most have one, for which a vector that grows would make room for four.
                Entry::Vacant(vacant) => drop(vacant.insert(vec![claim])),
                Entry::Occupied(mut claims) => claims.get_mut().push(claim),
            }
        }
    }

    pub(super) fn remove(&mut self, source: Source, key: &Key) {
        let by = (source, key.clone());
        if let Some(left_out) = self.left_out.get_mut(&source) {
            left_out.remove(&self.hasher.hash_one(key));
        }
        let Some(addresses) = self.told.remove(&by) else { return };
        if let Some(count) = self.counts.get_mut(&source) {
            *count = count.saturating_sub(addresses.len());
        }
        for address in addresses {
            if let Some(claims) = self.by_address.get_mut(&address) {
                claims.retain(|claim| claim.by != by);
                if claims.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
    }

    /// Forgets what objects of this kind said that are not listed.
    pub(super) fn keep(&mut self, source: Source, listed: &HashSet<Key>) {
        let unlisted = |(kind, key): &&(Source, Key)| *kind == source && !listed.contains(key);
        let gone: Vec<Key> = self.told.keys().filter(unlisted).map(|(_, key)| key.clone()).collect();
        for key in gone {
            self.remove(source, &key);
        }
        if let Some(left_out) = self.left_out.get_mut(&source).filter(|left_out| !left_out.is_empty()) {
            let listed: HashSet<u64> = listed.iter().map(|key| self.hasher.hash_one(key)).collect();
            left_out.retain(|hash| listed.contains(hash));
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let count = |source| self.counts.get(&source).copied().unwrap_or_default();
        let left_out = |source| self.left_out.get(&source).map_or(0, HashSet::len);
        Counts {
            services: count(Source::Service),
            endpoints: count(Source::Slice),
            left_out: Source::ALL.into_iter().map(left_out).sum(),
        }
    }
}

/// The claim, if all are to one thing.
fn only<'a>(mut claims: impl Iterator<Item = &'a Claim>) -> Option<&'a Claim> {
    let first = claims.next()?;
    claims.all(|other| other.is_of_same(first)).then_some(first)
}

fn ports(ports: &[Port]) -> Ports {
    let named = |port: &Port| {
        let name = port.name.as_deref().filter(|name| !name.is_empty());
        Some((port.tcp()?, name.map(Arc::from)))
    };
    ports.iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::super::objects::{Endpoint, Node, TargetRef};
    use super::*;

    fn told(addresses: &Addresses, address: &str, port: u16) -> Option<String> {
        addresses.name_of(address.parse().unwrap(), port).map(|name| match &name {
            PeerName::Service { port, .. } => format!("service {name} {}", port.as_deref().unwrap_or("-")),
            PeerName::Pod { .. } => format!("pod {name}"),
        })
    }

    fn service(name: &str, addresses: &[&str]) -> Service {
        let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 443}]);
        from_value(json!({
            "metadata": {"name": name, "namespace": "prod"},
            "spec": {"clusterIP": addresses[0], "clusterIPs": addresses, "ports": ports},
        }))
        .unwrap()
    }

    fn slice(name: &str, port: u16, endpoints: &[(&str, &str, &str)]) -> EndpointSlice {
        // Not by way of JSON: there are a hundred thousand.
        let endpoint = |(address, pod, node): &(&str, &str, &str)| Endpoint {
            addresses: vec![(*address).to_owned()],
            node_name: Some((*node).to_owned()),
            target_ref: Some(TargetRef {
                kind: "Pod".to_owned(),
                namespace: "prod".to_owned(),
                name: (*pod).to_owned(),
            }),
        };
        let mut slice: EndpointSlice = from_value(json!({
            "metadata": {"name": name, "namespace": "prod"}, "ports": [{"port": port, "protocol": "TCP"}],
        }))
        .unwrap();
        slice.endpoints = endpoints.iter().map(endpoint).collect();
        slice
    }

    fn pod(name: &str, address: &str, host_network: bool, phase: &str) -> Pod {
        from_value(json!({
            "metadata": {"name": name, "namespace": "prod"}, "spec": {"hostNetwork": host_network},
            "status": {"phase": phase, "podIPs": [{"ip": address}]},
        }))
        .unwrap()
    }

    fn node(name: &str, address: &str) -> Node {
        let addresses = json!([{"type": "InternalIP", "address": address}]);
        from_value(json!({"metadata": {"name": name}, "status": {"addresses": addresses}})).unwrap()
    }

    #[test]
    fn a_service_is_told_by_its_addresses() {
        let mut addresses = Addresses::default();
        addresses.put_service(&service("web", &["10.96.0.7", "fd00::7"]));
        addresses.put_service(&service("headless", &["None"]));
        assert_eq!(told(&addresses, "10.96.0.7", 80).as_deref(), Some("service prod/web http"));
        assert_eq!(told(&addresses, "::ffff:10.96.0.7", 443).as_deref(), Some("service prod/web -"));
        assert_eq!(told(&addresses, "fd00::7", 53).as_deref(), Some("service prod/web -"), "UDP is not TCP");
        assert_eq!(told(&addresses, "10.96.0.8", 80), None);
        assert_eq!(addresses.counts(), Counts { services: 2, endpoints: 0, left_out: 0 });
        // Its address went to another one: the new one may be told before the old one's end.
        addresses.put_service(&service("other", &["10.96.0.7"]));
        assert_eq!(told(&addresses, "10.96.0.7", 80), None, "two have it");
        addresses.remove(Source::Service, &("prod".into(), "web".into()));
        assert_eq!(told(&addresses, "10.96.0.7", 80).as_deref(), Some("service prod/other http"));
        assert_eq!(told(&addresses, "fd00::7", 80), None);
    }

    #[test]
    fn a_pod_of_another_node_is_told_once_its_address_is_known_not_to_be_a_nodes() {
        let mut addresses = Addresses::default();
        addresses.put_slice(&slice(
            "web-1",
            8080,
            &[("10.1.0.5", "web-a", "n1"), ("10.1.0.6", "web-b", "n2")],
        ));
        assert_eq!(
            told(&addresses, "10.1.0.5", 8080).as_deref(),
            Some("pod prod/web-a"),
            "by address and port"
        );
        assert_eq!(told(&addresses, "10.1.0.5", 51_234), None, "it may be the node's");
        assert!(addresses.nodes.are_missing());
        addresses.nodes.put(&node("n1", "192.0.2.1"));
        assert!(addresses.nodes.are_missing(), "n2");
        assert_eq!(told(&addresses, "10.1.0.5", 51_234).as_deref(), Some("pod prod/web-a"));
        assert_eq!(told(&addresses, "10.1.0.6", 51_234), None, "its node is not known");
        addresses.nodes.keep(&HashSet::new());
        assert_eq!(told(&addresses, "10.1.0.5", 51_234), None);
        assert!(!addresses.nodes.are_missing());
    }

    #[test]
    fn a_nodes_address_is_a_pods_at_its_port_only() {
        let mut addresses = Addresses::default();
        addresses.nodes.put(&node("n1", "192.0.2.1"));
        addresses.put_slice(&slice("exporter", 9100, &[("192.0.2.1", "exporter-a", "n1")]));
        assert_eq!(told(&addresses, "192.0.2.1", 9100).as_deref(), Some("pod prod/exporter-a"));
        assert_eq!(told(&addresses, "192.0.2.1", 10_250), None, "the kubelet");
        // The own node, without the list of nodes.
        addresses.put_slice(&slice("proxy", 10_256, &[("192.0.2.9", "proxy-b", "n9")]));
        addresses.put_pod(&pod("proxy-b", "192.0.2.9", true, "Running"));
        addresses.put_pod(&pod("agent-c", "192.0.2.9", true, "Running"));
        assert_eq!(told(&addresses, "192.0.2.9", 10_256).as_deref(), Some("pod prod/proxy-b"));
        assert_eq!(told(&addresses, "192.0.2.9", 10_250), None);
        addresses.remove(Source::Pod, &("prod".into(), "agent-c".into()));
        addresses.nodes.put(&node("n9", "192.0.2.10"));
        assert_eq!(told(&addresses, "192.0.2.9", 10_250), None, "one pod of the node's network is left");
    }

    #[test]
    fn an_address_that_several_pods_have_is_none_of_theirs() {
        let mut addresses = Addresses::default();
        addresses.put_pod(&pod("old", "10.1.0.5", false, "Running"));
        assert_eq!(told(&addresses, "10.1.0.5", 1).as_deref(), Some("pod prod/old"));
        addresses.put_pod(&pod("new", "10.1.0.5", false, "Running"));
        assert_eq!(told(&addresses, "10.1.0.5", 1), None);
        // A pod that ended keeps its address in the API after another pod was given it.
        addresses.put_pod(&pod("old", "10.1.0.5", false, "Succeeded"));
        assert_eq!(told(&addresses, "10.1.0.5", 1).as_deref(), Some("pod prod/new"));
        // In several services it is still one pod.
        addresses.put_slice(&slice("one", 80, &[("10.1.0.5", "new", "n1")]));
        addresses.put_slice(&slice("two", 80, &[("10.1.0.5", "new", "n1")]));
        assert_eq!(told(&addresses, "10.1.0.5", 80).as_deref(), Some("pod prod/new"));
        assert_eq!(told(&addresses, "10.1.0.5", 1).as_deref(), Some("pod prod/new"));
    }

    #[test]
    fn what_is_taken_back_leaves_nothing() {
        let mut addresses = Addresses::default();
        addresses.put_service(&service("web", &["10.96.0.7"]));
        addresses.put_slice(&slice("web-1", 80, &[("10.1.0.5", "web-a", "n1"), ("10.1.0.6", "web-b", "n1")]));
        addresses.put_slice(&slice("web-1", 80, &[("10.1.0.6", "web-b", "n1")]));
        assert_eq!((told(&addresses, "10.1.0.5", 80), addresses.counts().endpoints), (None, 1));
        addresses.keep(Source::Slice, &HashSet::from([("prod".into(), "web-1".into())]));
        assert_eq!(addresses.counts(), Counts { services: 1, endpoints: 1, left_out: 0 });
        addresses.keep(Source::Slice, &HashSet::new());
        addresses.keep(Source::Service, &HashSet::new());
        assert_eq!(addresses.counts(), Counts::default());
        assert!(addresses.by_address.is_empty() && addresses.told.is_empty());
    }

    #[test]
    fn addresses_are_bounded_and_the_rest_is_counted() {
        let mut addresses = Addresses::default();
        let big = |n: usize| {
            let endpoints: Vec<(String, String)> = (0..1000)
                .map(|e| (format!("10.{n}.{}.{}", e / 250, e % 250), format!("p-{n}-{e}")))
                .collect();
            let all: Vec<_> = endpoints.iter().map(|(ip, pod)| (ip.as_str(), pod.as_str(), "n1")).collect();
            slice(&format!("s{n}"), 80, &all)
        };
        for n in 0..102 {
            addresses.put_slice(&big(n));
        }
        assert_eq!(addresses.counts(), Counts { services: 0, endpoints: MOST_ENDPOINTS, left_out: 2 });
        assert_eq!(told(&addresses, "10.101.0.0", 80), None);
        addresses.put_slice(&big(101));
        assert_eq!(addresses.counts().left_out, 2, "counted once");
        addresses.put_service(&service("web", &["172.20.0.7"]));
        assert!(told(&addresses, "172.20.0.7", 80).is_some(), "services have room of their own");
        addresses.remove(Source::Slice, &("prod".into(), "s0".into()));
        addresses.put_slice(&big(101));
        assert_eq!(addresses.counts(), Counts { services: 1, endpoints: MOST_ENDPOINTS, left_out: 1 });
        addresses.keep(Source::Slice, &HashSet::from([("prod".into(), "s101".into())]));
        assert_eq!(addresses.counts(), Counts { services: 1, endpoints: 1000, left_out: 0 });
    }
}
