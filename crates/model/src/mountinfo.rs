//! Where the cgroup hierarchies are mounted, read from the text of `/proc/self/mountinfo`.
//!
//! A socket belongs to a cgroup of the cgroup2 hierarchy (`sock.sk_cgrp_data`), so that one is wanted
//! wherever it is: at `/sys/fs/cgroup` (unified), beside the version 1 controllers (hybrid), or nowhere
//! (version 1 only). Format: `proc_pid_mountinfo(5)`.

use std::path::{Path, PathBuf};

/// One mount of a cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The directory where it is visible.
    pub point: PathBuf,
    /// The cgroup visible there; `/` is the whole hierarchy. Inside a container it is often the
    /// container's own, such as `/docker/<id>`.
    pub root: String,
}

impl Mount {
    /// The path within its hierarchy of what lies at `relative` below the mount point.
    pub fn cgroup_path(&self, relative: &str) -> String {
        let root = self.root.trim_end_matches('/');
        match relative.trim_matches('/') {
            "" if root.is_empty() => "/".to_owned(),
            "" => root.to_owned(),
            relative => format!("{root}/{relative}"),
        }
    }

    /// Where the cgroup with this path is mounted; `None`: outside of what is mounted here.
    pub fn folder(&self, cgroup_path: &str) -> Option<PathBuf> {
        let relative = cgroup_path.strip_prefix(self.root.trim_end_matches('/'))?;
        let relative = if relative.is_empty() { relative } else { relative.strip_prefix('/')? };
        Some(if relative.is_empty() { self.point.clone() } else { self.point.join(relative) })
    }
}

/// One mounted hierarchy of cgroup version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Hierarchy {
    /// Its controllers (`cpu`, `cpuacct`) or its name (`name=systemd`).
    pub controllers: Vec<String>,
    /// Where it is.
    pub mount: Mount,
}

/// Which cgroup hierarchies a process sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Only cgroup2.
    Unified {
        /// The cgroup2 mount.
        mount: Mount,
    },
    /// cgroup2 beside hierarchies of version 1.
    Hybrid {
        /// The cgroup2 mount.
        mount: Mount,
        /// The version 1 hierarchies, see [`CgroupLayout::V1Only`].
        v1: Vec<V1Hierarchy>,
    },
    /// Only version 1.
    V1Only {
        /// The hierarchies, those that runtimes surely use first: memory, pids, `name=systemd`.
        v1: Vec<V1Hierarchy>,
    },
    /// No cgroup file system is visible.
    None,
}

impl CgroupLayout {
    /// Reads the text of `/proc/<pid>/mountinfo`. Lines that are none are skipped.
    ///
    /// Mounts hidden under a later mount do not count. Of several mounts of one hierarchy the first that
    /// shows all of it is taken, else the one with the shortest root.
    pub fn parse(mountinfo: &str) -> Self {
        let entries: Vec<Entry> = mountinfo.lines().filter_map(Entry::parse).collect();
        let mut unified: Option<Mount> = None;
        let mut v1: Vec<V1Hierarchy> = Vec::new();
        for entry in entries.iter().filter(|entry| !entry.is_hidden(&entries)) {
            let mount = Mount { point: PathBuf::from(&entry.point), root: entry.root.clone() };
            match entry.filesystem {
                "cgroup2" => prefer(unified.get_or_insert_with(|| mount.clone()), mount),
                "cgroup" => {
                    let controllers = controllers(entry.options);
                    match v1.iter_mut().find(|known| known.controllers == controllers) {
                        Some(known) => prefer(&mut known.mount, mount),
                        None => v1.push(V1Hierarchy { controllers, mount }),
                    }
                }
                _ => {}
            }
        }
        v1.sort_by_key(V1Hierarchy::rank);
        match (unified, v1.is_empty()) {
            (Some(mount), true) => Self::Unified { mount },
            (Some(mount), false) => Self::Hybrid { mount, v1 },
            (None, false) => Self::V1Only { v1 },
            (None, true) => Self::None,
        }
    }

