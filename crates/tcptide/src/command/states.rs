//! `tcptide states`: sockets by container and TCP state.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    sync::Arc,
};

use model::{
    connection::{LISTEN, STATE_NAMES},
    container::Container,
    record::STATES,
};
use probe::{Options, network_namespaces};
use serde::Serialize;

use super::{explain_nothing, owner, print};
use crate::{
    args::LookArgs,
    output::table::{Cell, Column},
    session::{ROWS, Session},
};

const SYN_RECV: usize = 3;
const TIME_WAIT: usize = 6;

const COLUMNS: &[Column] = &[
    Column::left("CONTAINER").shrinks_to(10),
    Column::right("ESTAB"),
    Column::right("SYN-SENT").rank(3),
    Column::right("SYN-RECV").rank(3),
    Column::right("FIN-WAIT1").rank(4),
    Column::right("FIN-WAIT2").rank(4),
    Column::right("TIME-WAIT").rank(2),
    Column::right("CLOSE-WAIT").rank(1),
    Column::right("LAST-ACK").rank(5),
    Column::right("CLOSING").rank(5),
    Column::right("LISTEN").rank(2),
    Column::right("TOTAL"),
];
/// The states in the order of the columns.
const ORDER: [usize; 10] = [1, 2, SYN_RECV, 4, 5, TIME_WAIT, 8, 9, 11, LISTEN as usize];

#[derive(Serialize)]
struct Row {
    container: Arc<Container>,
    states: BTreeMap<&'static str, u64>,
    total: u64,
    #[serde(skip)]
    counts: [u64; STATES],
}

impl Row {
    fn new(container: Arc<Container>, counts: [u64; STATES]) -> Self {
        let states = STATE_NAMES
            .iter()
            .zip(counts)
            .filter(|(_, n)| *n > 0)
            .filter_map(|(name, n)| name.map(|name| (name, n)))
            .collect();
        Self { container, states, total: counts.iter().sum(), counts }
    }
}

pub(crate) fn run(args: &LookArgs) -> anyhow::Result<()> {
    let options = Options { follow: false, rows: ROWS, ..Options::default() };
    let mut session = Session::start(&args.filter, &args.output, options)?;
    session.insist_on_owners()?;
    let mut rows: BTreeMap<u64, (Arc<Container>, [u64; STATES])> = BTreeMap::new();
    let mut seen = HashSet::new();
    let walk = session.walk(|row, container, _| {
        let (_, counts) = rows.entry(container.cgroup_id).or_insert_with(|| (container.whole(), [0; STATES]));
        if seen.insert(row.cookie)
            && let Some(count) = counts.get_mut(usize::from(row.state))
        {
            *count += 1;
            counts[SYN_RECV] += u64::from(row.syn_queue);
        }
    })?;
    let mut rows: Vec<_> =
        rows.into_values().map(|(container, counts)| Row::new(container, counts)).collect();
    rows.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.container.name.cmp(&b.container.name)));
    explain_nothing(&session, rows.len(), walk.sockets, "sockets");
    let waiting = if session.filter.is_empty() { time_wait() } else { 0 };
    if waiting > 0 {
        // No full socket is left, and so no owner.
        let mut counts = [0; STATES];
        counts[TIME_WAIT] = waiting;
        rows.push(Row::new(session.directory.resolve(0), counts));
    }
    print(args.output.output, &rows, COLUMNS, cells)?;
    session.report_losses();
    Ok(())
}

fn cells(row: &Row) -> Vec<Cell> {
    let counts = ORDER.iter().map(|&state| Cell::from(count(row.counts[state])));
    std::iter::once(Cell::from(owner(&row.container)))
        .chain(counts)
        .chain([row.total.to_string().into()])
        .collect()
}

fn count(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { n.to_string() }
}

/// TIME_WAIT sockets of all network namespaces: `/proc/net/sockstat`.
fn time_wait() -> u64 {
    network_namespaces()
        .values()
        // A namespace that only a mount holds has no /proc; what waits there is missed.
        .filter_map(|path| {
            path.to_str()?.strip_suffix("/ns/net").map(|process| format!("{process}/net/sockstat"))
        })
        .filter_map(|path| fs::read_to_string(path).ok())
        .filter_map(|text| tw(&text))
        .sum()
}

fn tw(sockstat: &str) -> Option<u64> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = tcp.split_whitespace().skip_while(|&word| word != "tw");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sockstat() {
        let text = "sockets: used 290\nTCP: inuse 8 orphan 0 tw 37 alloc 12 mem 1\nUDP: inuse 4 mem 2\n";
        assert_eq!(tw(text), Some(37));
        assert_eq!(tw("TCP: inuse 8"), None);
        assert_eq!(tw(""), None);
    }
}
