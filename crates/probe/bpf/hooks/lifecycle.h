/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/inet_sock_set_state, since 4.16
 * Context: process for CLOSE -> SYN_SENT, LISTEN, FIN_WAIT1 and LAST_ACK; else mostly softirq. The socket is locked.
 * Feeds:   opening, connecting, failing, closing and their reasons; states in between; connect latency; lifetime; final counters.
 * Cost:    lifecycle 554 ns a change on average over a connection's ten (both ends), lifecycle_nested 53 ns where nothing
 *          nested, measuring included: docs/overhead.md.
 */
#include "../gauge.h"

static __always_inline struct gauge *bear(struct sock *sk, __u8 direction, __u8 flags, __u64 opened_ns, bool again)
{
	bool made;
	struct gauge *g = make_gauge(sk, bpf_get_socket_cookie(sk), &made);

	if (!g) {
		if (!again)
			lose(LOSS_STORAGE);
		return NULL;
	}
	/* A socket may connect again at once after it failed or disconnected: nothing of the last time stays. */
	if (g->flags) {
		bpf_spin_lock(&g->lock);
		g->head = 0;
		__builtin_memset(&g->sk, 0, sizeof(*g) - __builtin_offsetof(struct gauge, sk));
		bpf_spin_unlock(&g->lock);
		look_again(g);
	}
	g->sk = (__u64)sk;
	g->direction = direction;
	g->cgroup_id = owner_by_task ? CGROUP_UNATTRIBUTED : socket_cgroup(sk);
	/* What comes out of a listener has its owner and its namespace. */
	if (direction != DIRECTION_PASSIVE)
		note_namespace(sk, g->cgroup_id);
	g->opened_ns = opened_ns;
	if (direction == DIRECTION_ACTIVE && !(flags & FLAG_PREEXISTING))
		add_news(g, NEWS_OPENED);
	set_flags(g, FLAG_BORN | flags);
	/* From now on others may hold it. */
	__sync_fetch_and_and(&g->holders, ~GAUGE_DONE);
	if (!owner_by_task && g->cgroup_id == CGROUP_UNATTRIBUTED)
		lose(LOSS_OWNER);
	return g;
}

static __always_inline void on_open(struct sock *sk, struct tcp_sock *tp, bool again)
{
	struct gauge *g = bear(sk, DIRECTION_ACTIVE, 0, bpf_ktime_get_ns(), again);

	if (!g)
		return;
	learn_process(g);
	tell(tp, g, EVENT_OPEN, TCP_SYN_SENT, 0);
}

/*
 * From the SYN received to now, us; 0: not known. The kernel's first RTT sample is that, from the SYN-ACK that it sent at
 * once; there is none if that had to be sent again, or was a cookie.
 */
static __always_inline __u32 handshake_took(struct sock *sk, struct tcp_sock *tp, __u64 now)
{
	struct half_open key;
	__u64 *first_us;
	__u32 us;

	if (!tp->total_retrans)
		return tp->srtt_us >> 3;
	name_half_open(&key, sk, sk);
	first_us = bpf_map_lookup_elem(&asked_again, &key);
	if (!first_us)
		return 0;
	us = at_most_32(if_positive(now / 1000 - *first_us));
	bpf_map_delete_elem(&asked_again, &key);
	return us;
}

static __always_inline void on_established(struct sock *sk, struct tcp_sock *tp, int old, bool again)
{
	/* What comes out of a listener has none yet, and no cookie. */
	struct gauge *g = cookie_of(sk) ? gauge_of(sk) : NULL;
	/* The stack has just looked at the clock, for the segment that completes the handshake. */
	__u64 now = tp->tcp_clock_cache;
	bool opens;

	/* Unless there was none: the socket is being restored (TCP_REPAIR). */
	if (!now || (g && now < g->opened_ns))
		now = bpf_ktime_get_ns();
	if (!g || g->flags & FLAG_CLOSED) {
		if (old == TCP_SYN_RECV)
			g = bear(sk, DIRECTION_PASSIVE, 0, now, again);
		else /* its SYN was sent before the monitor was there */
			g = bear(sk, DIRECTION_ACTIVE, FLAG_PREEXISTING, 0, again);
		if (!g)
			return;
	}
	g->established_ns = now;
	g->handshake_rtt_us = tp->srtt_us >> 3;
	sample_rtt(tp, g);
	if (g->direction == DIRECTION_PASSIVE) {
		g->retransmits_by_kind[RETRANSMIT_SYNACK] = tp->total_retrans;
		g->handshake_us = handshake_took(sk, tp, now);
	} else {
		g->asked_seq = tp->snd_nxt;
		/* So far there was nothing else to send again. */
		if (tp->total_retrans)
			tell_retransmits(tp, g, RETRANSMIT_SYN);
	}
	/* A passive connection is opened now, whether it was met before or not. */
	add_news(g, NEWS_ESTABLISHED | (g->direction == DIRECTION_PASSIVE ? NEWS_OPENED : 0));
	opens = g->direction == DIRECTION_PASSIVE && is_sent(EVENT_OPEN);
	/*
	 * Two records would be the same but for the event and the state, and each costs as much as ten programs that do
	 * nothing.
	 */
	if (is_sent(EVENT_ESTABLISHED))
		report(tp, g, EVENT_ESTABLISHED, TCP_ESTABLISHED, opens ? OPENED_TOO : 0);
	else if (opens)
		report(tp, g, EVENT_OPEN, TCP_SYN_RECV, 0);
}

