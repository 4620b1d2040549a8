/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What every hook does with a socket and its gauge: who owns it, its counters, its totals, its record.
 */
#ifndef GAUGE_H
#define GAUGE_H

#include "kernel.h"
#include "compat.h"
#include "maps.h"

static __always_inline void lose(enum loss what)
{
	__sync_fetch_and_add(&losses[what], 1);
}

/*
 * Global functions (not static, __noinline) are verified once and on their own, and return a number that the verifier
 * knows nothing of: what follows is looked at once, and not once for every way through them. Their pointers may be NULL,
 * as far as the verifier knows. See docs/decisions/0002-verifier-effort.md.
 */

/* The first slot whose bound is not below us. A binary search without a branch, for as many slots as a row has. */
__noinline __u32 slot_of(__u32 scale, __u64 us)
{
	__u32 slot = 0;

	if (scale >= SCALES)
		return 0;
	for (__u32 step = BOUNDS / 2; step; step /= 2) {
		__u32 at = (slot + step - 1) & (BOUNDS - 1);

		opaque(at);
		slot += step & -((bounds[scale][at & (BOUNDS - 1)] - us) >> 63);
	}
	return slot;
}

/* ---- The gauge of a socket ---------------------------------------------------------------------------- */

/*
 * A gauge is made when a socket begins, and taken out when it ends. Memory that is taken out may be another socket's gauge in
 * the next moment, so:
 *  - a program that runs while the socket is locked uses its gauge as it is: only the close takes it out, and the close has
 *    the lock;
 *  - all others hold it while they use it. Who is last takes it out.
 */

static __always_inline __u64 cookie_of(struct sock *sk)
{
	return sk->__sk_common.skc_cookie.counter;
}

/* That of a socket that is locked. */
static __always_inline struct gauge *gauge_of(struct sock *sk)
{
	__u64 cookie = cookie_of(sk);

	return bpf_map_lookup_elem(&gauges, &cookie);
}

/* The first words of a gauge in the making: nobody can hold it, as nobody could what the memory was before. */
static const __u64 unborn[sizeof(struct gauge) / 8] = { [__builtin_offsetof(struct gauge, holders) / 8] = GAUGE_DONE };

_Static_assert(__builtin_offsetof(struct gauge, holders) % 8 == 0, "where GAUGE_DONE goes");

static __always_inline struct seat *seat_at(__u32 at)
{
	return bpf_map_lookup_elem(&seats, &at);
}

/*
 * Beside a seat's progress: the socket is to be looked at again, though no segment came or went. What comes with one needs no
 * more than that: see progress_from().
 */
#define PROGRESS_AGAIN (1ULL << 63)

static __always_inline void look_again(const struct gauge *g)
{
	struct seat *seat = seat_at(g->seat);

	if (seat)
		__sync_fetch_and_or(&seat->progress, PROGRESS_AGAIN);
}

/* How often to try again to be first, where others change the same word. */
#define TRIES 8

/* The value of seating.empty after this one, when that seat is the next one. */
static __always_inline __u64 with_empty(__u64 before, __u32 next)
{
	return ((before >> 32) + 1) << 32 | next;
}

/*
 * A seat for a new gauge: an empty one, or the next that nobody ever had. Returns its number, counted from 1; 0: there is none.
 * Global, as slots are.
 */
__noinline __u32 take_seat(void)
{
	struct seat *seat = NULL;
	__u64 empty;
	__u32 at = 0;

	for (int i = 0; i < TRIES; i++) {
		empty = *(volatile __u64 *)&seating.empty;
		at = empty;
		seat = at ? seat_at(at - 1) : NULL;
		/* What is read of a seat that another took meanwhile is not used: the count of changes differs. */
		if (!seat || __sync_val_compare_and_swap(&seating.empty, empty,
							 with_empty(empty, *(volatile __u64 *)&seat->cookie)) == empty)
			break;
		seat = NULL;
	}
	if (!seat) {
		at = __sync_fetch_and_add(&seating.used, 1) + 1;
		seat = seat_at(at - 1);
	}
	if (!seat) {
		__sync_fetch_and_add(&seating.used, -1);
		return 0;
	}
	seat->progress = ~0ULL;
	return at;
}

/* In the place of a cookie: an empty seat that is not among the others, which a walk takes care of. */
#define SEAT_STRAY ~0ULL

__noinline int leave_seat(__u32 at)
{
	struct seat *seat = seat_at(at);
	__u64 empty;

	if (!seat)
		return 0;
	__sync_lock_test_and_set(&seat->sk, 0);
	for (int i = 0; i < TRIES; i++) {
		empty = *(volatile __u64 *)&seating.empty;
		seat->cookie = (__u32)empty;
		if (__sync_val_compare_and_swap(&seating.empty, empty, with_empty(empty, at + 1)) == empty)
			return 0;
	}
	seat->cookie = SEAT_STRAY;
	return 0;
}

/* That of the socket with this cookie, new if it has none, which `made` tells. NULL if there is no room. */
static __always_inline struct gauge *make_gauge(struct sock *sk, __u64 cookie, bool *made)
{
	struct seat *seat;
	struct gauge *g;
	__u32 at;

	*made = !bpf_map_update_elem(&gauges, &cookie, &unborn, BPF_NOEXIST);
	g = bpf_map_lookup_elem(&gauges, &cookie);
	if (!g || !*made)
		return g;
	at = take_seat();
	seat = at ? seat_at(at - 1) : NULL;
	if (!seat) {
		bpf_map_delete_elem(&gauges, &cookie);
		return NULL;
	}
	g->seat = at - 1;
	seat->cookie = cookie;
	/* Last: from now on walks look at it. */
	__sync_lock_test_and_set(&seat->sk, (__u64)sk);
	return g;
}

static __always_inline void take_out(const struct gauge *g, __u64 cookie)
{
	leave_seat(g->seat);
	bpf_map_delete_elem(&gauges, &cookie);
}

/* Whether the gauge, which was found without the socket's lock, is still that of the socket at this address, and then stays. */
static __always_inline bool hold(struct gauge *g, __u64 sk)
{
	bool is_there;

	bpf_spin_lock(&g->lock);
	is_there = g->sk == sk && !(g->holders & GAUGE_DONE);
	if (is_there)
		__sync_fetch_and_add(&g->holders, 1);
	bpf_spin_unlock(&g->lock);
	return is_there;
}

