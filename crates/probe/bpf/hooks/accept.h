/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    fexit/inet_csk_accept
 * Context: process: a task accepts. The listener was locked, and is no more.
 * Feeds:   how long a connection waited for accept(). Kernels may refuse such programs; then a bound is taken where the
 *          connection is first seen in use.
 * Cost:    235 instructions a call on average, one that finds nothing included, measuring too: docs/overhead.md.
 */
#include "../gauge.h"

SEC("fexit/inet_csk_accept")
int accepted(__u64 *ctx)
{
	struct sock *sk;
	struct gauge *g;

	/* What it returned comes after its arguments. clang would make one load of these two, which the kernel refuses. */
	if (accept_has_argument)
		asm volatile("%0 = *(u64 *)(%1 + 16)" : "=r"(sk) : "r"(ctx));
	else
		asm volatile("%0 = *(u64 *)(%1 + 32)" : "=r"(sk) : "r"(ctx));
	if (!sk)
		return 0;
	g = hold_gauge(sk);
	if (!g)
		return 0;
	/* It is the process that will use it, as far as anybody knows yet. */
	learn_process(g);
	if (is_waiting(g))
		end_accept_wait(g, bpf_ktime_get_ns());
	release(g, cookie_of(sk));
	return 0;
}
