//! From a cgroup path to the container it belongs to.
//!
//! The path is the one thing every runtime leaves behind for every container, without an API and
//! without a privilege. Each runtime family has its own file with the patterns it writes; this file
//! walks the path and asks them in turn.
//!
//! * **The outermost container wins.** Docker in Docker, a pod in a `kind` node or systemd in a
//!   container are all that outer container: it is what the host's user started. [`inside`] tells the
//!   innermost one.
//! * **A container wins over the systemd unit around it** (rootless Podman below `user@1000.service`).
//! * **Monitors are not containers.** `conmon` and `lxc-start` run on the host beside their container
//!   and keep a plain identity, although the container's id stands in their path.

mod containerd;
mod crio;
mod docker;
mod ecs;
mod kubernetes;
mod lxc;
mod metadata;
mod nspawn;
mod path;
mod podman;
mod systemd;
mod text;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use metadata::{Container, Inner, Labels, Metadata, PodOwner};
use path::Step;
pub use text::{nearest, sanitize};

/// Who made a cgroup, as far as its path tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Docker Engine, `BuildKit` steps inside it included.
    Docker,
    /// Podman, rootful or rootless.
    Podman,
    /// containerd through CRI, or a bare id in its `k8s.io` namespace.
    Containerd,
    /// nerdctl on containerd.
    Nerdctl,
    /// CRI-O.
    #[serde(rename = "cri-o")]
    CriO,
    /// A Kubernetes pod or container whose path does not tell the runtime below.
    Kubernetes,
    /// Amazon ECS, Fargate included.
    Ecs,
    /// LXC, and LXD or Incus on top of it.
    Lxc,
    /// `systemd-nspawn`.
    Nspawn,
    /// A systemd unit that is no container.
    Systemd,
    /// Any other cgroup.
    Cgroup,
}

impl Runtime {
    /// The stable lower-case name, the same in JSON, labels and filters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Nerdctl => "nerdctl",
            Self::CriO => "cri-o",
            Self::Kubernetes => "kubernetes",
            Self::Ecs => "ecs",
            Self::Lxc => "lxc",
            Self::Nspawn => "nspawn",
            Self::Systemd => "systemd",
            Self::Cgroup => "cgroup",
        }
    }

    /// Whether this is a container (or pod) rather than a unit or a plain cgroup.
    pub const fn is_container(self) -> bool {
        !matches!(self, Self::Systemd | Self::Cgroup)
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a cgroup path alone says about its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who made the cgroup.
    pub runtime: Runtime,
    /// The runtime's full id as it stands in the path; for LXC and nspawn, the name.
    /// None for units, plain cgroups and pods.
    pub id: Option<String>,
    /// The best name the path gives: the first 12 digits of an id, a machine's name, a unit's name
    /// (`nginx.service`), `pod:<uid>` for a pod's own cgroup, else the path itself.
    pub name: String,
    /// UID of the Kubernetes pod (with dashes), id of the Podman pod, or the ECS task.
    pub pod_uid: Option<String>,
    /// Path of the cgroup that is the container (or unit): the argument or an ancestor of it.
    pub container_path: String,
}

/// What a family says of one component of a path.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// This cgroup is a container.
    Container { runtime: Runtime, id: Option<String>, name: String, pod_uid: Option<String> },
    /// This cgroup holds a container's keeper, never the container.
    Monitor,
}

impl Verdict {
    /// A container known by a long id.
    fn by_id(runtime: Runtime, id: &str, pod_uid: Option<String>) -> Self {
        Self::Container { runtime, id: Some(id.to_owned()), name: path::short_id(id).to_owned(), pod_uid }
    }

    /// A container whose name is its id.
    fn by_name(runtime: Runtime, name: String) -> Self {
        Self::Container { runtime, id: Some(name.clone()), name, pod_uid: None }
    }
}

/// The families in the order they are asked; Docker is last because it also takes the bare ids
/// that nobody else claims.
const FAMILIES: [fn(&Step) -> Option<Verdict>; 8] = [
    ecs::verdict,
    podman::verdict,
    crio::verdict,
    containerd::verdict,
    kubernetes::verdict,
    lxc::verdict,
    nspawn::verdict,
    docker::verdict,
];

/// Tells whose cgroup `path` is. The path is relative to the root of its hierarchy, as in
/// `/proc/<pid>/cgroup`. Every string has an answer; what is not recognised is a plain cgroup.
pub fn identify(path: &str) -> Identity {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let steps = || path::steps(path);
    for step in steps() {
        match FAMILIES.iter().find_map(|verdict| verdict(&step)) {
            Some(Verdict::Container { runtime, id, name, pod_uid }) => {
                return Identity { runtime, id, name, pod_uid, container_path: step.path.to_owned() };
            }
            Some(Verdict::Monitor) => {
                return Identity { container_path: step.path.to_owned(), ..plain(step.path) };
            }
            None => {}
        }
    }
    steps()
        .find_map(|step| podman::pod(&step).or_else(|| kubernetes::pod(&step)))
        .unwrap_or_else(|| plain(path))
}