static __always_inline void release(struct gauge *g, __u64 cookie)
{
	if (__sync_fetch_and_add(&g->holders, -1) == (GAUGE_DONE | 1))
		take_out(g, cookie);
}

/* That of a socket that may not be locked; to be released. */
static __always_inline struct gauge *hold_gauge(struct sock *sk)
{
	struct gauge *g = gauge_of(sk);

	return g && hold(g, (__u64)sk) ? g : NULL;
}

/* The socket has ended, and nothing more will be asked of its gauge. */
static __always_inline void finish_gauge(struct gauge *g, __u64 cookie)
{
	if (!__sync_fetch_and_or(&g->holders, GAUGE_DONE))
		take_out(g, cookie);
}

/* ---- The owner ---------------------------------------------------------------------------------------- */

static __always_inline __u64 task_cgroup(void)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct cgroup_subsys_state *css;
	__u32 controller = owner_controller;

	if (!task || controller >= 16)
		return CGROUP_UNATTRIBUTED;
	/* An index that is known only at load time: no direct access to the array. */
	bpf_probe_read_kernel(&css, sizeof(css), &task->cgroups->subsys[controller]);
	return css ? BPF_CORE_READ(css, cgroup, kn, id) : CGROUP_UNATTRIBUTED;
}

/* The socket's own cgroup. Never the current task's: in softirq that is anybody. */
static __always_inline __u64 socket_cgroup(struct sock *sk)
{
	struct cgroup *cgroup = sk->sk_cgrp_data.cgroup;

	return cgroup ? cgroup->kn->id : CGROUP_UNATTRIBUTED;
}

/* The inode number of a namespace, from a socket that may be a copy: see socket_at(). */
static __always_inline __u32 inode_of(const struct net *net)
{
	__u32 inum = 0;

	if (casts_addresses)
		return net->ns.inum;
	bpf_probe_read_kernel(&inum, sizeof(inum), &net->ns.inum);
	return inum;
}

/* What tells a network namespace from all others of this boot. Its inode number does not: that is given again. */
static __always_inline __u64 netns_id(const struct net *net)
{
	return bpf_core_field_exists(net->net_cookie) ? net->net_cookie : net->ns.inum;
}

/* To be called once for each socket but those of a listener that was told, when its owner is known. */
static __always_inline void note_namespace(struct sock *sk, __u64 cgroup_id)
{
	struct net *net = sk->__sk_common.skc_net.net;
	struct namespace_owner key = { .cgroup_id = cgroup_id };
	__u32 inum;

	if (!wants_namespace_owners)
		return;
	key.netns = netns_id(net);
	if (bpf_map_lookup_elem(&namespace_owners, &key))
		return;
	inum = net->ns.inum;
	if (bpf_map_update_elem(&namespace_owners, &key, &inum, BPF_ANY))
		__sync_fetch_and_add(&namespace_owners_lost, 1);
}

/* To be called where the current task is the socket's user. Its name is read directly: the helper for it takes 73 ns. */
static __always_inline void learn_process(struct gauge *g)
{
	struct task_struct *task;

	if (g->pid)
		return;
	task = (void *)bpf_get_current_task_btf();
	g->pid = task->tgid;
	for (int i = 0; i < COMM_LEN; i++)
		g->comm[i] = task->comm[i];
	if (owner_by_task) {
		g->cgroup_id = task_cgroup();
		look_again(g);
	}
}

/* ---- Addresses ---------------------------------------------------------------------------------------- */

