//! The container as people and programs meet it, and what a runtime's API adds to its path.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Identity, Runtime};
use crate::filter::Subject;

/// Labels that the kubelet has every runtime put on its containers.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// The most labels kept of one container, and the most annotations.
const MOST_LABELS: usize = 64;
/// The longest value of a label or annotation, name or image kept, in bytes.
const LONGEST_VALUE: usize = 4096;
/// The longest key kept, in bytes; a longer one drops its label or annotation.
const LONGEST_KEY: usize = 512;

/// Labels or annotations by key: at most 64, values cut at 4 KiB. What the runtime said and the container as it is told
/// share them.
pub type Labels = Arc<BTreeMap<String, String>>;

/// What a pod belongs to, such as a Deployment, as Kubernetes tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PodOwner {
    /// Such as `Deployment`, `StatefulSet`, `DaemonSet`, `Job` or `CronJob`; any other kind as it is called.
    pub kind: String,
    /// Its name, within the pod's namespace.
    pub name: String,
}

impl fmt::Display for PodOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// What a runtime's API, and Kubernetes', say of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Who made it, where the answer tells: a path with a bare id is a guess.
    pub runtime: Option<Runtime>,
    /// The container's name; in a pod, its name within the pod.
    pub name: Option<String>,
    /// The image as the user named it.
    pub image: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations, and those of its pod under other keys.
    pub annotations: Labels,
    /// Id of the sandbox, the container that holds the pod's namespaces.
    pub sandbox: Option<String>,
    /// Name of the Kubernetes pod.
    pub pod: Option<String>,
    /// Kubernetes namespace of the pod.
    pub namespace: Option<String>,
    /// UID of the Kubernetes pod.
    pub pod_uid: Option<String>,
    /// What the pod belongs to. Kubernetes alone tells it.
    pub owner: Option<PodOwner>,
    /// The Kubernetes node that the pod is on. Kubernetes alone tells it.
    pub node: Option<String>,
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
        let mut kept = BTreeMap::new();
        for (key, value) in labels {
            let special = match key.as_str() {
                POD_NAME => Some(&mut found.pod),
                POD_NAMESPACE => Some(&mut found.namespace),
                POD_UID => Some(&mut found.pod_uid),
                CONTAINER_NAME => Some(&mut found.name),
                _ => None,
            };
            let value = cut(value);
            if let Some(special) = special
                && !value.is_empty()
            {
                *special = Some(value.clone());
            }
            keep(&mut kept, key, value);
        }
        found.labels = Arc::new(kept);
        found
    }

    /// Adds annotations under keys that have none yet.
    #[must_use]
    pub fn annotated(mut self, annotations: impl IntoIterator<Item = (String, String)>) -> Self {
        let kept = Arc::make_mut(&mut self.annotations);
        for (key, value) in annotations {
            if !kept.contains_key(&key) {
                keep(kept, key, cut(value));
            }
        }
        self
    }

    /// Puts the container into the sandbox of a pod. An empty id is not known.
    #[must_use]
    pub fn in_sandbox(self, id: String) -> Self {
        Self { sandbox: bounded(Some(id)), ..self }
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

    /// Adds what `other` knows and this does not.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        let Self { runtime, name, image, labels, annotations, sandbox, pod, namespace, pod_uid, owner, node } =
            self;
        Self {
            runtime: runtime.or(other.runtime),
            name: name.or_else(|| other.name.clone()),
            image: image.or_else(|| other.image.clone()),
            labels: if labels.is_empty() { other.labels.clone() } else { labels },
            annotations: if annotations.is_empty() { other.annotations.clone() } else { annotations },
            sandbox: sandbox.or_else(|| other.sandbox.clone()),
            pod: pod.or_else(|| other.pod.clone()),
            namespace: namespace.or_else(|| other.namespace.clone()),
            pod_uid: pod_uid.or_else(|| other.pod_uid.clone()),
            owner: owner.or_else(|| other.owner.clone()),
            node: node.or_else(|| other.node.clone()),
        }
    }
}

