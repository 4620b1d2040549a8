/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    fentry/tcp_collapse
 * Context: softirq mostly; the socket is locked. Only while a receive buffer is full.
 * Feeds:   how often segments in a receive buffer are squeezed together to save memory. What is thrown away then is told
 *          by the reasons of drops.
 * Cost:    as much as that of listen.h, while memory is short.
 */
#include "../gauge.h"

SEC("fentry/tcp_collapse")
int collapsed(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct gauge *g = gauge_of(sk);
	struct totals *t = wants_totals ? totals_of(g ? g->cgroup_id : CGROUP_UNATTRIBUTED) : NULL;

	if (t)
		count(t->receive_collapses, 1);
	return 0;
}