    /// The cgroup2 hierarchy, if there is one.
    pub fn unified(&self) -> Option<&Mount> {
        match self {
            Self::Unified { mount } | Self::Hybrid { mount, .. } => Some(mount),
            Self::V1Only { .. } | Self::None => None,
        }
    }

    /// The hierarchy to find containers in: cgroup2 if there is one, else the best of version 1.
    pub fn mount(&self) -> Option<&Mount> {
        match self {
            Self::Unified { mount } | Self::Hybrid { mount, .. } => Some(mount),
            Self::V1Only { v1 } => v1.first().map(|hierarchy| &hierarchy.mount),
            Self::None => None,
        }
    }
}

impl V1Hierarchy {
    /// Place in the order of preference, best first.
    fn rank(&self) -> usize {
        const BEST: [&str; 3] = ["memory", "pids", "name=systemd"];
        let rank = |name: &String| BEST.iter().position(|best| best == name).unwrap_or(BEST.len());
        self.controllers.iter().map(rank).min().unwrap_or(BEST.len())
    }
}

/// Replaces `known` by a mount that shows more of the same hierarchy.
fn prefer(known: &mut Mount, other: Mount) {
    if other.root.len() < known.root.len() {
        *known = other;
    }
}

/// The controllers among the super block's options.
fn controllers(options: &str) -> Vec<String> {
    const OTHERS: [&str; 9] = [
        "rw",
        "ro",
        "xattr",
        "noprefix",
        "clone_children",
        "cpuset_v2_mode",
        "favordynmods",
        "nofavordynmods",
        "seclabel",
    ];
    let is_controller = |option: &&str| {
        !option.is_empty() && !OTHERS.contains(option) && !option.starts_with("release_agent=")
    };
    options.split(',').filter(is_controller).map(unescape).collect()
}

/// One line of mountinfo.
struct Entry<'a> {
    id: &'a str,
    parent: &'a str,
    root: String,
    point: String,
    filesystem: &'a str,
    options: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ');
        let (id, parent, _device) = (before.next()?, before.next()?, before.next()?);
        let (root, point) = (unescape(before.next()?), unescape(before.next()?));
        let mut after = after.split(' ');
        let (filesystem, _source) = (after.next()?, after.next()?);
        let options = after.next().unwrap_or_default();
        Some(Self { id, parent, root, point, filesystem, options })
    }

    /// Whether another mount lies over the way to this one, as after `ip netns exec`, which mounts a new
    /// `/sys`: one made on the same mount as a step of the way, at a directory before that step.
    fn is_hidden(&self, all: &[Entry]) -> bool {
        let mut step = self;
        if all.iter().any(|other| other.parent == self.id && other.point == self.point) {
            return true;
        }
        // The way is no longer than the table; a circle would be.
        for _ in all {
            let covers = |other: &Entry| {
                // A root that is its own parent, as an initramfs is, lies over nothing.
                other.parent == step.parent
                    && other.id != other.parent
                    && other.point != step.point
                    && Path::new(&step.point).starts_with(&other.point)
            };
            if all.iter().any(covers) {
                return true;
            }
            match all.iter().find(|entry| entry.id == step.parent && entry.id != step.id) {
                Some(parent) => step = parent,
                None => return false,
            }
        }
        false
    }
}

