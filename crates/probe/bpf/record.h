/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What crosses from the kernel to Rust: the single truth for both sides.
 *
 * crates/model/build.rs makes the Rust types from this file, comments included, so keep to its plain form:
 * `#define NAME number`, `enum name { A, B = 2, };` and `struct name { __u64 field; __u32 many[N]; };`,
 * one field or value a line, no padding left to the compiler (a static assertion in the probe holds both
 * sides to it).
 */
#ifndef RECORD_H
#define RECORD_H

/* Slots of the RTT histogram; the last one counts what is above every bound. */
#define RTT_SLOTS 42
/* Slots of the connect latency histogram. */
#define CONNECT_SLOTS 52
/* Slots of the lifetime histogram. */
#define LIFETIME_SLOTS 30
/* Which bounds the slots of a distribution have: those of RTTs and queueing delays. */
#define SCALE_RTT 0
/* Those of connect latencies and other times. */
#define SCALE_CONNECT 1
/* Those of lifetimes. */
#define SCALE_LIFETIME 2
/* Number of scales. */
#define SCALES 3
/* Room for the bounds of a scale. */
#define BOUNDS 64
/* Slots of the reasons to drop a packet: their names are in crates/model/src/drop.rs. */
#define DROP_REASONS 55
/* The slot of a reason that has none of its own. */
#define DROP_OTHER 0
/* Not a drop. */
#define DROP_NONE 255
/* Instead of a number: it was not measured. */
#define NOT_SEEN 4294967295
/* TCP states, as in include/net/tcp_states.h; 0 is unused. */
#define STATES 13
/* How many connections may be watched at a time. */
#define WATCHES 64
/* Resets by state: first those sent, then those received. */
#define RESET_STATES 26
/* Length of a command name with its final zero. */
#define COMM_LEN 16
/* Length of a congestion control's name with its final zero. */
#define CONGESTION_LEN 16
/* Longest cgroup path that a cgroup event carries; a longer one is looked up in the file system. */
#define CGROUP_PATH_LEN 1024
/* Most bytes of a DNS answer that are sent on; of one over TCP, from one segment. */
#define DNS_PAYLOAD 4096
/* Room for a short one, as most are. */
#define DNS_SHORT 512

/* The owner of sockets whose cgroup could not be established. */
#define CGROUP_UNATTRIBUTED 0
/* Where totals go that have no room of their own. */
#define CGROUP_OTHER 1152921504606846975

/* What happened to a connection. */
enum event {
	/* An active connection sent its first SYN, or a passive one came out of its listener. */
	EVENT_OPEN,
	/* The handshake is complete. */
	EVENT_ESTABLISHED,
	/* An established connection ended. */
	EVENT_CLOSE,
	/* A connect ended without being established. */
	EVENT_FAIL,
	/* A segment was sent again. */
	EVENT_RETRANSMIT,
	/* A RST was sent or received. */
	EVENT_RESET,
	/* A packet was dropped. */
	EVENT_DROP,
	/* A receive window was seen closed. */
	EVENT_ZERO_WINDOW,
	/* The socket is in another state, which neither begins a connection nor ends it. */
	EVENT_STATE,
	/* Number of events. */
	EVENTS,
};

/* Detail of an EVENT_ESTABLISHED that stands for an EVENT_OPEN, too, right before it; the reader makes two of it. */
#define OPENED_TOO 1

/* Who began the connection. */
enum direction {
	/* Not known. */
	DIRECTION_UNKNOWN,
	/* This side called connect(). */
	DIRECTION_ACTIVE,
	/* The peer did. */
	DIRECTION_PASSIVE,
	/* Number of directions. */
	DIRECTIONS,
};

/* Why a connection ended, or a connect failed. */
enum reason {
	/* FIN in both directions, or an orderly end on this side. */
	REASON_NORMAL,
	/* This side sent a RST: aborted, unread data at close, or the listener went away. */
	REASON_RESET_SENT,
	/* The peer sent a RST to an established connection. */
	REASON_RESET_RECEIVED,
	/* No answer: retransmissions, keepalive or the connect timed out. */
	REASON_TIMEOUT,
	/* The peer answered the SYN with a RST. */
	REASON_REFUSED,
	/* ICMP, or the neighbour table, said that there is no way. */
	REASON_UNREACHABLE,
	/* The application closed the socket before the connection was established. */
	REASON_CANCELED,
	/* No local port or address was free: no SYN was sent. */
	REASON_ADDRESS_UNAVAILABLE,
	/* Any other error; errno tells. */
	REASON_ERROR,
	/* Too many sockets that no process holds, or too little memory for TCP: the kernel gave it up. */
	REASON_ORPHANED,
	/* Number of reasons. */
	REASONS,
};

