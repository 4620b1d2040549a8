//! How much the verifier has to look at, and how long programs are: both grow unnoticed, and are paid at every start. A bound
//! that is to be higher is changed in the commit that needs it, with the reason in its message.

#![allow(clippy::unwrap_used)]

use functional::tcptide::Tcptide;

/// By program: instructions that the verifier looks at, on any kernel of the matrix, and bytes of machine code, which the
/// kernel's defences against speculation make longer.
const BOUNDS: &[(&str, u64, u64)] = &[
    ("lifecycle", 26_000, 27_000),
    ("lifecycle_nested", 26_000, 27_000),
    ("rtt", 14_000, 15_500),
    ("retransmit", 14_000, 11_000),
    ("retransmit_synack", 500, 2_500),
    ("reset_sent", 14_000, 12_000),
    ("reset_received", 12_000, 11_000),
    ("drop", 11_000, 12_500),
    ("congestion", 450, 1_800),
    ("accepted", 450, 2_200),
    ("overflow_syn", 450, 2_000),
    ("overflow_ack", 450, 2_000),
    ("overflow_ack6", 450, 2_000),
    ("collapsed", 120, 1_000),
    ("used", 450, 2_500),
    ("cgroup_made", 60, 600),
    ("cgroup_removed", 60, 600),
    ("dns_query", 120, 1_000),
    ("dns_answer", 500, 3_000),
    ("adopt_files", 1_500, 7_000),
    ("adopt_namespace", 1_300, 6_000),
    ("walk", 40_000, 22_000),
];

#[test]
fn no_program_is_longer_than_it_was() {
    let doctor = Tcptide::find().unwrap().run(["doctor", "-o", "json"]).unwrap().success().unwrap();
    let doctor = doctor.json().unwrap();
    let (mut seen, mut over) = (0, Vec::new());
    for program in doctor["programs"].as_array().unwrap() {
        let (Some(instructions), Some(bytes)) =
            (program["instructions"].as_u64(), program["machine_code_bytes"].as_u64())
        else {
            assert_ne!(program["status"], "attached", "{program}");
            continue;
        };
        seen += 1;
        let name = program["name"].as_str().unwrap();
        let bound = BOUNDS.iter().find(|bound| bound.0 == name);
        let &(_, most, longest) =
            bound.unwrap_or_else(|| panic!("no bound for {name}: {instructions}, {bytes} bytes"));
        if instructions > most || bytes > longest {
            over.push(format!("{name}: {instructions}, {bytes} bytes"));
        }
    }
    assert!(seen > 10, "{doctor}");
    assert!(over.is_empty(), "{over:?}");
}
