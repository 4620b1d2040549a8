//! The live screen, on a terminal: what it shows is what the workload, `ss` and the agent's API say, its keys do what its
//! help says, and the terminal is given back as it was.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::http;
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::{Agent, Streaming, Tcptide};
use functional::terminal::Terminal;
use functional::witness;
use functional::workload::Running;
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Two containers: one serves; the other holds connections to it, asks it all the time, and connects where nobody listens.
struct Shop {
    _work: Vec<Running>,
    app: Cgroup,
    web: Cgroup,
    netns: Netns,
}

/// What holds, and what asks.
const HELD: u64 = 3;
const LIVE: u64 = HELD + 1;

impl Shop {
    fn new(story: &str) -> Self {
        let netns = Netns::new(story).unwrap();
        let web = Cgroup::unique(&format!("{story}-web")).unwrap();
        let app = Cgroup::unique(&format!("{story}-app")).unwrap();
        let start = |cgroup: &Cgroup, args: &[&str]| Running::inside(cgroup, &netns, args).unwrap();
        let server = start(&app, &["serve", "--listen", "127.0.0.1:9601"]);
        server.listening().unwrap();
        let held = start(&web, &["hold", "--to", "127.0.0.1:9601", "--count", &HELD.to_string()]);
        held.ready(SOON).unwrap();
        let asking = [
            "pingpong",
            "--to",
            "127.0.0.1:9601",
            "--count",
            "1000000",
            "--bytes",
            "1000",
            "--interval",
            "20",
            "--seconds",
            "200",
        ];
        let asking = start(&web, &asking);
        let refused = start(&web, &["churn", "--to", "127.0.0.1:9602", "--rate", "5", "--seconds", "200"]);
        Self { _work: vec![server, held, asking, refused], app, web, netns }
    }
}

fn name(cgroup: &Cgroup) -> &str {
    cgroup.path().to_str().unwrap()
}

/// `top` of an agent, as somebody without any privilege.
fn of_agent(address: SocketAddr, args: &[&str]) -> Command {
    let url = format!("http://{address}");
    Tcptide::find().unwrap().command_of_nobody([&["top", "--connect", &url], args].concat())
}

fn on_terminal(agent: &Agent, args: &[&str], columns: u16, rows: u16) -> Terminal {
    let terminal = Terminal::start(&of_agent(agent.address(), args), columns, rows).unwrap();
    terminal.wait_for_text("q: end").unwrap();
    terminal
}

/// Whether the program has drawn a screen of so many lines, from the first to the last. A key that comes at the same moment as
/// a change of size may wait for the next key, in crossterm.
fn is_drawn(lines: &[String], rows: usize) -> Option<()> {
    let (first, last) = (lines.first()?, lines.get(rows - 1)?);
    (first.starts_with("tcptide") && last.contains("q: end")).then_some(())
}

fn agent() -> Agent {
    Tcptide::find().unwrap().agent(["--edges"]).unwrap()
}

/// A row's cells by the heads above them: what stands below a head's right or left end.
fn cells(lines: &[String], row: &str) -> Option<std::collections::BTreeMap<String, String>> {
    let head = lines.iter().find(|line| line.contains("CONNS") || line.contains("OUT/S"))?;
    let row = lines.iter().find(|line| line.starts_with(row))?;
    let heads = words(head);
    let values = words(row);
    let of = |(start, end, name): &(usize, usize, String)| {
        let value = values.iter().find(|(from, to, _)| {
            from == start || to == end || (from <= start && start < to) || (name == "RTT" && from >= start)
        })?;
        Some((name.trim_end_matches(['▾', '▴']).to_owned(), value.2.clone()))
    };
    Some(heads.iter().filter_map(of).collect())
}

/// Words that two spaces stand between, with where they begin and end.
fn words(line: &str) -> Vec<(usize, usize, String)> {
    let chars: Vec<char> = line.chars().collect();
    let mut found = Vec::new();
    let mut start = None;
    for at in 0..=chars.len() {
        let blank = |at: usize| chars.get(at).is_none_or(|c| *c == ' ');
        match start {
            None if !blank(at) => start = Some(at),
            Some(from) if blank(at) && blank(at + 1) => {
                found.push((from, at, chars[from..at].iter().collect()));
                start = None;
            }
            _ => {}
        }
    }
    found
}

