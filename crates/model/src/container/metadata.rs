//! The container as people and programs meet it, and what a runtime's API adds to its path.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Identity, Runtime};

/// Labels that the kubelet has every runtime put on its containers.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// The most labels kept of one container.
const MOST_LABELS: usize = 64;
/// The longest label value, name or image kept, in bytes.
const LONGEST_VALUE: usize = 4096;
/// The longest label key kept, in bytes; a longer one drops the label.
const LONGEST_KEY: usize = 512;

/// What a runtime's API says of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The container's name; in a pod, its name within the pod.
    pub name: Option<String>,
    /// The image as the user named it.
    pub image: Option<String>,
    /// Labels by key, at most 64, values cut at 4 KiB.
    pub labels: BTreeMap<String, String>,
    /// Name of the Kubernetes pod.
    pub pod: Option<String>,
    /// Kubernetes namespace of the pod.
    pub namespace: Option<String>,
    /// UID of the Kubernetes pod.
    pub pod_uid: Option<String>,
}

impl Metadata {
    /// Takes an answer of Docker, Podman or CRI: pod, namespace and name within the pod come from the
    /// kubelet's labels. Everything is cut to a bounded size.
    pub fn new(
        name: Option<String>,
        image: Option<String>,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut found = Self { name: bounded(name), image: bounded(image), ..Self::default() };
        for (key, value) in labels {
            let Some(value) = bounded(Some(value)) else { continue };
            match key.as_str() {
                POD_NAME => found.pod = Some(value.clone()),
                POD_NAMESPACE => found.namespace = Some(value.clone()),
                POD_UID => found.pod_uid = Some(value.clone()),
                CONTAINER_NAME => found.name = Some(value.clone()),
                _ => {}
            }
            if key.len() <= LONGEST_KEY {
                found.labels.insert(key, value);
            }
            if found.labels.len() > MOST_LABELS {
                // Which labels stay depends on their keys alone, not on the order they came in.
                found.labels.pop_last();
            }
        }
        found
    }

    /// Puts the container into a pod, as a CRI runtime tells it of every pod: others than the kubelet make pods
    /// without its labels. An empty name is not known.
    #[must_use]
    pub fn in_pod(self, name: &str, namespace: &str, uid: &str) -> Self {
        let told = |text: &str, before| bounded(Some(text.to_owned())).or(before);
        Self {
            pod: told(name, self.pod),
            namespace: told(namespace, self.namespace),
            pod_uid: told(uid, self.pod_uid),
            ..self
        }
    }
}

/// Cuts a value at the longest length, between characters; an empty one is none.
fn bounded(value: Option<String>) -> Option<String> {
    let mut value = value.filter(|value| !value.is_empty())?;
    if value.len() > LONGEST_VALUE {
        let end = (0..=LONGEST_VALUE).rfind(|end| value.is_char_boundary(*end)).unwrap_or(0);
        value.truncate(end);
        value.shrink_to_fit();
    }
    Some(value)
}

/// The owner of a connection: the `container` object of every JSON output. Absent means not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The name to show: the runtime's, else the best one the path gives. Raw: a terminal shows it
    /// through [`sanitize`](super::sanitize).
    pub name: String,
    /// The runtime's full id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Who made the cgroup; absent when the cgroup itself is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// The image as the user named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Name of the Kubernetes pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Kubernetes namespace of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Inode number of the container's cgroup directory.
    pub cgroup_id: u64,
    /// Path of the container's cgroup, relative to the root of its hierarchy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// Labels the runtime keeps for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// UID of the pod: a key to join with the Kubernetes API, not a name people meet.
    #[serde(skip)]
    pub pod_uid: Option<String>,
}

impl Container {
    /// The name of the owner of sockets that have none.
    pub const UNATTRIBUTED: &str = "~unattributed";

    /// Joins what the path says with what the runtime said. `cgroup_id` is the id of
    /// `identity.container_path`.
    pub fn new(cgroup_id: u64, identity: Identity, metadata: Option<&Metadata>) -> Self {
        let metadata = metadata.cloned().unwrap_or_default();
        Self {
            name: metadata.name.unwrap_or(identity.name),
            id: identity.id,
            runtime: Some(identity.runtime),
            image: metadata.image,
            pod: metadata.pod,
            namespace: metadata.namespace,
            cgroup_id,
            cgroup_path: Some(identity.container_path),
            labels: metadata.labels,
            pod_uid: identity.pod_uid.or(metadata.pod_uid),
        }
    }

