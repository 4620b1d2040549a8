/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/tcp_retransmit_skb, since 4.15, and tp_btf/tcp_retransmit_synack, since 4.16
 * Context: softirq (timer or ACK), the socket locked; rare
 * Feeds:   retransmitted segments by kind. The number of segments is what tcp_sock.total_retrans grew by: one
 *          call may send several, and the kernel's own RetransSegs counts the same.
 * Cost:    some 200 instructions, once for each call that sends segments again: docs/overhead.md.
 */
#include "../gauge.h"

static __always_inline __u32 kind_of(struct sock *sk, struct tcp_sock *tp)
{
	__u8 ca = BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_state);

	if (sk->__sk_common.skc_state == TCP_SYN_SENT)
		return RETRANSMIT_SYN;
	if (sk->__sk_common.skc_state == TCP_SYN_RECV)
		return RETRANSMIT_SYNACK;
	if (ca == TCP_CA_LOSS)
		return RETRANSMIT_RTO;
	if (ca == TCP_CA_RECOVERY)
		return RETRANSMIT_FAST;
	return tp->inet_conn.icsk_retransmits ? RETRANSMIT_RTO : RETRANSMIT_TLP;
}

SEC("tp_btf/tcp_retransmit_skb")
int retransmit(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct gauge *g = tp ? gauge_of(sk) : NULL;
	__u32 kind;

	if (!g)
		return 0;
	kind = kind_of(sk, tp);
	tell_retransmits(tp, g, kind);
	look_again(g); /* the kind is known only now */
	/* Not of one that could not be sent. */
	if (!retransmit_has_err || !(int)ctx[2])
		tell(tp, g, EVENT_RETRANSMIT, sk->__sk_common.skc_state, kind);
	return 0;
}

/* The socket is the listener; the request has no owner of its own. */
SEC("tp_btf/tcp_retransmit_synack")
int retransmit_synack(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0], *request = (void *)ctx[1];
	struct half_open key;
	__u64 first_us, owner = CGROUP_UNATTRIBUTED;
	struct totals *t;
	struct gauge *g;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	name_half_open(&key, request, sk);
	first_us = BPF_CORE_READ((struct tcp_request_sock *)request, snt_synack);
	if (first_us)
		bpf_map_update_elem(&asked_again, &key, &first_us, BPF_NOEXIST);
	if (!wants_totals)
		return 0;
	g = hold_gauge(sk);
	if (g) {
		owner = g->cgroup_id;
		release(g, cookie_of(sk));
	}
	t = totals_of(owner);
	if (t)
		count(t->retransmitted_segments[RETRANSMIT_SYNACK], 1);
	return 0;
}
