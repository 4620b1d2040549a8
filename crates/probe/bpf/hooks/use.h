/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/tcp_rcv_space_adjust, since 4.16
 * Context: process: a task receives. The socket is locked.
 * Feeds:   how long data waited to be read, if that was asked for. On hosts with cgroup v1 only, where the socket does
 *          not know its cgroup, the owner and process of accepted connections. Otherwise it is not loaded: it runs with
 *          every receive.
 * Cost:    478 ns for each receive, measuring included: docs/overhead.md. Too much to be on by default.
 */
#include "../gauge.h"

static __always_inline void see_read(struct gauge *g)
{
	struct totals *t = wants_totals ? totals_of(g->cgroup_id) : NULL;
	__u32 us = clock_us() - g->ready_at;

	g->ready_at = 0;
	g->reads++;
	g->read_delay_us += us;
	if (t)
		sample_time(&t->read_delay, us);
}

SEC("tp_btf/tcp_rcv_space_adjust")
int used(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct gauge *g;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	g = gauge_of(sk);
	if (!g)
		return 0;
	learn_process(g);
	bound_accept(g);
	if (g->ready_at)
		see_read(g);
	return 0;
}
