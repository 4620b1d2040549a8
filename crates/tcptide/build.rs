//! Bundles the web page, which the feature `web` embeds: `web/build.mjs`, run by Node.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// What the page is made of, in `web/`.
const SOURCES: [&str; 4] = ["build.mjs", "package.json", "package-lock.json", "src"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_WEB").is_none() {
        return ExitCode::SUCCESS;
    }
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", web.join(source).display());
    }
    let Some(out) = env::var_os("OUT_DIR") else { return ExitCode::FAILURE };
    match bundle(&web, &PathBuf::from(out).join("web")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!(
                "cargo::error=the web page needs Node.js 18 or newer with npm ({why}): install them, or build with --no-default-features"
            );
            ExitCode::FAILURE
        }
    }
}

fn bundle(web: &Path, out: &Path) -> Result<(), String> {
    let modified = |file: &str| web.join(file).metadata().and_then(|file| file.modified()).ok();
    // npm writes this one last. What is there is not fetched again, so that building works without a network.
    if modified("node_modules/.package-lock.json") < modified("package-lock.json") {
        let arguments =
            ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
        run(Command::new("npm").args(arguments).current_dir(web))?;
    }
    run(Command::new("node").arg(web.join("build.mjs")).arg(out))
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    // What a build script prints to stdout is for cargo.
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
    Err(format!("{name} failed with {}: {line}", output.status))
}