/// `9.77KiB/s` as a number.
fn rate(text: &str) -> f64 {
    let text = text.strip_suffix("/s").unwrap();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        other => panic!("{other}"),
    };
    digits.parse::<f64>().unwrap() * factor
}

/// `812µs` or `1.2ms` in microseconds.
fn micros(text: &str) -> f64 {
    match (text.strip_suffix("µs"), text.strip_suffix("ms")) {
        (Some(us), _) => us.parse().unwrap(),
        (_, Some(ms)) => ms.parse::<f64>().unwrap() * 1e3,
        _ => panic!("{text}"),
    }
}

/// What the API says that a container has counted.
fn totals(agent: &Agent, cgroup: &Cgroup) -> (f64, Value) {
    let all = agent.json("/api/v1/totals").unwrap();
    let of =
        all["containers"].as_array().unwrap().iter().find(|one| one["container"]["name"] == name(cgroup));
    (all["seconds"].as_f64().unwrap(), of.unwrap()["metrics"].clone())
}

#[test]
fn every_view_shows_what_was_counted() {
    let shop = Shop::new("top-views");
    let agent = agent();
    let (web, app) = (name(&shop.web), name(&shop.app));
    let terminal = on_terminal(&agent, &["--interval", "2s", "--container", "*top-views*"], 200, 50);

    // Containers: connections as ss counts them, rates as the API's counters grew.
    let before = totals(&agent, &shop.web);
    sleep(Duration::from_secs(3));
    let after = totals(&agent, &shop.web);
    let seconds = after.0 - before.0;
    let grown =
        |metric: &str| (after.1[metric].as_f64().unwrap() - before.1[metric].as_f64().unwrap()) / seconds;
    let sockets = witness::sockets(&shop.netns, &["state", "established", "dport", "=", ":9601"]).unwrap();
    assert_eq!(sockets.len() as u64, LIVE);
    let row = terminal
        .wait_for("rates", |lines| {
            cells(lines, web).filter(|row| row.get("OUT/S").is_some_and(|rate| rate != "-"))
        })
        .unwrap();
    assert_eq!(row["CONNS"], LIVE.to_string(), "{row:?}");
    for (column, metric) in [("OUT/S", "tcptide_sent_bytes_total"), ("IN/S", "tcptide_received_bytes_total")]
    {
        let (shown, counted) = (rate(&row[column]), grown(metric));
        assert!((0.5..2.0).contains(&(shown / counted)), "{column}: {shown} and {counted}: {row:?}");
    }
    let failed: f64 = row["FAIL"].parse().unwrap();
    assert!((3.0..=7.0).contains(&failed), "{row:?}");
    let rtt = &after.1["tcptide_rtt_seconds"];
    let (p50, p99) = (rtt["p50_us"].as_f64().unwrap(), micros(&row["P99"]));
    assert!((0.2..5.0).contains(&(micros(&row["P50"]) / p50)) && p99 >= micros(&row["P50"]), "{row:?} {rtt}");
    assert!(row["RTT"].contains(|c| ('▁'..='█').contains(&c)), "a curve: {row:?}");

    // Its edges.
    terminal.press(&format!("/{web}\r")).unwrap();
    terminal.wait_for("one row", |lines| (lines[1].starts_with("Containers: 1 ")).then_some(())).unwrap();
    terminal.press("\r").unwrap();
    terminal.wait_for_text(&format!("Edges of {web}: 2")).unwrap();
    let lines = terminal
        .wait_for("rates", |lines| {
            let all = lines.to_vec();
            lines.iter().any(|line| line.starts_with(web) && line.contains("KiB/s")).then_some(all)
        })
        .unwrap();
    let edge = lines.iter().find(|line| line.starts_with(web) && line.contains("9601")).unwrap();
    let edge: Vec<_> = words(edge).into_iter().map(|(_, _, word)| word).collect();
    assert_eq!(edge[..4], [web, app, "9601", &LIVE.to_string()], "{edge:?}");
    let refused = lines.iter().find(|line| line.starts_with(web) && line.contains("9602")).unwrap();
    let refused: Vec<_> = words(refused).into_iter().map(|(_, _, word)| word).collect();
    assert_eq!(refused[..4], [web, "127.0.0.1", "9602", "0"], "{refused:?}");
    assert!((2.0..=8.0).contains(&refused[8].parse::<f64>().unwrap()), "{refused:?}");

    // The connections of the edge with the server: the same as ss has.
    terminal.press("/9601\r").unwrap();
    terminal.wait_for_text(&format!("Edges of {web}: 1 ")).unwrap();
    terminal.press("\r").unwrap();
    terminal.wait_for_text(&format!("Connections of {web} with {app}, port 9601: {LIVE}")).unwrap();
    let ports = |lines: &[String]| -> BTreeSet<u16> {
        let of = |line: &String| line.split("127.0.0.1:").nth(1)?.split(' ').next()?.parse().ok();
        lines.iter().filter(|line| line.starts_with(web)).filter_map(of).collect()
    };
    let of_ss: BTreeSet<u16> = sockets.iter().map(|socket| socket.local.port()).collect();
    assert_eq!(ports(&terminal.lines()), of_ss);

    // One of them: that which asks is busy, and so comes first.
    terminal.wait_for("rates", |lines| lines[3].contains("KiB/s").then_some(())).unwrap();
    let asking = *ports(&terminal.lines()[3..4]).first().unwrap();
    terminal.press("\r").unwrap();
    terminal.wait_for_text("cookie ").unwrap();
    let connections = agent.json(&format!("/api/v1/connections?port={asking}")).unwrap();
    let of_web = |one: &&Value| one["container"]["name"] == web;
    let one = connections["connections"].as_array().unwrap().iter().find(of_web).unwrap().clone();
    terminal.wait_for_text(&format!("127.0.0.1:{asking} to 127.0.0.1:9601 ({app})")).unwrap();
    terminal.wait_for_text(&format!("cookie {}", one["cookie"])).unwrap();
    terminal.wait_for_text(&format!("cwnd {}", one["cwnd"])).unwrap();
    terminal.wait_for_text("nothing to send: it had data to send").unwrap();
    terminal.wait_for_text("Round trips since").unwrap();
    terminal
        .wait_for("looks", |lines| lines.iter().any(|line| line.starts_with("count 2")).then_some(()))
        .unwrap();
    terminal
        .wait_for("its states", |lines| {
            lines.iter().any(|line| line.starts_with("state ") && line.contains("ESTABLISHED")).then_some(())
        })
        .unwrap();

    // Listeners of the server, and events.
    terminal.press("14").unwrap();
    let listener = terminal
        .wait_for("a listener", |lines| {
            let is_list = lines[1].starts_with("Listeners");
            lines.iter().find(|line| is_list && line.starts_with(app)).cloned()
        })
        .unwrap();
    assert!(listener.contains("127.0.0.1:9601") && listener.contains("4096"), "{listener}");
    terminal.press("5/fail\r").unwrap();
    let line = terminal
        .wait_for("a failed connect", |lines| lines.iter().find(|line| line.contains("refused")).cloned())
        .unwrap();
    assert!(line.contains("fail") && line.contains(web) && line.contains("127.0.0.1:9602"), "{line}");
    agent.stop().unwrap();
}

