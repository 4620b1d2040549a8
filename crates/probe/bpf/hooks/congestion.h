/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/tcp_cong_state_set, since 5.19, before the state changes
 * Context: softirq mostly; the socket is locked. Runs with each change, and once with each accepted connection, which
 *          changes nothing.
 * Feeds:   how often congestion states other than open are entered, and how long they last.
 * Cost:    118 ns, measuring included: docs/overhead.md.
 */
#include "../gauge.h"

SEC("tp_btf/tcp_cong_state_set")
int congestion(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u32 new = (__u8)ctx[1];
	struct gauge *g;
	struct totals *t;

	if (!tp || BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_state) == new)
		return 0;
	g = gauge_of(sk);
	if (!g || g->flags & FLAG_CLOSED)
		return 0;
	t = wants_totals ? totals_of(g->cgroup_id) : NULL;
	leave_congestion(tp, g, t);
	if (new == TCP_CA_OPEN)
		return 0;
	g->congested_at = clock_us();
	new -= 1;
	opaque(new);
	if (new >= CONGESTIONS)
		return 0;
	if (g->congestion_entered[new] < 0xffff)
		g->congestion_entered[new]++;
	if (t)
		count(t->congestion_entered[new], 1);
	return 0;
}
