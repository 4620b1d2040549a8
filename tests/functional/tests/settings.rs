//! The agent's settings: from flags, the environment and a file.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use functional::cgroup::Cgroup;
use functional::http;
use functional::process::{output, wait_until};
use functional::tcptide::{Agent, Output, Streaming, Tcptide};
use functional::workload::{self, ServeOptions, Server};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// A file with settings, in a folder of its own.
struct Settings {
    _folder: TempDir,
    file: PathBuf,
}

impl Settings {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tcptide.toml");
        fs::write(&file, text).unwrap();
        Self { _folder: folder, file }
    }

    fn agent(&self, flags: &[&str]) -> Command {
        let mut command = Tcptide::find().unwrap().command(["agent", "--config.file"]);
        command.arg(&self.file).args(flags);
        command
    }
}

/// The agent with this file, once it is ready.
fn start(settings: &Settings, flags: &[&str]) -> Agent {
    let file = settings.file.to_str().unwrap();
    Tcptide::find().unwrap().agent([&["--config.file", file], flags].concat()).unwrap()
}

/// A line that it says, also one that it said already.
fn says(agent: &Agent, what: &str) {
    wait_until(&format!("`{what}` of the agent"), SOON, || {
        Ok(agent.log().iter().any(|line| line.contains(what)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: it said {:?}", agent.log()));
}

/// Whether the last reading of the file was successful, and when one was.
fn last_reload(agent: &Agent) -> (u8, f64) {
    let scrape = agent.scrape().unwrap();
    let of = |name| scrape.sum(name, &[]).unwrap();
    (
        of("tcptide_config_last_reload_successful") as u8,
        of("tcptide_config_last_reload_success_timestamp_seconds"),
    )
}

fn run(command: &mut Command) -> Output {
    Tcptide::run_command(command).unwrap()
}

#[test]
fn a_flag_comes_before_the_environment_and_that_before_the_file() {
    // Held until all are chosen, so that they differ.
    let free: Vec<_> = (0..3).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
    let [by_file, by_environment, by_flag]: [SocketAddr; 3] =
        free.iter().map(|listener| listener.local_addr().unwrap()).collect::<Vec<_>>().try_into().unwrap();
    drop(free);
    let settings = Settings::new(&format!("web.listen-address = '{by_file}'"));
    let flag = by_flag.to_string();
    for (variable, flags, serves) in [
        (None, vec![], by_file),
        (Some(by_environment), vec![], by_environment),
        (Some(by_environment), vec!["--web.listen-address", &flag], by_flag),
    ] {
        let mut command = settings.agent(&flags);
        command.envs(variable.map(|address| ("TCPTIDE_WEB_LISTEN_ADDRESS", address.to_string())));
        let agent = Streaming::start(&mut command).unwrap();
        agent.wait_ready().unwrap();
        wait_until("an answer", SOON, || Ok(http::get(serves, "/-/ready").ok())).unwrap();
        let others = [by_file, by_environment, by_flag].into_iter().filter(|address| *address != serves);
        for other in others {
            assert!(http::get(other, "/-/ready").is_err(), "{other} answers, not only {serves}");
        }
        agent.interrupt().unwrap().success().unwrap();
    }
}

#[test]
fn the_environment_is_checked_like_flags() {
    let settings = Settings::new("edges = true\ndns = true\n");
    for (variable, value, complaint) in [
        ("TCPTIDE_METRICS_GRACE", "abc", "TCPTIDE_METRICS_GRACE=abc in the environment: not a time such as"),
        ("TCPTIDE_EDGES", "1", "TCPTIDE_EDGES=1 in the environment: not one of true, false"),
        ("TCPTIDE_MAX_SOCKETS", "0", "TCPTIDE_MAX_SOCKETS=0 in the environment: 0 is not in 1..=16777216"),
        ("TCPTIDE_CONFIG_FILE", "", "TCPTIDE_CONFIG_FILE= in the environment: it is empty"),
        // What the file turns on, the environment turns off.
        (
            "TCPTIDE_EDGES",
            "false",
            ":2: dns needs edges, which is given neither here, nor by the environment",
        ),
    ] {
        let mut command = settings.agent(&["--check-config"]);
        if variable == "TCPTIDE_CONFIG_FILE" {
            command = Tcptide::find().unwrap().command(["agent", "--check-config"]);
        }
        let ran = run(command.env(variable, value));
        assert_eq!((ran.status.code(), ran.stdout.len(), ran.stderr.len()), (Some(1), 0, 1), "{ran:?}");
        assert!(ran.stderr[0].contains(complaint), "{ran:?}");
    }
    // A flag comes before the environment, also before one that is wrong.
    let ran =
        run(settings.agent(&["--check-config", "--metrics.grace=1m"]).env("TCPTIDE_METRICS_GRACE", "abc"));
    assert!(ran.status.success(), "{ran:?}");
    let ran =
        run(settings.agent(&["--check-config"]).env("TCPTIDE_DNS", "false").env("TCPTIDE_EDGES", "false"));
    assert!(ran.status.success(), "{ran:?}");
}

#[test]
fn settings_are_checked_without_privileges() {
    let public = tempfile::tempdir().unwrap();
    fs::set_permissions(public.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = public.path().join("tcptide");
    fs::copy(Tcptide::find().unwrap().path(), &program).unwrap();
    let file = public.path().join("tcptide.toml");
    let check = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
        command.arg(&program).args(["agent", "--check-config", "--config.file"]).arg(&file);
        run(&mut command)
    };
    fs::write(&file, "[metrics]\ngrace = '1m'\n").unwrap();
    let ran = check();
    assert!(ran.status.success() && ran.stderr.is_empty() && ran.stdout.len() == 1, "{ran:?}");
    assert!(ran.stdout[0].contains(file.to_str().unwrap()), "{ran:?}");
    fs::write(&file, "[metrics]\ngrace = '1 parsec'\n").unwrap();
    let ran = check();
    assert_eq!((ran.status.code(), ran.stdout.len()), (Some(1), 0), "{ran:?}");
    assert!(ran.stderr[0].contains("tcptide.toml:2: metrics.grace = \"1 parsec\": not a time"), "{ran:?}");
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Connects from a cgroup that is removed then; returns its path.
fn gone_cgroup(story: &str) -> String {
    let server = Server::start(SocketAddr::from(([127, 0, 0, 1], 0)), ServeOptions::default()).unwrap();
    let to = server.address().to_string();
    let cgroup = Cgroup::unique(story).unwrap();
    let path = cgroup.path().to_string_lossy().into_owned();
    let churn = ["churn", "--to", &to, "--rate", "100", "--seconds", "1", "--count", "3"];
    output(&mut cgroup.wrap(&workload::command(churn).unwrap())).unwrap();
    path
}

#[test]
fn a_reload_applies_what_can_change_and_names_what_cannot() {
    let settings = Settings::new("metrics.grace = '1h'\n");
    let began = now();
    let agent = start(&settings, &["--max-sockets", "5000"]);
    let (successful, first) = last_reload(&agent);
    assert!(successful == 1 && first >= began - 1.0 && first <= now(), "{successful} {first}");
    let path = gone_cgroup("reload");
    let has = || agent.scrape().unwrap().sum("tcptide_opened_total", &[("container", &path)]).is_some();
    // Its end is known by the second scrape; with an hour's grace it stays.
    assert!(has());
    std::thread::sleep(Duration::from_secs(1));
    assert!(has());

    // One thing in it is wrong: nothing of it is taken.
    fs::write(&settings.file, "metrics.grace = '1s'\nedges = 'perhaps'\n").unwrap();
    agent.reload().unwrap();
    says(&agent, "the settings stay as they were: ");
    says(&agent, "tcptide.toml:2: edges = \"perhaps\" is of the wrong type");
    assert_eq!(last_reload(&agent), (0, first));
    std::thread::sleep(Duration::from_secs(1));
    assert!(has());

    // A flag comes before the file then, too, so that only the number of cgroups would need a restart.
    fs::write(&settings.file, "max-sockets = 7000\nmetrics.grace = '1s'\nmetrics.max-cgroups = 100\n")
        .unwrap();
    agent.reload().unwrap();
    says(&agent, "the settings were read again: metrics.grace is 1s");
    says(&agent, "needs a restart: metrics.max-cgroups");
    wait_until("the end of the removed cgroup's series", SOON, || Ok((!has()).then_some(()))).unwrap();
    let (successful, second) = last_reload(&agent);
    assert!(successful == 1 && second > first && second <= now(), "{successful} {first} {second}");

    // Who is not to have series of its own any more is in `~other`.
    let others = "max-sockets = 7000\nmetrics.max-cgroups = 100\nmetrics.grace = '1h'\n";
    fs::write(&settings.file, others).unwrap();
    agent.reload().unwrap();
    says(&agent, "the settings were read again: metrics.grace is 1h");
    let excluded = gone_cgroup("excluded");
    let opened = |container: &str| {
        agent
            .scrape()
            .unwrap()
            .sum("tcptide_opened_total", &[("container", container), ("direction", "active")])
    };
    assert_eq!((opened(&excluded), opened("~other")), (Some(3.0), None));
    fs::write(&settings.file, format!("{others}metrics.exclude-container = '{excluded}'\n")).unwrap();
    agent.reload().unwrap();
    says(&agent, &format!("the settings were read again: metrics.exclude-container is {excluded}"));
    wait_until("the end of its series", SOON, || Ok(opened(&excluded).is_none().then_some(()))).unwrap();

    // What needs a restart is said as long as it does.
    agent.reload().unwrap();
    says(&agent, "the settings were read again: nothing changes");
    let ended = agent.stop().unwrap().success().unwrap();
    let restarts: Vec<_> = ended.stderr.iter().filter(|line| line.contains("needs a restart")).collect();
    assert_eq!(restarts.len(), 4, "{restarts:?}");
    assert!(
        restarts.iter().all(|line| line.ends_with("needs a restart: metrics.max-cgroups")),
        "{restarts:?}"
    );
}

#[test]
fn without_a_file_there_is_nothing_to_read_again() {
    let agent = Tcptide::find().unwrap().agent::<&str>([]).unwrap();
    let scrape = agent.scrape().unwrap();
    for name in ["successful", "success_timestamp_seconds"] {
        assert!(!scrape.has(&format!("tcptide_config_last_reload_{name}")), "{name}");
    }
    let pid = agent.pid();
    agent.reload().unwrap();
    wait_until(
        "its end",
        SOON,
        || Ok((!functional::process::running(pid.try_into().unwrap())).then_some(())),
    )
    .unwrap();
    // A signal ended it, the one that was sent.
    assert_eq!(agent.stop().unwrap().status.signal(), Some(1));
}