/// The keys as the help has them: their names, and what they do.
fn help(terminal: &Terminal) -> Vec<(String, String)> {
    terminal.press("?").unwrap();
    terminal.wait_for_text("tcptide top: keys").unwrap();
    let mut keys = Vec::new();
    let lines = terminal.lines();
    for line in lines.iter().skip(2).take_while(|line| !line.is_empty()) {
        let chars: Vec<char> = line.chars().collect();
        for column in chars.chunks(40) {
            let text = |part: &[char]| part.iter().collect::<String>().trim().to_owned();
            if column.len() > 12 {
                keys.push((text(&column[..12]), text(&column[12..])));
            }
        }
    }
    keys
}

/// What a terminal sends for a key.
fn bytes(name: &str) -> &str {
    match name {
        "Up" => "\x1b[A",
        "Down" => "\x1b[B",
        "Right" => "\x1b[C",
        "Left" => "\x1b[D",
        "Home" => "\x1b[H",
        "End" => "\x1b[F",
        "PageUp" => "\x1b[5~",
        "PageDown" => "\x1b[6~",
        "F1" => "\x1bOP",
        "Enter" => "\r",
        "Esc" => "\x1b",
        "Space" => " ",
        "Ctrl-Z" => "\x1a",
        "Ctrl-C" => "\x03",
        one => one,
    }
}