/* Which of the kernel's reasons to send a segment again. */
enum retransmit {
	/* The retransmission timer expired. */
	RETRANSMIT_RTO,
	/* A tail loss probe. */
	RETRANSMIT_TLP,
	/* Fast retransmit, in recovery. */
	RETRANSMIT_FAST,
	/* A SYN. */
	RETRANSMIT_SYN,
	/* A SYN-ACK; counted for the listener's owner. */
	RETRANSMIT_SYNACK,
	/* tcp_sock.total_retrans grew, and no tracepoint told of it. */
	RETRANSMIT_OTHER,
	/* Number of kinds. */
	RETRANSMITS,
};

/* What a connection with data to send waits for: enum tcp_chrono. */
enum limit {
	/* Nothing: it sends, and the path and the peer acknowledge. */
	LIMIT_NONE,
	/* The peer's receive window. */
	LIMIT_RWND,
	/* The own send buffer. */
	LIMIT_SNDBUF,
	/* Number of limits. */
	LIMITS,
};

/* Congestion avoidance states other than open: enum tcp_ca_state. */
enum congestion {
	/* Something arrived out of order, or is missing: it looks closer. */
	CONGESTION_DISORDER,
	/* The window is made smaller, for a congestion mark or a local queue. */
	CONGESTION_CWR,
	/* What was lost is sent again. */
	CONGESTION_RECOVERY,
	/* The retransmission timer has expired. */
	CONGESTION_LOSS,
	/* Number of states. */
	CONGESTIONS,
};

/* What became of TCP Fast Open, where it was tried. */
enum fast_open {
	/* Not tried. */
	FAST_OPEN_NONE,
	/* The data in the SYN was taken. */
	FAST_OPEN_USED,
	/* There was no cookie for this peer yet: the SYN asked for one. */
	FAST_OPEN_NO_COOKIE,
	/* The peer did not take the data in the SYN. */
	FAST_OPEN_NOT_TAKEN,
	/* The SYN with data had to be sent again. */
	FAST_OPEN_SYN_LOST,
	/* Number of outcomes. */
	FAST_OPENS,
};

/* Whose receive window was closed. */
enum window {
	/* The peer's: it does not read. */
	WINDOW_PEER,
	/* The own: this side's application does not read. */
	WINDOW_OWN,
	/* Number of windows. */
	WINDOWS,
};

/* Why something was lost on the kernel side. */
enum loss {
	/* The ring buffer of connection events was full. */
	LOSS_CONNECTION_EVENT,
	/* The ring buffer of cgroup events was full. */
	LOSS_CGROUP_EVENT,
	/* A socket could not be given a gauge. */
	LOSS_STORAGE,
	/* A cgroup could not be given totals of its own: they went to CGROUP_OTHER. */
	LOSS_TOTALS,
	/* A socket without an owner was seen. */
	LOSS_OWNER,
	/* The ring buffer of DNS answers was full. */
	LOSS_DNS,
	/* Number of losses. */
	LOSSES,
};

/* In wanted_cgroups: connections of this cgroup are asked for; without it they are not. */
#define WANTED 1
/* In wanted_cgroups: this says nothing of the cgroups below. */
#define WANTED_ALONE 2

/* The connection was there before the monitor was; its counters run from the adoption. */
#define FLAG_PREEXISTING 1
/* The record carries the RTT samples since the last one. */
#define FLAG_SAMPLES 2
/* The connection has ended. */
#define FLAG_CLOSED 4
/* The socket listens. */
#define FLAG_LISTENER 8
/* The state of a fresh gauge is known. */
#define FLAG_BORN 16
/* A process holds the socket, and it was counted as such. */
#define FLAG_HELD 32
/* The time until accept() is no more than this: when the connection was first seen in use. */
#define FLAG_ACCEPT_BOUND 64
/* No process holds the socket: nobody accepted it yet, or it was let go. */
#define FLAG_UNHELD 128

