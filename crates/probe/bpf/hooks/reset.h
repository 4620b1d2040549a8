/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/tcp_send_reset and tp_btf/tcp_receive_reset, since 4.15
 * Context: softirq or process; the socket locked, if there is one; rare
 * Feeds:   resets sent and received, by the state of the connection. A RST may be sent for no socket at all (nobody
 *          listens) or for a TIME_WAIT socket: then the reader knows by the namespace. For a half-open connection the
 *          listener stands.
 * Cost:    600 ns for each reset, measuring included: docs/overhead.md.
 */
#include "../gauge.h"

#define RESET_SENT 1
#define RESET_RECEIVED 2

static __always_inline void count_reset(struct totals *t, __u32 way, __u32 state)
{
	__u32 at = (way - 1) * STATES + state;

	count(t->resets[way - 1], 1);
	opaque(at);
	if (at < RESET_STATES)
		count(t->resets_by_state[at], 1);
}

static __always_inline void on_reset(struct sock *sk, struct sk_buff *skb, __u8 way)
{
	/* Where the verifier holds the argument for never NULL, it drops the check, and the read yields 0. */
	__u8 state = sk ? sk->__sk_common.skc_state : 0;
	struct gauge *g = NULL;
	struct tcp_sock *tp = NULL;
	struct strays *strays = NULL;
	__u64 owner = CGROUP_UNATTRIBUTED;
	struct totals *t = NULL;
	__u32 at;

	if (state && state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV) {
		tp = bpf_skc_to_tcp_sock(sk);
		/* A listener is not locked. */
		g = tp ? hold_gauge(sk) : NULL;
	}
	if (g) {
		owner = g->cgroup_id;
		/* An abort closes the socket first and says so then. */
		if (state == TCP_CLOSE && g->flags & FLAG_CLOSED)
			state = g->closed_from;
	}
	if (wants_totals) {
		strays = g || way != RESET_SENT ? NULL : strays_of(skb, sk);
		t = strays ? NULL : totals_of(owner);
	}
	at = state;
	opaque(at);
	if (strays && at < STATES)
		count(strays->resets_sent[at], 1);
	else if (t)
		count_reset(t, way, state);
	if (!g || !tp)
		return;
	tell(tp, g, EVENT_RESET, state, way);
	if (g->flags & FLAG_CLOSED)
		finish_gauge(g, cookie_of(sk));
	release(g, cookie_of(sk));
}

SEC("tp_btf/tcp_send_reset")
int reset_sent(__u64 *ctx)
{
	on_reset((void *)ctx[0], (void *)ctx[1], RESET_SENT);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int reset_received(__u64 *ctx)
{
	on_reset((void *)ctx[0], NULL, RESET_RECEIVED);
	return 0;
}
