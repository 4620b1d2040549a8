/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The kernel's types as far as they are read here. Every access is relocated against the running kernel's BTF
 * (CO-RE): order and size do not matter, names do. No vmlinux.h and no header of the build machine, so that one
 * object serves every kernel and every 64-bit architecture.
 */
#ifndef KERNEL_H
#define KERNEL_H

typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u64 __be64;
typedef __u8 bool_u8;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1 << 0,
	BPF_F_MMAPABLE = 1 << 10,
	BPF_RB_NO_WAKEUP = 1 << 0,
	BPF_RB_FORCE_WAKEUP = 1 << 1,
};

/* The packet as programs on packets see it. The ABI: not relocated, so every field up to those in use. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol; /* network order */
	__u32 vlan[3];
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
};

struct bpf_spin_lock {
	__u32 val;
};

/* Fixed by the ABI or the RFCs. */
enum {
	AF_INET = 2,
	AF_INET6 = 10,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	ETH_P_IP = 0x0800,
	ETH_P_IPV6 = 0x86dd,
	ECONNABORTED = 103,
	ECONNRESET = 104,
	ETIMEDOUT = 110,
	ECONNREFUSED = 111,
	EHOSTDOWN = 112,
	EHOSTUNREACH = 113,
	ENETDOWN = 100,
	ENETUNREACH = 101,
	EPIPE = 32,
	ENONET = 64,
	EPROTO = 71,
	ENOPROTOOPT = 92,
	PF_KTHREAD = 0x00200000,
};

/* include/net/tcp.h, include/linux/tcp.h */
enum {
	TCP_ECN_OK = 1,
	TCPHDR_FIN = 1,
	NO_RTT = ~0U, /* rtt_min before the first sample */
	TFO_COOKIE_UNAVAILABLE = 1,
	TFO_DATA_NOT_ACKED = 2,
	TFO_SYN_RETRANSMITTED = 3,
};

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
	TCP_NEW_SYN_RECV = 12,
};

/* include/net/tcp.h: icsk_ca_state */
enum {
	TCP_CA_OPEN = 0,
	TCP_CA_DISORDER = 1,
	TCP_CA_CWR = 2,
	TCP_CA_RECOVERY = 3,
	TCP_CA_LOSS = 4,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct ns_common {
	unsigned int inum; /* what readlink /proc/PID/ns/net shows */
};

struct netns_ipv4 {
	__u8 sysctl_tcp_syncookies; /* 0: never, 1: when the SYN queue is full, 2: always */
};

struct net {
	struct ns_common ns;
	struct netns_ipv4 ipv4;
	__u64 net_cookie; /* as SO_NETNS_COOKIE tells it; before 5.12 it is another type, or not there */
};

struct kernfs_node {
	__u64 id; /* the inode number of the cgroup's directory */
};

struct cgroup_root {
	int hierarchy_id; /* 0: the default hierarchy, cgroup2 */
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self; /* self.parent leads upwards */
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

/* Its subsys[] has one entry a controller; the index comes from enum cgroup_subsys_id. */
struct css_set {
	struct cgroup_subsys_state *subsys[16];
};

struct sock_cgroup_data {
	struct cgroup *cgroup; /* fixed at socket(), inherited by accepted sockets */
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport; /* network order */
	__u16 skc_num;	  /* host order; 0 again once unhashed */
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	atomic64_t skc_cookie; /* 0: nobody asked for one yet */
	unsigned long skc_flags; /* bits of enum sock_flags */
	struct sock *skc_listener; /* of a request */
	struct in6_addr skc_v6_daddr;	  /* absent without CONFIG_IPV6 */
	struct in6_addr skc_v6_rcv_saddr; /* absent without CONFIG_IPV6 */
};

typedef struct {
	int counter;
} atomic_t;

struct qspinlock {
	union {
		atomic_t val;
	};
};

struct raw_spinlock {
	struct qspinlock raw_lock;
};

struct spinlock {
	union {
		struct raw_spinlock rlock;
	};
};

typedef struct {
	struct spinlock slock; /* held in softirq, and to change `owned` */
	int owned;	       /* by a process */
} socket_lock_t;

struct socket;

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket; /* NULL: not accepted yet, or let go */
	socket_lock_t sk_lock;
	__u16 sk_protocol;
	int sk_err;
	__u32 sk_ack_backlog;	  /* a listener's accept queue */
	__u32 sk_max_ack_backlog; /* and its limit */
	atomic_t sk_drops;
	unsigned long sk_pacing_rate; /* bytes/s; all ones: no limit */
	struct sock_cgroup_data sk_cgrp_data;
};

enum sock_flags {
	SOCK_DEAD = 0, /* no process holds it */
	SOCK_DONE = 1, /* the peer's FIN has been received */
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport; /* network order; survives the unhashing at CLOSE */
};

struct request_sock {
	struct sock_common __req_common;
};

struct tcp_request_sock {
	__u64 snt_synack; /* when the first SYN-ACK was sent, us */
};

struct request_sock_queue {
	atomic_t qlen; /* half-open connections */
};

struct tcp_congestion_ops {
	char name[16];
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	const struct tcp_congestion_ops *icsk_ca_ops;
	__u8 icsk_ca_state : 5;
	__u8 icsk_retransmits; /* unanswered retransmission timeouts */
	struct {
		__u32 lrcvtime; /* when data was received last, jiffies */
	} icsk_ack;
	void *icsk_ulp_data; /* of a subflow: its mptcp_subflow_context */
};

/* Absent without CONFIG_MPTCP, as tcp_sock.is_mptcp is. */
struct mptcp_subflow_context {
	struct sock *conn; /* the connection that the subflow belongs to */
};

struct mptcp_sock {
	__u32 token;
};

struct minmax_sample {
	__u32 t;
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3]; /* s[0].v: the minimum */
};