/// The number of the row that is chosen.
fn chosen(terminal: &Terminal) -> Option<usize> {
    let screen = terminal.screen();
    (3..screen.size().0.get())
        .find(|row| screen.cell(*row, 0).is_some_and(vt100::Cell::inverse))
        .map(|row| usize::from(row) - 3)
}

/// Which column it is sorted by, with the sign.
fn sorted(terminal: &Terminal) -> String {
    let lines = terminal.lines();
    lines[2].split_whitespace().find(|word| word.ends_with(['▾', '▴'])).unwrap_or_default().to_owned()
}

#[test]
fn every_key_does_what_the_help_says() {
    let shop = Shop::new("top-keys");
    let agent = agent();
    // More rows than a screen has.
    let crowd: Vec<_> = (0..30).map(|n| Cgroup::unique(&format!("top-keys-{n}")).unwrap()).collect();
    let held = |cgroup| {
        Running::inside(cgroup, &shop.netns, &["hold", "--to", "127.0.0.1:9601", "--count", "1"]).unwrap()
    };
    let _held: Vec<_> = crowd.iter().map(held).inspect(|held| drop(held.ready(SOON).unwrap())).collect();
    let keys = help(&on_terminal(&agent, &[], 80, 24));
    assert!(keys.len() > 20, "{keys:?}");
    for (names, does) in &keys {
        for key in names.split(' ') {
            let mut terminal =
                on_terminal(&agent, &["--interval", "1s", "--container", "*top-keys*"], 80, 24);
            terminal.wait_for("all rows", |lines| lines[22].starts_with('/').then_some(())).unwrap();
            does_what_it_says(&mut terminal, bytes(key), does, &shop);
        }
    }
    agent.stop().unwrap();
}

fn does_what_it_says(terminal: &mut Terminal, key: &str, does: &str, shop: &Shop) {
    let press = |keys: &str| terminal.press(keys).unwrap();
    let at = |row: usize| {
        let shown = || terminal.lines().join("\n");
        wait_until(&format!("{does}: row {row}"), SOON, || Ok((chosen(terminal) == Some(row)).then_some(())))
            .unwrap_or_else(|error| panic!("{key:?}: {error:#}\n{}", shown()));
    };
    let text = |text: &str| {
        terminal.wait_for_text(text).unwrap_or_else(|error| panic!("{key:?}, {does}: {error:#}"));
    };
    let is_sorted = |by: &str| {
        wait_until(by, SOON, || Ok((sorted(terminal) == by).then_some(())))
            .unwrap_or_else(|error| panic!("{key:?}, {does}: {error:#}"));
    };
    match does {
        "one row up" => {
            press("jj");
            at(2);
            press(key);
            at(1);
        }
        "one row down" => {
            press(key);
            at(1);
        }
        // Twenty rows have room.
        "one screen down" => {
            press(key);
            at(19);
            press("k");
            at(18);
        }
        "one screen up" => {
            press("G");
            at(19);
            press(key);
            wait_until("the rows above", SOON, || Ok((chosen(terminal) != Some(19)).then_some(()))).unwrap();
        }
        "the first row" => {
            press("G");
            at(19);
            press(key);
            at(0);
        }
        "the last row" => {
            press(key);
            at(19);
        }
        "look closer" => {
            press("j");
            at(1);
            press(key);
            text("Edges of /");
        }
        "back; no filter any more" => {
            press("/top-keys\r");
            text("/top-keys");
            press(key);
            terminal.wait_for("no filter", |lines| (!lines[1].contains("  /")).then_some(())).unwrap();
            press("j\r");
            text("Edges of /");
            press(key);
            text("Containers: ");
        }
        "containers" => {
            press("3");
            text("Connections: ");
            press(key);
            text("Containers: ");
        }
        "edges: who talks to whom" => {
            press(key);
            text("Edges: ");
            text("CLIENT");
        }
        "connections" => {
            press(key);
            text("Connections: ");
            text("127.0.0.1:9601");
        }
        "listeners" => {
            press(key);
            text("Listeners: ");
            text("127.0.0.1:9601");
        }
        "events as they come" => {
            press(key);
            text("Events: ");
            text("refused");
        }
        "sort by the column left" => {
            is_sorted("CONNS▾");
            press(key);
            is_sorted("CONTAINER▾");
        }
        "sort by the column right" => {
            is_sorted("CONNS▾");
            press(key);
            is_sorted("OUT/S▾");
        }
        "sort the other way round" => {
            // Who serves all has most of them.
            terminal
                .wait_for("the most", |lines| lines[3].starts_with(&name(&shop.app)[..9]).then_some(()))
                .unwrap();
            press(key);
            is_sorted("CONNS▴");
            terminal
                .wait_for("the fewest", |lines| (cells(lines, &lines[3])?["CONNS"] == "1").then_some(()))
                .unwrap();
        }
        "rows with this text only" => {
            press(key);
            text("/_");
            press("web");
            text("Containers: 1 ");
            press("\x7f\x7f\x7f");
            terminal
                .wait_for("all", |lines| (!lines[1].starts_with("Containers: 1 ")).then_some(()))
                .unwrap();
        }
        "also what is idle" => {
            press(key);
            text(", idle ones too");
            press(key);
            terminal.wait_for("not", |lines| (!lines[1].contains("idle")).then_some(())).unwrap();
        }
        "pause, and go on" => {
            press(key);
            text("PAUSED");
            let then = terminal.lines();
            sleep(Duration::from_millis(2500));
            assert_eq!(terminal.lines(), then);
            press(key);
            terminal
                .wait_for("to go on", |lines| {
                    (!lines[23].contains("PAUSED") && lines[0] != then[0]).then_some(())
                })
                .unwrap();
        }
        "look more often" => {
            text("every 1s");
            press(key);
            text("every 500ms");
        }
        "look less often" => {
            text("every 1s");
            press(key);
            text("every 2s");
        }
        "this help" => {
            press(key);
            text("tcptide top: keys");
            press("x");
            text("q: end");
        }
        "stop, until fg" => {
            press(key);
            wait_until("to stop", SOON, || Ok((terminal.state()? == 'T').then_some(()))).unwrap();
            terminal.is_given_back().unwrap();
            terminal.signal(Signal::CONT).unwrap();
            wait_until("the screen again", SOON, || Ok(terminal.is_taken().then_some(()))).unwrap();
            text("q: end");
        }
        "end" => {
            press(key);
            assert_eq!(terminal.wait().unwrap().code(), Some(0));
            terminal.is_given_back().unwrap();
        }
        other => panic!("the key {key:?} is said to do {other:?}: no test knows that"),
    }
}

