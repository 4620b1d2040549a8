/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/tcp_probe, since 4.16: first statement of tcp_rcv_established()
 * Context: softirq, or process while the socket's backlog is worked off. The socket is locked.
 * Feeds:   the RTT samples, and receive windows that are closed while a segment arrives. What is read is from before this segment: the last sample of a connection is taken
 *          by the walk or at the close.
 * Cost:    50 ns a segment with short connections, where each takes a sample; see ARCHITECTURE.md, "What it costs".
 */
#include "../gauge.h"

SEC("tp_btf/tcp_probe")
int rtt(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct gauge *g;

	/* With nothing in flight this side has no round trip to measure: the common case of a receiver. */
	if (!tp || (!tp->packets_out && tp->snd_wnd && tp->rcv_wnd))
		return 0;
	g = bpf_sk_storage_get(&gauges, sk, NULL, 0);
	if (!g)
		return 0;
	see_windows(sk, tp, g);
	if (tp->packets_out)
		sample_rtt(tp, g);
	return 0;
}
