/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/kfree_skb; with the reason since 5.17, with the receiving socket since 6.11
 * Context: any; the socket may be locked or not. Runs for each packet that is dropped, of any protocol, and for none
 *          that is delivered.
 * Feeds:   dropped TCP packets by reason. The owner is that of the socket that sent the packet or would have received
 *          it; where there is none, the reader knows by the namespace. Events, since 6.11, are of packets to a socket.
 * Cost:    186 ns for each packet that is dropped, measuring included: docs/overhead.md.
 */
#include "../gauge.h"

#define ETHERTYPE_IP 0x0800
#define ETHERTYPE_IPV6 0x86dd
/* Where the next protocol stands in the header. */
#define IP_PROTOCOL 9
#define IPV6_NEXT_HEADER 6

/* From the packet itself, for those that no socket is known of. IPv6 extension headers are not followed. */
static __always_inline bool is_tcp(struct sk_buff *skb)
{
	__u16 type = bpf_ntohs(skb->protocol);
	__u8 protocol = 0;
	int at;

	if (type == ETHERTYPE_IP)
		at = IP_PROTOCOL;
	else if (type == ETHERTYPE_IPV6)
		at = IPV6_NEXT_HEADER;
	else
		return false;
	bpf_probe_read_kernel(&protocol, 1, skb->head + skb->network_header + at);
	return protocol == IPPROTO_TCP;
}

/*
 * The owner of the full socket that a packet belongs to, of a half-open connection that of its listener. Read as plain
 * memory: a socket that a packet points to is none that the verifier lets a program use.
 */
static __always_inline bool find_owner(struct sock *sk, __u64 *owner)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (state == TCP_NEW_SYN_RECV) {
		sk = BPF_CORE_READ(sk, __sk_common.skc_listener);
		state = sk ? TCP_LISTEN : 0;
	}
	if (!state || state == TCP_TIME_WAIT || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return false;
	*owner = owner_by_task ? CGROUP_UNATTRIBUTED : BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	return true;
}

static __always_inline void tell_drop(struct sock *sk, __u32 slot)
{
	__u8 state = sk->__sk_common.skc_state;
	struct tcp_sock *tp;
	struct gauge *g;

	if (!state || state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	g = tp ? hold_gauge(sk) : NULL;
	if (!g)
		return;
	tell(tp, g, EVENT_DROP, state, slot);
	release(g, cookie_of(sk));
}

SEC("tp_btf/kfree_skb")
int drop(__u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];
	struct sock *receiver = drop_has_socket ? (void *)ctx[3] : NULL;
	struct sock *sk = receiver ?: BPF_CORE_READ(skb, sk);
	__u64 owner = CGROUP_UNATTRIBUTED;
	__u32 reason = ctx[2], slot = DROP_OTHER;
	struct strays *strays = NULL;
	struct totals *t = NULL;
	bool owned;

	opaque(reason);
	if (reason < KERNEL_DROP_REASONS)
		slot = drop_slots[reason];
	if (slot == DROP_NONE)
		return 0;
	owned = sk && find_owner(sk, &owner);
	if (!owned && !is_tcp(skb))
		return 0;
	if (wants_totals) {
		strays = owned ? NULL : strays_of(skb, sk);
		t = strays ? NULL : totals_of(owner);
	}
	opaque(slot);
	if (slot < DROP_REASONS && strays)
		count(strays->dropped_packets[slot], 1);
	else if (slot < DROP_REASONS && t)
		count(t->dropped_packets[slot], 1);
	if (receiver && is_sent(EVENT_DROP))
		tell_drop(receiver, slot);
	return 0;
}
