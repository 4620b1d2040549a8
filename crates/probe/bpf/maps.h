/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Every map and every constant that the loader sets, each with the reason for its type, size and flags.
 */
#ifndef MAPS_H
#define MAPS_H

#include "kernel.h"
#include "record.h"

/* What is read of a socket at one moment. */
struct reading {
	struct counters counters;
	__u32 retransmits_by_kind[RETRANSMITS]; /* since birth or adoption */
};

/* RTT samples since the last record or fold. */
struct rtt_samples {
	__u64 sum_us;
	__u32 used; /* a bit for each of the following that ever had one */
	__u32 slots[RTT_SLOTS / 2]; /* two in each, the lower half first */
};

/* What is known of a connection and not yet in its owner's totals. */
enum news {
	NEWS_OPENED = 1,
	NEWS_ESTABLISHED = 2, /* and how long that took */
	NEWS_FIRST_BYTE = 4,
	NEWS_ACCEPTED = 8,
};

/* In `holders`: it may be taken out as soon as nobody holds it. */
#define GAUGE_DONE (1U << 31)

/*
 * What is known of a socket: one a connection or listener, so every byte counts. With the kernel's own 64 it fills 512.
 * See gauge.h for who may touch it when.
 */
struct gauge {
	struct bpf_spin_lock lock; /* around `folded` and FLAG_CLOSED, where the walk and the close meet, and to take hold */
	union {
		struct {
			__u8 flags;
			__u8 direction;
			__u8 closed_from; /* the state that the close ended */
			__u8 state_told; /* by the last EVENT_STATE */
		};
		__u32 head; /* to set flags at once with others who do */
	};
	__u32 holders; /* how many use it without the socket's lock, and GAUGE_DONE */
	__u32 seat;    /* where it is in `seats` */
	__u64 sk;      /* the socket's address; this and what follows is empty again when the socket connects again */
	__u64 cgroup_id;
	__u64 opened_ns;
	__u64 established_ns;
	__u64 read_delay_us;			/* since birth or adoption */
	struct counters before;			/* at birth or adoption */
	struct reading folded;			/* what the owner's totals already have */
	__u32 retransmits_by_kind[RETRANSMIT_OTHER]; /* since birth or adoption */
	__u32 news;				/* bits of enum news */
	__u32 first_byte_us;			/* from the handshake to the first payload; 0: none yet */
	__u32 rtt_seq;				/* the round trip that was sampled last */
	__u32 sampled_at;			/* low half of tcp_mstamp at the last sample, us */
	union {
		__u32 handshake_rtt_us;
		__u32 folded_drops;	/* of a listener */
	};
	union {
		__u32 handshake_us;	/* from the SYN received: of a passive one */
		__u32 answered_at;	/* low half of tcp_mstamp at the last sample of a response, us: of an active one */
		__u32 overflows;	/* of a listener */
	};
	union {
		__u32 accept_wait_us;	/* of a passive one */
		__u32 asked_seq;	/* how far this side had sent when data last came: of an active one */
	};
	__u32 response_us;			/* the last one */
	__u32 new_response_us;			/* one that is not in the totals yet; 0: there is none */
	__u32 ready_at;				/* when data came that has not been read, us; 0: there is none */
	__u32 reads;
	__u32 congested_at;			/* when the congestion state was entered, us; 0: open, or not known */
	__u32 congestion_us[CONGESTIONS];
	__u16 congestion_entered[CONGESTIONS];
	__u32 zero_window_at[WINDOWS];		/* how far data had come when the window was last seen closed */
	__u32 closed_at[WINDOWS];		/* up to when it is known to have been closed, us; 0: it is open */
	__u32 closed_us[WINDOWS];
	__u16 zero_windows[WINDOWS];		/* since birth or adoption */
	__u32 pid;
	__u8 comm[COMM_LEN];
	struct rtt_samples rtt;
};

_Static_assert(sizeof(struct gauge) <= 512 - 64, "the next size the kernel has is twice as much");

