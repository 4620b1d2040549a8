/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A program that does nothing on each hook that the monitor takes by default: what any program there costs. Never loaded
 * by tcptide itself; the bench compares with it.
 */
#include "kernel.h"

#define NOTHING_ON(tracepoint)                                                                               \
	SEC("tp_btf/" #tracepoint)                                                                           \
	int on_##tracepoint(__u64 *ctx)                                                                      \
	{                                                                                                    \
		(void)ctx;                                                                                   \
		return 0;                                                                                    \
	}

NOTHING_ON(inet_sock_set_state)
NOTHING_ON(tcp_probe)
NOTHING_ON(tcp_retransmit_skb)
NOTHING_ON(tcp_retransmit_synack)
NOTHING_ON(tcp_send_reset)
NOTHING_ON(tcp_receive_reset)
NOTHING_ON(kfree_skb)
NOTHING_ON(tcp_cong_state_set)

char LICENSE[] SEC("license") = "Dual MIT/GPL";