#[test]
fn the_terminal_is_given_back_whatever_happens() {
    let shop = Shop::new("top-back");
    let agent = agent();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut terminal = on_terminal(&agent, &[], 80, 24);
        assert!(terminal.is_taken());
        terminal.signal(signal).unwrap();
        assert_eq!(terminal.wait().unwrap().code(), Some(0), "{signal:?}");
        terminal.is_given_back().unwrap();
    }
    // Stopped from elsewhere, and with something else on the screen meanwhile.
    let mut terminal = on_terminal(&agent, &["--container", "*top-back*"], 100, 24);
    for _ in 0..2 {
        terminal.signal(Signal::TSTP).unwrap();
        wait_until("to stop", SOON, || Ok((terminal.state()? == 'T').then_some(()))).unwrap();
        terminal.is_given_back().unwrap();
        terminal.resize(120, 30).unwrap();
        terminal.signal(Signal::CONT).unwrap();
        terminal.wait_for("the last line", |lines| is_drawn(lines, 30)).unwrap();
        terminal.wait_for("a row", |lines| cells(lines, name(&shop.web)[..10].as_ref()).map(drop)).unwrap();
        terminal.resize(100, 24).unwrap();
        terminal.wait_for("the last line", |lines| is_drawn(lines, 24)).unwrap();
    }
    terminal.press("q").unwrap();
    assert!(terminal.wait().unwrap().success());
    terminal.is_given_back().unwrap();
    agent.stop().unwrap();
}