/*
 * By the socket's cookie, which is given once and never again: of a socket whose end nobody saw no other takes over what it
 * left. Not storage on the socket, which would be found without a search: making and freeing that takes three times as long
 * and another 200 bytes (docs/decisions/0004-what-a-connection-costs.md). Not preallocated: a host has ten sockets or a
 * million. The loader sets the size.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct gauge);
} gauges SEC(".maps");

/*
 * Where walks find the sockets that have a gauge: one after the other in memory, with what tells whether there is anything to
 * do. See docs/decisions/0007-a-walk-goes-through-seats.md. An empty seat has no socket, and instead of a cookie the number of
 * the next empty one: see take_seat().
 */
struct seat {
	__u64 cookie;
	__u64 sk;
	__u64 cgroup_id;
	__u64 progress; /* progress_from() at the last fold: equal means that nothing moved */
};

/* As many as there can be gauges: the loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, struct seat);
} seats SEC(".maps");

/* What the walk is attached to, which runs it for each of its elements: it goes through the seats by itself. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} once SEC(".maps");

/* Room for a struct tcp_sock: see socket_at(). */
#define SOCKET_ROOM 8192

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[SOCKET_ROOM]);
} socket_copy SEC(".maps");

/* Whose SYN-ACK was sent again, as the connection that may come of it will be called. */
struct half_open {
	__u8 local_address[16];
	__u8 peer_address[16];
	__u16 local_port;
	__u16 peer_port;
	__u32 netns;
};

/*
 * When the first SYN-ACK was sent, for those that had to be sent again: the kernel forgets it. Few, and most never
 * come to anything: the oldest make room.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct half_open);
	__type(value, __u64);
} asked_again SEC(".maps");

/*
 * Totals by cgroup. Not per CPU: it is written per connection and not per packet, and a copy a CPU would cost
 * 170 KiB a container on 128 CPUs. Not preallocated: a host has ten cgroups or ten thousand. The loader sets
 * the size; what does not fit goes to CGROUP_OTHER.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct totals);
} totals SEC(".maps");

/*
 * Sockets that processes hold, by network namespace: where the namespace has no more than these, there is no need
 * to go through it, which costs a look at every socket of the host.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __s64);
} held SEC(".maps");

struct namespace_owner {
	__u64 netns; /* see netns_id() */
	__u64 cgroup_id;
};

/*
 * Whose sockets have been in which network namespace, with its inode number. Looked at with each connect and each
 * listener; the reader takes out what is gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct namespace_owner);
	__type(value, __u32);
} namespace_owners SEC(".maps");

/*
 * What became of packets of no socket, by namespace (see netns_id()): written when a packet is dropped or refused, so
 * not per CPU. The reader says whose a namespace is, and takes out what is gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct strays);
} strays SEC(".maps");

/* Connections that somebody watches, by cookie: put in and taken out by the reader. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, WATCHES);
	__type(key, __u64);
	__type(value, struct watched);
} watched SEC(".maps");

/*
 * Connection events on their way out. Drained on a timer, so a burst must fit: the loader sets the size (one
 * page where nobody listens).
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} events SEC(".maps");

/* Cgroups made and removed. Rare, and wakes its reader: the name must be known before the next table is drawn. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} cgroup_events SEC(".maps");

/* A question to a DNS server that waits for its answer. */
struct lookup {
	__u64 cookie; /* of the socket that asked */
	__be16 number; /* of the question */
	__u16 padding[3];
};

/*
 * When which question was asked. What only looks like one, or is never answered, goes when there is no more room: the
 * oldest first.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct lookup);
	__type(value, __u64);
} lookups SEC(".maps");

/* DNS answers. The loader sets the size (one page where nobody listens). */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} dns_answers SEC(".maps");

/*
 * Where a walk puts what it found: written in place and mapped into the reader, so that a row is copied once.
 * (The iterator's own output goes through 32 KiB at a time, and starts each bucket again after every read.)
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct connection);
} walked SEC(".maps");

/* Whether a cgroup, and what lies below it, is asked for: WANTED bits. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} wanted_cgroups SEC(".maps");

/* Ports asked for (1) and excluded (0). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u16);
	__type(value, __u8);
} wanted_ports SEC(".maps");

struct prefix {
	__u32 length; /* bits */
	__u8 address[16];
};