/// Adds a label or annotation to those that are kept.
fn keep(kept: &mut BTreeMap<String, String>, key: String, value: String) {
    if key.len() <= LONGEST_KEY {
        kept.insert(key, value);
    }
    if kept.len() > MOST_LABELS {
        // Which ones stay depends on their keys alone, not on the order they came in.
        kept.pop_last();
    }
}

/// Cuts a text; an empty one is none.
fn bounded(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(cut)
}

/// Cuts a text at the longest length, between characters.
fn cut(mut text: String) -> String {
    if text.len() > LONGEST_VALUE {
        let end = (0..=LONGEST_VALUE).rfind(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}

fn is_empty(labels: &Labels) -> bool {
    labels.is_empty()
}

/// A container inside another, as far as its path tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inner {
    /// Its name if a runtime told it, else the best one the path gives.
    pub name: String,
    /// The runtime's full id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Who made it.
    pub runtime: Runtime,
    /// Path of its cgroup.
    pub cgroup_path: String,
}

/// The owner of a connection: the `container` object of every JSON output. Absent means not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// What the pod belongs to, where Kubernetes is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PodOwner>,
    /// The Kubernetes node that the pod is on, where Kubernetes is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Inode number of the container's cgroup directory.
    pub cgroup_id: u64,
    /// Path of the container's cgroup, relative to the root of its hierarchy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// Id of the sandbox of its pod, as CRI tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Labels the runtime keeps for it.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub labels: Labels,
    /// Annotations the runtime keeps for it, and for its pod under other keys, as CRI tells them. They may be long:
    /// whoever prints one container by itself says them.
    #[serde(skip)]
    pub annotations: Labels,
    /// The innermost container in this one that a connection is of; absent of the container as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<Box<Inner>>,
    /// UID of the pod: a key to join with the Kubernetes API, not a name people meet.
    #[serde(skip)]
    pub pod_uid: Option<String>,
}

impl Container {
    /// The name of the owner of sockets that have none.
    pub const UNATTRIBUTED: &str = "~unattributed";

