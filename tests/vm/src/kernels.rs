//! Debian's kernels: found, got and verified by apt with a configuration of its own, and unpacked. None is installed,
//! and this machine's own apt stays as it is.

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use functional::process::{output, require};

/// Debian's keys, with those of older and of coming releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A line of kernels, and Debian's suite that has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Series {
    /// How it is asked for: the beginning of its version, or `newest`.
    pub name: &'static str,
    suite: &'static str,
}

/// From the oldest to the newest.
pub(crate) const SERIES: &[Series] = &[
    Series { name: "5.10", suite: "bullseye" },
    Series { name: "6.1", suite: "bookworm" },
    Series { name: "6.12", suite: "trixie" },
    Series { name: "newest", suite: "sid" },
];

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` prints it: `6.1.0-50-cloud-amd64`.
    pub release: String,
    /// The version of Debian's package: `6.1.158-1`.
    pub version: String,
    /// What the packages hold, with `lib/modules/RELEASE`.
    pub root: PathBuf,
    /// The kernel itself.
    pub image: PathBuf,
}

impl Kernel {
    /// Major and minor version.
    pub(crate) fn number(&self) -> (u64, u64) {
        let numbers = numbers(&self.version);
        (numbers.first().copied().unwrap_or(0), numbers.get(1).copied().unwrap_or(0))
    }

    fn unpacked(root: PathBuf, release: &str, version: String) -> Result<Self> {
        let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
        let image = places.iter().map(|place| root.join(place)).find(|file| file.is_file());
        let image = image.with_context(|| format!("no kernel in {}", root.display()))?;
        Ok(Self { release: release.to_owned(), version, root, image })
    }
}

/// Gets the newest kernel of each series, unless it is in `folder` already.
pub(crate) fn get_all(all: &[&Series], mirror: &str, folder: &Path) -> Result<Vec<Kernel>> {
    thread::scope(|scope| {
        let got: Vec<_> = all.iter().map(|series| scope.spawn(|| get(series, mirror, folder))).collect();
        let kernels = got.into_iter().zip(all).map(|(kernel, series)| {
            let kernel = kernel.join().unwrap_or_else(|panic| resume_unwind(panic));
            kernel.with_context(|| format!("getting the kernel {}", series.name))
        });
        kernels.collect()
    })
}

fn get(series: &Series, mirror: &str, folder: &Path) -> Result<Kernel> {
    let apt = Apt::new(series.suite, mirror, &folder.join("apt").join(series.suite))?;
    apt.update()?;
    let (release, packages) = newest(&apt.names()?, series.name)
        .with_context(|| format!("there is no cloud kernel {} in {}", series.name, series.suite))?;
    let version = apt.version(&packages[0])?;
    let root = folder.join("kernels").join(format!("{release}_{version}"));
    if !root.is_dir() {
        unpack(&apt, &packages, &release, &root)?;
    }
    Kernel::unpacked(root, &release, version)
}

/// The address of a Debian mirror, as this machine's own apt has it.
pub(crate) fn mirror() -> Result<String> {
    require("apt-get", "apt")?;
    let format = "$(REPO_URI) $(ORIGIN) $(LABEL)";
    let targets =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    debian_mirror(&targets).map(str::to_owned).context(
        "apt on this machine knows no Debian mirror, where the kernels are: name one with --mirror (see `apt-get indextargets`)",
    )
}

/// Before apt has ever updated its lists it does not know whose they are: then any will be tried.
fn debian_mirror(targets: &str) -> Option<&str> {
    let targets: Vec<Vec<&str>> = targets.lines().map(|line| line.split_whitespace().collect()).collect();
    let is_debian = |words: &&Vec<&str>| words.get(1..) == Some(&["Debian", "Debian"]);
    let unknown = |words: &&Vec<&str>| words.len() == 1;
    targets.iter().find(is_debian).or_else(|| targets.iter().find(unknown)).map(|words| words[0])
}

/// apt with one suite of one mirror, and lists of its own.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(suite: &str, mirror: &str, folder: &Path) -> Result<Self> {
        ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing: apt-get install debian-archive-keyring");
        for below in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(below)).with_context(|| format!("making {}", folder.display()))?;
        }
        let sources = format!("deb [target=Packages arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(folder.join("sources.list"), sources)?;
        // Nothing is installed here, as far as this apt knows.
        fs::write(folder.join("status"), "")?;
        let at = |name: &str| folder.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State={}", at("")),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            "APT::Architecture=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        Ok(Self { folder: folder.to_owned(), options: options.into() })
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("-q");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(args);
        command
    }

    /// apt keeps the old lists when it cannot get new ones, and says so: good enough without a network.
    fn update(&self) -> Result<()> {
        output(&mut self.command("apt-get", &["update"])).map(drop)
    }

    /// The names of the suite's packages of the kernel.
    fn names(&self) -> Result<Vec<String>> {
        let names = output(&mut self.command("apt-cache", &["pkgnames", "linux-"]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    fn version(&self, package: &str) -> Result<String> {
        let about = output(&mut self.command("apt-cache", &["show", "--no-all-versions", package]))?;
        let version = about.lines().find_map(|line| line.strip_prefix("Version: "));
        version.map(str::to_owned).with_context(|| format!("apt tells no version of {package}"))
    }

    /// Gets the packages into `folder`; apt compares their checksums with its signed lists.
    fn download(&self, packages: &[String], folder: &Path) -> Result<()> {
        let mut command = self.command("apt-get", &["download"]);
        output(command.args(packages).current_dir(folder)).map(drop)
    }
}

/// The release of the newest cloud kernel of a series, and the packages that it is in. The kernel's own comes first.
fn newest(names: &[String], series: &str) -> Option<(String, Vec<String>)> {
    let is_of_series = |release: &str| series == "newest" || release.starts_with(&format!("{series}."));
    // Up to 6.18 one package has all; `linux-image` of later ones only draws in the other three.
    let kernel = |name: &String| {
        let name = name.strip_prefix("linux-")?;
        let release = name.strip_prefix("image-").or_else(|| name.strip_prefix("binary-"))?;
        let of_a_version =
            release.ends_with("-cloud-amd64") && release.starts_with(|c: char| c.is_ascii_digit());
        (of_a_version && is_of_series(release)).then(|| release.to_owned())
    };
    let newest = names.iter().filter_map(kernel).max_by_key(|release| numbers(release))?;
    let parts = ["binary", "image", "modules", "base"].map(|part| format!("linux-{part}-{newest}"));
    Some((newest, parts.into_iter().filter(|name| names.contains(name)).collect()))
}

/// All numbers in a version, for comparing.
fn numbers(version: &str) -> Vec<u64> {
    let version = version.split("-cloud").next().unwrap_or(version);
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn unpack(apt: &Apt, packages: &[String], release: &str, root: &Path) -> Result<()> {
    eprintln!("vm: getting {}", packages.join(", "));
    let downloads = tempfile::tempdir_in(&apt.folder)?;
    apt.download(packages, downloads.path())?;
    // Moved to its place when complete, so that what was broken off is not taken for it.
    let unpacked = tempfile::tempdir_in(&apt.folder)?;
    for file in fs::read_dir(downloads.path())? {
        output(Command::new("dpkg").arg("-x").arg(file?.path()).arg(unpacked.path()))?;
    }
    // depmod and modprobe look for lib/modules, which newer packages have below usr.
    if !unpacked.path().join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", unpacked.path().join("lib"))?;
    }
    output(Command::new(require("depmod", "kmod")?).arg("-b").arg(unpacked.path()).arg(release))?;
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::rename(unpacked.keep(), root).is_err() {
        bail!("cannot move the unpacked kernel to {}", root.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_newest_is_told_by_number_and_its_packages_are_found() {
        let names = owned(&[
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-32-cloud-amd64",
            "linux-image-5.10.0-33-cloud-amd64-unsigned",
            "linux-image-cloud-amd64",
            "linux-image-5.10.0-40-amd64",
            "linux-headers-5.10.0-32-cloud-amd64",
        ]);
        let expected = ("5.10.0-32-cloud-amd64".to_owned(), owned(&["linux-image-5.10.0-32-cloud-amd64"]));
        assert_eq!(newest(&names, "5.10"), Some(expected));
        assert_eq!(newest(&names, "5.1"), None);

        let split = ["base", "binary", "modules", "image"]
            .map(|part| format!("linux-{part}-7.10.1+deb14-cloud-amd64"));
        let names = [&split[..], &owned(&["linux-image-7.9.12+deb14-cloud-amd64"])].concat();
        let (release, packages) = newest(&names, "newest").unwrap();
        assert_eq!(release, "7.10.1+deb14-cloud-amd64");
        assert_eq!(packages, [1, 3, 2, 0].map(|part| split[part].clone()));
    }

    #[test]
    fn a_mirror_of_debian_itself_is_chosen() {
        let targets = "http://a/ubuntu/ Ubuntu Ubuntu\nhttp://a/debian-security/ Debian Debian-Security\n\
                       http://a/debian/ Debian Debian\n";
        assert_eq!(debian_mirror(targets), Some("http://a/debian/"));
        assert_eq!(debian_mirror("http://a/ubuntu/ Ubuntu Ubuntu\n"), None);
        assert_eq!(debian_mirror("http://b/debian/  \n"), Some("http://b/debian/"));
    }
}
