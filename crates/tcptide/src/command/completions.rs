//! `tcptide completions`: a script for a shell, and `tcptide man`: manual pages. Both are made from the command line itself.

use std::{fs, io::Write as _, path::Path};

use anyhow::Context as _;
use clap_complete::Shell;

use crate::{config::registry, output::writer::Output};

pub(crate) fn run(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut registry(), "tcptide", &mut script);
    let mut out = Output::stdout();
    out.write_all(&script)?;
    Ok(out.flush()?)
}

/// A page for each command, into a folder, which is made if there is none.
pub(crate) fn man(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(registry(), folder))
        .with_context(|| format!("cannot write manual pages into {}", folder.display()))
}