/* A connection's running counters, read from tcp_sock. */
struct counters {
	/* Payload bytes sent, each once: tcp_sock.bytes_sent - bytes_retrans, since 4.19. */
	__u64 sent_bytes;
	/* Payload bytes the peer acknowledged: tcp_sock.bytes_acked without SYN and FIN, since 4.1. */
	__u64 acked_bytes;
	/* Payload bytes received in order: tcp_sock.bytes_received without the FIN, since 4.1. */
	__u64 received_bytes;
	/* Segments sent, with empty and repeated ones: tcp_sock.segs_out, since 4.2. */
	__u32 segments_out;
	/* Segments received: tcp_sock.segs_in, since 4.2. */
	__u32 segments_in;
	/* Segments sent again: tcp_sock.total_retrans, since 2.6. */
	__u32 retransmits;
	/* Segments that the sender held for lost: tcp_sock.lost, since 4.10. */
	__u32 lost;
	/* Segments that arrived more than once, as the peer said (DSACK): tcp_sock.dsack_dups, since 4.19. */
	__u32 duplicates;
	/* Times that segments were found to arrive in another order: tcp_sock.reord_seen, since 4.19. */
	__u32 reorderings;
	/* Segments delivered with a congestion mark (ECN CE): tcp_sock.delivered_ce, since 4.18. */
	__u32 ce_marked;
	/* Ticks of the kernel's clock with data to send, by enum limit: tcp_sock.chrono_stat, since 4.10. */
	__u32 limited[LIMITS];
};

/* RTT samples of one connection. */
struct rtt_record {
	/* Sum, us. */
	__u64 sum_us;
	/* How many, by slot. */
	__u32 slots[RTT_SLOTS];
};

