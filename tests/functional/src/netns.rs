//! Network namespaces of a story's own, and the veth pairs between them.
//!
//! A namespace is entered by a thread (`setns`), or by a child through `nsenter`. `ip netns exec`
//! is not used: it mounts a new `/sys`, and with it hides `/sys/fs/cgroup`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{output, require, wrapped};
use crate::{require_root, sweep};

/// A network namespace with loopback up. Removed on `Drop`.
///
/// Whoever still runs in it, or holds a socket of it, keeps it alive without its name.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace; `story` is part of its name, for whoever looks with `ip netns`.
    pub fn new(story: &str) -> Result<Self> {
        require_root()?;
        require("ip", "iproute2")?;
        sweep::once();
        let netns = Self { name: sweep::own_name(story) };
        output(Command::new("ip").args(["netns", "add", &netns.name]))?;
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names it.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs `inside` on a thread of its own in this namespace and returns what it returns.
    ///
    /// Sockets and threads made there stay in the namespace. A panic inside is a panic outside.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(&self.path(), inside)
    }

    /// A command that will run `program` in this namespace; everything else is the caller's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.wrap(&Command::new(program))
    }

    /// `command`, with its arguments and environment, to be run in this namespace.
    pub fn wrap(&self, command: &Command) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.path().display())).arg("--");
        wrapped(nsenter, command)
    }

    /// `ip -n NAME …`: links, addresses, routes.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        output(Command::new("ip").args(["-n", &self.name]).args(args))
    }

    /// Sets a sysctl of this namespace, such as `net.ipv4.tcp_tw_reuse`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        self.enter(|| {
            std::fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let removed = output(Command::new("ip").args(["netns", "del", &self.name]));
        if let Err(error) = removed {
            eprintln!("leaving the namespace {} behind: {error:#}", self.name);
        }
    }
}

/// Runs `inside` on a thread of its own in the namespace that the file `path` names.
///
/// The calling thread stays where it is. A panic inside is a panic outside.
pub fn enter<T: Send>(path: &Path, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("opening the namespace {}", path.display()))?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering the namespace {}", path.display()))?;
            inside()
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The two ends of a veth pair.
#[derive(Clone, Debug)]
pub struct VethPair {
    /// Device name in the first namespace.
    pub a: String,
    /// Device name in the second namespace.
    pub b: String,
}

/// Connects two namespaces with a veth pair, both ends up, with the given addresses.
///
/// Addresses are in CIDR notation, IPv4 and IPv6 mixed: `&["198.18.1.1/24", "fd00:1::1/64"]`.
/// IPv6 addresses are usable at once (no duplicate address detection).
pub fn veth_pair(a: &Netns, a_addresses: &[&str], b: &Netns, b_addresses: &[&str]) -> Result<VethPair> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let pair = VethPair { a: format!("veth{number}a"), b: format!("veth{number}b") };
    output(Command::new("ip").args(["link", "add", &pair.a, "netns", a.name(), "type", "veth"]).args([
        "peer",
        "name",
        &pair.b,
        "netns",
        b.name(),
    ]))?;
    for (netns, device, addresses) in [(a, &pair.a, a_addresses), (b, &pair.b, b_addresses)] {
        for address in addresses {
            add_address(netns, device, address)?;
        }
        netns.ip(&["link", "set", device, "up"])?;
    }
    Ok(pair)
}

/// Adds an address in CIDR notation to a device, usable at once.
pub fn add_address(netns: &Netns, device: &str, address: &str) -> Result<()> {
    let mut args = vec!["address", "add", address, "dev", device];
    if address.contains(':') {
        args.push("nodad");
    }
    netns.ip(&args).map(drop)
}
