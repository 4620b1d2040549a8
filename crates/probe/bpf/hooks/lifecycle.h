/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/inet_sock_set_state, since 4.16
 * Context: process for CLOSE -> SYN_SENT, LISTEN, FIN_WAIT1 and LAST_ACK; else mostly softirq. The socket is locked.
 * Feeds:   opening, connecting, failing, closing and their reasons; connect latency; lifetime; final counters.
 * Cost:    lifecycle 430 ns a change on average over a connection's ten (both ends), lifecycle_nested 15 ns where
 *          nothing nested, and for each the kernel's way to it: see ARCHITECTURE.md, "What it costs".
 */
#include "../gauge.h"

static __always_inline struct gauge *bear(struct sock *sk, __u8 direction, __u8 flags, __u64 opened_ns, bool again)
{
	struct gauge *g = bpf_sk_storage_get(&gauges, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	struct counters none = {};
	struct reading nothing = {};

	if (!g) {
		if (!again)
			lose(LOSS_STORAGE);
		return NULL;
	}
	/* A socket may connect again after it failed or disconnected: nothing of the last time stays. */
	bpf_spin_lock(&g->lock);
	g->flags = FLAG_BORN | flags;
	g->before = none;
	g->folded = nothing;
	bpf_spin_unlock(&g->lock);
	g->direction = direction;
	g->cgroup_id = owner_by_task ? CGROUP_UNATTRIBUTED : socket_cgroup(sk);
	g->opened_ns = opened_ns;
	g->established_ns = 0;
	g->progress = 0;
	g->handshake_rtt_us = 0;
	g->first_byte_us = 0;
	__builtin_memset(g->zero_windows, 0, sizeof(g->zero_windows));
	__builtin_memset(g->retransmits_by_kind, 0, sizeof(g->retransmits_by_kind));
	g->rtt_seq = 0;
	g->pid = 0;
	g->rtt_sum_us = 0;
	__builtin_memset(g->rtt_samples, 0, sizeof(g->rtt_samples));
	if (!owner_by_task && g->cgroup_id == CGROUP_UNATTRIBUTED)
		lose(LOSS_OWNER);
	return g;
}

static __always_inline void report(struct sock *sk, struct tcp_sock *tp, struct gauge *g, __u8 event, __u8 state)
{
	struct reading now;
	struct connection *c;

	if (!is_event_wanted(event))
		return;
	read_socket(tp, g, &now);
	c = begin_event(sk, tp, g, &now, event, state);
	if (c)
		end_event(c);
}

static __always_inline void on_open(struct sock *sk, struct tcp_sock *tp, bool again)
{
	struct gauge *g = bear(sk, DIRECTION_ACTIVE, 0, bpf_ktime_get_ns(), again);
	struct totals *t;

	if (!g)
		return;
	learn_process(g);
	t = wants_totals ? totals_of(g->cgroup_id) : NULL;
	if (t)
		count(t->opened[DIRECTION_ACTIVE], 1);
	report(sk, tp, g, EVENT_OPEN, TCP_SYN_SENT);
}

static __always_inline void on_established(struct sock *sk, struct tcp_sock *tp, int old, bool again)
{
	struct gauge *g = bpf_sk_storage_get(&gauges, sk, NULL, 0);
	__u64 now = bpf_ktime_get_ns(), us;
	struct totals *t;
	__u32 slot;

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
	t = wants_totals ? totals_of(g->cgroup_id) : NULL;
	if (g->direction == DIRECTION_PASSIVE) {
		g->retransmits_by_kind[RETRANSMIT_SYNACK] = tp->total_retrans;
		if (t)
			count(t->opened[DIRECTION_PASSIVE], 1);
		report(sk, tp, g, EVENT_OPEN, TCP_SYN_RECV);
	} else if (t && g->opened_ns) {
		us = (now - g->opened_ns) / 1000;
		slot = connect_slot(us);
		opaque(slot);
		if (slot < CONNECT_SLOTS) {
			count(t->connect[slot], 1);
			count(t->connect_sum_us, us);
		}
	}
	report(sk, tp, g, EVENT_ESTABLISHED, TCP_ESTABLISHED);
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

/* A connect that ended in SYN_SENT. Global, as slots are: see gauge.h. */
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

/* `ended`: the peer's FIN is here, or the process has let go of the socket. */
__noinline __u32 why_closed(int old, int error, __u32 ended)
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
	if ((old == TCP_FIN_WAIT1 || old == TCP_FIN_WAIT2) && !ended)
		return REASON_RESET_SENT;
	return REASON_NORMAL;
}

static __always_inline void on_close(struct sock *sk, struct tcp_sock *tp, int old)
{
	struct gauge *g = bpf_sk_storage_get(&gauges, sk, NULL, 0);
	struct connection *c;
	struct reading now;
	struct totals *t;
	bool failed;
	__u32 reason, slot;
	__u64 us;

	if (!g || g->flags & FLAG_CLOSED)
		return;
	if (g->flags & FLAG_HELD)
		count_held(sk, -1);
	if (g->flags & FLAG_LISTENER) {
		fold_drops(sk, g);
		g->flags |= FLAG_CLOSED;
		return;
	}
	failed = old == TCP_SYN_SENT || (old == TCP_SYN_RECV && !g->established_ns);
	reason = failed ? why_failed(sk->sk_err, tp->segs_out) : why_closed(old, sk->sk_err, is_flagged(sk, SOCK_DEAD) || is_flagged(sk, SOCK_DONE));
	/* With cgroup v1 only: accepted, and never seen in use. */
	if (owner_by_task && g->cgroup_id == CGROUP_UNATTRIBUTED)
		lose(LOSS_OWNER);
	sample_rtt(tp, g);
	sample_queueing(tp, g);
	read_socket(tp, g, &now);
	fold(g, &now, true);
	c = begin_event(sk, tp, g, &now, failed ? EVENT_FAIL : EVENT_CLOSE, TCP_CLOSE);
	if (c) {
		c->reason = reason;
		c->state_before = old;
	}
	if (wants_samples && c) {
		c->flags |= FLAG_SAMPLES;
		take_samples(g, c);
	} else if (wants_totals) {
		take_samples(g, NULL);
	}
	if (c)
		end_event(c);
	t = wants_totals ? totals_of(g->cgroup_id) : NULL;
	if (!t)
		return;
	opaque(reason);
	if (reason >= REASONS)
		return;
	if (failed) {
		count(t->connect_failures[reason], 1);
		return;
	}
	count(t->closed[reason], 1);
	if (!g->opened_ns)
		return;
	us = (bpf_ktime_get_ns() - g->opened_ns) / 1000;
	slot = lifetime_slot(us);
	opaque(slot);
	if (slot < LIFETIME_SLOTS) {
		count(t->lifetime[slot], 1);
		count(t->lifetime_sum_us, us);
	}
}

/* This side closes: the task at work is the socket's user, unless it is the kernel's own. */
static __always_inline void on_finish(struct sock *sk)
{
	struct gauge *g = bpf_sk_storage_get(&gauges, sk, NULL, 0);
	struct task_struct *task;

	if (!g || g->pid)
		return;
	task = (void *)bpf_get_current_task_btf();
	if (!(task->flags & PF_KTHREAD))
		learn_process(g);
}

/* Whether lifecycle has seen this change; true for those that only tell who uses the socket. */
static __always_inline bool is_told(struct sock *sk, int new)
{
	struct gauge *g;

	if (new != TCP_SYN_SENT && new != TCP_ESTABLISHED && new != TCP_LISTEN && new != TCP_CLOSE)
		return true;
	g = bpf_sk_storage_get(&gauges, sk, NULL, 0);
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
	else if (new == TCP_FIN_WAIT1 || new == TCP_LAST_ACK)
		on_finish(sk);
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