/* One connection at one moment: an event, or a row of a walk. */
struct connection {
	/* When this was recorded: CLOCK_MONOTONIC, ns. */
	__u64 time_ns;
	/* The socket's cookie, as ss -e shows it. */
	__u64 cookie;
	/* The owner: the id of the socket's cgroup. */
	__u64 cgroup_id;
	/* First SYN sent, or passive socket born: CLOCK_MONOTONIC, ns; 0: before the adoption. */
	__u64 opened_ns;
	/* Handshake complete: CLOCK_MONOTONIC, ns; 0: not yet, or before the adoption. */
	__u64 established_ns;
	/* Since the opening or the adoption. */
	struct counters since;
	/* What the connection had carried before the adoption. */
	struct counters before;
	/* The path's rate as last measured, bytes/s: tcp_sock.rate_delivered / rate_interval_us; 0: not yet. */
	__u64 delivery_rate;
	/* Rate that the kernel reckons with for pacing, bytes/s: sock.sk_pacing_rate; the highest number: none. */
	__u64 pacing_rate;
	/* Time with data to send since the opening or the adoption, us: enum limit. */
	__u64 limited_us[LIMITS];
	/* Time that received data waited to be read, us. */
	__u64 read_delay_us;
	/* Segments sent again since the opening or the adoption: enum retransmit. */
	__u32 retransmits_by_kind[RETRANSMITS];
	/* Local address; IPv4 in its IPv6-mapped form. */
	__u8 local_address[16];
	/* The peer's address; IPv4 in its IPv6-mapped form. */
	__u8 peer_address[16];
	/* Local port; 0: not chosen yet. */
	__u16 local_port;
	/* The peer's port. */
	__u16 peer_port;
	/* The network namespace's inode number. */
	__u32 netns;
	/* The process that connected, or was seen to use the socket; 0: none was seen. */
	__u32 pid;
	/* Smoothed round-trip time, us: tcp_sock.srtt_us / 8; 0: no sample yet. */
	__u32 srtt_us;
	/* Windowed minimum of the round-trip time, us: tcp_sock.rtt_min; the highest number: no sample yet. */
	__u32 min_rtt_us;
	/* Mean deviation of the round-trip time, us: tcp_sock.mdev_us / 4. */
	__u32 rttvar_us;
	/* Latest round-trip time, us: tcp_sock.rack.rtt_us; 0: not known. */
	__u32 last_rtt_us;
	/* RTT of the handshake, us: the first sample; 0: not seen. */
	__u32 handshake_rtt_us;
	/* From the completed handshake to the first payload received, us; 0: none was seen. */
	__u32 first_byte_us;
	/* Slow start threshold, segments: tcp_sock.snd_ssthresh; 2147483647: none yet. */
	__u32 ssthresh;
	/* The peer's receive window, bytes: tcp_sock.snd_wnd. */
	__u32 send_window;
	/* The own receive window, bytes: tcp_sock.rcv_wnd. */
	__u32 receive_window;
	/* Bytes received that the application has not read: tcp_sock.rcv_nxt - copied_seq. */
	__u32 unread;
	/* Bytes written that were not sent yet: tcp_sock.write_seq - snd_nxt. */
	__u32 unsent;
	/* Times that a receive window was seen closed: enum window; NOT_SEEN where nobody watched. */
	__u32 zero_windows[WINDOWS];
	/* Time that it was closed, us; the highest number: as long or longer. */
	__u32 zero_window_us[WINDOWS];
	/* Times that these states were entered: enum congestion; NOT_SEEN where nobody watched. */
	__u32 congestion_entered[CONGESTIONS];
	/* Time in them, us; the highest number: as long or longer. */
	__u32 congestion_us[CONGESTIONS];
	/* From the completed handshake to accept(), us; with FLAG_ACCEPT_BOUND no more than this; 0: not accepted, or not seen. */
	__u32 accept_wait_us;
	/* From the SYN received to the completed handshake, us; 0: not seen. */
	__u32 handshake_us;
	/* From the last data sent to the next data received, us: the latest of these; 0: none was seen. */
	__u32 response_us;
	/* Times that data was read after it had to wait; NOT_SEEN where nobody watched. */
	__u32 reads;
	/* MPTCP's token of the connection that this subflow belongs to: mptcp_sock.token; 0: none. */
	__u32 mptcp_token;
	/* Connections that a listener turned away for a full accept queue; NOT_SEEN where nobody watched. */
	__u32 overflows;
	/* Limit of a listener's accept queue: sock.sk_max_ack_backlog. */
	__u32 accept_limit;
	/* Sequence number of the first payload byte of this end: the peer's socket has it as peer_start. From tcp_sock.snd_una and bytes_acked. */
	__u32 own_start;
	/* Sequence number of the peer's first payload byte, in this socket's numbers: tcp_sock.rcv_nxt and bytes_received. */
	__u32 peer_start;
	/* Packets that a socket turned away; SYNs and completed handshakes of a listener: sock.sk_drops. */
	__u32 drops;
	/* Congestion window, segments: tcp_sock.snd_cwnd. */
	__u32 cwnd;
	/* Segment size for sending, bytes: tcp_sock.mss_cache. */
	__u32 mss;
	/* Reordering the connection reckons with, segments: tcp_sock.reordering. */
	__u32 reordering;
	/* Connections waiting in a listener's accept queue: sock.sk_ack_backlog. */
	__u32 accept_queue;
	/* Half-open connections of a listener: request_sock_queue.qlen. */
	__u32 syn_queue;
	/* The error that ended it, as in errno(3); 0: none. */
	__u16 error;
	/* What happened: enum event. */
	__u8 event;
	/* TCP state: include/net/tcp_states.h. */
	__u8 state;
	/* Who began: enum direction. */
	__u8 direction;
	/* Why it ended: enum reason; only in EVENT_CLOSE and EVENT_FAIL. */
	__u8 reason;
	/* Congestion avoidance state: inet_connection_sock.icsk_ca_state. */
	__u8 ca_state;
	/* FLAG_ bits. */
	__u8 flags;
	/* What an EVENT_RETRANSMIT (enum retransmit), EVENT_RESET (1 sent, 2 received), EVENT_DROP (slot), EVENT_ZERO_WINDOW (enum window), EVENT_STATE (the state before) was about. On the kernel's side: OPENED_TOO of an EVENT_ESTABLISHED. */
	__u8 detail;
	/* Whether ECN was agreed on: tcp_sock.ecn_flags. */
	__u8 ecn;
	/* The state that an EVENT_CLOSE or EVENT_FAIL ended. */
	__u8 state_before;
	/* TCP Fast Open: enum fast_open. */
	__u8 fast_open;
	/* Nothing. */
	__u8 padding[4];
	/* Name of that process's main thread or of the thread that connected. */
	__u8 comm[COMM_LEN];
	/* Congestion control: inet_connection_sock.icsk_ca_ops->name. */
	__u8 congestion[CONGESTION_LEN];
	/* RTT samples since the last record; only with FLAG_SAMPLES. */
	struct rtt_record rtt;
};

/* A distribution of round-trip times or of what is above the least of them. */
struct round_trips {
	/* Sum, us. */
	__u64 sum_us;
	/* How many, by slot. */
	__u64 slots[RTT_SLOTS];
};

/* What is kept of a connection that somebody watches, from then on. */
struct watched {
	/* Its RTT samples. */
	struct round_trips rtt;
	/* When it came into each state, CLOCK_MONOTONIC ns; 0: it did not. */
	__u64 entered_ns[STATES];
};

/* A distribution of other times. */
struct times {
	/* Sum, us. */
	__u64 sum_us;
	/* How many, by slot. */
	__u64 slots[CONNECT_SLOTS];
};

/* A distribution of lifetimes. */
struct lifetimes {
	/* Sum, us. */
	__u64 sum_us;
	/* How many, by slot. */
	__u64 slots[LIFETIME_SLOTS];
};

