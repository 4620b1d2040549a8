//! What the far end of a connection is called, where it is no container of this host: a service or pod of the Kubernetes
//! cluster, or the name that the container itself looked up, or has in its `/etc/hosts`. No name server is asked.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hosts;
mod message;
mod streams;
mod table;

use std::{net::IpAddr, sync::Arc, time::Duration};

use model::{container::Container, mountinfo::Mount, record};

use self::{hosts::Hosts, streams::Streams, table::Table};
use crate::identity::{Directory, kubernetes::PeerName};

/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// An address's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) name: String,
    /// The pod that it is of, with its namespace.
    pub(crate) pod: Option<(Arc<str>, Arc<str>)>,
}

/// The names that containers have for addresses.
pub(crate) struct Names {
    hosts: Hosts,
    mount: Option<Mount>,
    table: Table,
    streams: Streams,
}

impl Names {
    /// Nothing is read, and no thread begins, before somebody asks.
    pub(crate) fn start(directory: &Directory) -> Self {
        let mount = directory.layout().mount().cloned();
        Self { hosts: Hosts::default(), mount, table: Table::default(), streams: Streams::default() }
    }

    /// Takes in what a DNS server answered a container.
    pub(crate) fn take(&mut self, answer: &record::DnsAnswer, directory: &Directory) {
        let length = answer.length as usize;
        let bytes = &answer.payload[..length.min(record::DNS_PAYLOAD)];
        let container = directory.resolve(answer.cgroup_id).cgroup_id;
        let table = &mut self.table;
        let mut take = |message: &[u8]| {
            let Some(found) = message::read(message) else { return };
            let name: Arc<str> = found.name.into();
            for (address, seconds) in found.addresses {
                table.add(container, &name, address, seconds, answer.time_ns);
            }
        };
        if answer.protocol == TCP {
            self.streams.take(answer.cookie, answer.seq, answer.length, bytes, take);
        } else if length == bytes.len() {
            take(bytes);
        }
    }

    /// What an address and a port are called: in the cluster, or by a container, as of a time (`CLOCK_MONOTONIC`, ns).
    pub(crate) fn of(
        &self,
        directory: &Directory,
        container: &Container,
        (address, port): (IpAddr, u16),
        at_ns: u64,
    ) -> Option<Called> {
        if let Some(found) = directory.name_of(address, port) {
            let name = found.to_string();
            let pod = match found {
                PeerName::Pod { namespace, name } => Some((namespace, name)),
                PeerName::Service { .. } => None,
            };
            return Some(Called { name, pod });
        }
        let own = self.own_name(container, address, at_ns)?;
        Some(Called { name: own, pod: None })
    }

    fn own_name(&self, container: &Container, address: IpAddr, at_ns: u64) -> Option<String> {
        let told = self.table.name(container.cgroup_id, address, at_ns);
        told.or_else(|| {
            let path = container.cgroup_path.as_deref()?;
            let folder = || self.mount.as_ref()?.folder(path);
            Some(self.hosts.name(container.cgroup_id, address, folder)?.to_string())
        })
    }

    /// Waits for files that were asked for, for so long at most.
    pub(crate) fn settle(&self, timeout: Duration) {
        self.hosts.settle(timeout);
    }

    /// Forgets what containers looked up that are gone.
    pub(crate) fn forget_gone(&mut self, directory: &Directory) {
        self.table.retain(|container| directory.is_live(container));
    }
}
