//! THE table of what the kernel counts of TCP by network namespace alone, because there is no socket to tell of it: what
//! a listener turned away, what waits half-open, what was in TIME_WAIT.
//!
//! One more event is a row here. Prometheus output and `docs/metrics.md` follow.

use crate::snmp::Counters;

/// One event that the kernel counts in each network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceEvent {
    /// Its name, as in the label `event`.
    pub name: &'static str,
    /// The section of /proc/net/netstat that it stands in.
    pub section: &'static str,
    /// The kernel's name.
    pub counter: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Whether it has a series while it is 0.
    pub always: bool,
}

impl NamespaceEvent {
    /// How often it has happened, if there is something to show; `None` where the kernel does not count it, too.
    pub fn seen(&self, counters: &Counters) -> Option<u64> {
        let n = u64::try_from(counters.get(self.section, self.counter)?).ok()?;
        (n > 0 || self.always).then_some(n)
    }
}

const TCP: &str = "TcpExt";
const MPTCP: &str = "MPTcpExt";

const fn event(
    name: &'static str,
    section: &'static str,
    counter: &'static str,
    help: &'static str,
) -> NamespaceEvent {
    NamespaceEvent { name, section, counter, help, always: false }
}

const fn always(event: NamespaceEvent) -> NamespaceEvent {
    NamespaceEvent { always: true, ..event }
}