/// Undoes the kernel's octal escapes of blanks, tabs, newlines and backslashes (`\040`).
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), after)
            }
            _ => (*first, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEBIAN_12: &str = "\
23 29 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
29 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
32 23 0:7 / /sys/kernel/security rw,nosuid,nodev,noexec,relatime shared:8 - securityfs securityfs rw
33 23 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
34 23 0:29 / /sys/fs/pstore rw,nosuid,nodev,noexec,relatime shared:10 - pstore pstore rw
";
    const FEDORA_40: &str = "\
22 64 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw,seclabel
29 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,seclabel,nsdelegate,memory_recursiveprot
64 1 0:34 /root / rw,relatime shared:1 - btrfs /dev/vda3 rw,seclabel,compress=zstd:1,subvolid=257,subvol=/root
";
    const ALPINE_UNIFIED: &str = "\
20 25 0:19 / /sys rw,nosuid,nodev,noexec,relatime - sysfs sysfs rw
25 1 8:3 / / rw,relatime - ext4 /dev/sda3 rw
38 20 0:32 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 none rw,nsdelegate
";
    const UBUNTU_20_HYBRID: &str = "\
24 30 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
30 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
34 24 0:29 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
35 34 0:30 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
36 34 0:31 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
40 34 0:35 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct
41 34 0:36 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:16 - cgroup cgroup rw,pids
42 34 0:37 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:17 - cgroup cgroup rw,memory
";
    const ALPINE_HYBRID: &str = "\
31 20 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs cgroup_root rw,size=10240k,mode=755
32 31 0:29 / /sys/fs/cgroup/openrc rw,nosuid,nodev,noexec,relatime - cgroup openrc rw,release_agent=/lib/rc/sh/cgroup-release-agent.sh,name=openrc
33 31 0:30 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime - cgroup2 none rw,nsdelegate
34 31 0:31 / /sys/fs/cgroup/cpuset rw,nosuid,nodev,noexec,relatime - cgroup cpuset rw,cpuset
";
    const CENTOS_7_V1: &str = "\
17 39 0:17 / /sys rw,nosuid,nodev,noexec,relatime shared:6 - sysfs sysfs rw
24 17 0:21 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
25 24 0:22 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:9 - cgroup cgroup rw,xattr,release_agent=/usr/lib/systemd/systemd-cgroups-agent,name=systemd
27 24 0:24 / /sys/fs/cgroup/net_cls,net_prio rw,nosuid,nodev,noexec,relatime shared:12 - cgroup cgroup rw,net_prio,net_cls
30 24 0:27 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,pids
39 1 253:0 / / rw,relatime shared:1 - xfs /dev/mapper/centos-root rw,attr2,inode64,noquota
";

    fn mount(point: &str, root: &str) -> Mount {
        Mount { point: point.into(), root: root.into() }
    }

    fn names(v1: &[V1Hierarchy]) -> Vec<String> {
        v1.iter().map(|hierarchy| hierarchy.controllers.join(",")).collect()
    }

    #[test]
    fn unified_hosts() {
        for host in [DEBIAN_12, FEDORA_40, ALPINE_UNIFIED] {
            let unified = CgroupLayout::Unified { mount: mount("/sys/fs/cgroup", "/") };
            assert_eq!(CgroupLayout::parse(host), unified, "{host}");
        }
    }

    #[test]
    fn hybrid_hosts() {
        for (host, controllers) in [
            (UBUNTU_20_HYBRID, vec!["memory", "pids", "name=systemd", "cpu,cpuacct"]),
            (ALPINE_HYBRID, vec!["name=openrc", "cpuset"]),
        ] {
            let layout = CgroupLayout::parse(host);
            assert_eq!(layout.mount(), Some(&mount("/sys/fs/cgroup/unified", "/")));
            let CgroupLayout::Hybrid { v1, .. } = layout else { panic!("{layout:?}") };
            assert_eq!(names(&v1), controllers);
        }
    }

    #[test]
    fn a_host_without_cgroup2() {
        let layout = CgroupLayout::parse(CENTOS_7_V1);
        assert_eq!(layout.mount(), Some(&mount("/sys/fs/cgroup/pids", "/")));
        let CgroupLayout::V1Only { v1 } = layout else { panic!("{layout:?}") };
        assert_eq!(names(&v1), ["pids", "name=systemd", "net_prio,net_cls"]);
    }

    #[test]
    fn inside_a_container() {
        let host_namespace = "\
610 570 0:28 /docker/3f4d /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate
570 1 0:60 / / rw,relatime master:200 - overlay overlay rw
";
        let layout = CgroupLayout::parse(host_namespace);
        let found = layout.mount().unwrap();
        assert_eq!(found, &mount("/sys/fs/cgroup", "/docker/3f4d"));
        assert_eq!(found.cgroup_path("/init.scope"), "/docker/3f4d/init.scope");
        assert_eq!(found.cgroup_path(""), "/docker/3f4d");
    }

    #[test]
    fn paths_below_the_root_mount() {
        let whole = mount("/sys/fs/cgroup", "/");
        assert_eq!(whole.cgroup_path(""), "/");
        assert_eq!(whole.cgroup_path("docker/3f4d"), "/docker/3f4d");
    }

    #[test]
    fn of_several_mounts_the_whole_one_wins() {
        let host = "\
50 1 0:28 /docker/a /mnt/a rw - cgroup2 cgroup rw
51 1 0:28 / /mnt/host\\040cgroup\\134x rw shared:5 master:6 - cgroup2 cgroup rw
52 1 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw
";
        assert_eq!(CgroupLayout::parse(host).mount(), Some(&mount(r"/mnt/host cgroup\x", "/")));
        let parts = "\
50 1 0:28 /docker/a/b /mnt/a rw - cgroup2 cgroup rw
51 1 0:28 /docker/a /mnt/b rw - cgroup2 cgroup rw
";
        assert_eq!(CgroupLayout::parse(parts).mount(), Some(&mount("/mnt/b", "/docker/a")));
    }

    #[test]
    fn a_hidden_mount_does_not_count() {
        let new_sys = format!("{DEBIAN_12}90 23 0:80 / /sys rw,relatime - sysfs netns1 rw\n");
        assert_eq!(CgroupLayout::parse(&new_sys), CgroupLayout::None);
        let mounted_again = format!("{new_sys}91 90 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(CgroupLayout::parse(&mounted_again).mount(), Some(&mount("/sys/fs/cgroup", "/")));
    }

    #[test]
    fn an_initramfs_is_its_own_parent() {
        let text = "\
1 1 0:2 / / rw - rootfs rootfs rw
23 1 0:21 / /sys rw,relatime - sysfs sys rw
25 23 0:22 / /sys/fs/cgroup rw,relatime - cgroup2 none rw
";
        assert_eq!(CgroupLayout::parse(text).mount(), Some(&mount("/sys/fs/cgroup", "/")));
    }

    #[test]
    fn nothing_mounted() {
        assert_eq!(CgroupLayout::parse(""), CgroupLayout::None);
        assert_eq!(
            CgroupLayout::parse("29 1 8:1 / / rw - ext4 /dev/sda1 rw\ngarbage - cgroup2"),
            CgroupLayout::None
        );
    }

    fn escape(text: &str) -> String {
        let octal = |c: char| match c {
            ' ' | '\t' | '\n' | '\\' | '#' => format!("\\{:03o}", u32::from(c)),
            c => c.to_string(),
        };
        text.chars().map(octal).collect()
    }

    proptest! {
        #[test]
        fn escapes_are_undone(text in any::<String>()) {
            prop_assert_eq!(unescape(&escape(&text)), text);
        }

        #[test]
        fn any_directory_is_found(point in "/[^\0\r\n]{0,20}", optional in "( shared:[0-9]{1,3})?( master:1)?") {
            let line = format!("33 23 0:28 / {} rw{optional} - cgroup2 cgroup2 rw", escape(&point));
            let layout = CgroupLayout::parse(&line);
            prop_assert_eq!(layout, CgroupLayout::Unified { mount: mount(&point, "/") });
        }

        #[test]
        fn no_text_is_too_odd(text in "([0-3 /\\\\-]|cgroup2?|\n|\\PC){0,60}") {
            CgroupLayout::parse(&text);
        }
    }
}
