/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    iter/task_file and iter/tcp at the start; iter/bpf_map_elem whenever someone looks
 * Context: process, on the reader's account. No lock that traffic waits for, but iter/tcp locks one socket at a
 *          time.
 * Feeds:   sockets that were there before the monitor; live connections, states, and totals up to now.
 * Cost:    0.1 us a socket for a walk, where nothing has moved: docs/overhead.md.
 */
#include "../gauge.h"

/*
 * Who began a connection that nobody saw beginning? bytes_acked counts the own SYN on the active side only, so
 * it is one ahead there: acked + in flight = sent once + SYN + FIN.
 */
static __always_inline __u8 infer_direction(struct tcp_sock *tp, __u8 state)
{
	__s64 ahead;

	if (state == TCP_SYN_SENT)
		return DIRECTION_ACTIVE;
	if (state == TCP_LISTEN)
		return DIRECTION_UNKNOWN;
	if (state == TCP_SYN_RECV)
		return DIRECTION_PASSIVE;
	ahead = (__s64)tp->bytes_acked + (__u32)(tp->snd_nxt - tp->snd_una) -
		((__s64)tp->bytes_sent - (__s64)tp->bytes_retrans);
	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT && tp->snd_nxt == tp->write_seq)
		ahead--; /* the own FIN, the last to leave the send queue */
	if (ahead == 1)
		return DIRECTION_ACTIVE;
	return ahead == 0 ? DIRECTION_PASSIVE : DIRECTION_UNKNOWN;
}

/* What a gauge needs whose socket was there before. */
static __always_inline void begin_before(struct sock *sk, struct tcp_sock *tp, struct gauge *g, struct task_struct *task,
					 __u8 state)
{
	struct seat *seat;

	g->direction = infer_direction(tp, state);
	g->cgroup_id = socket_cgroup(sk);
	if (owner_by_task) {
		struct cgroup_subsys_state *css = NULL;
		__u32 controller = owner_controller;

		if (task && controller < 16)
			bpf_probe_read_kernel(&css, sizeof(css), &task->cgroups->subsys[controller]);
		g->cgroup_id = css ? BPF_CORE_READ(css, cgroup, kn, id) : CGROUP_UNATTRIBUTED;
	}
	note_namespace(sk, g->cgroup_id);
	if (g->cgroup_id == CGROUP_UNATTRIBUTED)
		lose(LOSS_OWNER);
	g->rtt_seq = tp->rtt_seq;
	if (g->direction == DIRECTION_ACTIVE)
		g->asked_seq = tp->snd_nxt;
	/* The first walk need not look at what carries nothing. */
	seat = seat_at(g->seat);
	if (seat) {
		seat->cgroup_id = g->cgroup_id;
		seat->progress = progress_from(tp->segs_out, tp->segs_in);
	}
	g->before.retransmits = tp->total_retrans;
	read_counters(tp, g, &g->before);
	g->folded.counters = g->before;
	if (state == TCP_LISTEN)
		g->folded_drops = sk->sk_drops.counter;
}

static __always_inline void adopt(struct sock *sk, struct tcp_sock *tp, struct task_struct *task)
{
	__u8 state = sk->__sk_common.skc_state;
	__u64 cookie = bpf_get_socket_cookie(sk);
	bool made, born, is_there, held = true;
	struct gauge *g;

	if (state == TCP_CLOSE)
		return;
	g = make_gauge(sk, cookie, &made);
	if (!g) {
		lose(LOSS_STORAGE);
		return;
	}
	bpf_spin_lock(&g->lock);
	born = !made || g->flags & FLAG_BORN;
	if (!born) {
		g->sk = (__u64)sk;
		g->flags = FLAG_BORN | FLAG_PREEXISTING | (state == TCP_LISTEN ? FLAG_LISTENER : 0);
		g->holders = 0;
	}
	is_there = g->sk == (__u64)sk && !(g->holders & GAUGE_DONE);
	if (is_there) {
		__sync_fetch_and_add(&g->holders, 1);
		held = !task || g->flags & FLAG_HELD;
		if (!held)
			g->flags |= FLAG_HELD;
	}
	bpf_spin_unlock(&g->lock);
	if (!is_there)
		return;
	if (!held)
		count_held(sk, 1);
	if (!born)
		begin_before(sk, tp, g, task, state);
	if (task && !g->pid) {
		g->pid = task->tgid;
		bpf_probe_read_kernel(g->comm, sizeof(g->comm), &task->group_leader->comm);
	}
	release(g, cookie);
}