static __always_inline void map_v4(__u8 *to, __be32 address)
{
	__u32 *words = (__u32 *)to;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

static __always_inline void copy_v6(__u8 *to, const struct in6_addr *from)
{
	__u32 *words = (__u32 *)to;

	words[0] = from->in6_u.u6_addr32[0];
	words[1] = from->in6_u.u6_addr32[1];
	words[2] = from->in6_u.u6_addr32[2];
	words[3] = from->in6_u.u6_addr32[3];
}

static __always_inline bool is_v6(struct sock *sk)
{
	return sk->__sk_common.skc_family == AF_INET6 &&
	       bpf_core_field_exists(struct sock_common, skc_v6_daddr);
}

static __always_inline void peer_address(struct sock *sk, __u8 *to)
{
	if (is_v6(sk))
		copy_v6(to, &sk->__sk_common.skc_v6_daddr);
	else
		map_v4(to, sk->__sk_common.skc_daddr);
}

static __always_inline void local_address(struct sock *sk, __u8 *to)
{
	if (is_v6(sk))
		copy_v6(to, &sk->__sk_common.skc_v6_rcv_saddr);
	else
		map_v4(to, sk->__sk_common.skc_rcv_saddr);
}

/* skc_num is 0 again at CLOSE, inet_sport is not set yet in a listener's first moments. */
static __always_inline __u16 local_port(struct tcp_sock *tp)
{
	__u16 port = tp->inet_conn.icsk_inet.sk.__sk_common.skc_num;

	return port ?: bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
}

/* The connection of these two ends, or the request for one, at a socket of the same namespace. */
static __always_inline void name_half_open(struct half_open *key, struct sock *connection, struct sock *sk)
{
	local_address(connection, key->local_address);
	peer_address(connection, key->peer_address);
	key->local_port = connection->__sk_common.skc_num;
	key->peer_port = bpf_ntohs(connection->__sk_common.skc_dport);
	key->netns = sk->__sk_common.skc_net.net->ns.inum;
}

/* ---- Counters ----------------------------------------------------------------------------------------- */

/* A bit of sk_flags. */
#define is_flagged(sk, flag) (((sk)->__sk_common.skc_flags >> bpf_core_enum_value(enum sock_flags, flag)) & 1)

/* n if it is positive, else 0. Without a branch, after each of which the verifier would go two ways. */
static __always_inline __s64 if_positive(__s64 n)
{
	__s64 negated = -n;

	opaque(negated); /* clang would make a branch of it */
	return n & (negated >> 63);
}

/* Since the birth or the adoption, those whose kind was seen. */
static __always_inline __u32 known_retransmits(const struct gauge *g)
{
	__u32 known = 0;

	for (int i = 0; i < RETRANSMIT_OTHER; i++)
		known += g->retransmits_by_kind[i];
	return known;
}

/*
 * Those whose kind is not known yet were of this one. What a walk has taken for another kind meanwhile stays that. Needs
 * no event: the kernel's own count tells how many they were.
 */
static __always_inline void tell_retransmits(struct tcp_sock *tp, struct gauge *g, __u32 kind)
{
	opaque(kind);
	if (kind < RETRANSMIT_OTHER)
		g->retransmits_by_kind[kind] += tp->total_retrans - g->before.retransmits - known_retransmits(g) -
						g->folded.retransmits_by_kind[RETRANSMIT_OTHER];
}

/* Whether a socket's lock can be told of: not with those of PREEMPT_RT. */
static __always_inline bool tells_locks(void)
{
	return bpf_core_field_exists(struct sock, sk_lock.slock.rlock.raw_lock.val);
}

/*
 * A number that stays as it is while a connection carries nothing. All that is counted comes with a segment, a moment after
 * that is counted; so segments tell of the rest once nobody is at work on the socket. To be read before the counters.
 */
#define progress_from(segs_out, segs_in) (((__u64)(segs_out) << 32 | (segs_in)) & ~PROGRESS_AGAIN)

/* Ticks since a time that runs began; 0: none runs. Global, as slots are: what it returns is any number to the verifier. */
__noinline __u32 chrono_ticks(__u32 running, __u32 since)
{
	return running ? (__u32)bpf_jiffies64() - since : 0;
}

/* n if a is b, else 0. Without a branch: a and b are small. */
static __always_inline __u32 if_same(__u32 a, __u32 b, __u32 n)
{
	__s64 differs = a ^ b;

	opaque(differs); /* clang would make a branch of it */
	return n & ((differs - 1) >> 63);
}

static __noinline void read_counters(struct tcp_sock *tp, struct gauge *g, struct counters *c)
{
	__u64 acked = if_positive((__s64)tp->bytes_acked - (g->direction == DIRECTION_ACTIVE));
	__u32 running, ticks;

	/*
	 * A retransmission adds to bytes_retrans first and to bytes_sent a moment later: a reading in between
	 * is short, and the next one is right again.
	 */
	c->sent_bytes = if_positive((__s64)tp->bytes_sent - (__s64)tp->bytes_retrans);
	/* The FIN comes last: it is what exceeds the payload. */
	c->acked_bytes = acked - if_positive(acked - c->sent_bytes);
	c->received_bytes =
		if_positive((__s64)tp->bytes_received - is_flagged(&tp->inet_conn.icsk_inet.sk, SOCK_DONE));
	c->segments_out = tp->segs_out;
	c->segments_in = tp->segs_in;
	c->retransmits = tp->total_retrans;
	c->lost = tp->lost;
	c->duplicates = tp->dsack_dups;
	c->reorderings = tp->reord_seen;
	c->ce_marked = tp->delivered_ce;
	running = BPF_CORE_READ_BITFIELD(tp, chrono_type);
	ticks = chrono_ticks(running, tp->chrono_start);
	for (__u32 i = 0; i < LIMITS; i++)
		c->limited[i] = tp->chrono_stat[i] + if_same(running, i + 1, ticks);
}

static __noinline void read_socket(struct tcp_sock *tp, struct gauge *g, struct reading *r)
{
	read_counters(tp, g, &r->counters);
	for (int i = 0; i < RETRANSMIT_OTHER; i++)
		r->retransmits_by_kind[i] = g->retransmits_by_kind[i];
	r->retransmits_by_kind[RETRANSMIT_OTHER] =
		r->counters.retransmits - g->before.retransmits - known_retransmits(g);
}

/* Whether somebody is at work on the socket, as far as can be told. */
static __always_inline bool is_locked(struct sock *sk)
{
	if (sk->sk_lock.owned)
		return true;
	return tells_locks() && sk->sk_lock.slock.rlock.raw_lock.val.counter;
}

/*
 * As read_socket(), where the socket is not locked: a FIN adds to bytes_received a moment before it sets SOCK_DONE,
 * and totals cannot take a byte back. Returns whether somebody was at work on it before or after.
 */
static __always_inline bool peek_socket(struct sock *sk, struct tcp_sock *tp, struct gauge *g, struct reading *r)
{
	bool was_locked = is_locked(sk), locked;
	__u64 received;

	asm volatile("" ::: "memory");
	read_socket(tp, g, r);
	received = *(volatile __u64 *)&tp->bytes_received;
	locked = is_locked(sk);
	asm volatile("" ::: "memory");
	r->counters.received_bytes = if_positive((__s64)received - (is_flagged(sk, SOCK_DONE) || locked));
	return was_locked || locked;
}

/* Totals never go backwards: a short reading moves nothing. */
static __always_inline void advance64(__u64 *folded, __u64 now)
{
	*folded += if_positive((__s64)(now - *folded));
}

/* The kernel's 32-bit counters wrap. */
static __always_inline __u32 advance32(__u32 *folded, __u32 now)
{
	__s64 grown = if_positive((__s32)(now - *folded));

	*folded += grown;
	return grown;
}

static __always_inline __u64 microseconds(__u32 ticks)
{
	return (__u64)ticks * tick_ns / 1000;
}

static const struct totals no_totals;

/* Makes totals for a cgroup. Returns whether there is room for them. */
__noinline int make_totals(__u64 cgroup)
{
	if (!bpf_map_update_elem(&totals, &cgroup, &no_totals, BPF_NOEXIST) || bpf_map_lookup_elem(&totals, &cgroup))
		return true;
	lose(LOSS_TOTALS);
	return false;
}

static __noinline struct totals *totals_of(__u64 cgroup)
{
	struct totals *t = bpf_map_lookup_elem(&totals, &cgroup);

	if (t)
		return t;
	if (!make_totals(cgroup))
		cgroup = CGROUP_OTHER; /* made by the loader */
	return bpf_map_lookup_elem(&totals, &cgroup);
}

#define count(field, n)                                                                                              \
	do {                                                                                                         \
		__u64 _n = (n);                                                                                      \
		if (_n)                                                                                              \
			__sync_fetch_and_add(&(field), _n);                                                          \
	} while (0)

static const struct strays no_strays;

/*
 * Those of the namespace that a packet is in: its socket's, which is no full one, or its device's. NULL if there is
 * neither, or no room. Both are read as plain memory: the device of a packet that is a socket's may be anything, and
 * then the namespace is one that nobody knows.
 */
static __always_inline struct strays *strays_of(struct sk_buff *skb, struct sock *sk)
{
	struct strays *found;
	struct net *net = NULL;
	__u64 id;

	if (sk)
		net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	else if (skb)
		net = BPF_CORE_READ(skb, dev, nd_net.net);
	if (!net)
		return NULL;
	id = bpf_core_field_exists(net->net_cookie) ? BPF_CORE_READ(net, net_cookie) : BPF_CORE_READ(net, ns.inum);
	found = bpf_map_lookup_elem(&strays, &id);
	if (found)
		return found;
	bpf_map_update_elem(&strays, &id, &no_strays, BPF_NOEXIST);
	return bpf_map_lookup_elem(&strays, &id);
}

/* Adds by how much a reading is ahead of another. Global, as slots are. */
__noinline int add_grown(struct totals *t, const struct reading *now, const struct reading *before)
{
	const struct counters *n, *b;

	if (!t || !now || !before)
		return 0;
	n = &now->counters;
	b = &before->counters;
	count(t->sent_bytes, if_positive(n->sent_bytes - b->sent_bytes));
	count(t->acked_bytes, if_positive(n->acked_bytes - b->acked_bytes));
	count(t->received_bytes, if_positive(n->received_bytes - b->received_bytes));
	count(t->sent_segments, if_positive((__s32)(n->segments_out - b->segments_out)));
	count(t->received_segments, if_positive((__s32)(n->segments_in - b->segments_in)));
	if (n->limited[0] | n->limited[1] | n->limited[2]) {
		for (int i = 0; i < LIMITS; i++)
			count(t->limited_us[i], microseconds(if_positive((__s32)(n->limited[i] - b->limited[i]))));
	}
	/* Most connections have none of these. */
	if (!(n->lost | n->duplicates | n->reorderings | n->ce_marked | n->retransmits))
		return 0;
	count(t->lost_segments, if_positive((__s32)(n->lost - b->lost)));
	count(t->duplicate_segments, if_positive((__s32)(n->duplicates - b->duplicates)));
	count(t->reorderings, if_positive((__s32)(n->reorderings - b->reorderings)));
	count(t->ce_marked_segments, if_positive((__s32)(n->ce_marked - b->ce_marked)));
	/* SYN-ACKs are counted as they happen: they may never become a connection. */
	for (int i = 0; i < RETRANSMITS; i++) {
		if (i != RETRANSMIT_SYNACK)
			count(t->retransmitted_segments[i],
			      if_positive((__s32)(now->retransmits_by_kind[i] - before->retransmits_by_kind[i])));
	}
	return 0;
}

/* Sets flags, whoever else sets some. */
static __always_inline void set_flags(struct gauge *g, __u8 flags)
{
	__sync_fetch_and_or(&g->head, flags);
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the flags are the lowest byte of the head");

/* Moves what is new since the last fold into the owner's totals, for the last time: nothing is folded after that. */
static __always_inline void fold_last(struct tcp_sock *tp, struct gauge *g, struct totals *t)
{
	struct reading now;

	/* A walk that is just folding has the lock. */
	bpf_spin_lock(&g->lock);
	set_flags(g, FLAG_CLOSED);
	bpf_spin_unlock(&g->lock);
	if (!t)
		return;
	read_socket(tp, g, &now);
	add_grown(t, &now, &g->folded);
}

/*
 * Moves what is new since the last fold into the owner's totals, unless it has ended since it was read: it began at
 * `opened_ns` then. Returns whether it has not.
 */
static __always_inline bool fold(struct gauge *g, struct totals *t, const struct reading *now, __u64 opened_ns)
{
	struct reading before;
	const struct counters *c = &now->counters;
	struct counters *f = &g->folded.counters;
	bool is_open;

	bpf_spin_lock(&g->lock);
	before = g->folded;
	is_open = !(g->flags & FLAG_CLOSED) && g->opened_ns == opened_ns;
	if (is_open) {
		advance64(&f->sent_bytes, c->sent_bytes);
		advance64(&f->acked_bytes, c->acked_bytes);
		advance64(&f->received_bytes, c->received_bytes);
		advance32(&f->segments_out, c->segments_out);
		advance32(&f->segments_in, c->segments_in);
		advance32(&f->lost, c->lost);
		advance32(&f->duplicates, c->duplicates);
		advance32(&f->reorderings, c->reorderings);
		advance32(&f->ce_marked, c->ce_marked);
		for (int i = 0; i < LIMITS; i++)
			advance32(&f->limited[i], c->limited[i]);
		for (int i = 0; i < RETRANSMITS; i++)
			advance32(&g->folded.retransmits_by_kind[i], now->retransmits_by_kind[i]);
	}
	bpf_spin_unlock(&g->lock);
	if (is_open)
		add_grown(t, now, &before);
	return is_open;
}

/* What a listener turned away since the last fold. */
static __always_inline void fold_drops(struct sock *sk, struct gauge *g, struct totals *t)
{
	__u32 now = sk->sk_drops.counter, new;

	bpf_spin_lock(&g->lock);
	new = advance32(&g->folded_drops, now);
	bpf_spin_unlock(&g->lock);
	count(t->listen_drops, new);
}

/* ---- Adoption ----------------------------------------------------------------------------------------- */

static __always_inline void count_held(struct sock *sk, __s64 more)
{
	__u32 netns = sk->__sk_common.skc_net.net->ns.inum;
	__s64 none = 0, *n = bpf_map_lookup_elem(&held, &netns);

	if (!n) {
		bpf_map_update_elem(&held, &netns, &none, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&held, &netns);
	}
	if (n)
		__sync_fetch_and_add(n, more);
}

/* ---- Times -------------------------------------------------------------------------------------------- */

/* The clock of what lasts less than an hour: its low half, and never 0, which says that nothing runs. */
static __always_inline __u32 clock_us(void)
{
	return (bpf_ktime_get_ns() / 1000) ?: 1;
}

/* a + b, or the highest number: a time that is as long or longer. */
static __always_inline __u32 add_up(__u32 a, __u32 b)
{
	return a + b < a ? ~0U : a + b;
}

static __always_inline __u32 at_most_32(__u64 us)
{
	return us > ~0U ? ~0U : us;
}

/* A time as a sample of a distribution. */
__noinline int sample_time(struct times *to, __u64 us)
{
	__u32 slot = slot_of(SCALE_CONNECT, us);

	opaque(slot);
	if (!to || slot >= CONNECT_SLOTS)
		return 0;
	__sync_fetch_and_add(&to->slots[slot], 1);
	__sync_fetch_and_add(&to->sum_us, us);
	return 0;
}

/* Bits of enum news are to be counted at the next fold; what there is to know of it has been written. */
static __always_inline void add_news(struct gauge *g, __u32 news)
{
	if (wants_totals)
		__sync_fetch_and_or(&g->news, news);
}

/*
 * Counts what became known since the last fold: once a connection, most of it, and not as it happens, because that would
 * mean to look for the owner's totals each time.
 */
static __noinline void give_news(struct totals *t, struct gauge *g)
{
	__u32 news, response, direction;

	news = g->news ? __sync_lock_test_and_set(&g->news, 0) : 0;
	direction = g->direction;
	opaque(direction);
	if (direction >= DIRECTIONS)
		return;
	if (news & NEWS_OPENED)
		__sync_fetch_and_add(&t->opened[direction], 1);
	if (direction == DIRECTION_PASSIVE) {
		if (news & NEWS_ESTABLISHED && g->handshake_us)
			sample_time(&t->handshake, g->handshake_us);
		if (news & NEWS_ACCEPTED)
			sample_time(&t->accept_wait, g->accept_wait_us);
		return;
	}
	if (news & NEWS_ESTABLISHED && g->opened_ns)
		sample_time(&t->connect, (g->established_ns - g->opened_ns) / 1000);
	if (news & NEWS_FIRST_BYTE)
		sample_time(&t->first_byte, g->first_byte_us);
	response = g->new_response_us ? __sync_lock_test_and_set(&g->new_response_us, 0) : 0;
	if (response)
		sample_time(&t->response, response);
}

/* A passive connection that waits for accept(), as far as anybody knows. */
static __always_inline bool is_waiting(const struct gauge *g)
{
	return g->direction == DIRECTION_PASSIVE && !g->accept_wait_us && g->established_ns;
}

/* One that was waiting has been accepted, at the latest now. */
static __always_inline void end_accept_wait(struct gauge *g, __u64 now)
{
	g->accept_wait_us = at_most_32((now - g->established_ns) / 1000) ?: 1;
	add_news(g, NEWS_ACCEPTED);
	look_again(g);
}

/* It was seen in use: an upper bound, where nothing tells of accept() itself. */
static __always_inline void bound_accept(struct gauge *g)
{
	if (sees_accepts || !is_waiting(g))
		return;
	set_flags(g, FLAG_ACCEPT_BOUND);
	end_accept_wait(g, bpf_ktime_get_ns());
}

/* ---- Round-trip time ---------------------------------------------------------------------------------- */

/*
 * At most one sample a round trip (rtt_seq is the kernel's own mark of that), and at most one in
 * sample_interval_us, so that one connection over loopback does not drown a thousand others.
 */
static __always_inline void sample_rtt(struct tcp_sock *tp, struct gauge *g)
{
	__u32 seq, rtt, slot, now, half;
	struct totals *t;

	if (!wants_samples && !wants_totals)
		return;
	seq = tp->rtt_seq;
	if (seq == g->rtt_seq)
		return;
	now = tp->tcp_mstamp;
	if (g->rtt_seq && now - g->sampled_at < sample_interval_us)
		return;
	rtt = tp->rack.rtt_us ?: tp->srtt_us >> 3; /* without SACK there is no rack */
	if (!rtt)
		return;
	g->rtt_seq = seq;
	g->sampled_at = now;
	slot = slot_of(SCALE_RTT, rtt);
	opaque(slot);
	if (slot >= RTT_SLOTS)
		return;
	half = 16 * (slot % 2);
	/* Full, after a minute and more in which nobody has looked. */
	if ((__u16)(g->rtt.slots[slot / 2] >> half) == 0xffff) {
		t = wants_totals ? totals_of(g->cgroup_id) : NULL;
		if (!t)
			return;
		__sync_fetch_and_add(&t->rtt.slots[slot], 1);
		__sync_fetch_and_add(&t->rtt.sum_us, rtt);
		return;
	}
	if (!(g->rtt.used & (1 << slot / 2)))
		__sync_fetch_and_or(&g->rtt.used, 1 << slot / 2);
	__sync_fetch_and_add(&g->rtt.slots[slot / 2], 1 << half);
	__sync_fetch_and_add(&g->rtt.sum_us, rtt);
}

__noinline int sample_delay(struct round_trips *to, __u32 srtt, __u32 least)
{
	__u32 delay, slot;

	if (!to || !srtt || least == NO_RTT)
		return 0;
	delay = srtt > least ? srtt - least : 0;
	slot = slot_of(SCALE_RTT, delay);
	opaque(slot);
	if (slot >= RTT_SLOTS)
		return 0;
	__sync_fetch_and_add(&to->slots[slot], 1);
	__sync_fetch_and_add(&to->sum_us, delay);
	return 0;
}

/* How long segments wait on their way: what the smoothed RTT is above the least one. One sample. */
static __always_inline void sample_queueing(struct tcp_sock *tp, struct totals *t)
{
	if (t)
		sample_delay(&t->queueing, tp->srtt_us >> 3, tp->rtt_min.s[0].v);
}

/* Two slots' samples, of slot i and the next, which are n's halves. */
__noinline int give_samples(struct round_trips *to, struct rtt_record *record, __u32 i, __u32 n)
{
	opaque(i);
	if (i >= RTT_SLOTS - 1)
		return 0;
	if (to) {
		count(to->slots[i], n & 0xffff);
		count(to->slots[i + 1], n >> 16);
	}
	if (record) {
		record->slots[i] = n & 0xffff;
		record->slots[i + 1] = n >> 16;
	}
	return 0;
}

/* The same into what is kept of a watched connection, or their sum. */
__noinline int watch_samples(__u64 cookie, __u32 i, __u32 n, __u64 sum)
{
	struct watched *w = watches ? bpf_map_lookup_elem(&watched, &cookie) : NULL;

	if (!w)
		return 0;
	count(w->rtt.sum_us, sum);
	opaque(i);
	if (i >= RTT_SLOTS - 1)
		return 0;
	count(w->rtt.slots[i], n & 0xffff);
	count(w->rtt.slots[i + 1], n >> 16);
	return 0;
}

/* Takes the samples off a gauge: into the totals, into a record, or both, and into what is kept of a watched connection. */
__noinline int move_samples(struct rtt_samples *from, struct round_trips *to, struct rtt_record *record, __u64 cookie)
{
	__u64 sum;
	__u32 used, n;

	/* The sum is added last: while it is 0 there is no sample to take. */
	if (!from || !from->sum_us)
		return 0;
	sum = __sync_lock_test_and_set(&from->sum_us, 0);
	if (to)
		__sync_fetch_and_add(&to->sum_us, sum);
	watch_samples(cookie, RTT_SLOTS, 0, sum);
	if (record)
		record->sum_us = sum;
	used = from->used;
	for (__u32 i = 0; i < RTT_SLOTS / 2 && used >> i; i++) {
		if (used >> i & 1 && from->slots[i]) {
			n = __sync_lock_test_and_set(&from->slots[i], 0);
			give_samples(to, record, 2 * i, n);
			watch_samples(cookie, 2 * i, n, 0);
		}
	}
	return 0;
}

/* A watched connection comes into a state. */
__noinline int note_state(__u64 cookie, __u32 state)
{
	struct watched *w = bpf_map_lookup_elem(&watched, &cookie);

	opaque(state);
	if (!w || state >= STATES)
		return 0;
	/* The socket connects again. */
	if (state == TCP_SYN_SENT)
		__builtin_memset(w->entered_ns, 0, sizeof(w->entered_ns));
	if (!w->entered_ns[state])
		w->entered_ns[state] = bpf_ktime_get_ns();
	return 0;
}

/* Where samples are asked for as records, none of them is in the totals, and the other way round. */
static __always_inline void take_samples(struct gauge *g, struct totals *t, struct connection *c, __u64 cookie)
{
	if (wants_samples && c) {
		c->flags |= FLAG_SAMPLES;
		__builtin_memset(&c->rtt, 0, sizeof(c->rtt));
		move_samples(&g->rtt, t ? &t->rtt : NULL, &c->rtt, cookie);
	} else if (t) {
		move_samples(&g->rtt, &t->rtt, NULL, cookie);
	}
}

/* The congestion state that the socket is in ends, if it is not open. */
static __always_inline void leave_congestion(struct tcp_sock *tp, struct gauge *g, struct totals *t)
{
	__u32 state = BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_state), us;

	if (!g->congested_at)
		return;
	us = clock_us() - g->congested_at;
	g->congested_at = 0;
	state -= 1;
	opaque(state);
	if (state >= CONGESTIONS)
		return;
	g->congestion_us[state] = add_up(g->congestion_us[state], us);
	if (t)
		count(t->congestion_us[state], us);
}

/* ---- Records ------------------------------------------------------------------------------------------ */

/* The kernel's own name of the MPTCP connection that a subflow belongs to. `subflow`: the address of its context. */
__noinline __u32 mptcp_token_of(__u64 subflow)
{
	struct mptcp_sock *connection;

	if (!subflow)
		return 0;
	connection = (void *)BPF_CORE_READ((struct mptcp_subflow_context *)subflow, conn);
	return connection ? BPF_CORE_READ(connection, token) : 0;
}

static __always_inline __u32 mptcp_token(struct tcp_sock *tp)
{
	if (!bpf_core_field_exists(tp->is_mptcp) || !tp->is_mptcp)
		return 0;
	return mptcp_token_of((__u64)BPF_CORE_READ(tp, inet_conn.icsk_ulp_data));
}

/* Bytes/s; 0: not measured yet. */
__noinline __u64 rate_of(__u32 segments, __u32 mss, __u32 interval_us)
{
	return interval_us ? (__u64)segments * mss * 1000000 / interval_us : 0;
}

/* Sequence numbers count a FIN: the peer's when it has come, the own when it is to be sent. */
__noinline __u32 without_fin(__u32 bytes, __u32 fin)
{
	return bytes && fin ? bytes - 1 : bytes;
}

/* Whether a state is one of these. Without a branch, after each of which the verifier would go two ways. */
static __always_inline __u32 is_one_of(__u32 state, __u32 states)
{
	return states >> (state & 31) & 1;
}

/* What became of TCP Fast Open; final once the connection is established. */
__noinline __u32 outcome_of(__u32 failure, __u32 sent, __u32 taken)
{
	if (taken)
		return FAST_OPEN_USED;
	if (failure == TFO_COOKIE_UNAVAILABLE)
		return FAST_OPEN_NO_COOKIE;
	if (failure == TFO_SYN_RETRANSMITTED)
		return FAST_OPEN_SYN_LOST;
	return failure || sent ? FAST_OPEN_NOT_TAKEN : FAST_OPEN_NONE;
}

static __always_inline __u32 fast_open(struct tcp_sock *tp)
{
	return outcome_of(BPF_CORE_READ_BITFIELD(tp, fastopen_client_fail), BPF_CORE_READ_BITFIELD(tp, syn_data),
			  BPF_CORE_READ_BITFIELD(tp, syn_data_acked));
}

/*
 * Where a sequence number began that has come so many bytes far. Where the socket is not locked both may move between the
 * two reads; then they are read once more.
 */
#define start_of(number, bytes)                                                                                      \
	({                                                                                                           \
		__u32 _first = *(volatile __u32 *)&(number);                                                         \
		__u32 _start = _first - (__u32)*(volatile __u64 *)&(bytes);                                          \
		__u32 _second = *(volatile __u32 *)&(number);                                                        \
		__u32 _again = _second - (__u32)*(volatile __u64 *)&(bytes);                                         \
		_again + if_same(_first, _second, _start - _again);                                                  \
	})

/* Everything but what belongs to an event alone, and the RTT samples. */
static __noinline void describe(struct connection *c, struct tcp_sock *tp, struct gauge *g, const struct reading *now,
				__u32 state)
{
	const struct tcp_congestion_ops *ops = tp->inet_conn.icsk_ca_ops;
	struct sock *sk = (void *)tp;
	__u32 listens;

	c->time_ns = bpf_ktime_get_ns();
	c->cookie = cookie_of(sk);
	c->cgroup_id = g->cgroup_id;
	c->opened_ns = g->opened_ns;
	c->established_ns = g->established_ns;
	c->before = g->before;
	c->since.sent_bytes = if_positive(now->counters.sent_bytes - g->before.sent_bytes);
	c->since.acked_bytes = if_positive(now->counters.acked_bytes - g->before.acked_bytes);
	c->since.received_bytes = if_positive(now->counters.received_bytes - g->before.received_bytes);
	c->since.segments_out = now->counters.segments_out - g->before.segments_out;
	c->since.segments_in = now->counters.segments_in - g->before.segments_in;
	c->since.retransmits = now->counters.retransmits - g->before.retransmits;
	c->since.lost = now->counters.lost - g->before.lost;
	c->since.duplicates = now->counters.duplicates - g->before.duplicates;
	c->since.reorderings = now->counters.reorderings - g->before.reorderings;
	c->since.ce_marked = now->counters.ce_marked - g->before.ce_marked;
	for (int i = 0; i < LIMITS; i++) {
		c->since.limited[i] = now->counters.limited[i] - g->before.limited[i];
		c->limited_us[i] = microseconds(c->since.limited[i]);
	}
	for (int i = 0; i < RETRANSMITS; i++)
		c->retransmits_by_kind[i] = now->retransmits_by_kind[i];
	for (int i = 0; i < WINDOWS; i++) {
		c->zero_windows[i] = sees_segments ? g->zero_windows[i] : NOT_SEEN;
		c->zero_window_us[i] = g->closed_us[i];
	}
	for (int i = 0; i < CONGESTIONS; i++) {
		c->congestion_entered[i] = sees_congestion ? g->congestion_entered[i] : NOT_SEEN;
		c->congestion_us[i] = g->congestion_us[i];
	}
	c->accept_wait_us = if_same(g->direction, DIRECTION_PASSIVE, g->accept_wait_us);
	c->handshake_us = if_same(g->direction, DIRECTION_PASSIVE, g->handshake_us);
	c->response_us = g->response_us;
	c->reads = sees_reads ? g->reads : NOT_SEEN;
	c->read_delay_us = g->read_delay_us;
	c->mptcp_token = mptcp_token(tp);
	c->fast_open = fast_open(tp);
	c->delivery_rate = rate_of(tp->rate_delivered, tp->mss_cache, tp->rate_interval_us);
	c->pacing_rate = sk->sk_pacing_rate;
	c->handshake_rtt_us = if_same(g->flags & FLAG_LISTENER, 0, g->handshake_rtt_us);
	c->first_byte_us = g->first_byte_us;
	c->ssthresh = tp->snd_ssthresh;
	c->send_window = tp->snd_wnd;
	c->receive_window = tp->rcv_wnd;
	c->unread = without_fin(tp->rcv_nxt - tp->copied_seq, is_flagged(sk, SOCK_DONE));
	c->unsent = without_fin(tp->write_seq - tp->snd_nxt,
				is_one_of(state, 1 << TCP_FIN_WAIT1 | 1 << TCP_LAST_ACK | 1 << TCP_CLOSING));
	c->own_start = start_of(tp->snd_una, tp->bytes_acked) + if_same(g->direction, DIRECTION_ACTIVE, 1);
	c->peer_start = start_of(tp->rcv_nxt, tp->bytes_received);
	c->drops = sk->sk_drops.counter;
	/* In SYN_SENT it was only asked for. */
	c->ecn = is_one_of(state, ~(1 << TCP_SYN_SENT)) & BPF_CORE_READ_BITFIELD(tp, ecn_flags) & TCP_ECN_OK;
	local_address(sk, c->local_address);
	peer_address(sk, c->peer_address);
	c->local_port = local_port(tp);
	c->peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
	c->netns = inode_of(sk->__sk_common.skc_net.net);
	c->pid = g->pid;
	__builtin_memcpy(c->comm, g->comm, sizeof(c->comm));
	c->srtt_us = tp->srtt_us >> 3;
	c->min_rtt_us = tp->rtt_min.s[0].v;
	c->rttvar_us = tp->mdev_us >> 2;
	c->last_rtt_us = tp->rack.rtt_us;
	c->cwnd = tp->snd_cwnd;
	c->mss = tp->mss_cache;
	c->reordering = tp->reordering;
	c->error = sk->sk_err;
	c->event = 0;
	c->state = state;
	c->direction = g->direction;
	c->reason = 0;
	c->ca_state = BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_state);
	c->flags = g->flags | (sk->sk_socket ? 0 : FLAG_UNHELD);
	c->detail = 0;
	c->state_before = 0;
	__builtin_memset(c->padding, 0, sizeof(c->padding));
	/* By a call: a copied socket's pointers are numbers. Zeros where it cannot be read. */
	bpf_probe_read_kernel(c->congestion, sizeof(c->congestion), &ops->name);
	c->rtt.sum_us = 0;
	/*
	 * Without a branch, which Linux 6.1's verifier cut out of the walk: it had followed a socket whose state was known to be
	 * another, and took those of unknown states for the same.
	 */
	listens = -is_one_of(state, 1 << TCP_LISTEN);
	c->accept_queue = sk->sk_ack_backlog & listens;
	c->accept_limit = sk->sk_max_ack_backlog & listens;
	c->syn_queue = tp->inet_conn.icsk_accept_queue.qlen.counter & listens;
	c->overflows = sees_overflows ? g->overflows | ~listens : NOT_SEEN;
}

