//! The network namespaces of this host, and how to visit them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    thread,
};

use rustix::{
    fd::AsFd,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::error::Error;

/// Every network namespace that a process lives in or that is mounted somewhere (as `ip netns add` and container
/// runtimes do), by inode number, with a path that leads to it. A process that ends meanwhile is passed over.
pub fn network_namespaces() -> BTreeMap<u64, PathBuf> {
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = mounted
        .lines()
        .filter(|line| line.contains(" - nsfs "))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
    let lived_in = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .map(|entry| entry.path().join("ns/net"));
    let own = fs::metadata("/proc/self/ns/net").map(|m| m.dev()).ok();
    let mut found = BTreeMap::new();
    for path in lived_in.chain(mounted) {
        if let Ok(meta) = fs::metadata(&path)
            && Some(meta.dev()) == own
        {
            found.entry(meta.ino()).or_insert(path);
        }
    }
    found
}

/// Runs `visit` in each of these namespaces, in a thread of its own so that the caller stays where it is. Namespaces
/// that are not network namespaces (other things are mounted from nsfs too) or that are gone are passed over.
pub(crate) fn visit<R: Send>(
    namespaces: &BTreeMap<u64, PathBuf>,
    visit: impl Fn(u64) -> Result<R, Error> + Send,
) -> Result<Vec<R>, Error> {
    thread::scope(|scope| {
        let visitor = scope.spawn(move || {
            let mut results = Vec::new();
            let own = fs::metadata("/proc/thread-self/ns/net").map(|meta| meta.ino()).ok();
            if let Some(own) = own.filter(|own| namespaces.contains_key(own)) {
                results.push(visit(own)?);
            }
            for (id, path) in namespaces {
                // The own one needs no privilege: it is where this thread is, before it goes anywhere.
                if Some(id) == own.as_ref() {
                    continue;
                }
                let Ok(namespace) = File::open(path) else { continue };
                if move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).is_ok() {
                    results.push(visit(*id)?);
                }
            }
            Ok(results)
        });
        visitor
            .join()
            .unwrap_or_else(|_| Err(Error::system("visit the network namespaces", "the visitor panicked")))
    })
}

/// TCP sockets of the calling thread's network namespace that are neither closed nor in TIME_WAIT; `None` where the
/// kernel does not tell.
pub(crate) fn sockets_in_use() -> Option<i64> {
    let of = |file: &str| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("TCP: ").or(line.strip_prefix("TCP6: ")))?;
        line.split(' ').nth(1)?.parse::<i64>().ok()
    };
    // A kernel may be without IPv6.
    Some(of("sockstat")? + of("sockstat6").unwrap_or(0))
}
