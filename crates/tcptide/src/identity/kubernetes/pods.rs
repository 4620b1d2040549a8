//! The pods of the own node: what each belongs to, and which containers it has.
//!
//! A pod's controller is mostly something that another thing made. A Deployment makes ReplicaSets, and calls them
//! `<deployment>-<hash>` with the hash that their pods carry as the label `pod-template-hash`: the name of the
//! Deployment is read off that. A CronJob makes Jobs under names that prove nothing, so each Job is asked for its own
//! owner, once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use model::container::{Identity, Metadata, PodOwner};

use super::super::lingering::{CAPACITY, GRACE, Lingering};
use super::objects::{Key, Meta, OwnerReference, Pod};

/// The most pods kept. A node has some hundred.
const MOST_PODS: usize = 10_000;

/// What a container is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Id {
    /// UID of its pod.
    Pod(String),
    /// Its own full id.
    Container(String),
}

/// A pod as it was last told.
struct Known {
    ids: HashMap<Id, Arc<Metadata>>,
    /// The Job that controls it.
    job: Option<Key>,
}

/// See the module.
pub(super) struct Pods {
    known: HashMap<Key, Known>,
    /// What is told of pods and containers, also of those that are gone, for a while.
    told: Lingering<Id, Arc<Metadata>>,
    /// What the Jobs of these pods belong to; none where it is not known yet.
    jobs: BTreeMap<Key, Option<PodOwner>>,
    left_out: usize,
}

impl Pods {
    pub(super) fn new() -> Self {
        let told = Lingering::new(CAPACITY, GRACE);
        Self { known: HashMap::new(), told, jobs: BTreeMap::new(), left_out: 0 }
    }

    /// Takes over what the API says of a pod. Returns whether something else is told than before.
    pub(super) fn put(&mut self, pod: &Pod, now: Instant) -> bool {
        let key = pod.metadata.key();
        if !self.known.contains_key(&key) && self.known.len() >= MOST_PODS {
            self.left_out += 1;
            return false;
        }
        let mut owner = owner(&pod.metadata);
        let job = owner.as_ref().filter(|owner| owner.kind == "Job");
        let job = job.map(|job| (key.0.clone(), job.name.as_str().into()));
        if let Some(job) = &job
            && let Some(above) = self.jobs.entry(job.clone()).or_default()
        {
            owner = Some(above.clone());
        }
        self.replace(key, Known { ids: ids(pod, owner.as_ref()), job }, now)
    }

    /// Pod `key` has these ids, and no others that it had before.
    fn replace(&mut self, key: Key, new: Known, now: Instant) -> bool {
        let mut changed = false;
        let old = self.known.get(&key).map(|old| &old.ids);
        for id in old.into_iter().flat_map(HashMap::keys).filter(|id| !new.ids.contains_key(*id)) {
            self.told.remove(id, now);
        }
        for (id, metadata) in &new.ids {
            if self.told.get(id) != Some(metadata) || !self.told.is_live(id) {
                changed = true;
                self.told.insert(id.clone(), metadata.clone(), now, |_, _| ());
            }
        }
        self.known.insert(key, new);
        changed
    }

    /// A pod is gone. What was told of it stays for the grace period.
    pub(super) fn remove(&mut self, key: &Key, now: Instant) {
        let Some(old) = self.known.remove(key) else { return };
        for id in old.ids.keys() {
            self.told.remove(id, now);
        }
        if let Some(job) = old.job
            && !self.known.values().any(|pod| pod.job.as_ref() == Some(&job))
        {
            self.jobs.remove(&job);
        }
    }