/* ---- What was asked for ------------------------------------------------------------------------------- */

#define CGROUP_DEPTH 16

/* The nearest cgroup upwards that something was said of decides. `cgroup`: the address of its struct; 0: not known. */
__noinline int wants_cgroup(__u64 id, __u64 cgroup)
{
	struct cgroup *at = (void *)cgroup;
	__u8 *wanted = bpf_map_lookup_elem(&wanted_cgroups, &id);

	if (wanted)
		return *wanted & WANTED;
	for (int i = 0; at && i < CGROUP_DEPTH; i++) {
		at = BPF_CORE_READ(at, self.parent, cgroup);
		id = BPF_CORE_READ(at, kn, id);
		wanted = id ? bpf_map_lookup_elem(&wanted_cgroups, &id) : NULL;
		if (wanted && !(*wanted & WANTED_ALONE))
			return *wanted & WANTED;
	}
	return cgroup_by_default;
}

static __always_inline bool wants_ports(__u16 local, __u16 peer)
{
	__u8 *a = bpf_map_lookup_elem(&wanted_ports, &local);
	__u8 *b = bpf_map_lookup_elem(&wanted_ports, &peer);

	if ((a && !*a) || (b && !*b))
		return false;
	return a || b || port_by_default;
}

static __always_inline bool wants_peer(struct sock *sk)
{
	struct prefix p = { .length = 128 };
	__u8 *wanted;

	peer_address(sk, p.address);
	wanted = bpf_map_lookup_elem(&wanted_peers, &p);
	return wanted ? *wanted : peer_by_default;
}

