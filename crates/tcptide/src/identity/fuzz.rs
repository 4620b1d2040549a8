//! What container runtimes answer, as bytes.

use std::collections::HashMap;

use bollard::models::{ContainerSummary, EventMessage};
use k8s_cri::v1::{ContainerEventResponse, ListContainersResponse, ListPodSandboxResponse};
use model::container::{Container, Metadata, identify};
use prost::Message as _;

use super::{cri, docker};

/// Has the metadata used as it is when somebody looks at the container.
fn show(told: &[(String, Metadata)]) -> bool {
    for (id, metadata) in told {
        Container::new(1, identify(&format!("/docker/{id}")), Some(metadata));
    }
    !told.is_empty()
}

/// Reads a list of Docker's, or one of its events.
pub fn docker(bytes: &[u8]) -> bool {
    let list = serde_json::from_slice::<Vec<ContainerSummary>>(bytes).unwrap_or_default();
    let listed: Vec<_> = list.into_iter().filter_map(docker::from_list).collect();
    let event = serde_json::from_slice::<EventMessage>(bytes).ok();
    let event = event
        .and_then(|event| event.actor)
        .and_then(|actor| Some((actor.id?, docker::from_event(actor.attributes.unwrap_or_default()))));
    show(&listed) | show(event.as_slice())
}

/// Reads two lists of CRI, the length of the first in two bytes before, or one event.
pub fn cri(bytes: &[u8]) -> bool {
    let lists = bytes.split_first_chunk::<2>().and_then(|(length, rest)| {
        let (containers, pods) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        let containers = ListContainersResponse::decode(containers).ok()?.containers;
        Some((containers, ListPodSandboxResponse::decode(pods).ok()?.items))
    });
    let told = |(containers, pods): (Vec<_>, Vec<_>)| cri::told(containers, &pods, &HashMap::new());
    let event = ContainerEventResponse::decode(bytes).ok().and_then(|event| {
        let pod = cri::as_listed_pod(event.pod_sandbox_status?);
        let containers = event.containers_statuses.into_iter().map(|told| cri::as_listed(told, &pod.id));
        Some((containers.collect(), vec![pod]))
    });
    show(&lists.map(told).unwrap_or_default()) | show(&event.map(told).unwrap_or_default())
}