struct tcp_rack {
	__u32 rtt_us; /* of the segment that was delivered last */
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u64 bytes_received; /* with the peer's FIN */
	__u64 bytes_sent;     /* with what was sent again, without SYN and FIN */
	__u64 bytes_acked;    /* with the own SYN (active side only) and the own FIN */
	__u64 bytes_retrans;
	__u64 tcp_mstamp; /* the stack's clock at the last segment, us */
	__u64 tcp_clock_cache; /* the same, ns: CLOCK_MONOTONIC */
	__u64 tcp_wstamp_ns; /* when the last segment was to leave; CLOCK_MONOTONIC */
	__u32 rcv_tstamp; /* when a segment was received last, jiffies */
	__u16 tcp_header_len; /* of the own segments; the peer's are no shorter */
	__u32 segs_in;
	__u32 segs_out;
	__u32 total_retrans;
	__u32 packets_out; /* segments in flight */
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq; /* end of what is to be sent, with the FIN */
	__u32 snd_wnd;
	__u32 rcv_wnd;
	__u32 rcv_nxt;
	__u32 copied_seq; /* how far the application has read */
	__u32 srtt_us;	/* times 8 */
	__u32 mdev_us;	/* times 4 */
	__u32 rtt_seq;	/* moves on once a round trip */
	__u32 snd_cwnd;
	__u32 snd_ssthresh;
	__u32 mss_cache;
	__u32 reordering;
	__u32 reord_seen;
	__u32 lost;
	__u32 dsack_dups;
	__u32 delivered_ce;
	__u32 rate_delivered; /* segments */
	__u32 rate_interval_us;
	__u32 chrono_start; /* jiffies */
	__u32 chrono_stat[3]; /* jiffies: busy, rwnd limited, sndbuf limited */
	__u8 chrono_type : 2; /* the one that runs, from 1; 0: none */
	__u8 ecn_flags;
	__u8 syn_data : 1; /* the SYN carried data */
	__u8 syn_data_acked : 1; /* which the peer took */
	__u8 fastopen_client_fail : 2;
	int linger2; /* how long to stay in FIN_WAIT2; negative: not at all */
	bool is_mptcp;
	struct minmax rtt_min;
	struct tcp_rack rack;
};

struct net_device {
	possible_net_t nd_net;
};

struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq; /* with the FIN */
	__u16 tcp_flags; /* one byte, before 6.14 */
};

struct sk_buff {
	char cb[48]; /* while TCP works on it: its tcp_skb_cb */
	struct sock *sk;
	struct net_device *dev; /* where it came in; NULL or something else once it is a socket's */
	__be16 protocol; /* network order */
	unsigned int len;     /* while TCP works on it: with TCP's header, without IP's */
	__u16 network_header; /* from head */
	__u16 transport_header;
	unsigned char *head;
};

struct socket {
	struct sock *sk;
};

struct file;

struct task_struct {
	int tgid;
	unsigned int flags; /* PF_ bits */
	char comm[16];
	struct task_struct *group_leader;
	struct css_set *cgroups;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct file *file;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	void *key;
	void *value;
};

#pragma clang attribute pop

#endif