#[test]
fn it_fits_any_terminal_and_the_mouse_finds_its_way() {
    let shop = Shop::new("top-sizes");
    let agent = agent();
    let terminal = on_terminal(&agent, &["--container", "*top-sizes*"], 80, 24);
    let web = &name(&shop.web)[..9];
    for (columns, rows) in [(300, 100), (80, 24), (300, 100), (40, 10), (80, 24)] {
        terminal.resize(columns, rows).unwrap();
        terminal.wait_for("the last line", |lines| is_drawn(lines, rows.into())).unwrap();
        terminal
            .wait_for("the row", |lines| lines.iter().find(|line| line.starts_with(web)).map(drop))
            .unwrap();
        let lines = terminal.lines();
        assert_eq!(lines[2].contains("RTT"), columns == 300, "{lines:?}");
        assert!(lines[2].contains("CONNS"), "{lines:?}");
        for view in ["2", "3", "4", "5", "?", "x", "1"] {
            terminal.press(view).unwrap();
        }
    }
    // Too small for anything: it lives on.
    for (columns, rows) in [(10, 3), (1, 1), (7, 2), (80, 24)] {
        terminal.resize(columns, rows).unwrap();
        sleep(Duration::from_millis(300));
    }
    terminal.wait_for_text("q: end").unwrap();
    // A key that comes with a change of size is no less a key.
    for at in 0..30 {
        let (columns, view, title) = [(90, "4", "Listeners: "), (80, "1", "Containers: ")][at % 2];
        terminal.resize(columns, 24).unwrap();
        terminal.press(view).unwrap();
        terminal.wait_for_text(title).unwrap();
    }

    let column = |lines: &[String], line: usize, text: &str| {
        lines[line].find(text).map(|at| lines[line][..at].chars().count())
    };
    let click = |line: usize, text: &str| {
        let at = terminal.wait_for(text, |lines| column(lines, line, text)).unwrap();
        terminal.click(at, line).unwrap();
    };
    click(2, "OUT/S");
    terminal.wait_for_text("OUT/S▾").unwrap();
    click(2, "OUT/S");
    terminal.wait_for_text("OUT/S▴").unwrap();
    click(0, "Listeners");
    terminal.wait_for_text("Listeners: ").unwrap();
    click(0, "Containers");
    terminal.wait_for_text("Containers: ").unwrap();
    terminal.press("/top-sizes\r").unwrap();
    terminal.wait_for_text("Containers: 2 ").unwrap();
    terminal.click(3, 4).unwrap();
    wait_until("the second row", SOON, || Ok((chosen(&terminal) == Some(1)).then_some(()))).unwrap();
    terminal.click(3, 4).unwrap();
    terminal.wait_for_text("Edges of /").unwrap();
    agent.stop().unwrap();
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let shop = Shop::new("top-colours");
    let agent = agent();
    let is_coloured = |terminal: &Terminal| {
        let screen = terminal.screen();
        let (rows, columns) = screen.size();
        let coloured = |row, column| {
            screen.cell(row, column).is_some_and(|cell| cell.fgcolor() != vt100::Color::Default)
        };
        (0..rows.get()).any(|row| (0..columns.get()).any(|column| coloured(row, column)))
    };
    let fails = |lines: &[String]| {
        let row = cells(lines, name(&shop.web))?;
        row.get("FAIL")
            .is_some_and(|failed| failed.parse::<f64>().is_ok_and(|failed| failed > 0.0))
            .then_some(())
    };
    let terminal = on_terminal(&agent, &[], 200, 30);
    terminal.wait_for("failures", fails).unwrap();
    assert!(is_coloured(&terminal));
    let mut plain = of_agent(agent.address(), &[]);
    plain.env("NO_COLOR", "1");
    let terminal = Terminal::start(&plain, 200, 30).unwrap();
    terminal.wait_for("failures", fails).unwrap();
    assert!(!is_coloured(&terminal));
    assert!(chosen(&terminal).is_some(), "the chosen row is told without a colour");
    agent.stop().unwrap();
}

