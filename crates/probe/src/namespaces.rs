//! The network namespaces of this host, how to visit them, and how to know one again.

use std::{
    collections::BTreeMap,
    ffi::{c_int, c_void},
    fs::{self, File},
    os::{
        fd::AsRawFd as _,
        unix::{fs::MetadataExt, net::UnixDatagram},
    },
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

/// Runs `inside` in each of these namespaces, as [`network_namespaces`] finds them, and returns its answers by inode
/// number. Those that cannot be entered, or are gone, are left out. It runs in a thread of its own: what belongs to the
/// namespace there is `/proc/thread-self/net`, and not `/proc/net`.
///
/// It is given the namespace's cookie, since 5.14: an inode number is given to another namespace as soon as it is free,
/// a cookie never.
pub fn in_network_namespaces<R: Send>(
    namespaces: &BTreeMap<u64, PathBuf>,
    inside: impl Fn(Option<u64>) -> R + Send,
) -> Result<BTreeMap<u64, R>, Error> {
    let answers = visit(namespaces, move |id| {
        // A path through a process leads to where that process is by now.
        let here = fs::metadata("/proc/thread-self/ns/net").map_or(id, |meta| meta.ino());
        Ok((here, inside(cookie())))
    })?;
    Ok(answers.into_iter().collect())
}

/// What no other network namespace has or had since the boot: the option `SO_NETNS_COOKIE` of any of its sockets.
fn cookie() -> Option<u64> {
    // Of the C library, which the standard library is linked to.
    unsafe extern "C" {
        fn getsockopt(
            socket: c_int,
            level: c_int,
            name: c_int,
            value: *mut c_void,
            length: *mut u32,
        ) -> c_int;
    }
    // As on all architectures but mips, parisc and sparc.
    const SOL_SOCKET: c_int = 1;
    const SO_NETNS_COOKIE: c_int = 71;
    let socket = UnixDatagram::unbound().ok()?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as u32;
    let to = (&raw mut cookie).cast();
    // SAFETY: the descriptor is open, and `to` has room for `length` bytes, any of which make a number.
    let rc = unsafe { getsockopt(socket.as_raw_fd(), SOL_SOCKET, SO_NETNS_COOKIE, to, &raw mut length) };
    (rc == 0).then_some(cookie)
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
    // A kernel may be without IPv6.
    Some(sockstat("sockstat", "inuse")? + sockstat("sockstat6", "inuse").unwrap_or(0))
}

/// TCP sockets of the whole host; `None` where the kernel does not tell.
pub(crate) fn sockets_of_host() -> Option<i64> {
    sockstat("sockstat", "alloc")
}

/// A number of TCP's line, which follows its name.
fn sockstat(file: &str, name: &str) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: ").or(line.strip_prefix("TCP6: ")))?;
    let mut words = line.split(' ');
    words.find(|word| *word == name)?;
    words.next()?.parse().ok()
}
