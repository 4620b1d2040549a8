//! THE table of what is compared: a kernel counter, what tcptide counts beside it, and which facts make them differ.
//!
//! Each line is one that `docs/reconcile.md` speaks of. What has no counterpart that follows from the kernel's source is
//! not compared.

use model::snmp::Counters;
use serde::Serialize;

use super::ledger::{Quantity, Tallies};

/// One comparison of every namespace.
pub(super) struct Line {
    /// The kernel's counters, by file section and name; more than one are added up.
    counters: &'static [(&'static str, &'static str)],
    /// What tcptide adds up.
    counted: &'static [Quantity],
    /// The program that has to run for it.
    program: &'static str,
    /// Whether the kernel has to tell which socket a packet was dropped for, too: since 6.11.
    needs_drop_events: bool,
    because: fn(&Facts<'_>) -> Vec<Because>,
}

/// What a difference can be explained by.
pub(super) struct Facts<'a> {
    /// What the kernel's counters of the namespace grew by.
    pub(super) kernel: &'a Counters,
    /// What tcptide counted there.
    pub(super) tallies: &'a Tallies,
    /// What is known of the host as a whole.
    pub(super) host: &'a Host,
}

/// What tcptide knows of the whole host, and not by namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    /// SYN-ACKs sent again that no connection has told of.
    pub(super) synacks: i64,
    /// RSTs sent for no socket and in TIME_WAIT in a namespace that is not known; `None` where the kernel does not tell of
    /// such RSTs at all. Those of a known namespace are in its tallies.
    pub(super) stray_resets: Option<i64>,
    /// Whether a packet dropped for a socket is an event.
    pub(super) drop_events: bool,
    /// Packets dropped, for a socket or for none.
    pub(super) dropped: i64,
    /// Events lost for want of room or memory.
    pub(super) lost: i64,
    /// Events that no program saw, at most, by program.
    pub(super) missed: Vec<(&'static str, i64)>,
}

/// What the kernel may have counted beyond tcptide, and why: at least `least` (0 or less), at most `most` (0 or more).
struct Because {
    reason: &'static str,
    least: i64,
    most: i64,
}

/// A line of one namespace.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// The kernel's name of the counter, as in /proc/net/snmp and netstat; sums with a plus.
    pub(crate) counter: String,
    pub(crate) kernel: i64,
    pub(crate) tcptide: i64,
    /// What the kernel counted beyond tcptide.
    pub(crate) difference: i64,
    /// Whether there is none, or the reasons are enough for it.
    pub(crate) explained: bool,
    /// That part of the difference which the reasons do not reach.
    #[serde(skip)]
    pub(crate) unexplained: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) because: Vec<Reason>,
}

/// What explains a difference, or a part of it.
#[derive(Debug, Serialize)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
    /// How much of it at most; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) up_to: Option<i64>,
}

/// As much as there is.
const ANY: i64 = i64::MAX;

const SEGMENTS: &[Quantity] =
    &[Quantity::Syn, Quantity::SynAck, Quantity::Rto, Quantity::Tlp, Quantity::Fast, Quantity::Other];

/// What a line has unless it says otherwise.
const LINE: Line = Line {
    counters: &[],
    counted: &[],
    program: "lifecycle",
    needs_drop_events: false,
    because: |_| Vec::new(),
};

/// The same, of those whose counter goes with a packet dropped for a socket.
const DROPS: Line = Line { program: "drop", needs_drop_events: true, ..LINE };