#[test]
fn an_agent_that_is_slow_or_gone_is_told_and_found_again() {
    let shop = Shop::new("top-gone");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let start = || {
        let agent = Tcptide::find().unwrap();
        let agent = Streaming::start(&mut agent.command([
            "agent",
            "--edges",
            "--web.listen-address",
            &address.to_string(),
        ]));
        wait_until("the agent", SOON, || {
            Ok(http::get(address, "/-/ready").is_ok_and(|a| a.status == 200).then_some(()))
        })
        .unwrap();
        agent.unwrap()
    };
    let agent = start();
    let mut terminal = Terminal::start(&of_agent(address, &["--container", "*top-gone*"]), 120, 24).unwrap();
    let web = &name(&shop.web)[..9];
    let is_there = |lines: &[String]| lines.iter().any(|line| line.starts_with(web)).then_some(());
    let is_new = |lines: &[String]| (is_there(lines).is_some() && lines[23].contains("q: end")).then_some(());
    terminal.wait_for("the row", is_new).unwrap();

    // It answers nothing: the old numbers stay, with their age, and keys are answered.
    agent.signal(Signal::STOP).unwrap();
    terminal
        .wait_for("old numbers", |lines| {
            (is_there(lines).is_some() && lines[23].contains("no answer yet")).then_some(())
        })
        .unwrap();
    let row = terminal.lines().iter().position(|line| line.starts_with(web)).unwrap();
    assert!(terminal.screen().cell(row as u16, 0).unwrap().dim());
    terminal.press("?").unwrap();
    terminal.wait_for_text("tcptide top: keys").unwrap();
    terminal.press("x").unwrap();
    agent.signal(Signal::CONT).unwrap();
    terminal.wait_for("new numbers", is_new).unwrap();

    drop(agent);
    terminal
        .wait_for("why", |lines| {
            (is_there(lines).is_some() && lines[23].contains("cannot ask the agent")).then_some(())
        })
        .unwrap();
    assert!(terminal.lines()[23].starts_with("numbers of "), "{:?}", terminal.lines());
    let again = start();
    terminal.wait_for("new numbers", is_new).unwrap();
    let rates = |lines: &[String]| {
        lines.iter().find(|line| line.starts_with(web) && line.contains("KiB/s")).map(drop)
    };
    terminal.wait_for("rates", rates).unwrap();
    terminal.press("q").unwrap();
    assert!(terminal.wait().unwrap().success());
    again.interrupt().unwrap();

    // One that was never there is said at once, and no screen is begun.
    let mut terminal = Terminal::start(&of_agent(address, &["--container", "*top-gone*"]), 120, 24).unwrap();
    assert_eq!(terminal.wait().unwrap().code(), Some(1));
    terminal.wait_for_text("cannot ask the agent at").unwrap();
    terminal.is_given_back().unwrap();
}

/// A way to an agent that counts what is asked of it.
fn counting(agent: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for from in listener.incoming().map_while(Result::ok) {
            let to = TcpStream::connect(agent).unwrap();
            let (mut back, mut answers) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut answers, &mut back));
            let counted = Arc::clone(&counted);
            thread::spawn(move || {
                let mut to = to;
                for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                    counted.fetch_add(u64::from(line.starts_with(b"GET ")), Ordering::Relaxed);
                    let _ = to.write_all(&[&line[..], b"\n"].concat());
                }
            });
        }
    });
    (address, count)
}

/// Nothing piles up for a line that takes less than there is to show: frames are left out, and keys do not wait for them.
#[test]
fn a_slow_line_gets_what_is_new_and_one_that_takes_nothing_keeps_nobody() {
    let shop = Shop::new("top-slow");
    let agent = agent();
    let (address, asked) = counting(agent.address());
    let args = ["--container", "*top-slow*", "--interval", "100ms"];
    let mut terminal = Terminal::start(&of_agent(address, &args), 100, 30).unwrap();
    let web = &name(&shop.web)[..9];
    let is_there = |lines: &[String]| lines.iter().any(|line| line.starts_with(web)).then_some(());
    terminal.wait_for("the row", is_there).unwrap();

    // 9,600 baud.
    terminal.set_pace(960);
    sleep(Duration::from_secs(10));
    terminal.press("?").unwrap();
    terminal.wait_for_text("tcptide top: keys").unwrap();
    terminal.press("x").unwrap();
    terminal.wait_for("the row", is_there).unwrap();

    // Each size is drawn anew, until nothing more goes in. Then nothing is asked either.
    let count = || asked.load(Ordering::Relaxed);
    let stall = || {
        terminal.set_pace(0);
        for columns in (200..300).rev() {
            terminal.resize(columns, 100).unwrap();
            let before = count();
            sleep(Duration::from_millis(500));
            if count() - before <= 1 {
                return;
            }
        }
        panic!("a terminal takes all that there is");
    };
    stall();
    let before = count();
    sleep(Duration::from_secs(3));
    assert!(count() - before <= 1, "{} questions", count() - before);
    terminal.set_pace(u32::MAX);
    terminal.wait_for("the last line", |lines| is_drawn(lines, 100)).unwrap();
    wait_until("more questions", SOON, || Ok((count() > before + 10).then_some(()))).unwrap();

    stall();
    terminal.signal(Signal::TERM).unwrap();
    assert_eq!(terminal.wait().unwrap().code(), Some(128 + 15));
    agent.stop().unwrap();
}

