/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/tcp_probe, since 4.16: first statement of tcp_rcv_established()
 * Context: softirq, or process while the socket's backlog is worked off. The socket is locked.
 * Feeds:   the RTT samples, receive windows that are closed while a segment arrives, and the first byte received. What is read is from before this segment: the last sample of a connection is taken
 *          by the walk or at the close.
 * Cost:    50 ns a segment with short connections, where each takes a sample; see ARCHITECTURE.md, "What it costs".
 */
#include "../gauge.h"

/* Where in the TCP header its own length stands, in the upper four bits, in words. */
#define TCP_LENGTH 12

static __always_inline bool has_payload(struct sk_buff *skb)
{
	__u8 length = 0;

	bpf_probe_read_kernel(&length, 1, skb->head + skb->transport_header + TCP_LENGTH);
	return skb->len > (length >> 4) * 4;
}

static __always_inline void see_first_byte(struct sk_buff *skb, struct gauge *g)
{
	struct totals *t;
	__u32 slot;
	__u64 us;

	if (g->first_byte_us || !g->established_ns || !has_payload(skb))
		return;
	us = (bpf_ktime_get_ns() - g->established_ns) / 1000 ?: 1;
	g->first_byte_us = us > ~0U ? ~0U : us;
	t = wants_totals && g->direction == DIRECTION_ACTIVE ? totals_of(g->cgroup_id) : NULL;
	if (!t)
		return;
	slot = connect_slot(us);
	opaque(slot);
	if (slot < CONNECT_SLOTS) {
		count(t->first_byte[slot], 1);
		count(t->first_byte_sum_us, us);
	}
}

SEC("tp_btf/tcp_probe")
int rtt(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct gauge *g;

	/* With nothing in flight this side has no round trip to measure: the common case of a receiver. */
	if (!tp || (!tp->packets_out && tp->snd_wnd && tp->rcv_wnd && tp->bytes_received))
		return 0;
	g = bpf_sk_storage_get(&gauges, sk, NULL, 0);
	if (!g)
		return 0;
	if (!tp->bytes_received)
		see_first_byte((void *)ctx[1], g);
	see_windows(sk, tp, g);
	if (tp->packets_out)
		sample_rtt(tp, g);
	return 0;
}
