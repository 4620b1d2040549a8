//! The cgroups of this host by id, and the container each belongs to.
//!
//! A cgroup's id is the inode number of its directory. The directories are walked at the start, kept up
//! to date by the kernel's mkdir and rmdir events, and walked again when an id is met that neither told.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::container::{self, Container, Identity, Metadata};
use model::mountinfo::Mount;

use super::lingering::{CAPACITY, GRACE, Lingering};

/// One cgroup.
struct Cgroup {
    path: Arc<str>,
    identity: Identity,
    /// The id of the container's own cgroup, if that was there when this one was met. A path may be another's later: a
    /// container that is started again has the path of the one before.
    owner: Option<u64>,
    /// When it was first met.
    since: Instant,
    /// The owner as last told, with the generation of the metadata it was told from.
    told: Mutex<Option<(u64, Arc<Container>)>>,
}

/// All cgroups, live and lately removed.
pub(super) struct Cgroups {
    by_id: Lingering<u64, Cgroup>,
    by_path: HashMap<Arc<str>, u64>,
    refused: u64,
}

/// What a walk over the directories found.
pub(super) struct Walk {
    started: Instant,
    found: Vec<(u64, String)>,
    /// Whether it saw everything, so that what it did not see is gone.
    complete: bool,
}

impl Cgroups {
    pub(super) fn new() -> Self {
        Self::bounded(CAPACITY, GRACE)
    }

    fn bounded(capacity: usize, grace: Duration) -> Self {
        Self { by_id: Lingering::new(capacity, grace), by_path: HashMap::new(), refused: 0 }
    }

    /// A cgroup was made, or is there. The same id with another path replaces what was known.
    pub(super) fn add(&mut self, id: u64, path: &str, now: Instant) {
        let known = self.by_id.get(&id).is_some_and(|cgroup| &*cgroup.path == path);
        if id == 0 || known && self.by_id.is_live(&id) {
            return;
        }
        let path: Arc<str> = path.into();
        let identity = container::identify(&path);
        let owner =
            if identity.container_path == *path { Some(id) } else { self.live_at(&identity.container_path) };
        let cgroup = Cgroup { path: path.clone(), identity, owner, since: now, told: Mutex::new(None) };
        let by_path = &mut self.by_path;
        let forget = |id: u64, old: Cgroup| {
            if by_path.get(&old.path) == Some(&id) {
                by_path.remove(&old.path);
            }
        };
        if self.by_id.insert(id, cgroup, now, forget) {
            self.by_path.insert(path, id);
            return;
        }
        if self.refused == 0 {
            tracing::warn!("more than {CAPACITY} cgroups: the rest is shown by id");
        }
        self.refused += 1;
    }

    /// A cgroup was removed. Its path stays known for the grace period.
    pub(super) fn remove(&mut self, id: u64, now: Instant) {
        self.by_id.remove(&id, now);
    }

    /// Takes over a walk. What events told since the walk began is newer than the walk and stays.
    pub(super) fn merge(&mut self, walk: Walk, now: Instant) {
        let seen: HashSet<u64> = walk.found.iter().map(|(id, _)| *id).collect();
        for (id, path) in walk.found {
            let told_later = self.by_id.removed_at(&id).is_some_and(|at| at >= walk.started)
                || self.by_id.get(&id).is_some_and(|cgroup| cgroup.since >= walk.started);
            if !told_later {
                self.add(id, &path, now);
            }
        }
        if walk.complete {
            let unseen = |(id, cgroup): &(&u64, &Cgroup)| !seen.contains(id) && cgroup.since < walk.started;
            let gone: Vec<u64> = self.by_id.live().filter(unseen).map(|(id, _)| *id).collect();
            for id in gone {
                self.remove(id, now);
            }
        }
    }