/// What is compared.
pub(super) const LINES: &[Line] = &[
    Line { counters: &[("Tcp", "ActiveOpens")], counted: &[Quantity::ActiveOpen], ..LINE },
    Line {
        counters: &[("Tcp", "PassiveOpens")],
        counted: &[Quantity::PassiveOpen],
        because: |facts| {
            let fast = facts.grown("TcpExt", "TCPFastOpenPassive");
            vec![more("Fast Open connections count before they are established", fast)]
        },
        ..LINE
    },
    Line {
        counters: &[("Tcp", "AttemptFails")],
        counted: &[Quantity::AttemptFail],
        because: |facts| {
            vec![more(
                "half-open connections reset by the peer: no socket yet",
                facts.grown("TcpExt", "EmbryonicRsts"),
            )]
        },
        ..LINE
    },
    Line { counters: &[("Tcp", "EstabResets")], counted: &[Quantity::EstabReset], ..LINE },
    Line {
        counters: &[("TcpExt", "TCPAbortOnTimeout")],
        counted: &[Quantity::TimedOut],
        because: |facts| {
            let unreachable = facts.tallies.of(&[Quantity::Unreachable]).counted;
            vec![more("timed out after ICMP had said why: ended with that error", unreachable)]
        },
        ..LINE
    },
    Line {
        counters: &[("TcpExt", "ListenOverflows")],
        counted: &[Quantity::ListenDrop],
        program: "drop",
        because: |facts| {
            let others = facts.grown("TcpExt", "ListenDrops") - facts.grown("TcpExt", "ListenOverflows");
            vec![less("turned away for another reason (ListenDrops)", others), discarded(facts)]
        },
        ..LINE
    },
    Line {
        counters: &[("TcpExt", "ListenDrops")],
        counted: &[Quantity::ListenDrop],
        program: "drop",
        because: |facts| vec![discarded(facts)],
        ..LINE
    },
    Line {
        counters: &[("Tcp", "OutRsts")],
        counted: &[Quantity::ResetSent],
        program: "reset_sent",
        because: |facts| {
            vec![match facts.host.stray_resets {
                Some(resets) => more("RSTs for no socket, in an unknown namespace", resets),
                None => more("RSTs for no socket: this kernel (before 6.10) does not tell of them", ANY),
            }]
        },
        ..LINE
    },
    Line {
        counters: &[("Tcp", "RetransSegs")],
        counted: SEGMENTS,
        program: "retransmit",
        because: synacks,
        ..LINE
    },
    Line {
        counters: &[("TcpExt", "TCPSynRetrans")],
        counted: &[Quantity::Syn, Quantity::SynAck],
        program: "retransmit",
        because: |facts| {
            let mut all = synacks(facts);
            all.push(other(facts));
            all
        },
        ..LINE
    },
    Line {
        counters: &[("TcpExt", "TCPFastRetrans")],
        counted: &[Quantity::Fast],
        program: "retransmit",
        because: |facts| vec![other(facts), failed(facts)],
        ..LINE
    },
    Line {
        counters: &[("TcpExt", "TCPTimeouts"), ("TcpExt", "TCPSlowStartRetrans")],
        counted: &[Quantity::Syn, Quantity::Rto],
        program: "retransmit",
        because: timeouts,
        ..LINE
    },
    Line {
        counters: &[("TcpExt", "TCPLossProbes")],
        counted: &[Quantity::Tlp],
        program: "retransmit",
        because: |facts| {
            vec![more("probes with new data: nothing is sent again", ANY), other(facts), failed(facts)]
        },
        ..LINE
    },
    Line {
        counters: &[("TcpExt", "TCPRcvQDrop"), ("TcpExt", "TCPOFODrop")],
        counted: &[Quantity::NoMemory],
        ..DROPS
    },
    Line { counters: &[("TcpExt", "TCPZeroWindowDrop")], counted: &[Quantity::ZeroWindow], ..DROPS },
    Line { counters: &[("TcpExt", "TCPOFOMerge")], counted: &[Quantity::OutOfOrderMerge], ..DROPS },
    Line {
        counters: &[
            ("TcpExt", "TCPMD5NotFound"),
            ("TcpExt", "TCPMD5Unexpected"),
            ("TcpExt", "TCPMD5Failure"),
        ],
        counted: &[Quantity::Md5],
        ..DROPS
    },
];

fn more(reason: &'static str, most: i64) -> Because {
    Because { reason, least: 0, most: most.max(0) }
}

fn less(reason: &'static str, most: i64) -> Because {
    Because { reason, least: -most.max(0), most: 0 }
}

/// SYN-ACKs have no socket of their own, and the kernel counts them with the rest.
fn synacks(facts: &Facts<'_>) -> Vec<Because> {
    let told = facts.tallies.of(&[Quantity::SynAck]).counted;
    vec![
        more("SYN-ACKs that no connection has come of yet, of the whole host", facts.host.synacks),
        less("SYN-ACKs from before, told of when the connection came", told),
    ]
}

/// Segments whose kind nobody told.
fn other(facts: &Facts<'_>) -> Because {
    more("sent again without an event that tells the kind", facts.tallies.of(&[Quantity::Other]).counted)
}

/// The kernel counts these as sent again, but not by kind.
fn failed(facts: &Facts<'_>) -> Because {
    less("could not be sent (TCPRetransFail)", facts.grown("TcpExt", "TCPRetransFail"))
}

/// A listener's own count has every packet that it threw away, the kernel's those that it turned away.
fn discarded(facts: &Facts<'_>) -> Because {
    if !facts.host.drop_events {
        let most = facts.host.dropped + facts.missed("drop");
        return less(
            "packets that listeners dropped beside: as many as were dropped on the whole host",
            most,
        );
    }
    let told = facts.tallies.of(&[Quantity::ListenDiscard]);
    let most = told.counted + told.most + facts.host.lost + facts.missed("drop");
    less("packets that listeners dropped beside: SYNs and last segments that came again", most)
}

fn timeouts(facts: &Facts<'_>) -> Vec<Because> {
    let synacks = facts.grown("TcpExt", "TCPSynRetrans") - facts.tallies.of(&[Quantity::Syn]).counted;
    vec![
        more(
            "the last timeout ends the connection (TCPAbortOnTimeout)",
            facts.grown("TcpExt", "TCPAbortOnTimeout"),
        ),
        // The timer of a request fires once more when it gives up.
        more("timers of half-open connections", 2 * synacks),
        more(
            "nothing sent: the segment was still in this host's queues (TCPSpuriousRtxHostQueues)",
            facts.grown("TcpExt", "TCPSpuriousRtxHostQueues"),
        ),
        other(facts),
        failed(facts),
    ]
}

