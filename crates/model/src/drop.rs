//! Reasons to drop a packet: which of the kernel's names (`enum skb_drop_reason`) is counted as what.
//!
//! The kernel numbers its reasons anew with each version; the names stay. What has no row is `other`.

use crate::record::{DROP_NONE, DROP_OTHER, DROP_REASONS};

/// What the kernel's names begin with.
pub const PREFIX: &str = "SKB_DROP_REASON_";

/// The names in metrics and JSON, by slot: the kernel's own in lower case.
pub const NAMES: [&str; DROP_REASONS] = [
    "other",
    // Before 6.11 also what lies unread when a socket goes.
    "not_specified",
    "no_socket",
    "socket_close",
    "socket_filter",
    "socket_rcvbuff",
    "socket_backlog",
    "pkt_too_small",
    "tcp_csum",
    "netfilter_drop",
    "otherhost",
    "ip_csum",
    "ip_inhdr",
    "ip_rpfilter",
    "xfrm_policy",
    "proto_mem",
    "tcp_auth_hdr",
    "tcp_md5notfound",
    "tcp_md5unexpected",
    "tcp_md5failure",
    "tcp_aonotfound",
    "tcp_aounexpected",
    "tcp_aokeynotfound",
    "tcp_aofailure",
    "tcp_flags",
    "tcp_abort_on_data",
    "tcp_zerowindow",
    "tcp_old_data",
    "tcp_overwindow",
    "tcp_ofomerge",
    "tcp_rfc7323_paws",
    "tcp_listen_overflow",
    "tcp_old_sequence",
    "tcp_invalid_sequence",
    "tcp_reset",
    "tcp_invalid_syn",
    "tcp_close",
    "tcp_fastopen",
    "tcp_old_ack",
    "tcp_too_old_ack",
    "tcp_ack_unsent_data",
    "tcp_ofo_queue_prune",
    "tcp_ofo_drop",
    "ip_outnoroutes",
    "bpf_cgroup_egress",
    "neigh_failed",
    "tc_egress",
    "qdisc_drop",
    "cpu_backlog",
    "xdp",
    "tc_ingress",
    "full_ring",
    "nomem",
    "tcp_minttl",
    "security_hook",
];

/// Names that say the same as another one.
const ALIASES: [(&str, &str); 9] = [
    ("QDISC_OVERLIMIT", "qdisc_drop"),
    ("QDISC_CONGESTED", "qdisc_drop"),
    ("FQ_FLOW_LIMIT", "qdisc_drop"),
    ("TCP_RFC7323_PAWS_ACK", "tcp_rfc7323_paws"),
    ("TCP_RFC7323_TW_PAWS", "tcp_rfc7323_paws"),
    ("TCP_RFC7323_TSECR", "tcp_rfc7323_paws"),
    ("TCP_INVALID_END_SEQUENCE", "tcp_invalid_sequence"),
    ("TCP_INVALID_ACK_SEQUENCE", "tcp_invalid_sequence"),
    ("NEIGH_CREATEFAIL", "neigh_failed"),
];

/// The slot of one of the kernel's names, written with its prefix or without.
pub fn slot(kernel_name: &str) -> usize {
    let name = kernel_name.strip_prefix(PREFIX).unwrap_or(kernel_name);
    // What was received and lies unread when its socket goes was not dropped on its way: a FIN does at most closes.
    if matches!(name, "SKB_NOT_DROPPED_YET" | "SKB_CONSUMED" | "QUEUE_PURGE") {
        return DROP_NONE;
    }
    let alias = ALIASES.iter().find(|(kernel, _)| *kernel == name).map(|(_, ours)| *ours);
    let is_it = |ours: &str| alias.map_or_else(|| ours.eq_ignore_ascii_case(name), |alias| ours == alias);
    NAMES.iter().position(|ours| is_it(ours)).unwrap_or(DROP_OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_names_have_slots() {
        assert_eq!(NAMES[slot("SKB_DROP_REASON_NO_SOCKET")], "no_socket");
        assert_eq!(NAMES[slot("SKB_DROP_REASON_QDISC_OVERLIMIT")], "qdisc_drop");
        assert_eq!(slot("SKB_DROP_REASON_OF_THE_FUTURE"), DROP_OTHER);
        assert_eq!(slot("SKB_CONSUMED"), DROP_NONE);
    }

    #[test]
    fn every_alias_leads_to_a_slot_and_no_name_stands_twice() {
        for (kernel, ours) in ALIASES {
            assert_eq!(NAMES[slot(kernel)], ours);
        }
        for (at, name) in NAMES.iter().enumerate() {
            assert_eq!(NAMES.iter().position(|other| other == name), Some(at));
        }
    }
}
