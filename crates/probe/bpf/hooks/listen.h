/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    fentry/tcp_conn_request for SYNs, fentry/tcp_v4_syn_recv_sock and tcp_v6_syn_recv_sock for the last segment
 *          of a handshake
 * Context: softirq; the listener is not locked
 * Feeds:   what listeners turn away for a full accept queue, as the kernel's ListenOverflows counts it. Without them
 *          there is sock.sk_drops only, which has other reasons in it.
 * Cost:    90 instructions for each of the two segments, measuring included: docs/overhead.md.
 */
#include "../gauge.h"

static __always_inline bool is_full(struct sock *sk)
{
	return sk->sk_ack_backlog > sk->sk_max_ack_backlog;
}

static __always_inline void overflow(struct sock *sk)
{
	__u64 owner = CGROUP_UNATTRIBUTED;
	struct gauge *g;
	struct totals *t;

	if (sk->sk_protocol != IPPROTO_TCP)
		return;
	g = hold_gauge(sk);
	if (g) {
		__sync_fetch_and_add(&g->overflows, 1);
		owner = g->cgroup_id;
		release(g, cookie_of(sk));
	}
	t = wants_totals ? totals_of(owner) : NULL;
	if (t)
		count(t->listen_overflows, 1);
}

SEC("fentry/tcp_conn_request")
int overflow_syn(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[2];
	struct tcp_sock *tp;

	if (!is_full(sk))
		return 0;
	/* A full SYN queue turns it away first, unless there are cookies. */
	tp = bpf_skc_to_tcp_sock(sk);
	if (!sk->__sk_common.skc_net.net->ipv4.sysctl_tcp_syncookies && tp &&
	    (__u32)tp->inet_conn.icsk_accept_queue.qlen.counter >= sk->sk_max_ack_backlog)
		return 0;
	overflow(sk);
	return 0;
}

SEC("fentry/tcp_v4_syn_recv_sock")
int overflow_ack(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (is_full(sk))
		overflow(sk);
	return 0;
}

SEC("fentry/tcp_v6_syn_recv_sock")
int overflow_ack6(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct sk_buff *skb = (void *)ctx[1];

	/* IPv4 at an IPv6 listener goes on to the other. */
	if (skb->protocol != bpf_htons(ETH_P_IP) && is_full(sk))
		overflow(sk);
	return 0;
}
