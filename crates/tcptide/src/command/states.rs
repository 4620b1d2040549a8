//! `tcptide states`: sockets by container and TCP state.

use clap::CommandFactory as _;
use model::connection::LISTEN;
use probe::Options;

use super::{explain_no_peer, owner, print};
use crate::{
    agent::query,
    answer::states::{Row, Rows, States, time_wait},
    args::StatesArgs,
    client::Remote,
    output::table::{Cell, Column},
    session::{ROWS, Session},
};

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
const ORDER: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 9, 11, LISTEN as usize];

pub(crate) fn run(args: &StatesArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    let StatesArgs { look, peer } = args;
    if let Some(agent) = agent {
        let Rows { states } = agent.get("states", &query::States::command(), &[], &[])?;
        return print(look.output.output, &states, COLUMNS, cells);
    }
    let options = Options { follow: false, rows: ROWS, ..Options::default() };
    let mut session = Session::start_to_look(&look.filter, &look.output, options, peer)?;
    session.insist_on_owners()?;
    let mut states = States::default();
    let walk = session.look(|seen| states.see(seen.record, seen.container))?;
    let mut rows = states.rows();
    explain_no_peer(&session, peer, rows.len(), walk.sockets);
    if session.filter.is_empty() && peer.is_empty() {
        rows.extend(time_wait(|| session.directory.resolve(0)));
    }
    print(look.output.output, &rows, COLUMNS, cells)?;
    session.report_losses();
    Ok(())
}

fn cells(row: &Row) -> Vec<Cell> {
    let counts = ORDER.iter().map(|&state| Cell::from(count(row.in_state(state))));
    std::iter::once(Cell::from(owner(&row.container)))
        .chain(counts)
        .chain([row.total.to_string().into()])
        .collect()
}

fn count(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { n.to_string() }
}