SEC("iter/task_file")
int adopt_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct tcp_sock *tp;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp)
		adopt(sk, tp, task);
	return 0;
}

SEC("iter/tcp")
int adopt_namespace(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;

	if (!skc)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (tp)
		adopt((struct sock *)tp, tp, NULL);
	return 0;
}

static __always_inline void count_state(struct totals *t, __u32 state, __u32 n)
{
	if (t->walk != walk_number) {
		__builtin_memset(t->connections, 0, sizeof(t->connections));
		t->accept_queue = 0;
		t->accept_limit = 0;
		t->walk = walk_number;
	}
	opaque(state);
	if (state < STATES)
		t->connections[state] += n;
}

static __always_inline struct connection *next_row(void)
{
	__u32 i = walk_used;

	return i < walk_capacity ? bpf_map_lookup_elem(&walked, &i) : NULL;
}

static __always_inline void count_socket(struct totals *t, struct sock *sk, struct tcp_sock *tp, __u8 state)
{
	count_state(t, state, 1);
	if (state != TCP_LISTEN)
		return;
	count_state(t, TCP_SYN_RECV, tp->inet_conn.icsk_accept_queue.qlen.counter);
	t->accept_queue += sk->sk_ack_backlog;
	t->accept_limit += sk->sk_max_ack_backlog;
}

/*
 * The socket at an address, which may be gone, and its memory another's: whoever uses it looks at its cookie. Where the
 * address cannot be told to be a socket's it is a copy, and what it points to is plain numbers.
 */
static __always_inline struct tcp_sock *socket_at(__u64 address)
{
	struct tcp_sock *copy;
	__u32 zero = 0;

	if (casts_addresses)
		return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct tcp_sock));
	copy = bpf_map_lookup_elem(&socket_copy, &zero);
	if (!copy)
		return NULL;
	bpf_probe_read_kernel(copy, bpf_core_type_size(struct tcp_sock), (void *)address);
	/* Its first part once more: peek_socket() wants to know what that was after all else. */
	bpf_probe_read_kernel(copy, bpf_core_type_size(struct sock), (void *)address);
	return copy;
}

/* How long after its birth a socket may still be in the state before it. */
#define BIRTH_NS 1000000000

/* Takes out the gauge of a socket whose end no program saw. */
static __noinline void forget(struct gauge *g, __u64 cookie)
{
	set_flags(g, FLAG_CLOSED);
	finish_gauge(g, cookie);
}

/* Returns whether there was no room for its row. */
static __always_inline bool look_at(struct sock *sk, struct tcp_sock *tp, struct gauge *g, __u64 progress, __u8 state)
{
	__u64 opened_ns = g->opened_ns, before;
	struct seat *seat = seat_at(g->seat);
	struct connection *row = NULL;
	struct reading *now = &walk_reading;
	struct totals *t = NULL;
	__u32 srtt, least;
	bool is_open;

	if (!seat)
		return false;

	if (wants_totals) {
		t = totals_of(g->cgroup_id);
		if (!t)
			return false;
	}
	if (walk_rows && is_wanted(sk, tp, g)) {
		row = next_row();
		if (!row)
			return true;
	}
	/* What becomes known from now on is looked at again. */
	before = t ? __sync_lock_test_and_set(&seat->progress, progress) : 0;
	sample_rtt(tp, g);
	if (state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT) {
		see_windows(tp, g);
		if (!sees_accepts && sk->sk_socket)
			bound_accept(g);
	}
	srtt = tp->srtt_us >> 3;
	least = tp->rtt_min.s[0].v;
	/* What is counted may not have been yet, and for how long a window is closed goes on without a segment. */
	if (peek_socket(sk, tp, g, now) || !tp->snd_wnd || !tp->rcv_wnd)
		look_again(g);
	if (row)
		describe(row, tp, g, now, state);
	is_open = t ? fold(g, t, now, opened_ns) : !(g->flags & FLAG_CLOSED);
	/* What was read may be of anything then. */
	if (!is_open)
		return false;
	walk_seen++;
	if (row)
		walk_used++;
	take_samples(g, t, row, cookie_of(sk));
	if (!t)
		return false;
	give_news(t, g);
	if (progress != (before & ~PROGRESS_AGAIN))
		sample_delay(&t->queueing, srtt, least);
	if (state == TCP_LISTEN)
		fold_drops(sk, g, t);
	seat->cgroup_id = g->cgroup_id;
	count_socket(t, sk, tp, state);
	return false;
}

