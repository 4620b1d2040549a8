/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/tcp_probe, since 4.16: first statement of tcp_rcv_established()
 * Context: softirq, or process while the socket's backlog is worked off. The socket is locked.
 * Feeds:   the RTT samples; how long receive windows are closed; the first byte, and answers to what was sent; that
 *          data is ready to be read. What is read is from before this segment: the last RTT sample of a connection is
 *          taken by the walk or at the close.
 * Cost:    262 ns a segment with short connections, where each takes a sample, measuring included: docs/overhead.md.
 */
#include "../gauge.h"

/* Where the window stands in the TCP header. */
#define TCP_WINDOW 14

/* What TCP noted of the segment when it came. */
static __always_inline struct tcp_skb_cb *noted(struct sk_buff *skb)
{
	return (void *)skb->cb;
}

static __always_inline bool has_payload(struct sk_buff *skb, struct tcp_sock *tp)
{
	/* The usual case of an empty segment. */
	if (skb->len <= tp->tcp_header_len)
		return false;
	/* Neither is a FIN payload; a SYN does not come here. */
	return noted(skb)->end_seq - noted(skb)->seq > (noted(skb)->tcp_flags & TCPHDR_FIN);
}

static __always_inline bool is_next(struct sk_buff *skb, struct tcp_sock *tp)
{
	return noted(skb)->seq == tp->rcv_nxt;
}

static __always_inline bool opens_window(struct sk_buff *skb)
{
	__be16 window = 0;

	bpf_probe_read_kernel(&window, sizeof(window), skb->head + skb->transport_header + TCP_WINDOW);
	return window;
}

static __always_inline void see_first_byte(struct gauge *g, __u64 now)
{
	g->first_byte_us = at_most_32((now - g->established_ns) / 1000) ?: 1;
	if (g->direction == DIRECTION_ACTIVE)
		add_news(g, NEWS_FIRST_BYTE);
}

/*
 * Whether this answer is to be a sample: as of RTTs, no more than one in sample_interval_us, so that a connection that
 * talks without end drowns none that does not.
 */
static __always_inline bool is_due(struct tcp_sock *tp, struct gauge *g)
{
	__u32 now = tp->tcp_mstamp;

	g->asked_seq = tp->snd_nxt;
	if (g->response_us && now - g->answered_at < sample_interval_us)
		return false;
	g->answered_at = now;
	return true;
}

/* Data came after this side had sent some: an answer, as far as TCP can tell. */
static __always_inline void see_answer(struct tcp_sock *tp, struct gauge *g, __u64 now)
{
	__s64 ns = now - tp->tcp_wstamp_ns;
	struct totals *t;
	__u32 before;

	if (ns < 0)
		return; /* paced: what was sent last has not left yet */
	g->response_us = at_most_32(ns / 1000) ?: 1;
	if (!wants_totals)
		return;
	/* Most connections have no other before they end, or somebody looks. */
	before = __sync_lock_test_and_set(&g->new_response_us, g->response_us);
	t = before ? totals_of(g->cgroup_id) : NULL;
	if (t)
		sample_time(&t->response, before);
}

SEC("tp_btf/tcp_probe")
int rtt(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct sk_buff *skb = (void *)ctx[1];
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct gauge *g = tp ? gauge_of(sk) : NULL;
	bool first, answer, ready;
	__u64 now;

	if (!g)
		return 0;
	/* With nothing in flight this side has no round trip to measure: the common case of a receiver. */
	if (tp->packets_out)
		sample_rtt(tp, g);
	first = !tp->bytes_received && !g->first_byte_us && g->established_ns;
	answer = g->direction == DIRECTION_ACTIVE && tp->snd_nxt != g->asked_seq;
	ready = sees_reads && tp->rcv_nxt == tp->copied_seq;
	if ((first || answer || ready) && has_payload(skb, tp)) {
		answer = answer && is_due(tp, g);
		now = first || answer || ready ? bpf_ktime_get_ns() : 0;
		if (first)
			see_first_byte(g, now);
		if (answer)
			see_answer(tp, g, now);
		if (ready && is_next(skb, tp))
			g->ready_at = (__u32)(now / 1000) ?: 1;
	}
	if (sk->sk_socket)
		bound_accept(g);
	see_windows(tp, g);
	if (!tp->snd_wnd && opens_window(skb))
		see_open(g, WINDOW_PEER, clock_us());
	return 0;
}