static __always_inline bool is_wanted(struct sock *sk, struct tcp_sock *tp, struct gauge *g)
{
	if (filters_ports && !wants_ports(local_port(tp), bpf_ntohs(sk->__sk_common.skc_dport)))
		return false;
	if (filters_peers && !wants_peer(sk))
		return false;
	if (!filters_cgroups)
		return true;
	return wants_cgroup(g->cgroup_id, owner_by_task ? 0 : (__u64)BPF_CORE_READ(sk, sk_cgrp_data.cgroup));
}

#define ends_connection(event) ((event) == EVENT_CLOSE || (event) == EVENT_FAIL)

/*
 * Sends an event as the socket is now, if it is asked for. `detail`: the reason, if it is an end. The reader comes by on
 * its own: a wakeup an event would cost more than the event.
 */
static __noinline void report(struct tcp_sock *tp, struct gauge *g, __u32 event, __u32 state, __u32 detail)
{
	struct sock *sk = (void *)tp;
	struct connection *c;
	struct reading now;

	if (!is_wanted(sk, tp, g))
		return;
	if (wants_samples)
		c = bpf_ringbuf_reserve(&events, sizeof(*c), 0);
	else
		c = bpf_ringbuf_reserve(&events, __builtin_offsetof(struct connection, rtt.slots), 0);
	if (!c) {
		lose(LOSS_CONNECTION_EVENT);
		if (event == EVENT_ESTABLISHED && detail == OPENED_TOO)
			lose(LOSS_CONNECTION_EVENT);
		return;
	}
	read_socket(tp, g, &now);
	describe(c, tp, g, &now, state);
	c->event = event;
	if (ends_connection(event)) {
		c->reason = detail;
		c->state_before = g->closed_from;
		take_samples(g, NULL, c, cookie_of(sk));
	} else {
		c->detail = detail;
	}
	bpf_ringbuf_submit(c, BPF_RB_NO_WAKEUP);
}

