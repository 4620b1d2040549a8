//! What runs in a guest, as cargo builds it: tcptide, the bench, the workload, and the functional tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use functional::process::output;
use serde::Deserialize;

/// The built programs.
#[derive(Debug)]
pub(crate) struct Programs {
    pub tcptide: PathBuf,
    pub bench: PathBuf,
    pub workload: PathBuf,
    /// The files of the functional tests by name, `lifecycle` and the like.
    pub tests: BTreeMap<String, PathBuf>,
}

/// Builds everything, or finds that it has been built.
pub(crate) fn build() -> Result<Programs> {
    // Together, as the other steps of the tests do: else what they share would be built twice.
    let released = cargo(&["build", "--release", "--workspace"])?;
    let mut tests = vec!["test", "--no-run", "--workspace", "--test", "*"];
    // As in tools/lib.sh.
    if std::env::var_os("TESTS_AS_RELEASED").is_some() {
        tests.push("--release");
    }
    let functional = cargo(&tests)?;
    let program = |artifacts: &[Artifact], name: &str| {
        let found = artifacts.iter().find(|artifact| artifact.is("bin", name) && !artifact.profile.test);
        found
            .and_then(|artifact| artifact.executable.clone())
            .with_context(|| format!("cargo built no {name}"))
    };
    let tests = functional.iter().filter(|artifact| artifact.is_of("test"));
    Ok(Programs {
        tcptide: program(&released, "tcptide")?,
        bench: program(&released, "bench")?,
        workload: program(&released, "workload")?,
        tests: tests.filter_map(|test| Some((test.target.name.clone(), test.executable.clone()?))).collect(),
    })
}

/// The names of the tests in an executable.
pub(crate) fn tests_in(executable: &Path) -> Result<Vec<String>> {
    let list = output(Command::new(executable).args(["--list", "--format", "terse"]))?;
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// One thing that cargo made, of its `--message-format=json`.
#[derive(Debug, Deserialize)]
struct Artifact {
    target: Target,
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

impl Artifact {
    fn is_of(&self, kind: &str) -> bool {
        self.target.kind == [kind]
    }

    fn is(&self, kind: &str, name: &str) -> bool {
        self.is_of(kind) && self.target.name == name
    }
}

fn cargo(args: &[&str]) -> Result<Vec<Artifact>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).args(["--locked", "--message-format=json"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    // Lines about other things than artifacts lack what an artifact has.
    Ok(output(&mut command)?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