    /// Forgets the pods that are not listed.
    pub(super) fn keep(&mut self, listed: &HashSet<Key>, now: Instant) {
        let gone: Vec<Key> = self.known.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&key, now);
        }
        self.left_out = listed.len().saturating_sub(self.known.len());
    }

    /// A Job of which it is not known what it belongs to, the first one after `last`.
    pub(super) fn unknown_job(&self, last: Option<&Key>) -> Option<Key> {
        let unknown = |(job, owner): (&Key, &Option<PodOwner>)| owner.is_none().then(|| job.clone());
        self.jobs.iter().filter(|(job, _)| last.is_none_or(|last| *job > last)).find_map(unknown)
    }

    /// The Job has told what it belongs to: itself if to nothing. Returns whether that is news.
    pub(super) fn set_job(&mut self, job: &Key, of: &Meta, now: Instant) -> bool {
        let Some(known) = self.jobs.get_mut(job) else { return false };
        let above =
            controller(of).unwrap_or_else(|| PodOwner { kind: "Job".into(), name: job.1.to_string() });
        *known = Some(above.clone());
        let mut changed = false;
        let pods = self.known.iter().filter(|(_, pod)| pod.job.as_ref() == Some(job));
        for key in pods.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            let Some(pod) = self.known.get(&key) else { continue };
            let owned = |metadata: &Metadata| Metadata { owner: Some(above.clone()), ..metadata.clone() };
            let ids = pod.ids.iter().map(|(id, metadata)| (id.clone(), Arc::new(owned(metadata)))).collect();
            let new = Known { ids, job: pod.job.clone() };
            changed |= self.replace(key, new, now);
        }
        changed
    }

    /// Completes what a runtime told of a container, or tells it where none did.
    pub(super) fn complete(&self, identity: &Identity, told: Option<Arc<Metadata>>) -> Option<Arc<Metadata>> {
        let Some(found) = self.find(identity, told.as_deref()) else { return told };
        Some(match told {
            Some(told) => Arc::new((*told).clone().or(found)),
            None => found.clone(),
        })
    }

    fn find(&self, identity: &Identity, told: Option<&Metadata>) -> Option<&Arc<Metadata>> {
        if let Some(id) = &identity.id
            && let Some(found) = self.told.get(&Id::Container(id.clone()))
        {
            return Some(found);
        }
        let uid = identity.pod_uid.as_ref().or_else(|| told?.pod_uid.as_ref());
        if let Some(uid) = uid {
            return self.told.get(&Id::Pod(uid.clone()));
        }
        let told = told?;
        let key: Key = (told.namespace.as_deref()?.into(), told.pod.as_deref()?.into());
        self.known.get(&key)?.ids.iter().find_map(|(id, pod)| matches!(id, Id::Pod(_)).then_some(pod))
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// How many pods there was no room for.
    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }
}

/// What a pod belongs to, as far as it says so itself.
fn owner(pod: &Meta) -> Option<PodOwner> {
    let owner = controller(pod)?;
    let hash = pod.labels.pod_template_hash.as_deref().filter(|hash| !hash.is_empty());
    if owner.kind == "ReplicaSet"
        && let Some(deployment) = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'))
        && !deployment.is_empty()
    {
        return Some(PodOwner { kind: "Deployment".to_owned(), name: deployment.to_owned() });
    }
    Some(owner)
}

/// The one of an object's owners that controls it.
fn controller(object: &Meta) -> Option<PodOwner> {
    let owner = object.owner_references.iter().find(|owner| owner.controller == Some(true))?;
    let OwnerReference { kind, name, .. } = owner.clone();
    Some(PodOwner { kind, name })
}