/*
 * Looks at the socket that a gauge tells of, or finds out that it has gone. Returns whether there was no room for its row.
 * Global, as it is called in a loop.
 */
__noinline int settle(__u64 cookie, __u64 address)
{
	struct tcp_sock *tp = socket_at(address);
	bool is_full = false, is_gone;
	struct gauge *g;
	struct sock *sk;
	__u64 progress;
	__u8 state;

	if (!tp)
		return 0;
	sk = (void *)tp;
	state = sk->__sk_common.skc_state;
	is_gone = cookie_of(sk) != cookie || state == TCP_CLOSE;
	progress = progress_from(tp->segs_out, tp->segs_in);
	g = bpf_map_lookup_elem(&gauges, &cookie);
	if (!g || !hold(g, address))
		return 0;
	if (!is_gone)
		is_full = !(g->flags & FLAG_CLOSED) && look_at(sk, tp, g, progress, state);
	else if (cookie_of(sk) != cookie || (!(g->flags & FLAG_CLOSED) && bpf_ktime_get_ns() - g->opened_ns > BIRTH_NS))
		forget(g, cookie);
	release(g, cookie);
	return is_full;
}

/* A field of a socket at an address, which may be gone, where that is all that is wanted of it: see socket_at(). */
#define peek(tp, field)                                                                                              \
	({                                                                                                           \
		typeof((tp)->field) _value = 0;                                                                      \
		if (casts_addresses)                                                                                 \
			_value = (tp)->field;                                                                        \
		else                                                                                                 \
			bpf_core_read((void *)&_value, sizeof(_value), &(tp)->field);                                \
		_value;                                                                                              \
	})

/*
 * Tells of all noted sockets whether anything has moved since the last walk. Most have not, and what such a one costs is the
 * cache lines that are read: one with counters, two or three with state and cookie. There is no branch on what is read, so that
 * many sockets' lines are waited for at once. Global: it has a stack of its own.
 */
__noinline int glance(void)
{
	for (int i = 0; i < WALK_AT_ONCE; i++) {
		struct noted *noted = &walk_noted[i];
		struct tcp_sock *tp = (void *)noted->sk;
		__u64 cookie, progress, runs;

		if (casts_addresses)
			tp = bpf_rdonly_cast(tp, bpf_core_type_id_kernel(struct tcp_sock));
		noted->state = peek(tp, inet_conn.icsk_inet.sk.__sk_common.skc_state);
		cookie = peek(tp, inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter);
		progress = progress_from(peek(tp, segs_out), peek(tp, segs_in));
		runs = casts_addresses ? BPF_CORE_READ_BITFIELD(tp, chrono_type) :
					 BPF_CORE_READ_BITFIELD_PROBED(tp, chrono_type);
		/* Where it cannot be told whether somebody is at work on a socket, segments do not tell of the rest. */
		noted->moved = !tells_locks() | (cookie ^ noted->cookie) | (progress ^ noted->progress) | runs;
	}
	return 0;
}

/*
 * Reads a word of each cache line that settle() is going to read of the noted sockets that have moved, and of their gauges, so
 * that many are waited for at once. In settle() it would be one after the other: no read begins before its locks and atomic
 * additions are through.
 */
__noinline int touch(void)
{
	const struct tcp_sock *tp;
	const struct gauge *g;
	__u64 sum = 0;

	for (int i = 0; i < WALK_AT_ONCE; i++) {
		struct noted *noted = &walk_noted[i];

		if (!noted->moved)
			continue;
		if (casts_addresses) {
			tp = bpf_rdonly_cast((void *)noted->sk, bpf_core_type_id_kernel(struct tcp_sock));
			sum += tp->inet_conn.icsk_inet.sk.sk_lock.owned + tp->snd_wnd + tp->rtt_min.s[0].v + tp->tcp_mstamp +
			       tp->srtt_us + tp->bytes_acked + tp->rack.rtt_us + tp->reord_seen + tp->total_retrans;
		}
		g = bpf_map_lookup_elem(&gauges, &noted->cookie);
		if (g)
			sum += g->sk + g->before.retransmits + g->folded.counters.lost + g->rtt_seq + g->closed_at[0] + g->rtt.used;
	}
	walk_touched = sum;
	return 0;
}

