/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    cgroup_skb/egress and cgroup_skb/ingress, at the root of the cgroups; bpf_skb_cgroup_id() here since 5.8
 * Context: process or softirq, for every packet of every socket; the socket may not be locked
 * Feeds:   the answers to the name lookups of containers. Packets are let pass as they are, whatever is found.
 * Cost:    docs/overhead.md; only where names are asked for.
 *
 * A query is known by its form, whatever port it goes to: on its way out its address may be translated already, as that to
 * Docker's own server. Its answer is back from port 53, at the same socket and with the same number; so nobody who was not
 * asked can make names up.
 */
#include "../gauge.h"

#define DNS_PORT 53
/* Of an IPv6 header; extension headers are not looked behind, no resolver sends any. */
#define IPV6_HEADER 40
#define UDP_HEADER 8
#define DNS_HEADER 12

/* Where the header of the transport begins, and which transport that is; 0: not to be looked at. */
static __always_inline __u32 transport_of(struct __sk_buff *skb, __u8 *protocol)
{
	__u8 *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if ((void *)(data + 20) > end)
			return 0;
		*protocol = data[9];
		return (data[0] & 15) * 4;
	}
	if (skb->protocol != bpf_htons(ETH_P_IPV6) || (void *)(data + IPV6_HEADER) > end)
		return 0;
	*protocol = data[6];
	return IPV6_HEADER;
}

/* A question, and nothing else: RFC 1035, 4.1.1. */
static __always_inline bool is_query(const __be16 *header)
{
	bool answers = header[1] & bpf_htons(0xf800); /* an answer, or another operation than a lookup */

	return !answers && header[2] == bpf_htons(1) && !header[3] && !header[4];
}

SEC("cgroup_skb/egress")
int dns_query(struct __sk_buff *skb)
{
	__be16 header[DNS_HEADER / 2];
	__u8 protocol = 0;
	__u32 at = transport_of(skb, &protocol);
	__u64 now;

	if (!at || protocol != IPPROTO_UDP)
		return 1;
	if (bpf_skb_load_bytes(skb, at + UDP_HEADER, header, sizeof(header)) || !is_query(header))
		return 1;
	struct lookup lookup = { .cookie = bpf_get_socket_cookie(skb), .number = header[0] };

	now = bpf_ktime_get_ns();
	bpf_map_update_elem(&lookups, &lookup, &now, BPF_ANY);
	return 1;
}

/* Whether this socket asked a question with the number that the payload begins with. */
static __always_inline bool was_asked(struct __sk_buff *skb, __u32 payload, __u64 cookie)
{
	struct lookup lookup = { .cookie = cookie };

	return !bpf_skb_load_bytes(skb, payload, &lookup.number, sizeof(lookup.number)) &&
	       !bpf_map_delete_elem(&lookups, &lookup);
}

/* Whether this side began the connection: whoever connects from port 53 is not to make names up. */
static __always_inline bool did_connect(__u64 cookie)
{
	struct gauge *g = bpf_map_lookup_elem(&gauges, &cookie);

	return g && g->direction == DIRECTION_ACTIVE;
}

/* Sends the answer on, with so many bytes of it at most: a power of two. There is one byte at least. */
static __always_inline void send_answer(struct __sk_buff *skb, __u32 payload, __u32 room, __be32 seq, __u8 protocol)
{
	__u32 length = skb->len - payload;
	struct dns_answer *answer;

	answer = bpf_ringbuf_reserve(&dns_answers, sizeof(*answer) - DNS_PAYLOAD + room, 0);
	if (!answer) {
		lose(LOSS_DNS);
		return;
	}
	answer->cookie = bpf_get_socket_cookie(skb);
	answer->cgroup_id = bpf_skb_cgroup_id(skb);
	answer->time_ns = bpf_ktime_get_ns();
	answer->seq = bpf_ntohl(seq);
	answer->protocol = protocol;
	answer->length = length;
	if (length > room)
		length = room;
	/* From 1 to the room, as it is already: only so does 6.1 follow it. */
	length--;
	opaque(length);
	length = (length & (room - 1)) + 1;
	if (bpf_skb_load_bytes(skb, payload, answer->payload, length)) {
		bpf_ringbuf_discard(answer, BPF_RB_NO_WAKEUP);
		return;
	}
	bpf_ringbuf_submit(answer, BPF_RB_NO_WAKEUP);
}

SEC("cgroup_skb/ingress")
int dns_answer(struct __sk_buff *skb)
{
	__u8 protocol = 0, offset;
	__u32 at = transport_of(skb, &protocol), payload;
	__be16 port;
	__be32 seq = 0;

	if (!at || (protocol != IPPROTO_UDP && protocol != IPPROTO_TCP))
		return 1;
	if (bpf_skb_load_bytes(skb, at, &port, sizeof(port)) || port != bpf_htons(DNS_PORT))
		return 1;
	if (protocol == IPPROTO_UDP) {
		payload = at + UDP_HEADER;
		if (!was_asked(skb, payload, bpf_get_socket_cookie(skb)))
			return 1;
	} else {
		if (!did_connect(bpf_get_socket_cookie(skb)) || bpf_skb_load_bytes(skb, at + 4, &seq, sizeof(seq)) ||
		    bpf_skb_load_bytes(skb, at + 12, &offset, sizeof(offset)))
			return 1;
		payload = at + (offset >> 4) * 4;
	}
	if (skb->len <= payload)
		return 1;
	if (skb->len - payload <= DNS_SHORT)
		send_answer(skb, payload, DNS_SHORT, seq, protocol);
	else
		send_answer(skb, payload, DNS_PAYLOAD, seq, protocol);
	return 1;
}
