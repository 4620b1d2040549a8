//! The agent's settings: from flags, the environment and a file.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use functional::http;
use functional::process::wait_until;
use functional::tcptide::{Output, Streaming, Tcptide};
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
