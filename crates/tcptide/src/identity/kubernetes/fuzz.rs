//! What the Kubernetes API server answers, as bytes.

use std::collections::HashSet;

use kube::core::WatchEvent;
use model::container::identify;

use super::{
    objects::{EndpointSlice, List, Node, Pod, Service, addresses},
    tables::{Object, Shared},
    watch::take,
};

/// Reads a list or an event of each kind, twice, and looks at the tables that come of it. Whether it was one.
pub fn kubernetes(bytes: &[u8]) -> bool {
    let shared = Shared::new("node".to_owned());
    let mut is_any = false;
    for _ in 0..2 {
        is_any |= read::<Pod>(bytes, &shared)
            | read::<Service>(bytes, &shared)
            | read::<EndpointSlice>(bytes, &shared)
            | read::<Node>(bytes, &shared);
    }
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<_> = text.split('"').map(str::to_owned).collect();
    let tables = shared.tables();
    for address in addresses(&words) {
        tables.addresses.name_of(address, 80);
    }
    for word in &words {
        tables.pods.complete(&identify(&format!("/kubepods/pod{word}/{word}")), None);
    }
    is_any
}

fn read<T: Object>(bytes: &[u8], shared: &Shared) -> bool {
    if let Ok(list) = serde_json::from_slice::<List<T>>(bytes) {
        let mut listed = HashSet::new();
        for object in list.items.into_iter().filter(|object| object.meta().is_named()) {
            listed.insert(object.meta().key());
            object.put(shared);
        }
        T::keep(&listed, shared);
        return !listed.is_empty();
    }
    serde_json::from_slice::<WatchEvent<T>>(bytes).is_ok_and(|event| take(event, shared).is_some())
}