/// One row for each event, in the order in which a connection may meet them.
pub const NAMESPACE_EVENTS: &[NamespaceEvent] = &[
    always(event(
        "listen_overflow",
        TCP,
        "ListenOverflows",
        "SYNs, and last segments of handshakes, turned away because a listener's accept queue was full",
    )),
    always(event(
        "listen_drop",
        TCP,
        "ListenDrops",
        "the same, for whatever reason: the accept queue, the SYN queue, no memory, no route back, an ICMP error",
    )),
    event(
        "syn_cookie_sent",
        TCP,
        "SyncookiesSent",
        "SYNs answered with a cookie, without keeping a half-open connection",
    ),
    event("syn_cookie_received", TCP, "SyncookiesRecv", "handshakes completed with a valid cookie"),
    event(
        "syn_cookie_failed",
        TCP,
        "SyncookiesFailed",
        "segments to a listener that lately sent cookies whose acknowledgement is none of them",
    ),
    event(
        "syn_queue_cookie",
        TCP,
        "TCPReqQFullDoCookies",
        "SYNs that met a full SYN queue, or any SYN with net.ipv4.tcp_syncookies at 2, and were to get a cookie",
    ),
    event(
        "syn_queue_drop",
        TCP,
        "TCPReqQFullDrop",
        "SYNs that met a full SYN queue and were dropped, with net.ipv4.tcp_syncookies off",
    ),
    event("half_open_reset", TCP, "EmbryonicRsts", "half-open connections that a RST or a SYN ended"),
    event(
        "time_wait_overflow",
        TCP,
        "TCPTimeWaitOverflow",
        "connections that went without TIME_WAIT, because net.ipv4.tcp_max_tw_buckets were there or memory was short",
    ),
    event(
        "orphan_abort",
        TCP,
        "TCPAbortOnMemory",
        "connections that their application had closed and that were ended for too many such (net.ipv4.tcp_max_orphans) or for want of memory",
    ),
    event(
        "receive_prune",
        TCP,
        "PruneCalled",
        "times that a receive buffer was full and room was looked for",
    ),
    event(
        "receive_collapse",
        TCP,
        "TCPRcvCollapsed",
        "segments in receive buffers that were merged with others to make room",
    ),
    event("receive_prune_drop", TCP, "RcvPruned", "times that no room was found"),
    event(
        "out_of_order_prune",
        TCP,
        "OfoPruned",
        "times that segments received out of order were thrown away to make room",
    ),
    event(
        "receive_queue_drop",
        TCP,
        "TCPRcvQDrop",
        "segments received in order and thrown away for want of room",
    ),
    event(
        "fast_open_active",
        TCP,
        "TCPFastOpenActive",
        "connects whose data in the SYN was acknowledged (Fast Open)",
    ),
    event(
        "fast_open_active_fail",
        TCP,
        "TCPFastOpenActiveFail",
        "connects whose data in the SYN was not, or whose SYN timed out",
    ),
    event("fast_open_passive", TCP, "TCPFastOpenPassive", "connections taken at a SYN with a valid cookie"),
    event(
        "fast_open_passive_fail",
        TCP,
        "TCPFastOpenPassiveFail",
        "SYNs with a cookie that is not valid, or that no connection could be made of",
    ),
    event(
        "fast_open_cookie_requested",
        TCP,
        "TCPFastOpenCookieReqd",
        "SYNs that asked for a Fast Open cookie",
    ),
    event(
        "fast_open_listen_overflow",
        TCP,
        "TCPFastOpenListenOverflow",
        "SYNs that a listener with too many Fast Open connections on their way took as ordinary ones",
    ),
    event(
        "md5_not_found",
        TCP,
        "TCPMD5NotFound",
        "segments dropped because they had no MD5 signature, and the socket has a key for their sender",
    ),
    event(
        "md5_unexpected",
        TCP,
        "TCPMD5Unexpected",
        "segments dropped because they had an MD5 signature, and the socket has no key",
    ),
    event("md5_failure", TCP, "TCPMD5Failure", "segments dropped because their MD5 signature was wrong"),
    event(
        "ao_required",
        TCP,
        "TCPAORequired",
        "segments dropped because they had no authentication option (TCP-AO)",
    ),
    event(
        "ao_key_not_found",
        TCP,
        "TCPAOKeyNotFound",
        "segments dropped because there was no key for their authentication option",
    ),
    event("ao_failure", TCP, "TCPAOBad", "segments dropped because their authentication option was wrong"),
    event("mptcp_connect", MPTCP, "MPCapableSYNTX", "connects that asked for MPTCP"),
    event(
        "mptcp_connect_fallback",
        MPTCP,
        "MPCapableFallbackSYNACK",
        "those among them that the peer answered without MPTCP",
    ),
    event(
        "mptcp_connect_drop",
        MPTCP,
        "MPCapableSYNTXDrop",
        "those among them whose SYN was answered only once it was sent again without MPTCP",
    ),
    event("mptcp_accept", MPTCP, "MPCapableACKRX", "connections taken with MPTCP"),
    event(
        "mptcp_accept_fallback",
        MPTCP,
        "MPCapableFallbackACK",
        "connections whose peer asked for MPTCP in its SYN and completed the handshake without",
    ),
    event("mptcp_join", MPTCP, "MPJoinAckRx", "further subflows taken"),
    event(
        "mptcp_infinite_mapping",
        MPTCP,
        "InfiniteMapRx",
        "times that a peer went back to plain TCP on an established connection",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_stands_twice() {
        let names: BTreeSet<_> = NAMESPACE_EVENTS.iter().map(|event| event.name).collect();
        let counters: BTreeSet<_> =
            NAMESPACE_EVENTS.iter().map(|event| (event.section, event.counter)).collect();
        assert_eq!((names.len(), counters.len()), (NAMESPACE_EVENTS.len(), NAMESPACE_EVENTS.len()));
    }

    /// Or a misspelt one would be absent for ever, as one that the kernel lacks is.
    #[test]
    fn this_kernel_has_the_counters() {
        let text = std::fs::read_to_string("/proc/net/netstat").unwrap();
        let counters = Counters::parse(&text);
        // Younger than the oldest kernel that there is a claim for, or not configured everywhere.
        let may_lack = ["ao_required", "ao_key_not_found", "ao_failure", "mptcp_connect_drop"];
        let has_mptcp = text.contains("MPTcpExt:");
        for event in NAMESPACE_EVENTS {
            let is_there = counters.get(event.section, event.counter).is_some();
            let may_lack = may_lack.contains(&event.name) || (event.section == MPTCP && !has_mptcp);
            assert!(is_there || may_lack, "{}", event.counter);
        }
    }

    #[test]
    fn what_did_not_happen_has_no_series_but_where_it_always_has() {
        let seen = |text: &str| -> Vec<_> {
            let counters = Counters::parse(text);
            NAMESPACE_EVENTS.iter().filter_map(|event| Some((event.name, event.seen(&counters)?))).collect()
        };
        let text = "TcpExt: SyncookiesSent ListenOverflows TCPMD5Failure\nTcpExt: 0 0 3\n\
            MPTcpExt: MPCapableSYNTX\nMPTcpExt: 4\n";
        assert_eq!(seen(text), [("listen_overflow", 0), ("md5_failure", 3), ("mptcp_connect", 4)]);
        assert_eq!(seen("TcpExt: TCPMD5Failure\nTcpExt: -1\n"), []);
    }
}