/// All that a pod and its containers are found by, and what is told then.
fn ids(pod: &Pod, owner: Option<&PodOwner>) -> HashMap<Id, Arc<Metadata>> {
    let Pod { metadata, spec, status } = pod;
    let of_pod = Metadata {
        owner: owner.cloned(),
        node: spec.node_name.clone(),
        ..Metadata::default().in_pod(&metadata.name, &metadata.namespace, &metadata.uid)
    };
    let uids = [Some(&metadata.uid), metadata.annotations.mirror.as_ref()];
    let whole = Arc::new(of_pod.clone());
    let mut ids: HashMap<Id, Arc<Metadata>> =
        uids.into_iter().flatten().map(|uid| (Id::Pod(uid.clone()), whole.clone())).collect();
    let specs = [&spec.containers, &spec.init_containers, &spec.ephemeral_containers];
    let statuses =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    for status in statuses.into_iter().flatten() {
        // The image as the user called it; a status may have an id in its place.
        let spec = specs.into_iter().flatten().find(|spec| spec.name == status.name);
        let image = spec.and_then(|spec| spec.image.clone()).or_else(|| status.image.clone());
        let container = Arc::new(Metadata::new(Some(status.name.clone()), image, []).or(&of_pod));
        let before = status.last_state.terminated.as_ref().and_then(|before| before.container_id.as_ref());
        // `containerd://<id>`
        for id in status.container_id.iter().chain(before).filter_map(|id| id.split_once("://")) {
            ids.insert(Id::Container(id.1.to_owned()), container.clone());
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use model::container::identify;
    use serde_json::{Value, from_value, json};

    use super::super::objects::PodStatus;
    use super::*;

    const ID: &str = "3f4d9a1be0c75c21d8f6aa0970b4e1c22d6b8f0e9a7c5d3b1f2e4a6c8d0b9e7f";
    const UID: &str = "0b7a2c1e-5f3d-4a86-9c1b-7d2e8f4a6b05";

    fn pod(name: &str, owner: &Value, labels: &Value) -> Pod {
        from_value(json!({
            "metadata": {
                "name": name, "namespace": "prod", "uid": UID, "labels": labels, "ownerReferences": [owner],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "web", "image": "nginx:1"}, {"name": "log"}]},
            "status": {"containerStatuses": [
                {"name": "web", "image": "sha256:77", "containerID": format!("containerd://{ID}"),
                 "lastState": {"terminated": {"containerID": "containerd://before"}}},
                {"name": "log", "image": "busybox", "containerID": "containerd://other"},
                {"name": "waits", "image": "busybox"},
            ]},
        }))
        .unwrap()
    }

    fn by(kind: &str, name: &str) -> Value {
        json!({"kind": kind, "name": name, "controller": true})
    }

    fn owner_of(pods: &Pods, path: &str) -> Option<String> {
        Some(pods.complete(&identify(path), None)?.owner.as_ref()?.to_string())
    }

    #[test]
    fn owners_are_told_as_far_as_they_are_known() {
        let owner_of =
            |by: &Value, labels: Value| owner(&pod("p", by, &labels).metadata).map(|owner| owner.to_string());
        let hash = || json!({"pod-template-hash": "7d9f8b6c54"});
        let expect = |owner: &Value, labels: Value, text: &str| {
            assert_eq!(owner_of(owner, labels).as_deref(), Some(text));
        };
        expect(&by("ReplicaSet", "shop-web-7d9f8b6c54"), hash(), "Deployment/shop-web");
        expect(&by("ReplicaSet", "shop-web-7d9f8b6c54"), json!({}), "ReplicaSet/shop-web-7d9f8b6c54");
        expect(&by("ReplicaSet", "shop-web-7d9f8b6c54"), Value::Null, "ReplicaSet/shop-web-7d9f8b6c54");
        expect(&by("ReplicaSet", "shop-web"), hash(), "ReplicaSet/shop-web");
        expect(&by("ReplicaSet", "-7d9f8b6c54"), hash(), "ReplicaSet/-7d9f8b6c54");
        expect(&by("StatefulSet", "db-7d9f8b6c54"), hash(), "StatefulSet/db-7d9f8b6c54");
        expect(&by("DaemonSet", "proxy"), json!({}), "DaemonSet/proxy");
        expect(&by("Node", "n1"), json!({}), "Node/n1");
        assert_eq!(
            owner_of(&json!({"kind": "Deployment", "name": "watched"}), json!({})),
            None,
            "no controller"
        );
    }

    #[test]
    fn a_container_is_found_by_its_id_its_pods_uid_or_its_name() {
        let mut pods = Pods::new();
        let shop = pod("shop", &by("StatefulSet", "shop"), &json!({}));
        assert!(pods.put(&shop, Instant::now()));
        assert!(!pods.put(&shop, Instant::now()), "no news");
        let slice = format!("/kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_"));
        let of = |path: &str| pods.complete(&identify(path), None).unwrap_or_default();
        let web = of(&format!("{slice}/cri-containerd-{ID}.scope"));
        assert_eq!((web.name.as_deref(), web.image.as_deref()), (Some("web"), Some("nginx:1")));
        assert_eq!((web.pod.as_deref(), web.namespace.as_deref()), (Some("shop"), Some("prod")));
        assert_eq!((web.pod_uid.as_deref(), web.node.as_deref()), (Some(UID), Some("n1")));
        // The sandbox, and the pod's own cgroup.
        for path in [format!("{slice}/cri-containerd-{}.scope", ID.replace('3', "4")), slice] {
            let pod = of(&path);
            assert_eq!((pod.name.as_deref(), pod.pod.as_deref()), (None, Some("shop")), "{path}");
        }
        // A runtime's own words come first.
        let docker = Arc::new(Metadata {
            name: Some("k8s_web".into()),
            pod: Some("shop".into()),
            namespace: Some("prod".into()),
            ..Metadata::default()
        });
        let docker_path = identify(&format!("/docker/{}", ID.replace('3', "5")));
        let joined = pods.complete(&docker_path, Some(docker)).unwrap();
        assert_eq!((joined.name.as_deref(), joined.image.as_deref()), (Some("k8s_web"), None));
        assert_eq!(joined.owner.as_ref().map(ToString::to_string).as_deref(), Some("StatefulSet/shop"));
        // Another pod of the same name is another pod.
        let old = Arc::new(Metadata::default().in_pod("shop", "prod", "u-0"));
        assert_eq!(pods.complete(&docker_path, Some(old.clone())), Some(old));
        assert_eq!(pods.complete(&docker_path, None), None);
    }

    #[test]
    fn a_static_pod_is_found_by_the_kubelets_own_uid() {
        let mut pods = Pods::new();
        let mut mirror = pod("etcd-n1", &by("Node", "n1"), &json!({}));
        let own = "c2b4c0b5d5d8ad1e9f0c7a9d3b1e5f77";
        mirror.metadata.annotations.mirror = Some(own.to_owned());
        pods.put(&mirror, Instant::now());
        let path = format!("/kubepods/burstable/pod{own}");
        assert_eq!(owner_of(&pods, &path).as_deref(), Some("Node/n1"));
        let name = pods.complete(&identify(&path), None).and_then(|pod| pod.pod.clone());
        assert_eq!(name.as_deref(), Some("etcd-n1"));
    }

    #[test]
    fn restarts_and_ends_leave_names_for_a_while() {
        let mut pods = Pods::new();
        let start = Instant::now();
        let mut shop = pod("shop", &by("StatefulSet", "shop"), &json!({}));
        pods.put(&shop, start);
        let name = |pods: &Pods, id: &str| {
            let identity = Identity { id: Some(id.to_owned()), ..identify("/x") };
            pods.complete(&identity, None).and_then(|container| container.name.clone())
        };
        assert_eq!(name(&pods, "before").as_deref(), Some("web"), "the one before its restart");
        shop.status.container_statuses.truncate(1);
        shop.status.container_statuses[0].last_state.terminated = None;
        pods.put(&shop, start);
        assert_eq!(name(&pods, "other").as_deref(), Some("log"));
        assert!(!pods.told.is_live(&Id::Container("other".into())));
        // Made anew under the same name, as a StatefulSet does.
        shop.metadata.uid = "u-2".into();
        pods.put(&shop, start);
        assert!(!pods.told.is_live(&Id::Pod(UID.into())) && pods.told.is_live(&Id::Pod("u-2".into())));
        pods.keep(&HashSet::new(), start);
        assert_eq!((pods.len(), name(&pods, ID).as_deref()), (0, Some("web")));
        let late = Pod { status: PodStatus::default(), ..pod("late", &json!({}), &Value::Null) };
        pods.put(&late, start + GRACE);
        assert_eq!(name(&pods, "other"), None);
    }

    #[test]
    fn a_job_is_asked_for_its_owner_once() {
        let mut pods = Pods::new();
        let now = Instant::now();
        let path = format!("/kubepods/besteffort/pod{UID}/{ID}");
        pods.put(&pod("backup-28912-x", &by("Job", "backup-28912"), &json!({})), now);
        let job: Key = ("prod".into(), "backup-28912".into());
        assert_eq!(owner_of(&pods, &path).as_deref(), Some("Job/backup-28912"));
        assert_eq!(pods.unknown_job(None), Some(job.clone()));
        assert_eq!(pods.unknown_job(Some(&job)), None);
        let cron =
            Meta { owner_references: vec![from_value(by("CronJob", "backup")).unwrap()], ..Meta::default() };
        assert!(pods.set_job(&job, &cron, now));
        assert_eq!(owner_of(&pods, &path).as_deref(), Some("CronJob/backup"));
        assert_eq!(pods.unknown_job(None), None);
        // The pod is told of again: nothing is asked again.
        pods.put(&pod("backup-28912-x", &by("Job", "backup-28912"), &json!({})), now);
        assert_eq!(
            (pods.unknown_job(None), owner_of(&pods, &path).as_deref()),
            (None, Some("CronJob/backup"))
        );
        pods.remove(&("prod".into(), "backup-28912-x".into()), now);
        assert!(pods.jobs.is_empty());
        assert!(!pods.set_job(&job, &cron, now), "the last pod of it is gone");
        // A Job by itself.
        pods.put(&pod("once-x", &by("Job", "once"), &json!({})), now);
        assert!(!pods.set_job(&("prod".into(), "once".into()), &Meta::default(), now));
        assert_eq!((pods.unknown_job(None), owner_of(&pods, &path).as_deref()), (None, Some("Job/once")));
    }
}