    /// A cgroup whose path is not known. Id 0 means that the owner itself could not be established.
    pub fn unknown(cgroup_id: u64) -> Self {
        let name = match cgroup_id {
            0 => Self::UNATTRIBUTED.to_owned(),
            id => format!("cgroup:{id}"),
        };
        Self { name, cgroup_id, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::identify;
    use super::*;

    const ID: &str = "3f4d9a1be0c75c21d8f6aa0970b4e1c22d6b8f0e9a7c5d3b1f2e4a6c8d0b9e7f";

    fn label(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn absent_fields_are_not_written() {
        let path = format!("/docker/{ID}");
        let bare = Container::new(7, identify(&path), None);
        let expected = json!({
            "name": "3f4d9a1be0c7", "id": ID, "runtime": "docker", "cgroup_id": 7, "cgroup_path": path
        });
        assert_eq!(serde_json::to_value(&bare).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Container>(expected).unwrap(), bare);
        let unknown = Container::unknown(9);
        assert_eq!(serde_json::to_value(unknown).unwrap(), json!({"name": "cgroup:9", "cgroup_id": 9}));
        assert_eq!(Container::unknown(0).name, "~unattributed");
    }

    #[test]
    fn the_runtime_completes_the_path() {
        let labels = [
            label("io.kubernetes.pod.name", "shop-7d9f"),
            label("io.kubernetes.pod.namespace", "prod"),
            label("io.kubernetes.pod.uid", "u-1"),
            label("io.kubernetes.container.name", "web"),
        ];
        let metadata = Metadata::new(Some("k8s_web_shop".into()), Some("nginx:1".into()), labels);
        let full = Container::new(7, identify(&format!("/docker/{ID}")), Some(&metadata));
        let json = serde_json::to_value(&full).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 9, "{keys:?}");
        assert_eq!(
            (full.name.as_str(), full.pod.as_deref(), full.namespace.as_deref(), full.image.as_deref()),
            ("web", Some("shop-7d9f"), Some("prod"), Some("nginx:1"))
        );
        assert_eq!(full.pod_uid.as_deref(), Some("u-1"));
    }

    #[test]
    fn a_pod_is_told_by_its_runtime_or_by_labels() {
        let labels = [label("io.kubernetes.pod.name", "shop-7d9f"), label("io.kubernetes.pod.uid", "u-1")];
        let labelled = Metadata::new(Some("web".into()), None, labels);
        assert_eq!(labelled.clone().in_pod("", "", ""), labelled);
        let told = labelled.in_pod("shop", "prod", "u-2");
        let pod = [&told.pod, &told.namespace, &told.pod_uid].map(|text| text.as_deref());
        assert_eq!(pod, [Some("shop"), Some("prod"), Some("u-2")]);
        let long = Metadata::default().in_pod(&"é".repeat(40_000), "", "");
        assert_eq!(long.pod.map(|name| name.len()), Some(4096));
    }

    #[test]
    fn an_empty_name_is_no_name() {
        let metadata = Metadata::new(Some(String::new()), Some(String::new()), []);
        assert_eq!(metadata, Metadata::default());
    }

    #[test]
    fn labels_are_bounded() {
        let many = (0..1000).map(|n| label(&format!("key{n:04}"), "v"));
        let pod = [label("io.kubernetes.pod.name", "late")];
        let kept = Metadata::new(None, None, many.chain(pod));
        assert_eq!(kept.labels.len(), 64);
        assert_eq!(kept.pod.as_deref(), Some("late"));

        let long = Metadata::new(Some("é".repeat(5000)), None, [label("k", &"é".repeat(40_000))]);
        assert_eq!(long.labels["k"], "é".repeat(2048));
        assert_eq!(long.name.map(|name| name.len()), Some(4096));
        assert!(Metadata::new(None, None, [label(&"k".repeat(70_000), "v")]).labels.is_empty());
    }
}
