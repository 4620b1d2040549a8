//! The image that test containers run: a static busybox, and the program `workload` with the
//! libraries it needs. No registry is asked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::process::{output, require};
use crate::workload;

/// The image's name in every runtime.
pub const IMAGE: &str = "tcptide-story:latest";

/// Packs the image's root into a tar file in `folder`, ready to be imported.
pub(super) fn pack(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("image");
    unpack(&root)?;
    let archive = folder.join("image.tar");
    output(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."))?;
    fs::remove_dir_all(&root).context("removing the image's folder")?;
    Ok(archive)
}

/// Packs the image as `docker save` would, for containerd, which imports no bare root. `name` is its full name.
pub(super) fn pack_for_containerd(folder: &Path, name: &str) -> Result<PathBuf> {
    let layer = pack(folder)?;
    let digest = output(Command::new("sha256sum").arg(&layer))?;
    let digest = digest.split_whitespace().next().context("sha256sum told no digest")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Entrypoint": ["/bin/sleep", "1000000"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let layer = layer.file_name().context("a layer without a name")?.to_string_lossy().into_owned();
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": [layer] }]);
    fs::write(folder.join("config.json"), config.to_string()).context("writing the image's configuration")?;
    fs::write(folder.join("manifest.json"), manifest.to_string()).context("writing the image's manifest")?;
    let archive = folder.join("archive.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(folder).arg("-cf").arg(&archive).args(["manifest.json", "config.json", &layer]);
    output(&mut tar)?;
    Ok(archive)
}

/// Makes the image's root.
pub(super) fn unpack(root: &Path) -> Result<()> {
    for part in ["bin", "etc", "tmp", "proc", "sys", "dev", "usr"] {
        fs::create_dir_all(root.join(part)).context("making the image's folders")?;
    }
    add_busybox(root)?;
    add_with_libraries(root, &workload::program()?)?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    // systemd-nspawn wants to see a system.
    fs::write(root.join("etc/os-release"), "ID=story\n")?;
    Ok(())
}

fn add_busybox(root: &Path) -> Result<()> {
    let busybox = require("busybox", "busybox-static")?;
    fs::copy(&busybox, root.join("bin/busybox")).context("copying busybox")?;
    // The package `busybox` has a program of the same name that needs libraries.
    let runs = Command::new("chroot").arg(root).args(["/bin/busybox", "true"]).stderr(Stdio::null()).status();
    if !runs.is_ok_and(|status| status.success()) {
        bail!("{} is not a static busybox: apt-get install busybox-static", busybox.display());
    }
    for applet in output(Command::new(&busybox).arg("--list"))?.lines().filter(|&name| name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("linking {applet}"))?;
    }
    Ok(())
}

/// Copies a program to `/bin`, and the libraries it needs to where it looks for them.
fn add_with_libraries(root: &Path, program: &Path) -> Result<()> {
    let name = program.file_name().context("a program without a name")?;
    fs::copy(program, root.join("bin").join(name)).context("copying a program into the image")?;
    // `ldd` fails for a static program: then there is nothing to add.
    let libraries = output(Command::new("ldd").arg(program)).unwrap_or_default();
    for word in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let target = root.join(word.trim_start_matches('/'));
        let parent = target.parent().context("a library without a folder")?;
        fs::create_dir_all(parent)?;
        fs::copy(word, &target).with_context(|| format!("copying {word}"))?;
    }
    Ok(())
}