impl Facts<'_> {
    fn grown(&self, group: &str, name: &str) -> i64 {
        self.kernel.get(group, name).unwrap_or(0)
    }

    fn missed(&self, program: &str) -> i64 {
        self.host.missed.iter().find(|(name, _)| *name == program).map_or(0, |(_, n)| *n)
    }
}

impl Line {
    /// The program without which this is not counted.
    pub(super) fn program(&self) -> &'static str {
        self.program
    }

    /// Compares; `None` where the kernel does not have the counter, or does not tell what tcptide would count.
    pub(super) fn compare(&self, facts: &Facts<'_>) -> Option<Comparison> {
        if self.needs_drop_events && !facts.host.drop_events {
            return None;
        }
        let kernel =
            self.counters.iter().map(|(group, name)| facts.kernel.get(group, name)).sum::<Option<i64>>()?;
        let tally = facts.tallies.of(self.counted);
        let difference = kernel - tally.counted;
        let mut all =
            vec![Because { reason: "while the counters were read", least: tally.least, most: tally.most }];
        all.extend((self.because)(facts));
        all.push(more("lost or missed by tcptide", facts.host.lost + facts.missed(self.program)));
        let least = all.iter().fold(0_i64, |sum, one| sum.saturating_add(one.least));
        let most = all.iter().fold(0_i64, |sum, one| sum.saturating_add(one.most));
        Some(Comparison {
            counter: self.counters.iter().map(|(_, name)| *name).collect::<Vec<_>>().join("+"),
            kernel,
            tcptide: tally.counted,
            difference,
            explained: (least..=most).contains(&difference),
            unexplained: difference - difference.clamp(least, most),
            because: all.iter().filter_map(|one| one.of(difference)).collect(),
        })
    }
}

impl Because {
    /// As a reason for this difference, if it is one.
    fn of(&self, difference: i64) -> Option<Reason> {
        let most = if difference > 0 { self.most } else { -self.least };
        (difference != 0 && most > 0)
            .then(|| Reason { reason: self.reason, up_to: (most < ANY).then_some(most) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(counter: &str) -> &'static Line {
        LINES.iter().find(|line| line.counters[0].1 == counter).unwrap()
    }

    fn compare(counter: &str, kernel: &str, host: &Host) -> Option<Comparison> {
        let kernel = Counters::parse(kernel);
        line(counter).compare(&Facts { kernel: &kernel, tallies: &Tallies::default(), host })
    }

    #[test]
    fn a_counter_that_the_kernel_lacks_is_not_compared() {
        assert!(compare("ActiveOpens", "Tcp: PassiveOpens\nTcp: 3\n", &Host::default()).is_none());
        assert!(compare("TCPTimeouts", "TcpExt: TCPTimeouts\nTcpExt: 3\n", &Host::default()).is_none());
    }

    #[test]
    fn a_difference_without_a_reason_is_not_explained() {
        let line = compare("ActiveOpens", "Tcp: ActiveOpens\nTcp: 3\n", &Host::default()).unwrap();
        assert_eq!((line.kernel, line.tcptide, line.difference, line.explained), (3, 0, 3, false));
        assert!(line.because.is_empty());
        let none = compare("ActiveOpens", "Tcp: ActiveOpens\nTcp: 0\n", &Host::default()).unwrap();
        assert!(none.explained && none.because.is_empty());
    }

    #[test]
    fn reasons_reach_as_far_as_they_are_counted() {
        let host = |resets| Host { stray_resets: resets, ..Host::default() };
        let compare = |host: &Host| compare("OutRsts", "Tcp: OutRsts\nTcp: 3\n", host).unwrap();
        assert!(!compare(&host(Some(2))).explained);
        let enough = compare(&host(Some(5)));
        assert_eq!((enough.explained, enough.because.len(), enough.because[0].up_to), (true, 1, Some(5)));
        // Before 6.10 nobody knows how many there are.
        let any = compare(&host(None));
        assert_eq!((any.explained, any.because[0].up_to), (true, None));
    }

    #[test]
    fn what_was_missed_explains_the_lines_of_its_program_only() {
        let host = Host { missed: vec![("reset_sent", 3)], stray_resets: Some(0), ..Host::default() };
        assert!(compare("OutRsts", "Tcp: OutRsts\nTcp: 3\n", &host).unwrap().explained);
        assert!(!compare("ActiveOpens", "Tcp: ActiveOpens\nTcp: 3\n", &host).unwrap().explained);
    }

    #[test]
    fn half_open_connections_explain_their_own_counters() {
        let text = "Tcp: AttemptFails\nTcp: 2\nTcpExt: EmbryonicRsts\nTcpExt: 2\n";
        assert!(compare("AttemptFails", text, &Host::default()).unwrap().explained);
        let text = "Tcp: AttemptFails\nTcp: 3\nTcpExt: EmbryonicRsts\nTcpExt: 2\n";
        assert!(!compare("AttemptFails", text, &Host::default()).unwrap().explained);
    }
}