/* What the sockets of one cgroup have done since the monitor started. */
struct totals {
	/* Connections opened, by direction: enum direction. */
	__u64 opened[DIRECTIONS];
	/* Established connections that ended: enum reason. */
	__u64 closed[REASONS];
	/* Connects that ended without being established: enum reason. */
	__u64 connect_failures[REASONS];
	/* Payload bytes sent, each once. */
	__u64 sent_bytes;
	/* Payload bytes acknowledged by peers. */
	__u64 acked_bytes;
	/* Payload bytes received in order. */
	__u64 received_bytes;
	/* Segments sent. */
	__u64 sent_segments;
	/* Segments received. */
	__u64 received_segments;
	/* Segments sent again: enum retransmit. */
	__u64 retransmitted_segments[RETRANSMITS];
	/* Segments held for lost. */
	__u64 lost_segments;
	/* Segments that peers said arrived more than once. */
	__u64 duplicate_segments;
	/* Times that segments were found to arrive in another order. */
	__u64 reorderings;
	/* Segments delivered with a congestion mark. */
	__u64 ce_marked_segments;
	/* Time with data to send, us: enum limit. */
	__u64 limited_us[LIMITS];
	/* Times that a receive window was seen closed: enum window. */
	__u64 zero_windows[WINDOWS];
	/* Time that receive windows were closed, us. */
	__u64 zero_window_us[WINDOWS];
	/* Times that congestion states other than open were entered: enum congestion. */
	__u64 congestion_entered[CONGESTIONS];
	/* Time in them, us. */
	__u64 congestion_us[CONGESTIONS];
	/* Ended connections that had tried TCP Fast Open: enum fast_open. */
	__u64 fast_open[FAST_OPENS];
	/* Connections that listeners turned away for a full accept queue. */
	__u64 listen_overflows;
	/* Times that segments in a receive buffer were squeezed together to save memory. */
	__u64 receive_collapses;
	/* What listeners turned away: sock.sk_drops. */
	__u64 listen_drops;
	/* TCP packets dropped, by slot. */
	__u64 dropped_packets[DROP_REASONS];
	/* RSTs: first those sent, then those received. */
	__u64 resets[2];
	/* The same by the connection's state. */
	__u64 resets_by_state[RESET_STATES];
	/* RTT samples. */
	struct round_trips rtt;
	/* Queueing delays. */
	struct round_trips queueing;
	/* Connect latencies of established active connections. */
	struct times connect;
	/* Times to the first byte received on connections this side began. */
	struct times first_byte;
	/* From the last data sent to the next data received on connections this side began. */
	struct times response;
	/* From the SYN received to the completed handshake. */
	struct times handshake;
	/* From the completed handshake to accept(). */
	struct times accept_wait;
	/* From data ready to its being read. */
	struct times read_delay;
	/* Lifetimes of ended connections that were seen to open. */
	struct lifetimes lifetime;
	/* Sockets by TCP state, as the walk of that number found them; SYN_RECV from the listeners. */
	__u32 connections[STATES];
	/* Connections that wait in the accept queues, as that walk found them. */
	__u32 accept_queue;
	/* Room in the accept queues, all together. */
	__u32 accept_limit;
	/* The walk that wrote `connections` and the accept queues. */
	__u32 walk;
};

/* What became of packets in one network namespace that are no socket's, so that no cgroup owns them. */
struct strays {
	/* TCP packets dropped, by slot. */
	__u64 dropped_packets[DROP_REASONS];
	/* RSTs sent, by state: 0 for no socket at all. */
	__u64 resets_sent[STATES];
};

/* A cgroup was made or removed. */
struct cgroup_event {
	/* Its id. */
	__u64 id;
	/* 1: removed. */
	__u32 removed;
	/* Bytes in path; 0: too long to be sent. */
	__u32 path_len;
	/* Path below the hierarchy's root. */
	__u8 path[CGROUP_PATH_LEN];
};

/* What a DNS server answered a container: a datagram, or a segment. */
struct dns_answer {
	/* When it came: CLOCK_MONOTONIC, ns. */
	__u64 time_ns;
	/* The socket's cookie. */
	__u64 cookie;
	/* The owner: the id of the socket's cgroup. */
	__u64 cgroup_id;
	/* Bytes of it; the payload is cut at DNS_PAYLOAD. */
	__u32 length;
	/* Of a segment: the sequence number of the first byte. */
	__u32 seq;
	/* IPPROTO_UDP or IPPROTO_TCP. */
	__u32 protocol;
	/* Nothing. */
	__u32 padding;
	/* The beginning of it. */
	__u8 payload[DNS_PAYLOAD];
};

#endif
