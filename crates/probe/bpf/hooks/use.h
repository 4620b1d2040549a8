/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/tcp_rcv_space_adjust, since 4.16
 * Context: process: a task receives. The socket is locked.
 * Feeds:   the owner and process of accepted connections on hosts with cgroup v1 only, where the socket does not know
 *          its cgroup. Not loaded elsewhere: it runs with every receive.
 */
#include "../gauge.h"

SEC("tp_btf/tcp_rcv_space_adjust")
int used(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct gauge *g;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	g = bpf_sk_storage_get(&gauges, sk, NULL, 0);
	if (g)
		learn_process(g);
	return 0;
}
