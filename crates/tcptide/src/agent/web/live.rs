//! The web configuration as it is now: read again when a file has changed, and kept as it was where the new one is no good.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use axum::http::HeaderMap;
use tokio_rustls::rustls::ServerConfig;

use super::{
    config::{Users, WebConfig, relative_to},
    tls,
};

/// The longest file.
const LONGEST: u64 = 1 << 20;
/// What root may forget.
const OWN: &str = "it is read without capabilities, and so has to be readable to the agent's user as its owner, group or other";
/// What was changed less than so long ago may change again without a sign of it.
const UNSETTLED: Duration = Duration::from_secs(1);

/// What a configuration asks for.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) headers: HeaderMap,
    pub(super) users: Option<Users>,
}

/// What tells that a file is still the same: device, inode, size, and when it changed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp([i64; 7]);

impl Stamp {
    /// None if the file cannot be looked at.
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        let numbers = [meta.dev(), meta.ino(), meta.size()].map(u64::cast_signed);
        let [device, inode, size] = numbers;
        Some(Self([device, inode, size, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()]))
    }

    fn is_unsettled(self, at: SystemTime) -> bool {
        let [.., changed, _] = self.0;
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed.max(0).cast_unsigned());
        changed + UNSETTLED + UNSETTLED > at
    }
}

struct State {
    loaded: Arc<Loaded>,
    /// The files that were read, as they were before.
    files: Vec<(PathBuf, Option<Stamp>)>,
    at: SystemTime,
    /// Why the last version is not in use.
    complaint: Option<String>,
}

/// See the module.
pub(crate) struct Live {
    /// Without a file nothing changes.
    path: Option<PathBuf>,
    state: Mutex<State>,
}

impl Live {
    /// The first time an error is the caller's.
    pub(crate) fn start(path: Option<&Path>) -> anyhow::Result<Self> {
        let (mut files, at) = (Vec::new(), SystemTime::now());
        let loaded = match path {
            Some(path) => load(path, &mut files)?,
            None => Loaded::default(),
        };
        let state = State { loaded: Arc::new(loaded), files, at, complaint: None };
        Ok(Self { path: path.map(Path::to_owned), state: Mutex::new(state) })
    }

    /// What holds now, and whether that is what the files say.
    pub(super) fn now(&self) -> (Arc<Loaded>, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            state.refresh(path);
        }
        (Arc::clone(&state.loaded), state.complaint.is_none())
    }

    /// Of the addresses that are served.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.now().0.tls.is_some() { "https" } else { "http" }
    }

    /// Whether there is a file.
    pub(super) fn has_file(&self) -> bool {
        self.path.is_some()
    }
}

impl State {
    fn refresh(&mut self, path: &Path) {
        let is_as_it_was = self.files.iter().all(|(path, stamp)| {
            Stamp::of(path) == *stamp && !stamp.is_some_and(|stamp| stamp.is_unsettled(self.at))
        });
        if is_as_it_was {
            return;
        }
        let (mut files, at) = (Vec::new(), SystemTime::now());
        let loaded = load(path, &mut files).and_then(|new| follows(&self.loaded, &new).map(|()| new));
        // Those of the version in use may become good again.
        let missing = self.files.iter().filter(|(path, _)| files.iter().all(|(read, _)| read != path));
        let missing: Vec<_> = missing.map(|(path, _)| (path.clone(), Stamp::of(path))).collect();
        let complaint = match loaded {
            Ok(loaded) => {
                self.loaded = Arc::new(loaded);
                None
            }
            Err(error) => {
                files.extend(missing);
                Some(format!("the web configuration stays as it was: {error:#}"))
            }
        };
        if complaint != self.complaint {
            match &complaint {
                Some(complaint) => tracing::warn!("{complaint}"),
                None => tracing::warn!("the web configuration is good again"),
            }
        }
        (self.files, self.at, self.complaint) = (files, at, complaint);
    }
}

/// Reads all, and says in `files` what was looked at, also if it was in vain.
fn load(path: &Path, files: &mut Vec<(PathBuf, Option<Stamp>)>) -> anyhow::Result<Loaded> {
    let mut read = |path: &Path| {
        files.push((path.to_owned(), Stamp::of(path)));
        bytes(path)
    };
    let of = || format!("{}, of --web.config.file", path.display());
    let text = read(path).with_context(of)?;
    let text = String::from_utf8(text).context("it is not UTF-8").with_context(of)?;
    let config = WebConfig::parse(&text).with_context(of)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let tls = config.tls_server_config.as_ref();
    let tls = tls.map(|tls| tls::server(tls, &mut |path| read(&relative_to(folder, path))));
    let tls = tls.transpose().context("tls_server_config").with_context(of)?;
    Ok(Loaded { tls, headers: config.headers().with_context(of)?, users: config.users().with_context(of)? })
}

fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => anyhow!(error).context(OWN),
            _ => error.into(),
        })
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.len() as u64 <= LONGEST, "{} is longer than a MiB", path.display());
    Ok(bytes)
}

/// A file that is being written may lack anything: what protects the endpoint does not go away while it serves.
fn follows(old: &Loaded, new: &Loaded) -> anyhow::Result<()> {
    if old.tls.is_some() != new.tls.is_some() {
        bail!("tls_server_config: to begin or to end TLS needs a new start");
    }
    if old.users.is_some() && new.users.is_none() {
        bail!("basic_auth_users: to let everybody in needs a new start");
    }
    Ok(())
}