/// The innermost container on `path` that lies in another, `outer`, which is what [`identify`] said of the
/// path: a container of Docker in Docker, or of a pod in a `kind` node. None if `path` is in `outer` alone,
/// or in the cgroup of an inner one's monitor.
pub fn inside(path: &str, outer: &Identity) -> Option<Inner> {
    if !outer.runtime.is_container() {
        return None;
    }
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let below = path::steps(path).filter(|step| step.path.len() > outer.container_path.len());
    let verdicts = below.filter_map(|step| match FAMILIES.iter().find_map(|verdict| verdict(&step))? {
        Verdict::Container { runtime, id, name, .. } => {
            Some(Some(Inner { name, id, runtime, cgroup_path: step.path.to_owned() }))
        }
        Verdict::Monitor => Some(None),
    });
    verdicts.last().flatten()
}

/// The identity of a cgroup that is no container: its systemd unit, else itself.
fn plain(path: &str) -> Identity {
    systemd::unit(path).unwrap_or_else(|| {
        let path = if path.bytes().all(|byte| byte == b'/') { "/" } else { path };
        Identity {
            runtime: Runtime::Cgroup,
            id: None,
            name: path.to_owned(),
            pod_uid: None,
            container_path: path.to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One row of `testdata/paths.txt`, with `<64>` and the like expanded.
    struct Row {
        path: String,
        runtime: String,
        id: Option<String>,
        name: String,
        pod_uid: Option<String>,
        container_path: String,
    }

    fn rows() -> Vec<Row> {
        let text = include_str!("testdata/paths.txt")
            .replace("<64>", "3f4d9a1be0c75c21d8f6aa0970b4e1c22d6b8f0e9a7c5d3b1f2e4a6c8d0b9e7f")
            .replace("<b64>", "b81ce77a05d94f3e6a2c1b0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f");
        let mut blocks = Vec::new();
        let mut path: Option<String> = None;
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let Some(fields) = line.strip_prefix("    ") else {
                assert!(path.replace(line.to_owned()).is_none(), "no answer before {line}");
                continue;
            };
            let path = path.take().unwrap_or_else(|| panic!("no path before {line}"));
            let fields: Vec<&str> = fields.split_whitespace().collect();
            let [runtime, id, name, pod_uid, container_path] = fields[..] else {
                panic!("five fields: {line}")
            };
            let optional = |field: &str| (field != "-").then(|| field.to_owned());
            blocks.push(Row {
                runtime: runtime.to_owned(),
                id: optional(id),
                name: if name == "." { path.clone() } else { name.to_owned() },
                pod_uid: optional(pod_uid),
                container_path: match container_path {
                    "." => path.clone(),
                    up => path.strip_suffix(up).unwrap_or_else(|| panic!("{up} ends {path}")).to_owned(),
                },
                path,
            });
        }
        blocks
    }

    #[test]
    fn real_paths_are_identified() {
        let rows = rows();
        assert!(rows.len() > 60, "{}", rows.len());
        for row in rows {
            let found = identify(&row.path);
            let expected = Identity {
                runtime: found.runtime,
                id: row.id,
                name: row.name,
                pod_uid: row.pod_uid,
                container_path: row.container_path,
            };
            assert_eq!((found.runtime.as_str(), &found), (row.runtime.as_str(), &expected), "{}", row.path);
        }
    }

    #[test]
    fn the_innermost_of_nested_containers_is_told() {
        let [a, b, c] = ["a", "b", "c"].map(|digit| digit.repeat(64));
        let pod = "pod6c1f2f5e-9f0d-4f0c-8a5e-0d1b2c3d4e5f";
        let slice = "kubepods-burstable-pod6c1f2f5e_9f0d_4f0c_8a5e_0d1b2c3d4e5f.slice";
        for (path, expected) in [
            // kind with either driver, Docker in Docker, three of them, what systemd does in the innermost.
            (format!("/docker/{a}/kubelet/kubepods/burstable/{pod}/{b}"), Some((Runtime::Kubernetes, &b))),
            (
                format!("/system.slice/docker-{a}.scope/kubelet.slice/{slice}/cri-containerd-{b}.scope"),
                Some((Runtime::Containerd, &b)),
            ),
            (format!("/docker/{a}/docker/{b}"), Some((Runtime::Docker, &b))),
            (format!("/docker/{a}/docker/{b}/docker/{c}"), Some((Runtime::Docker, &c))),
            (format!("/lxc.payload.web/docker/{b}/system.slice/a.service"), Some((Runtime::Docker, &b))),
            (format!("/machine.slice/machine-web.scope/payload/docker/{b}"), Some((Runtime::Docker, &b))),
            // One container, and what is in it; a monitor of an inner one; a pod's own cgroup.
            (format!("/docker/{a}"), None),
            (format!("/docker/{a}/system.slice/a.service"), None),
            (format!("/machine.slice/libpod-{a}.scope/container"), None),
            (format!("/docker/{a}/libpod_parent/libpod-conmon-{b}"), None),
            (format!("/docker/{a}/kubelet/kubepods/burstable/{pod}"), None),
            (format!("/system.slice/a.service/{b}.slice"), None),
            ("/system.slice/a.service".to_owned(), None),
        ] {
            let outer = identify(&path);
            let found = inside(&path, &outer);
            let told = found.as_ref().map(|inner| (inner.runtime, inner.id.as_ref().unwrap()));
            assert_eq!(told, expected, "{path}");
            if let Some(inner) = found {
                assert_eq!(inner.name, inner.id.unwrap()[..12]);
                assert!(path.starts_with(&inner.cgroup_path), "{path}");
            }
        }
    }

    #[test]
    fn a_deleted_cgroup_keeps_its_identity() {
        let rows = rows();
        assert_eq!(identify(&format!("{} (deleted)", rows[0].path)), identify(&rows[0].path));
    }

    #[test]
    fn the_root_is_the_root() {
        for root in ["", "/"] {
            let found = identify(root);
            assert_eq!((found.runtime, &*found.name, &*found.container_path), (Runtime::Cgroup, "/", "/"));
        }
    }

    #[test]
    fn runtime_names_are_the_same_everywhere() {
        for row in rows() {
            let runtime = identify(&row.path).runtime;
            let json = serde_json::to_string(&runtime).unwrap();
            assert_eq!(json, format!("\"{runtime}\""));
            assert_eq!(serde_json::from_str::<Runtime>(&json).unwrap(), runtime);
        }
    }

    /// Paths made of the pieces that patterns look for, so that odd combinations do occur.
    fn odd_path() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            any::<String>(),
            "[0-9a-f]{64}",
            "(docker|libpod|crio|cri-containerd|nerdctl|libpod-conmon|é)-[0-9a-f]{62,66}(\\.scope)?",
            "[a-z-]{0,9}pod[0-9a-f_]{30,37}(\\.slice)?(:docker:|:cri-containerd:)?[0-9a-f]{0,64}",
            "(lxc|lxc\\.payload|lxc\\.monitor|ecs|docker|buildkit|default|payload|supervisor)(\\.[a-zé]{0,3})?",
            "(machine-|systemd-nspawn@|user@|_)?(\\\\x[0-9a-f]{0,2}|é|a){0,3}\\.(scope|service|slice)",
        ];
        proptest::collection::vec(piece, 0..7)
            .prop_map(|pieces| pieces.join("/"))
            .prop_flat_map(|path| prop_oneof![Just(format!("/{path}")), Just(path)])
    }

    /// The containers of the table. Below nspawn's unit the container proper begins at `payload`, so that
    /// its unit does not own all that is below.
    fn owners() -> Vec<Identity> {
        let owners = rows().into_iter().map(|row| identify(&row.path));
        owners.filter(|owner| owner.id.is_some() && owner.runtime != Runtime::Nspawn).collect()
    }

    proptest! {
        #[test]
        fn any_path_has_a_name_and_an_owner_on_it(path in odd_path()) {
            let found = identify(&path);
            prop_assert!(!found.name.is_empty());
            let path = path.strip_suffix(" (deleted)").unwrap_or(&path);
            if !path.is_empty() {
                prop_assert!(path.starts_with(&found.container_path));
            }
        }

        #[test]
        fn the_owner_owns_itself(path in odd_path()) {
            prop_assume!(!path.ends_with(" (deleted)"));
            let found = identify(&path);
            prop_assert_eq!(identify(&found.container_path), found);
        }

        #[test]
        fn nothing_below_a_container_leaves_it(
            owner in proptest::sample::select(owners()),
            below in odd_path(),
        ) {
            prop_assume!(!below.ends_with(" (deleted)"));
            let deeper = identify(&format!("{}/{below}", owner.container_path));
            prop_assert_eq!(deeper, owner);
        }

        #[test]
        fn what_is_inside_lies_below_its_container(path in odd_path()) {
            let outer = identify(&path);
            if let Some(inner) = inside(&path, &outer) {
                prop_assert!(outer.runtime.is_container() && inner.runtime.is_container());
                prop_assert!(path.starts_with(&inner.cgroup_path));
                prop_assert!(inner.cgroup_path.len() > outer.container_path.len());
            }
        }
    }
}