/* Peer prefixes asked for (1) and excluded (0), IPv4 mapped into IPv6. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct prefix);
	__type(value, __u8);
} wanted_peers SEC(".maps");

/* Set before loading: what is off is dead code to the verifier. */
const volatile __u32 wanted_events = 0; /* bits of enum event */
const volatile bool wants_totals = false;
const volatile bool wants_namespace_owners = false;
const volatile bool wants_listener_ends = false; /* a close event of a listener too */
const volatile bool wants_samples = false; /* RTT samples in rows and close events */
const volatile bool sees_segments = false; /* whether the program on tcp_probe runs */
const volatile bool sees_accepts = false; /* whether the program on inet_csk_accept runs */
const volatile bool sees_reads = false; /* whether the program on tcp_rcv_space_adjust runs */
const volatile bool sees_congestion = false; /* whether the program on tcp_cong_state_set runs */
const volatile bool sees_resets = false; /* whether the program on tcp_send_reset runs */
const volatile bool sees_overflows = false; /* whether the programs on full accept queues run */
const volatile bool filters_cgroups = false;
const volatile bool filters_ports = false;
const volatile bool port_by_default = false; /* whether a connection without a listed port is asked for */
const volatile bool filters_peers = false;
const volatile bool peer_by_default = false;
const volatile __u32 walk_capacity = 0;
const volatile __u32 sample_interval_us = 1000;
/* What this kernel's reasons to drop a packet (enum skb_drop_reason, which changes with each kernel) are counted as. */
#define KERNEL_DROP_REASONS 256
const volatile __u8 drop_slots[KERNEL_DROP_REASONS];
const volatile __u32 tick_ns = 4000000; /* a tick of the kernel's clock: 1/CONFIG_HZ */
/* Inclusive upper bounds of the slots, us; of the last slot and of those that a scale lacks, more than there can be. */
const volatile __u64 bounds[SCALES][BOUNDS];

/* Written with each birth and each end of a socket: in a cache line of its own, as what is beside is read by all CPUs. */
struct seating {
	/* The empty seat that is taken next, counted from 1 (0: there is none); above that how often this has changed. */
	__u64 empty;
	/* Seats that were ever taken are those below this number. */
	__u32 used;
	__u32 padding[13];
} seating __attribute__((aligned(64)));

/* Written by the loader before each walk, and by the walk. */
__u32 walk_number = 0;
__u32 walk_used = 0;
bool walk_rows = false;
__u64 walk_cookie = 0; /* the only socket to look at; 0: all */
__u64 walk_seen = 0;
__u32 walk_at = 0; /* the next seat */
__u64 walk_touched = 0; /* written so that what touch() reads is not left out */

/* Sockets that the walk has yet to look at: so many at once, as most of that is waiting for memory. */
#define WALK_AT_ONCE 16
struct noted {
	__u64 cookie;
	__u64 sk;
	__u64 progress;
	__u64 cgroup_id;
	__u64 moved; /* 0: nothing */
	__u8 state;
} walk_noted[WALK_AT_ONCE];
__u32 walk_noted_count = 0;
__u32 walk_next = 0; /* of those */
/* Of the socket that the walk looks at: there is no room for that on its stack. */
struct reading walk_reading;

/*
 * Sockets by state and cgroup of those of which nothing has moved: a search for the totals, which lie far apart in memory, for
 * each of them took a tenth of the walk. A cgroup's is where its id's hash says, or in one of the next few places; what is in
 * the way then goes to the totals.
 */
#define TALLY_BITS 11
#define TALLIES (1 << TALLY_BITS)
#define TALLY_PLACES 8
struct tally {
	__u64 cgroup_id;
	__u32 walk; /* walk_number: there is something in it */
	__u32 connections[STATES];
} tallies[TALLIES];
/* Owners of namespaces that found no room: from then on nobody knows whether a namespace is one container's. */
__u64 namespace_owners_lost = 0;
/* Those of wanted_events that are sent; may change while running. */
__u32 sent_events = ~0;
/* How many are in `watched`; changes while running. */
__u32 watches = 0;
/* Whether a cgroup that nobody listed is asked for; may change while running. */
bool cgroup_by_default = true;

/* What was lost, by enum loss. */
__u64 losses[LOSSES];

#endif