    /// The container that cgroup `id` is or lies in. `metadata` is asked with what the path tells, and
    /// only when `generation`, the count of its changes, is not the one of the last answer.
    pub(super) fn container(
        &self,
        id: u64,
        generation: u64,
        metadata: impl Fn(&Identity) -> Option<Arc<Metadata>>,
    ) -> Option<Arc<Container>> {
        let cgroup = self.by_id.get(&id)?;
        let mut told = cgroup.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, container)) = &*told
            && *of == generation
        {
            return Some(container.clone());
        }
        let identity = cgroup.identity.clone();
        // What is at the path now is a removed one's owner no more.
        let met_later = || self.by_id.is_live(&id).then(|| self.live_at(&identity.container_path)).flatten();
        let owner = cgroup.owner.or_else(met_later).unwrap_or(id);
        let inner = container::inside(&cgroup.path, &identity).map(|mut inner| {
            let identity = Identity { id: inner.id.clone(), pod_uid: None, ..identity.clone() };
            let told = metadata(&identity);
            if let Some(name) = told.and_then(|told| told.name.clone()) {
                inner.name = name;
            }
            Box::new(inner)
        });
        let metadata = metadata(&identity);
        let mut container =
            Arc::new(Container { inner, ..Container::new(owner, identity, metadata.as_deref()) });
        if let Some((_, before)) = &*told
            && *before == container
        {
            container = before.clone();
        }
        *told = Some((generation, container.clone()));
        Some(container)
    }

    /// The cgroup at this path now.
    fn live_at(&self, path: &str) -> Option<u64> {
        self.by_path.get(path).copied().filter(|id| self.by_id.is_live(id))
    }

    /// The ids of all cgroups that still exist.
    pub(super) fn live(&self) -> Vec<u64> {
        self.by_id.live().map(|(id, _)| *id).collect()
    }

    /// Whether this cgroup still exists.
    pub(super) fn is_live(&self, id: u64) -> bool {
        self.by_id.is_live(&id)
    }

    /// The ids of the cgroup at `path` and of all below it, lately removed ones too.
    pub(super) fn subtree(&self, path: &str) -> Vec<u64> {
        let path = path.trim_end_matches('/');
        let inside = |cgroup: &Cgroup| {
            cgroup.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.by_id.iter().filter(|(_, cgroup)| inside(cgroup)).map(|(id, _)| *id).collect()
    }
}

/// Walks all cgroup directories below `mount`. Costs one `readdir` per cgroup; what disappears on the
/// way is left out.
pub(super) fn walk(mount: &Mount) -> Walk {
    walk_bounded(mount, CAPACITY)
}