    /// What a filter asks of it.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            container_name: Some(&self.name),
            container_id: self.id.as_deref(),
            pod: self.pod.as_deref(),
            namespace: self.namespace.as_deref(),
            cgroup_id: Some(self.cgroup_id),
            cgroup_path: self.cgroup_path.as_deref(),
            ..Subject::default()
        }
    }

    /// Joins what the path says with what the runtime said. `cgroup_id` is the id of
    /// `identity.container_path`.
    pub fn new(cgroup_id: u64, identity: Identity, metadata: Option<&Metadata>) -> Self {
        let metadata = metadata.cloned().unwrap_or_default();
        Self {
            name: metadata.name.unwrap_or(identity.name),
            id: identity.id,
            runtime: metadata.runtime.or(Some(identity.runtime)),
            image: metadata.image,
            pod: metadata.pod,
            namespace: metadata.namespace,
            owner: metadata.owner,
            node: metadata.node,
            cgroup_id,
            cgroup_path: Some(identity.container_path),
            sandbox: metadata.sandbox,
            labels: metadata.labels,
            annotations: metadata.annotations,
            inner: None,
            pod_uid: identity.pod_uid.or(metadata.pod_uid),
        }
    }

    /// The container with all that is in it, to which totals belong.
    #[must_use]
    pub fn whole(self: &Arc<Self>) -> Arc<Self> {
        match self.inner {
            Some(_) => Arc::new(Self { inner: None, ..Self::clone(self) }),
            None => Arc::clone(self),
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
    fn annotations_and_sandbox_are_told_where_there_are_any() {
        let own = [label("own", "mine"), label("empty", "")];
        let pods = [label("own", "the pod's"), label("quoted", "\"a\\\n\u{1b}[31m")];
        let metadata = Metadata::default().annotated(own).annotated(pods).in_sandbox("s-1".into());
        let told = Container::new(7, identify(&format!("/docker/{ID}")), Some(&metadata));
        assert!(Arc::ptr_eq(&told.annotations, &metadata.annotations), "shared, however often it is told");
        let json = serde_json::to_value(&told).unwrap();
        assert_eq!((json.get("annotations"), &json["sandbox"]), (None, &json!("s-1")));
        assert_eq!(json.get("labels"), None);
        let annotations = serde_json::to_value(&told.annotations).unwrap();
        assert_eq!(annotations, json!({"own": "mine", "empty": "", "quoted": "\"a\\\n\u{1b}[31m"}));
        assert_eq!(Metadata::default().in_sandbox(String::new()).sandbox, None);
    }

    #[test]
    fn a_container_as_a_whole_tells_of_nothing_inside() {
        let path = format!("/docker/{ID}/docker/{ID}");
        let outer = identify(&path);
        let inner = super::super::inside(&path, &outer).map(Box::new);
        let part = Arc::new(Container { inner, ..Container::new(7, outer.clone(), None) });
        let told = json!({ "name": "3f4d9a1be0c7", "id": ID, "runtime": "docker", "cgroup_path": path });
        let json = serde_json::to_value(&*part).unwrap();
        assert_eq!(json["inner"], told);
        assert_eq!(serde_json::from_value::<Container>(json).unwrap(), *part);
        assert_eq!(*part.whole(), Container::new(7, outer, None));
    }

    #[test]
    fn what_one_does_not_know_another_adds() {
        let owner = PodOwner { kind: "Deployment".into(), name: "shop".into() };
        let told = Metadata {
            name: Some("web".into()),
            pod: Some("shop-7d9f".into()),
            owner: Some(owner.clone()),
            node: Some("n1".into()),
            ..Metadata::default()
        };
        let runtime =
            Metadata { name: Some("k8s_web".into()), image: Some("nginx:1".into()), ..Metadata::default() };
        let both = runtime.clone().or(&told);
        assert_eq!(
            both,
            Metadata { name: runtime.name.clone(), image: runtime.image.clone(), ..told.clone() }
        );
        assert_eq!(Metadata::default().or(&told), told);
        let container = Container::new(7, identify(&format!("/docker/{ID}")), Some(&both));
        let json = serde_json::to_value(&container).unwrap();
        assert_eq!(json["owner"], json!({"kind": "Deployment", "name": "shop"}));
        assert_eq!((&json["node"], owner.to_string().as_str()), (&json!("n1"), "Deployment/shop"));
    }

    #[test]
    fn the_runtime_that_knows_a_bare_id_made_it() {
        let of = |metadata: &Metadata| {
            Container::new(7, identify(&format!("/some/{ID}")), Some(metadata)).runtime.map(Runtime::as_str)
        };
        assert_eq!(of(&Metadata::default()), Some("docker"));
        let told = Metadata { runtime: Some(Runtime::Podman), ..Metadata::default() };
        assert_eq!(of(&Metadata::default().or(&told)), Some("podman"));
    }

    #[test]
    fn an_empty_name_is_no_name() {
        let empty = [POD_NAME, POD_NAMESPACE, POD_UID, CONTAINER_NAME, "mark"].map(|key| label(key, ""));
        let metadata = Metadata::new(Some(String::new()), Some(String::new()), empty);
        assert_eq!(metadata.labels["mark"], "", "a label may be a mark without a value");
        assert_eq!(Metadata { labels: Labels::default(), ..metadata }, Metadata::default());
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

        let many = || (0..1000).rev().map(|n| label(&format!("key{n:04}"), &"é".repeat(40_000)));
        let kept = Metadata::default().annotated([label("key0999", "last")]).annotated(many());
        assert_eq!((kept.annotations.len(), kept.annotations["key0063"].len()), (64, 4096));
    }
}