#[test]
fn without_an_agent_it_has_its_own_and_odd_names_break_nothing() {
    let shop = Shop::new("top-own");
    let parent = Cgroup::unique("top-own-odd").unwrap();
    let odd = Cgroup::new(parent.path().join("東京🙂\u{202e}\u{1b}[2J\tא")).unwrap();
    let holding =
        Running::inside(&odd, &shop.netns, &["hold", "--to", "127.0.0.1:9601", "--count", "7"]).unwrap();
    holding.ready(SOON).unwrap();
    let command = Tcptide::find().unwrap().command(["top", "--container", "*top-own*"]);
    let mut terminal = Terminal::start(&command, 180, 24).unwrap();
    let web = name(&shop.web);
    let row = terminal
        .wait_for("rates", |lines| cells(lines, web).filter(|row| row["OUT/S"].ends_with("KiB/s")))
        .unwrap();
    assert_eq!(row["CONNS"], LIVE.to_string());
    // Where the columns are: a screen's cells, not characters.
    let screen = terminal.screen();
    let line_of =
        |text: &str| (0..24).find(|row| screen.contents_between(*row, 0, *row, 180).contains(text)).unwrap();
    let (head, line) = (line_of("CONNS"), line_of("東京"));
    let at = |row: u16, text: &str| {
        (0..180).find(|column| screen.contents_between(row, *column, row, 180).starts_with(text))
    };
    let end = at(head, "CONNS").unwrap() + 5;
    // The sign of the sorting stands behind the word.
    assert_eq!(screen.cell(line, end).unwrap().contents(), "7", "{}", screen.contents());
    assert!(screen.contents().contains(r"\u{202e}\u{1b}[2J\t"), "{}", screen.contents());
    for keys in ["\r", "2", "3", "4", "5", "1"] {
        terminal.press(keys).unwrap();
        sleep(Duration::from_millis(400));
    }
    terminal.press("3/9601\r").unwrap();
    terminal
        .wait_for("connections", |lines| lines.iter().find(|line| line.contains("ESTABLISHED")).map(drop))
        .unwrap();
    terminal.press("q").unwrap();
    assert!(terminal.wait().unwrap().success());
    terminal.is_given_back().unwrap();
}

#[test]
fn once_prints_one_plain_screen() {
    let shop = Shop::new("top-once");
    let agent = agent();
    let tcptide = Tcptide::find().unwrap();
    let output = Tcptide::run_command(&mut of_agent(agent.address(), &["--once", "--sort", "out"]))
        .unwrap()
        .success()
        .unwrap();
    assert!(output.stdout.iter().all(|line| !line.contains('\x1b')), "{:?}", output.stdout);
    assert!(
        output.stdout[0].starts_with("CONTAINER") && output.stdout[0].contains("OUT/S▾"),
        "{:?}",
        output.stdout
    );
    let row = cells(&output.stdout, name(&shop.web)).unwrap();
    assert_eq!(row["CONNS"], LIVE.to_string());
    assert!(rate(&row["OUT/S"]) > 1000.0, "{row:?}");
    let own = tcptide.run(["top", "--once", "--container", name(&shop.web)]).unwrap().success().unwrap();
    assert_eq!(own.stdout.len(), 2, "{:?}", own.stdout);
    assert_eq!(cells(&own.stdout, name(&shop.web)).unwrap()["CONNS"], LIVE.to_string());

    for (args, status, said) in [
        (&["top", "-o", "json"][..], 2, "unexpected argument '-o'"),
        (&["top", "--interval", "1ms"], 2, "must be from 100ms to 1h"),
        (&["top", "--sort", "colour"], 2, "possible values: container, connections"),
        (&["top"], 1, "tcptide top --once"),
    ] {
        let output = tcptide.run(args).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert!(output.stderr.iter().any(|line| line.contains(said)), "{args:?}: {:?}", output.stderr);
    }
    let mut dumb = of_agent(agent.address(), &[]);
    dumb.env("TERM", "dumb");
    let mut terminal = Terminal::start(&dumb, 80, 24).unwrap();
    assert_eq!(terminal.wait().unwrap().code(), Some(1));
    terminal.wait_for_text("TERM=dumb").unwrap();
    agent.stop().unwrap();
}