static __always_inline bool is_sent(__u32 event)
{
	return wanted_events & (1 << event) && sent_events & (1 << event);
}

static __always_inline void tell(struct tcp_sock *tp, struct gauge *g, __u32 event, __u32 state, __u32 detail)
{
	if (is_sent(event))
		report(tp, g, event, state, detail);
}

/* ---- Windows ------------------------------------------------------------------------------------------ */

static __always_inline void add_closed(struct gauge *g, struct totals *t, __u32 which, __u32 us)
{
	g->closed_us[which] = add_up(g->closed_us[which], us);
	if (t)
		count(t->zero_window_us[which], us);
}

/*
 * Data cannot come any further while a window is closed: as long as it has not, it is the same time. `since`: when the
 * kernel last received what must have come before, jiffies.
 */
static __noinline void see_closed(struct tcp_sock *tp, struct gauge *g, __u32 which, __u32 at, __u32 since)
{
	struct totals *t = wants_totals ? totals_of(g->cgroup_id) : NULL;
	__u32 now = clock_us(), before = __sync_lock_test_and_set(&g->closed_at[which], now);

	if (g->zero_windows[which] && g->zero_window_at[which] == at) {
		if (before)
			add_closed(g, t, which, now - before);
		return;
	}
	g->zero_window_at[which] = at;
	if (g->zero_windows[which] < 0xffff)
		g->zero_windows[which]++;
	if (t)
		count(t->zero_windows[which], 1);
	add_closed(g, t, which, microseconds((__u32)bpf_jiffies64() - since));
	tell(tp, g, EVENT_ZERO_WINDOW, tp->inet_conn.icsk_inet.sk.__sk_common.skc_state, which);
}

/* It is open again, since then, us. */
static __noinline void see_open(struct gauge *g, __u32 which, __u32 then)
{
	__u32 before = __sync_lock_test_and_set(&g->closed_at[which], 0);

	if (before && (__s32)(then - before) > 0)
		add_closed(g, wants_totals ? totals_of(g->cgroup_id) : NULL, which, then - before);
}

static __always_inline void see_windows(struct tcp_sock *tp, struct gauge *g)
{
	if (!tp->snd_wnd)
		see_closed(tp, g, WINDOW_PEER, tp->snd_una, tp->rcv_tstamp);
	else
		g->closed_at[WINDOW_PEER] = 0;
	if (!tp->rcv_wnd)
		see_closed(tp, g, WINDOW_OWN, tp->rcv_nxt, tp->inet_conn.icsk_ack.lrcvtime);
	/* The segment that was sent last told the peer. */
	else if (g->closed_at[WINDOW_OWN])
		see_open(g, WINDOW_OWN, tp->tcp_wstamp_ns / 1000);
}

#endif