/* Adds a tally to its cgroup's totals, and leaves it empty. Global, as what follows is: they are called in loops. */
__noinline int give_tally(__u32 at)
{
	struct tally *tally = &tallies[at & (TALLIES - 1)];
	bool is_of_this_walk = tally->walk == walk_number;
	struct totals *t;

	tally->walk = 0;
	if (is_of_this_walk) {
		t = totals_of(tally->cgroup_id);
		for (__u32 state = 0; t && state < STATES; state++)
			count_state(t, state, tally->connections[state]);
	}
	__builtin_memset(tally->connections, 0, sizeof(tally->connections));
	return 0;
}

#define TALLIES_AT_ONCE 32

__noinline int give_tallies(__u32 first)
{
	for (__u32 i = 0; i < TALLIES_AT_ONCE; i++)
		give_tally(first + i);
	return 0;
}

/* A connection of which nothing has moved. */
__noinline int count_still(__u64 cgroup, __u32 state)
{
	__u32 first = cgroup * 0x9e3779b97f4a7c15ULL >> (64 - TALLY_BITS);
	struct tally *tally;

	for (__u32 i = 0; i < TALLY_PLACES; i++) {
		tally = &tallies[(first + i) & (TALLIES - 1)];
		if (tally->walk != walk_number || tally->cgroup_id == cgroup)
			break;
	}
	if (tally->walk != walk_number || tally->cgroup_id != cgroup) {
		give_tally(first + TALLY_PLACES - 1);
		tally->cgroup_id = cgroup;
		tally->walk = walk_number;
	}
	walk_seen++;
	opaque(state);
	if (state < STATES)
		tally->connections[state]++;
	return 0;
}

/* Takes note of sockets in the next seats, which may be others' in the next moment. Returns whether there are no more. */
__noinline int note(void)
{
	for (int i = 0; i < WALK_AT_ONCE && walk_noted_count < WALK_AT_ONCE; i++) {
		struct noted *noted = &walk_noted[walk_noted_count & (WALK_AT_ONCE - 1)];
		volatile struct seat *seat = walk_at < seating.used ? seat_at(walk_at) : NULL;

		if (!seat)
			return true;
		walk_at++;
		noted->sk = seat->sk;
		noted->cookie = seat->cookie;
		if (!noted->sk) {
			if (noted->cookie == SEAT_STRAY)
				leave_seat(walk_at - 1);
			continue;
		}
		noted->cgroup_id = seat->cgroup_id;
		noted->progress = seat->progress;
		walk_noted_count++;
	}
	return false;
}

/* What comes after some seats. */
#define GO_ON 0
#define GO_LATER 1 /* there is no room for a row */
#define GO_HOME 2

/* Looks at the next seats, and at the sockets that are noted once there are enough. */
__noinline int go(void)
{
	bool is_quick = wants_totals && !walk_rows, is_last = false;

	if (!walk_next) {
		is_last = note();
		if (walk_noted_count < WALK_AT_ONCE && !is_last)
			return GO_ON;
		if (is_quick) {
			glance();
			touch();
		}
	}
	for (int i = 0; i < WALK_AT_ONCE && walk_next < walk_noted_count; i++) {
		struct noted *noted = &walk_noted[walk_next & (WALK_AT_ONCE - 1)];

		if (!is_quick || noted->moved || noted->state == TCP_LISTEN || noted->state == TCP_CLOSE) {
			if (settle(noted->cookie, noted->sk))
				return GO_LATER;
		} else {
			count_still(noted->cgroup_id, noted->state);
		}
		walk_next++;
	}
	walk_noted_count = 0;
	walk_next = 0;
	return is_last ? GO_HOME : GO_ON;
}

/* So many times until the reader is asked whether to go on. */
#define WALK_GOES 128

/*
 * Runs for one element, and again as long as it returns 1. It does so where there is no room for a row, and every two thousand
 * seats, so that a walk never keeps a CPU from others for long.
 */
SEC("iter/bpf_map_elem")
int walk(struct bpf_iter__bpf_map_elem *ctx)
{
	struct gauge *g;
	__u64 cookie;
	int how;

	/* Without a key it is the end. */
	if (!ctx->key)
		return 0;
	if (walk_cookie) {
		cookie = walk_cookie;
		g = bpf_map_lookup_elem(&gauges, &cookie);
		if (g)
			settle(cookie, g->sk);
		return 0;
	}
	for (int i = 0; i < WALK_GOES; i++) {
		how = go();
		if (how == GO_LATER)
			return 1;
		if (how == GO_HOME) {
			for (__u32 first = 0; first < TALLIES; first += TALLIES_AT_ONCE)
				give_tallies(first);
			return 0;
		}
	}
	return 1;
}
