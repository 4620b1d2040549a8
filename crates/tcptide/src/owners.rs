//! The owners that a filter asks for, told to the kernel side so that it sends nothing of others.
//!
//! The kernel knows cgroups, people say names. Cgroups are settled here as far as they are known; those that are not yet
//! are sent and filtered here, until their name is known.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use model::{
    container::{Container, Runtime, nearest, sanitize},
    filter::{CgroupRef, Filter, Subject},
};
use probe::Monitor;

use crate::identity::Directory;

/// How often names are looked at again: a runtime may tell one late, or change it.
const PERIOD: Duration = Duration::from_secs(1);
/// How many names a complaint lists.
const LISTED: usize = 8;

/// What was told to the kernel side so far.
pub(crate) struct Owners {
    filter: Filter,
    /// Its part that is about names.
    names: Filter,
    told: HashMap<u64, (bool, bool)>,
    last: Instant,
}

impl Owners {
    pub(crate) fn new(filter: &Filter) -> Self {
        let Filter { container, pod, namespace, .. } = filter.clone();
        let names = Filter { container, pod, namespace, ..Filter::default() };
        Self { filter: filter.clone(), names, told: HashMap::new(), last: Instant::now() }
    }

    /// Whether the filter is about owners at all.
    pub(crate) fn are_asked_for(&self) -> bool {
        self.by_name() || !self.filter.cgroup.is_empty()
    }

    fn by_name(&self) -> bool {
        !self.names.is_empty()
    }

    /// Whether it is time to look at the names again.
    pub(crate) fn are_due(&self) -> bool {
        self.are_asked_for() && self.last.elapsed() >= PERIOD
    }

    /// Brings the kernel side up to date.
    pub(crate) fn tell(&mut self, monitor: &mut Monitor, directory: &Directory) -> anyhow::Result<()> {
        self.last = Instant::now();
        if !self.filter.cgroup.is_empty() {
            // Paths hold for what lies below, which the kernel side follows itself. Names, if any, are left to us.
            self.tell_cgroups(monitor, directory)?;
            // A path that is not there yet may come any moment: until it does, everything is sent and filtered here.
            let missing = |item: &CgroupRef| match item {
                CgroupRef::Id(_) => false,
                CgroupRef::Path(path) => directory.subtree(path).is_empty(),
            };
            let includes = self.filter.cgroup.includes();
            monitor.want_other_cgroups(includes.is_empty() || includes.iter().any(missing));
        } else if self.by_name() {
            let awaited = directory.awaits_names();
            for container in directory.all() {
                let wanted = self.names.matches(&owner(&container));
                // A runtime that answers may yet tell the name: until then its connections are sent, and filtered here.
                if !wanted && awaited && is_container(&container) && container.image.is_none() {
                    continue;
                }
                // What a container holds is the container's; what a slice holds may be anything.
                self.put(monitor, container.cgroup_id, wanted, !is_container(&container))?;
            }
        }
        Ok(())
    }

    fn tell_cgroups(&mut self, monitor: &Monitor, directory: &Directory) -> anyhow::Result<()> {
        let ids = |item: &CgroupRef| match item {
            CgroupRef::Id(id) => vec![*id],
            CgroupRef::Path(path) => directory.subtree(path),
        };
        let listed = [(true, self.filter.cgroup.includes()), (false, self.filter.cgroup.excludes())];
        // Excludes come last: they win.
        let verdicts: Vec<_> = listed
            .into_iter()
            .flat_map(|(wanted, items)| items.iter().flat_map(ids).map(move |id| (id, wanted)))
            .collect::<HashMap<_, _>>()
            .into_iter()
            .collect();
        verdicts.into_iter().try_for_each(|(id, wanted)| self.put(monitor, id, wanted, false))
    }

    fn put(&mut self, monitor: &Monitor, cgroup: u64, wanted: bool, alone: bool) -> anyhow::Result<()> {
        if self.told.insert(cgroup, (wanted, alone)) != Some((wanted, alone)) {
            monitor.want_cgroup(cgroup, wanted, alone)?;
        }
        Ok(())
    }

    /// What to tell a person who asked for owners of which there is none.
    pub(crate) fn complaint(&self, directory: &Directory) -> Option<String> {
        let all = directory.all();
        let found = all.iter().any(|container| self.names.matches(&owner(container)));
        let cgroups_found = self.filter.cgroup.includes().is_empty()
            || self.filter.cgroup.includes().iter().any(|item| match item {
                CgroupRef::Id(id) => directory.resolve(*id).cgroup_path.is_some(),
                CgroupRef::Path(path) => !directory.subtree(path).is_empty(),
            });
        if !cgroups_found {
            let asked =
                self.filter.cgroup.includes().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            return Some(format!("there is no cgroup {}", sanitize(&asked)));
        }
        if found || !self.by_name() || !self.filter.cgroup.is_empty() {
            return None;
        }
        let names = || all.iter().map(|container| container.name.as_str());
        let asked = self.filter.container.includes();
        let near: Vec<_> = asked.iter().flat_map(|pattern| nearest(&pattern.to_string(), names())).collect();
        let mut text = format!("nothing here has {}", sanitize(&self.names.describe()));
        if near.is_empty() {
            let containers: Vec<_> =
                all.iter().filter(|c| is_container(c)).map(|c| sanitize(&c.name).into_owned()).collect();
            match containers.len() {
                0 => text.push_str("; no container runs here"),
                n => text.extend(["; there are ", &containers[..n.min(LISTED)].join(", "), &more(n)]),
            }
        } else {
            let near: Vec<_> = near.into_iter().map(|name| sanitize(name).into_owned()).collect();
            text.extend(["; did you mean ", &near.join(" or "), "?"]);
        }
        Some(text)
    }
}

fn more(n: usize) -> String {
    if n > LISTED { format!(" and {} more (see `tcptide containers`)", n - LISTED) } else { String::new() }
}

/// Whether this is a container, and not a service or another part of the host.
pub(crate) fn is_container(container: &Container) -> bool {
    container.runtime.is_some_and(|runtime| !matches!(runtime, Runtime::Systemd | Runtime::Cgroup))
}

/// What a filter can know of an owner alone.
fn owner(container: &Container) -> Subject<'_> {
    Subject {
        container_name: Some(&container.name),
        container_id: container.id.as_deref(),
        pod: container.pod.as_deref(),
        namespace: container.namespace.as_deref(),
        ..Subject::default()
    }
}
