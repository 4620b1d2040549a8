//! The agent's web page in a real browser, with real traffic behind it: `web/test/page.mjs` looks at it, and says what is to
//! happen meanwhile.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::docker_api::{Api, container};
use functional::netns::Netns;
use functional::process::{Reading, require, wait_until};
use functional::tcptide::{Agent, Tcptide};
use functional::workload::{Counts, Running};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// What the browser does takes as long as it takes to look at five pages three times.
const LIMIT: Duration = Duration::from_secs(300);
/// No slash: Docker has one in the names of links only.
const ODD_NAME: &str = "<script>alert(1)<img src=x onerror=alert(2)>\"we'b\"&amp;{{x}} 🦀 \u{202e}مرحبا 网页";
/// Connections that stay.
const HELD: u64 = 3;
const MORE: u64 = 5;
const SHORT: u64 = 100;

fn web() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web")
}

/// A folder that stays.
fn screenshots() -> PathBuf {
    let folder = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("screenshots");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn agent(at: Option<SocketAddr>, api: &Api) -> Agent {
    let socket = api.socket().to_string_lossy().into_owned();
    let args = ["--edges", "--runtime-socket", &socket];
    let tcptide = Tcptide::find().unwrap();
    at.map_or_else(|| tcptide.agent(args), |address| tcptide.agent_at(address, args)).unwrap()
}

/// The containers of the story, and what runs in them.
struct Shop {
    netns: Netns,
    odd: Cgroup,
    failing: Cgroup,
}

impl Shop {
    fn churn(&self, cgroup: &Cgroup, to: &str, count: u64) -> Counts {
        let count = count.to_string();
        let args =
            ["churn", "--to", to, "--rate", "200", "--seconds", "20", "--count", &count, "--bytes", "1000"];
        Running::inside(cgroup, &self.netns, &args).unwrap().wait(SOON).unwrap()
    }

    fn hold(&self, count: u64) -> Running {
        let count = count.to_string();
        let held =
            Running::inside(&self.odd, &self.netns, &["hold", "--to", "127.0.0.1:9601", "--count", &count]);
        let held = held.unwrap();
        held.ready(SOON).unwrap();
        held
    }
}

#[test]
fn a_browser_shows_what_the_workloads_counted() {
    let chromium = require("chromium", "chromium").unwrap();
    let node = require("node", "nodejs").unwrap();
    assert!(web().join("node_modules/playwright-core").is_dir(), "the page's tests need npm ci in web/");
    let (odd_id, odd) = container(1).unwrap();
    let (server_id, server) = container(2).unwrap();
    let (failing_id, failing) = container(3).unwrap();
    let named = |id: &str, name: &str| json!({ "Id": id, "Names": [format!("/{name}")], "Image": "shop:1.4", "Labels": {}, "State": "running" });
    let api = Api::telling_of(&json!([
        named(&odd_id, ODD_NAME),
        named(&server_id, "page-server"),
        named(&failing_id, "page-failing")
    ]));
    let api = api.unwrap();
    let shop = Shop { netns: Netns::new("page").unwrap(), odd, failing };
    let serving = Running::inside(&server, &shop.netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    serving.listening().unwrap();

    let mut running = Some(agent(None, &api));
    let address = running.as_ref().unwrap().address();
    let slow =
        ["pingpong", "--to", "127.0.0.1:9601", "--count", "100000", "--interval", "20", "--seconds", "300"];
    let talking = Running::inside(&server, &shop.netns, &slow).unwrap();
    let counted = shop.churn(&shop.odd, "127.0.0.1:9601", SHORT);
    assert_eq!(counted.opened, SHORT, "{counted:?}");
    let refused = shop.churn(&shop.failing, "127.0.0.1:9602", 20);
    assert_eq!(refused.failures(), 20, "{refused:?}");
    let mut held = vec![shop.hold(HELD)];

    let wanted = json!({
        "browser": chromium,
        "odd": { "name": ODD_NAME, "id": shop.odd.id().unwrap(), "opened": SHORT + HELD, "held": HELD },
        "server": { "name": "page-server", "id": server.id().unwrap() },
        "failing": { "id": shop.failing.id().unwrap(), "failed": refused.failures() },
    });
    let mut command = Command::new(node);
    command.arg(web().join("test/page.mjs")).arg(format!("http://{address}/")).arg(screenshots());
    let mut browser = Reading::start(command.arg(wanted.to_string())).unwrap();
    let mut seen = 0;
    let said = loop {
        let line = wait_until("what the browser wants next", LIMIT, || {
            Ok(browser
                .stdout()
                .all()
                .get(seen)
                .cloned()
                .or_else(|| (!browser.is_running()).then(String::new)))
        });
        let line = line.unwrap();
        seen += 1;
        match &*line {
            "hold" => {
                held.push(shop.hold(MORE));
                browser.write_line(&MORE.to_string()).unwrap();
            }
            "churn" => {
                let counted = shop.churn(&shop.odd, "127.0.0.1:9601", MORE);
                browser.write_line(&counted.opened.to_string()).unwrap();
            }
            "stop" => {
                running.take().unwrap().stop().unwrap();
                browser.write_line("").unwrap();
            }
            "start" => {
                running = Some(agent(Some(address), &api));
                browser.write_line("").unwrap();
            }
            other => break other.to_owned(),
        }
    };
    let ended = browser.wait(SOON).unwrap();
    eprintln!("{}", ended.stderr.join("\n"));
    assert!(ended.status.success() && said == "done", "{said}: {}", ended.stderr.join("\n"));
    drop((talking, held));
}

/// Steps are what was counted, each once; what is remembered is bounded in time.
#[test]
fn the_steps_of_a_history_add_up_to_the_totals() {
    let shop = Shop {
        netns: Netns::new("page-history").unwrap(),
        odd: Cgroup::unique("page-odd").unwrap(),
        failing: Cgroup::unique("page-failing").unwrap(),
    };
    let serving = Running::inside(&shop.odd, &shop.netns, &["serve", "--listen", "127.0.0.1:9601"]).unwrap();
    serving.listening().unwrap();
    let agent = Tcptide::find().unwrap().agent(["--history", "1m"]).unwrap();
    let held = shop.hold(HELD);
    let of = format!("cgroup={}", shop.odd.path().to_str().unwrap());
    let history = |more: &str| agent.json(&format!("/api/v1/history?since=1m&{of}{more}")).unwrap();
    let sum = |history: &Value, of: &dyn Fn(&Value) -> Option<u64>| -> u64 {
        let steps = history["containers"][0]["steps"].as_array().into_iter().flatten();
        steps.filter_map(|step| of(&step["metrics"])).sum()
    };
    let opened = |metrics: &Value| metrics["tcptide_opened_total"]["active"].as_u64();
    for turn in 1..=2 {
        let counted = shop.churn(&shop.odd, "127.0.0.1:9601", SHORT);
        assert_eq!(counted.opened, SHORT);
        // The step in which it ends has to end, too.
        wait_until("all of it to be remembered", SOON, || {
            Ok((sum(&history("&step=5s"), &opened) == HELD + turn * SHORT).then_some(()))
        })
        .unwrap();
    }
    let totals = agent.json(&format!("/api/v1/totals?{of}")).unwrap();
    let totals = &totals["containers"][0]["metrics"];
    let all = history("");
    for name in
        ["tcptide_sent_bytes_total", "tcptide_received_bytes_total", "tcptide_received_segments_total"]
    {
        let told = sum(&all, &|metrics| metrics[name].as_u64());
        assert!(told > 0 && Some(told) == totals[name].as_u64(), "{name}: {told}, {}", totals[name]);
    }
    let rtts = sum(&all, &|metrics| metrics["tcptide_rtt_seconds"]["count"].as_u64());
    assert_eq!(Some(rtts), totals["tcptide_rtt_seconds"]["count"].as_u64());
    assert_eq!(sum(&all, &|metrics| metrics["tcptide_sent_bytes_total"].as_u64()), 2 * 2 * SHORT * 1000);
    let last = &all["containers"][0]["steps"].as_array().unwrap().last().unwrap()["metrics"];
    // Both ends are here.
    assert_eq!(last["tcptide_connections"]["established"], 2 * HELD);
    // Only what is asked for, in steps as long as asked for, one after the other.
    let steps = |history: &Value| history["steps"].as_array().unwrap().len();
    wait_until("more steps than go into two", SOON, || Ok((steps(&history("")) > 6).then_some(()))).unwrap();
    let few = history("&step=15s&metrics=tcptide_opened_total");
    assert!(steps(&few) < steps(&history("")), "{few}");
    assert_eq!(few["measured"], json!(["tcptide_opened_total"]));
    assert_eq!(sum(&few, &opened), HELD + 2 * SHORT);
    let steps = few["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["seconds"].as_f64().unwrap() < 21.0), "{steps:?}");
    drop(held);
    agent.stop().unwrap();

    let agent = Tcptide::find().unwrap().agent(["--history", "0"]).unwrap();
    let answer = agent.get("/api/v1/history").unwrap();
    assert!(answer.status == 400 && answer.body.contains("--history 0"), "{}", answer.body);
    agent.stop().unwrap();
}
