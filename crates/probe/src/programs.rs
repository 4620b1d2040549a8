//! THE table of BPF programs: one row each, and what became of it on this kernel.

use std::fmt;

use model::record::event;

use crate::start::{Options, Owner};

/// One BPF program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Name in the object, in metrics and in `tcptide doctor`.
    pub name: &'static str,
    /// Where it is attached, as libbpf writes it.
    pub hook: &'static str,
    /// What is lost without it.
    pub feeds: &'static str,
    /// Whether there is nothing to show without it.
    pub required: bool,
    needed: fn(&Options) -> bool,
}

impl Program {
    /// Whether these options make use of it.
    pub fn is_needed(&self, options: &Options) -> bool {
        (self.needed)(options)
    }

    /// The tracepoint that it hangs on, if it does.
    pub(crate) fn tracepoint(&self) -> Option<&'static str> {
        self.hook.strip_prefix("tp_btf/")
    }

    /// Whether it hangs on a function of the kernel, which some kernels refuse: what it feeds is told otherwise then, and
    /// less exactly.
    pub fn has_substitute(&self) -> bool {
        self.function().is_some()
    }

    /// The kernel function that it hangs on, if it does, and where: `fentry` or `fexit`.
    pub(crate) fn function(&self) -> Option<(&'static str, &'static str)> {
        self.hook.split_once('/').filter(|(place, _)| matches!(*place, "fentry" | "fexit"))
    }
}

/// Every program of the monitor.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "lifecycle",
        hook: "tp_btf/inet_sock_set_state",
        feeds: "opened, established, closed and failed connections, connect latency, lifetime",
        required: true,
        needed: |options| options.follow,
    },
    Program {
        name: "lifecycle_nested",
        hook: "tp_btf/inet_sock_set_state",
        feeds: "the same, of what interrupts lifecycle at its work",
        required: false,
        needed: |options| options.follow,
    },
    Program {
        name: "rtt",
        hook: "tp_btf/tcp_probe",
        feeds: "round-trip time distribution, closed windows, times to the first byte and to answers",
        required: false,
        needed: |options| {
            let tells = options.wants(event::EVENT_CLOSE) || options.wants(event::EVENT_ZERO_WINDOW);
            options.follow && (options.totals || options.samples || options.read_delay || tells)
        },
    },
    Program {
        name: "retransmit",
        hook: "tp_btf/tcp_retransmit_skb",
        feeds: "retransmitted segments by kind",
        required: false,
        needed: |options| options.follow,
    },
    Program {
        name: "retransmit_synack",
        hook: "tp_btf/tcp_retransmit_synack",
        feeds: "retransmitted SYN-ACKs, and how long such handshakes took",
        required: false,
        needed: |options| options.follow,
    },
    Program {
        name: "reset_sent",
        hook: "tp_btf/tcp_send_reset",
        feeds: "resets sent",
        required: false,
        needed: |options| options.totals || options.wants(event::EVENT_RESET),
    },
    Program {
        name: "reset_received",
        hook: "tp_btf/tcp_receive_reset",
        feeds: "resets received",
        required: false,
        needed: |options| options.totals || options.wants(event::EVENT_RESET),
    },
    Program {
        name: "drop",
        hook: "tp_btf/kfree_skb",
        feeds: "dropped packets by reason",
        required: false,
        needed: |options| options.totals || options.wants(event::EVENT_DROP),
    },
    Program {
        name: "congestion",
        hook: "tp_btf/tcp_cong_state_set",
        feeds: "congestion states, and time in them",
        required: false,
        needed: |options| options.follow,
    },
    Program {
        name: "accepted",
        hook: "fexit/inet_csk_accept",
        feeds: "how long connections wait for accept(), exactly",
        required: false,
        needed: |options| options.follow,
    },
    Program {
        name: "overflow_syn",
        hook: "fentry/tcp_conn_request",
        feeds: "SYNs turned away for a full accept queue",
        required: false,
        needed: |options| options.follow && (options.totals || options.rows > 0),
    },
    Program {
        name: "overflow_ack",
        hook: "fentry/tcp_v4_syn_recv_sock",
        feeds: "handshakes turned away for a full accept queue",
        required: false,
        needed: |options| options.follow && (options.totals || options.rows > 0),
    },
    Program {
        name: "overflow_ack6",
        hook: "fentry/tcp_v6_syn_recv_sock",
        feeds: "the same over IPv6",
        required: false,
        needed: |options| options.follow && (options.totals || options.rows > 0),
    },
    Program {
        name: "collapsed",
        hook: "fentry/tcp_collapse",
        feeds: "receive buffers squeezed to save memory",
        required: false,
        needed: |options| options.totals,
    },
    Program {
        name: "used",
        hook: "tp_btf/tcp_rcv_space_adjust",
        feeds: "how long data waits to be read; owners of accepted connections where there is only cgroup v1",
        required: false,
        needed: |options| options.follow && (options.read_delay || options.owner != Owner::Socket),
    },
    Program {
        name: "cgroup_made",
        hook: "tp_btf/cgroup_mkdir",
        feeds: "names of containers that live for a moment",
        required: false,
        needed: |options| options.follow,
    },
    Program {
        name: "cgroup_removed",
        hook: "tp_btf/cgroup_rmdir",
        feeds: "the end of a container",
        required: false,
        needed: |options| options.follow,
    },
    Program {
        name: "dns_query",
        hook: "cgroup_skb/egress",
        feeds: "names of far ends, from DNS answers to UDP",
        required: false,
        needed: |options| options.dns.is_some(),
    },
    Program {
        name: "dns_answer",
        hook: "cgroup_skb/ingress",
        feeds: "names of far ends, from DNS answers",
        required: false,
        needed: |options| options.dns.is_some(),
    },
    Program {
        name: "adopt_files",
        hook: "iter/task_file",
        feeds: "connections that were there before, and their processes",
        required: false,
        needed: |_| true,
    },
    Program {
        name: "adopt_namespace",
        hook: "iter/tcp",
        feeds: "connections that were there before and that no process holds",
        required: false,
        needed: |_| true,
    },
    Program {
        name: "walk",
        hook: "iter/bpf_map_elem",
        feeds: "live connections, states, totals of live connections",
        required: true,
        needed: |_| true,
    },
];

/// What became of a program on this kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It runs.
    Attached,
    /// This kernel has no such hook.
    Unsupported(String),
    /// The kernel has the hook and did not take the program.
    Refused(String),
    /// Not needed now; see [`crate::Monitor::tend_nested`].
    Standby,
    /// Nobody asked for what it feeds.
    Off,
}

impl Status {
    /// One word, as in the label of `tcptide_program_status`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Unsupported(_) => "unsupported",
            Self::Refused(_) => "refused",
            Self::Standby => "standby",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(why) | Self::Refused(why) => write!(f, "{}: {why}", self.word()),
            Self::Attached | Self::Standby | Self::Off => f.write_str(self.word()),
        }
    }
}