static __always_inline void on_listen(struct sock *sk, bool again)
{
	struct gauge *g = bear(sk, DIRECTION_UNKNOWN, FLAG_LISTENER, bpf_ktime_get_ns(), again);

	if (!g)
		return;
	g->folded_drops = sk->sk_drops.counter;
	learn_process(g);
}

static __always_inline bool is_unreachable(int error)
{
	return error == EHOSTUNREACH || error == ENETUNREACH || error == EHOSTDOWN || error == ENETDOWN ||
	       error == ENONET || error == ENOPROTOOPT;
}

/* A connect that ended in SYN_SENT. Global, as others are: see gauge.h. */
__noinline __u32 why_failed(int error, __u32 segments_out)
{
	if (error == ECONNREFUSED)
		return REASON_REFUSED;
	if (error == ETIMEDOUT)
		return REASON_TIMEOUT;
	if (error == ECONNRESET)
		return REASON_RESET_RECEIVED;
	if (is_unreachable(error))
		return REASON_UNREACHABLE;
	if (error)
		return REASON_ERROR;
	/* connect() itself sends the SYN: without one it gave up, for want of a free port. */
	return segments_out ? REASON_CANCELED : REASON_ADDRESS_UNAVAILABLE;
}

#define PEER_ENDED 1	/* the peer's FIN is here */
#define LET_GO 2	/* no process holds the socket */
#define UNANSWERED 4	/* not all that was sent was acknowledged, the FIN included */

/* `how`: these bits. */
__noinline __u32 why_closed(int old, int error, __u32 how)
{
	if (error == ECONNRESET || error == EPIPE)
		return REASON_RESET_RECEIVED;
	if (error == ETIMEDOUT)
		return REASON_TIMEOUT;
	if (error == ECONNABORTED)
		return REASON_RESET_SENT;
	if (is_unreachable(error))
		return REASON_UNREACHABLE;
	if (error)
		return REASON_ERROR;
	/* Closed without a FIN of its own: linger 0, unread data, or never accepted. The RST follows. */
	if (old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT || old == TCP_SYN_RECV)
		return REASON_RESET_SENT;
	/* The same after its own FIN, while the process still has the socket and the peer has not finished. */
	if ((old == TCP_FIN_WAIT1 || old == TCP_FIN_WAIT2) && !(how & (PEER_ENDED | LET_GO)))
		return REASON_RESET_SENT;
	/* Its own FIN was on the way, nobody waits for the answer any more, and nothing went wrong: no room for it. */
	if ((how & (LET_GO | UNANSWERED)) == (LET_GO | UNANSWERED))
		return REASON_ORPHANED;
	return REASON_NORMAL;
}

static __always_inline __u32 how_closed(struct sock *sk, struct tcp_sock *tp)
{
	return (is_flagged(sk, SOCK_DONE) ? PEER_ENDED : 0) | (is_flagged(sk, SOCK_DEAD) ? LET_GO : 0) |
	       (tp->snd_una != tp->write_seq ? UNANSWERED : 0);
}

/* Global, as others are: see gauge.h. */
__noinline int count_end(struct totals *t, __u32 reason, __u32 failed, __u32 opening, __u64 opened_ns)
{
	__u32 slot;
	__u64 us;

	opaque(reason);
	if (!t || reason >= REASONS)
		return 0;
	if (opening) {
		opaque(opening);
		if (opening < FAST_OPENS)
			__sync_fetch_and_add(&t->fast_open[opening], 1);
	}
	if (failed) {
		__sync_fetch_and_add(&t->connect_failures[reason], 1);
		return 0;
	}
	__sync_fetch_and_add(&t->closed[reason], 1);
	if (!opened_ns)
		return 0;
	us = (bpf_ktime_get_ns() - opened_ns) / 1000;
	slot = slot_of(SCALE_LIFETIME, us);
	opaque(slot);
	if (slot >= LIFETIME_SLOTS)
		return 0;
	__sync_fetch_and_add(&t->lifetime.slots[slot], 1);
	__sync_fetch_and_add(&t->lifetime.sum_us, us);
	return 0;
}

/* Whether the RST, if there is one, is sent only after this: the gauge is needed then. */
static __always_inline bool is_reset_to_come(struct tcp_sock *tp, __u32 reason)
{
	if (!sees_resets)
		return false;
	return (reason == REASON_RESET_SENT && tp->inet_conn.icsk_inet.sk.sk_err != ECONNABORTED) ||
	       reason == REASON_ORPHANED || tp->linger2 < 0;
}