fn walk_bounded(mount: &Mount, most: usize) -> Walk {
    let mut walk = Walk { started: Instant::now(), found: Vec::new(), complete: true };
    let root = match fs::metadata(&mount.point) {
        Ok(root) => root.ino(),
        Err(error) => {
            tracing::warn!("cannot read cgroups at {}: {error}", mount.point.display());
            walk.complete = false;
            return walk;
        }
    };
    walk.found.push((root, mount.cgroup_path("")));
    let mut pending = vec![(mount.point.clone(), String::new())];
    while let Some((directory, relative)) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            // A directory that is gone has nothing below it; one that cannot be read may have.
            walk.complete &= !directory.exists();
            continue;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if walk.found.len() >= most {
                walk.complete = false;
                return walk;
            }
            let relative = format!("{relative}/{}", entry.file_name().to_string_lossy());
            walk.found.push((entry.ino(), mount.cgroup_path(&relative)));
            pending.push((entry.path(), relative));
        }
    }
    walk
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4d9a1be0c75c21d8f6aa0970b4e1c22d6b8f0e9a7c5d3b1f2e4a6c8d0b9e7f";

    fn told(cgroups: &Cgroups, id: u64) -> Option<Arc<Container>> {
        cgroups.container(id, 0, |_| None)
    }

    fn name(cgroups: &Cgroups, id: u64) -> Option<String> {
        told(cgroups, id).map(|container| container.name.clone())
    }

    fn walk_of(started: Instant, found: &[(u64, &str)]) -> Walk {
        let found = found.iter().map(|(id, path)| (*id, (*path).to_owned())).collect();
        Walk { started, found, complete: true }
    }

    #[test]
    fn a_deeper_cgroup_is_its_container() {
        let mut cgroups = Cgroups::new();
        let now = Instant::now();
        cgroups.add(7, &format!("/docker/{ID}"), now);
        cgroups.add(8, &format!("/docker/{ID}/init.scope"), now);
        let (outer, inner) = (told(&cgroups, 7), told(&cgroups, 8));
        assert_eq!(outer, inner);
        assert_eq!(inner.map(|container| container.cgroup_id), Some(7));
        // Its own cgroup unknown, the container goes by the id that is known.
        cgroups.add(9, "/lxc.payload.web/init.scope", now);
        assert_eq!(told(&cgroups, 9).map(|container| container.cgroup_id), Some(9));
    }

    #[test]
    fn a_container_in_a_container_is_told_beside_it() {
        let mut cgroups = Cgroups::new();
        let now = Instant::now();
        let within = ID.replace('f', "0");
        cgroups.add(7, &format!("/docker/{ID}"), now);
        cgroups.add(8, &format!("/docker/{ID}/docker/{within}/init.scope"), now);
        let metadata = |identity: &Identity| {
            let name = if identity.id.as_deref() == Some(ID) { "node" } else { "app" };
            Some(Arc::new(Metadata { name: Some(name.to_owned()), ..Metadata::default() }))
        };
        let whole = cgroups.container(7, 0, metadata).unwrap();
        let part = cgroups.container(8, 0, metadata).unwrap();
        assert_eq!((whole.name.as_str(), whole.inner.is_none()), ("node", true));
        assert_eq!(part.whole(), whole);
        let inner = part.inner.as_ref().unwrap();
        assert_eq!((inner.name.as_str(), inner.id.as_ref()), ("app", Some(&within)));
        assert_eq!(inner.cgroup_path, format!("/docker/{ID}/docker/{within}"));
    }

    #[test]
    fn a_removed_cgroup_is_not_in_the_container_that_came_after() {
        let mut cgroups = Cgroups::new();
        let now = Instant::now();
        let owner = |cgroups: &Cgroups, id| told(cgroups, id).map(|container| container.cgroup_id);
        // Of 4 it is not known what it was in: that was met too late.
        cgroups.add(4, "/lxc.payload.web/b", now);
        cgroups.remove(4, now);
        cgroups.add(2, "/lxc.payload.web", now);
        cgroups.add(3, "/lxc.payload.web/a", now);
        cgroups.add(5, "/lxc.payload.db/a", now);
        for id in [3, 2] {
            cgroups.remove(id, now);
        }
        cgroups.add(6, "/lxc.payload.web", now);
        cgroups.add(7, "/lxc.payload.web/a", now);
        cgroups.add(8, "/lxc.payload.db", now);
        assert_eq!([3, 4, 5, 7].map(|id| owner(&cgroups, id)), [Some(2), Some(4), Some(8), Some(6)]);
        assert_eq!(name(&cgroups, 3), name(&cgroups, 7));
    }

    #[test]
    fn a_removed_cgroup_is_named_until_its_grace_ends() {
        let mut cgroups = Cgroups::bounded(10, Duration::from_secs(60));
        let start = Instant::now();
        cgroups.add(7, "/system.slice/a.service", start);
        cgroups.remove(7, start);
        assert_eq!(name(&cgroups, 7).as_deref(), Some("a.service"));
        assert!(cgroups.live().is_empty());
        cgroups.add(8, "/system.slice/a.service", start + Duration::from_secs(61));
        assert_eq!(name(&cgroups, 7), None);
        // The path of the one that left now belongs to the new one.
        assert_eq!(cgroups.by_path.len(), 1);
        assert_eq!(cgroups.subtree("/system.slice/"), [8]);
    }

    #[test]
    fn an_id_with_another_path_is_replaced() {
        let mut cgroups = Cgroups::new();
        let now = Instant::now();
        cgroups.add(7, "/system.slice/a.service", now);
        assert_eq!(name(&cgroups, 7).as_deref(), Some("a.service"));
        cgroups.add(7, "/system.slice/b.service", now);
        assert_eq!(name(&cgroups, 7).as_deref(), Some("b.service"));
        assert_eq!(cgroups.by_path.len(), 1);
    }

    #[test]
    fn events_are_newer_than_a_walk_that_began_before() {
        let mut cgroups = Cgroups::new();
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        cgroups.add(1, "/", start);
        cgroups.add(2, "/old", start);
        cgroups.add(3, "/gone", start);
        cgroups.remove(3, second(2));
        cgroups.add(4, "/new", second(2));
        cgroups.add(6, "/renamed", second(2));
        // The walk saw 3 before it went and 6 under its former name, and missed 4, which came after.
        let found = [(1, "/"), (3, "/gone"), (5, "/found"), (6, "/former")];
        cgroups.merge(walk_of(second(1), &found), second(3));
        let mut live = cgroups.live();
        live.sort_unstable();
        assert_eq!(live, [1, 4, 5, 6]);
        assert_eq!(name(&cgroups, 6).as_deref(), Some("/renamed"));
        assert_eq!(name(&cgroups, 2).as_deref(), Some("/old"));
    }

    #[test]
    fn an_incomplete_walk_removes_nothing() {
        let mut cgroups = Cgroups::new();
        let start = Instant::now();
        cgroups.add(2, "/old", start);
        let walk = Walk { complete: false, ..walk_of(start + Duration::from_secs(1), &[]) };
        cgroups.merge(walk, start + Duration::from_secs(2));
        assert_eq!(cgroups.live(), [2]);
    }

    #[test]
    fn the_number_of_cgroups_is_bounded() {
        let mut cgroups = Cgroups::bounded(2, GRACE);
        let now = Instant::now();
        for id in 1..=5 {
            cgroups.add(id, &format!("/{id}"), now);
        }
        assert_eq!((cgroups.live().len(), cgroups.by_path.len(), cgroups.refused), (2, 2, 3));
    }

    #[test]
    fn a_subtree_ends_at_a_slash() {
        let mut cgroups = Cgroups::new();
        let now = Instant::now();
        for (id, path) in [(1, "/"), (2, "/a"), (3, "/a/b"), (4, "/ab")] {
            cgroups.add(id, path, now);
        }
        let sorted = |path| {
            let mut ids = cgroups.subtree(path);
            ids.sort_unstable();
            ids
        };
        assert_eq!(sorted("/a"), [2, 3]);
        assert_eq!(sorted("/a/b"), [3]);
        assert_eq!(sorted("/"), [1, 2, 3, 4]);
        assert!(sorted("/x").is_empty());
    }

    #[test]
    fn a_walk_finds_every_directory() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("docker").join(ID)).unwrap();
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        std::os::unix::fs::symlink(root.path(), root.path().join("loop")).unwrap();
        let mount = Mount { point: root.path().to_owned(), root: "/".to_owned() };
        let walked = walk(&mount);
        let paths: Vec<&str> = walked.found.iter().map(|(_, path)| path.as_str()).collect();
        assert_eq!(paths, ["/", "/docker", &format!("/docker/{ID}")]);
        for (id, path) in &walked.found {
            let inode = fs::metadata(root.path().join(path.trim_start_matches('/'))).unwrap().ino();
            assert_eq!(*id, inode, "{path}");
        }
        assert!(walked.complete);
        assert!(!walk_bounded(&mount, 2).complete);
        let part = Mount { root: "/outer".to_owned(), ..mount };
        assert_eq!(walk(&part).found[1].1, "/outer/docker");
    }
}
