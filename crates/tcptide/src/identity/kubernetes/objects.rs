//! What is taken of the API's objects. Everything else is dropped while an answer is read: a pod has ten
//! kilobytes of which a few hundred bytes are of use.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

/// Namespace and name: what tells objects of one kind apart. The namespace of a node is empty.
pub(super) type Key = (Arc<str>, Arc<str>);

/// The longest name that the API allows is 253 bytes, of a kind 63.
const LONGEST_NAME: usize = 253;

/// One page of a list.
#[derive(Deserialize)]
pub(super) struct List<T> {
    pub(super) metadata: ListMeta,
    // No default: an answer without items is no list.
    #[serde(deserialize_with = "nullable", bound = "T: Deserialize<'de>")]
    pub(super) items: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// The version of the server.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Version {
    pub(super) git_version: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub(super) annotations: Annotations,
    #[serde(deserialize_with = "nullable")]
    pub(super) owner_references: Vec<OwnerReference>,
}

impl Meta {
    /// Whether it has names as the API has them. Longer ones are not kept.
    pub(super) fn is_named(&self) -> bool {
        let owners = self.owner_references.iter().flat_map(|owner| [&owner.kind, &owner.name]);
        let names = [&self.name, &self.namespace, &self.uid].into_iter().chain(owners);
        !self.name.is_empty() && names.into_iter().all(|name| name.len() <= LONGEST_NAME)
    }

    pub(super) fn key(&self) -> Key {
        (self.namespace.as_str().into(), self.name.as_str().into())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Labels {
    #[serde(rename = "pod-template-hash")]
    pub(super) pod_template_hash: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Annotations {
    /// The UID that the kubelet itself gives a static pod, and its cgroup; that in the API is another.
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub(super) mirror: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct OwnerReference {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) controller: Option<bool>,
}

/// An object of which nothing but its metadata is of use.
#[derive(Debug, Deserialize)]
pub(super) struct Bare {
    pub(super) metadata: Meta,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    #[serde(default)]
    pub(super) spec: PodSpec,
    #[serde(default)]
    pub(super) status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) host_network: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) containers: Vec<ContainerSpec>,
    #[serde(deserialize_with = "nullable")]
    pub(super) init_containers: Vec<ContainerSpec>,
    #[serde(deserialize_with = "nullable")]
    pub(super) ephemeral_containers: Vec<ContainerSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerSpec {
    pub(super) name: String,
    pub(super) image: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) phase: String,
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub(super) pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "nullable")]
    pub(super) container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "nullable")]
    pub(super) init_container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "nullable")]
    pub(super) ephemeral_container_statuses: Vec<ContainerStatus>,
}

impl PodStatus {
    /// Whether all its containers have ended for good.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodIp {
    pub(super) ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ContainerStatus {
    pub(super) name: String,
    pub(super) image: Option<String>,
    #[serde(rename = "containerID")]
    pub(super) container_id: Option<String>,
    pub(super) last_state: LastState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LastState {
    pub(super) terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Terminated {
    #[serde(rename = "containerID")]
    pub(super) container_id: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Service {
    pub(super) metadata: Meta,
    #[serde(default)]
    pub(super) spec: ServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub(super) cluster_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Port {
    pub(super) name: Option<String>,
    #[serde(rename = "port")]
    pub(super) number: Option<u16>,
    pub(super) protocol: Option<String>,
}

impl Port {
    /// The number, if it is one of TCP.
    pub(super) fn tcp(&self) -> Option<u16> {
        self.number.filter(|_| self.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct EndpointSlice {
    pub(super) metadata: Meta,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Endpoint {
    #[serde(deserialize_with = "nullable")]
    pub(super) addresses: Vec<String>,
    pub(super) node_name: Option<String>,
    pub(super) target_ref: Option<TargetRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TargetRef {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Node {
    pub(super) metadata: Meta,
    #[serde(default)]
    pub(super) status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    pub(super) addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeAddress {
    pub(super) address: String,
}

/// Those of the texts that are addresses: host names, `None` and empty ones are not.
pub(super) fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()).collect()
}

/// The API writes an empty list as `null`.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}