static __always_inline void on_close(struct sock *sk, struct tcp_sock *tp, int old)
{
	struct gauge *g = gauge_of(sk);
	struct totals *t = NULL;
	__u32 reason;
	bool failed;

	if (!g || g->flags & FLAG_CLOSED)
		return;
	if (wants_totals) {
		t = totals_of(g->cgroup_id);
		if (!t)
			return;
	}
	g->closed_from = old;
	if (g->flags & FLAG_HELD)
		count_held(sk, -1);
	if (g->flags & FLAG_LISTENER) {
		if (t)
			fold_drops(sk, g, t);
		set_flags(g, FLAG_CLOSED);
		if (wants_listener_ends)
			tell(tp, g, EVENT_CLOSE, TCP_CLOSE, 0);
		finish_gauge(g, cookie_of(sk));
		return;
	}
	failed = old == TCP_SYN_SENT || (old == TCP_SYN_RECV && !g->established_ns);
	reason = failed ? why_failed(sk->sk_err, tp->segs_out) : why_closed(old, sk->sk_err, how_closed(sk, tp));
	/* With cgroup v1 only: accepted, and never seen in use. */
	if (owner_by_task && g->cgroup_id == CGROUP_UNATTRIBUTED)
		lose(LOSS_OWNER);
	sample_rtt(tp, g);
	sample_queueing(tp, t);
	leave_congestion(tp, g, t);
	if (!tp->snd_wnd)
		see_open(g, WINDOW_PEER, clock_us());
	if (!tp->rcv_wnd)
		see_open(g, WINDOW_OWN, clock_us());
	if (old == TCP_SYN_SENT)
		tell_retransmits(tp, g, RETRANSMIT_SYN);
	fold_last(tp, g, t);
	if (t)
		give_news(t, g);
	take_samples(g, t, NULL, cookie_of(sk));
	tell(tp, g, failed ? EVENT_FAIL : EVENT_CLOSE, TCP_CLOSE, reason);
	if (t)
		count_end(t, reason, failed, fast_open(tp), g->opened_ns);
	if (!is_reset_to_come(tp, reason))
		finish_gauge(g, cookie_of(sk));
}

/* This side closes: the task at work is the socket's user, unless it is the kernel's own. */
static __always_inline void on_finish(struct sock *sk)
{
	struct task_struct *task;
	struct gauge *g;

	/* Who connects is known, and who accepts. */
	if (sees_accepts)
		return;
	g = gauge_of(sk);
	if (!g)
		return;
	bound_accept(g);
	if (g->pid)
		return;
	task = (void *)bpf_get_current_task_btf();
	if (!(task->flags & PF_KTHREAD))
		learn_process(g);
}

/* A state on the way. Each is entered once at most: a second time is the nested program's. */
static __always_inline void on_change(struct sock *sk, struct tcp_sock *tp, int old, int new)
{
	struct gauge *g;

	if (new == TCP_FIN_WAIT1 || new == TCP_LAST_ACK)
		on_finish(sk);
	if (!is_sent(EVENT_STATE))
		return;
	g = gauge_of(sk);
	if (!g || g->flags & FLAG_CLOSED || g->state_told == new)
		return;
	g->state_told = new;
	report(tp, g, EVENT_STATE, new, old);
}

/* Whether lifecycle has seen this change, or nobody wants to know. */
static __always_inline bool is_told(struct sock *sk, int new)
{
	struct gauge *g;

	if (new != TCP_SYN_SENT && new != TCP_ESTABLISHED && new != TCP_LISTEN && new != TCP_CLOSE)
		return !is_sent(EVENT_STATE);
	g = gauge_of(sk);
	if (!g || (g->flags & (FLAG_BORN | FLAG_CLOSED)) != FLAG_BORN)
		return new == TCP_CLOSE;
	if (new == TCP_ESTABLISHED)
		return g->established_ns;
	return new != TCP_CLOSE;
}

static __always_inline void on_state(__u64 *ctx, bool again)
{
	struct sock *sk = (void *)ctx[0];
	int old = ctx[1], new = ctx[2];
	struct tcp_sock *tp;

	/* MPTCP's own socket (protocol 262) repeats what its subflows tell. */
	if (sk->sk_protocol != IPPROTO_TCP || old == new)
		return;
	if (watches)
		note_state(cookie_of(sk), new);
	if (again && is_told(sk, new))
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	if (new == TCP_SYN_SENT)
		on_open(sk, tp, again);
	else if (new == TCP_ESTABLISHED)
		on_established(sk, tp, old, again);
	else if (new == TCP_LISTEN)
		on_listen(sk, again);
	else if (new == TCP_CLOSE)
		on_close(sk, tp, old);
	else
		on_change(sk, tp, old, new);
}

SEC("tp_btf/inet_sock_set_state")
int lifecycle(__u64 *ctx)
{
	on_state(ctx, false);
	return 0;
}

/*
 * The kernel does not run a program that is at work on the same CPU already: what a softirq does on top of lifecycle
 * would be lost. This one runs then; otherwise it finds all done.
 */
SEC("tp_btf/inet_sock_set_state")
int lifecycle_nested(__u64 *ctx)
{
	on_state(ctx, true);
	return 0;
}
