//! What is installed beside the program, and removed again.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use functional::cgroup::Cgroup;
use functional::process::{output, require};
use functional::runtime::Machines;
use functional::tcptide::Tcptide;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// What `make install` and `make uninstall` run, with a folder that stands for the root.
fn script(root: &Path, prefix: &str, what: &str) -> String {
    let mut command = Command::new(repository().join("tools/install.sh"));
    command.arg(what).env("DESTDIR", root).env("PREFIX", prefix);
    command.env("TCPTIDE", fs::canonicalize(Tcptide::find().unwrap().path()).unwrap());
    output(&mut command).unwrap()
}

/// Every file below a folder, relative to it.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(folder).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found
}

#[test]
fn what_is_installed_works_and_goes_again() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    script(root, "/opt/tcptide", "install");
    let program = root.join("opt/tcptide/bin/tcptide");
    let help = output(Command::new(&program).arg("--help")).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    // Their names stand out from what is said of them.
    let commands = commands.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let commands: Vec<_> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"agent") && !commands.contains(&"man"), "{commands:?}");

    // A page for each command, with all that its help names.
    let pages = root.join("opt/tcptide/share/man/man1");
    let mut wanted: BTreeSet<_> = commands
        .iter()
        .filter(|command| **command != "help")
        .map(|command| format!("tcptide-{command}.1"))
        .collect();
    wanted.insert("tcptide.1".to_owned());
    assert_eq!(files(&pages), wanted);
    let page = fs::read_to_string(pages.join("tcptide-agent.1")).unwrap();
    assert!(page.contains(".TH tcptide-agent 1") && page.contains("TCPTIDE_METRICS_GRACE"), "{page}");

    let others: BTreeSet<_> =
        files(root).into_iter().filter(|file| !file.starts_with("opt/tcptide/share/man/")).collect();
    let wanted = [
        "etc/tcptide/tcptide.toml",
        "opt/tcptide/bin/tcptide",
        "opt/tcptide/lib/systemd/system/tcptide.service",
        "opt/tcptide/share/bash-completion/completions/tcptide",
        "opt/tcptide/share/fish/vendor_completions.d/tcptide.fish",
        "opt/tcptide/share/zsh/site-functions/_tcptide",
    ];
    assert_eq!(others, wanted.map(str::to_owned).into());
    let unit = fs::read_to_string(root.join(wanted[2])).unwrap();
    assert!(
        unit.contains("ExecStart=/opt/tcptide/bin/tcptide agent --config.file /etc/tcptide/tcptide.toml\n")
    );
    let settings = root.join(wanted[0]);
    let check = ["agent", "--check-config", "--config.file", settings.to_str().unwrap()];
    output(Command::new(&program).args(check)).unwrap();

    // The shell itself completes with it.
    let completion = r#"source "$1"; COMP_WORDS=(tcptide agent --metrics.g); COMP_CWORD=2; _tcptide tcptide --metrics.g agent; echo "${COMPREPLY[@]}""#;
    let bash = require("bash", "bash").unwrap();
    let words =
        output(Command::new(bash).args(["-c", completion, "bash"]).arg(root.join(wanted[3]))).unwrap();
    assert_eq!(words, "--metrics.grace");

    // Settings that somebody wrote are neither written over nor removed.
    fs::write(&settings, "edges = true\n").unwrap();
    script(root, "/opt/tcptide", "install");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "edges = true\n");
    script(root, "/opt/tcptide", "uninstall");
    assert_eq!(files(root), ["etc/tcptide/tcptide.toml".to_owned()].into());

    fs::remove_file(&settings).unwrap();
    script(root, "/usr", "install");
    assert!(root.join("usr/bin/tcptide").metadata().unwrap().permissions().mode() & 0o111 == 0o111);
    script(root, "/usr", "uninstall");
    assert_eq!(fs::read_dir(root).unwrap().count(), 0, "{:?}", files(root));
}

/// What the story in the container does; each part's answer goes to a file of its own.
const SCRIPT: &str = r#"#!/bin/sh
cd /tmp/story
ip link set lo up
# The host may have it that packages start nothing.
rm -f /usr/sbin/policy-rc.d
dpkg --install tcptide.deb >installed 2>&1; echo $? >>installed
systemctl is-active tcptide >active
systemctl is-enabled tcptide >enabled
dpkg --verify tcptide >verified
tcptide states >states 2>&1; echo $? >>states
python3 -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:9836/-/ready").read().decode())' >ready
echo "edges = true" >>/etc/tcptide/tcptide.toml
dpkg --remove tcptide >removed 2>&1; echo $? >>removed
systemctl is-active tcptide >inactive
ls /etc/tcptide >kept
dpkg --purge tcptide >purged 2>&1; echo $? >>purged
find /etc /usr /var/lib/systemd -path /usr/local -prune -o \
    \( -path '*/bin/tcptide' -o -path '/etc/*tcptide*' -o -path '/usr/share/*/tcptide*' -o -name 'tcptide.service*' \) -print >left
touch whole
systemctl poweroff
"#;

/// On a Debian that is booted for this: `make test-deb` makes the package and tells it.
#[test]
#[ignore = "make test-deb: the package takes minutes to make"]
fn the_package_is_installed_run_and_removed() {
    let package = std::env::var_os("TCPTIDE_DEB").expect("TCPTIDE_DEB: the package");
    let machines = Machines::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let story = folder.path();
    fs::set_permissions(story, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(story.join("script"), SCRIPT).unwrap();
    fs::set_permissions(story.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(package, story.join("tcptide.deb")).unwrap();
    let service = "[Unit]\nAfter=sysinit.target\n[Service]\nType=oneshot\nExecStart=/tmp/story/script\n";
    fs::write(story.join("story.service"), service).unwrap();
    let service = story.join("story.service");
    let cgroup = Cgroup::new(format!("story{}-deb.service", std::process::id())).unwrap();
    let files = [(story, "/tmp/story"), (&*service, "/etc/systemd/system/story.service")];
    let console = machines.boot(&cgroup, &files, "story.service").unwrap();
    let of = |name: &str| fs::read_to_string(story.join(name)).unwrap_or_default().trim().to_owned();
    assert!(story.join("whole").exists(), "it did not come to its end: {}", console.join("\n"));

    assert!(of("installed").ends_with("\n0"), "{}", of("installed"));
    assert_eq!((&*of("active"), &*of("enabled")), ("active", "enabled"), "{}", of("installed"));
    assert_eq!(of("verified"), "", "what is there is what was packed");
    assert!(of("states").ends_with("\n0"), "{}", of("states"));
    assert_eq!(of("ready"), "tcptide is ready");
    assert!(of("removed").ends_with("\n0"), "{}", of("removed"));
    assert_ne!(of("inactive"), "active");
    assert_eq!(of("kept"), "tcptide.toml", "settings stay until they are purged");
    assert!(of("purged").ends_with("\n0"), "{}", of("purged"));
    assert_eq!(of("left"), "");
}
