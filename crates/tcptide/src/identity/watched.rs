//! Conversations with runtimes, for tests: quick to give up, and waited for.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::registry::{Registry, RuntimeState};
use super::runtime::{Timing, start};

pub(super) const QUICK: Timing = Timing {
    request: Duration::from_millis(300),
    retry: Duration::from_millis(20),
    longest_retry: Duration::from_millis(100),
    relist: Duration::from_secs(300),
};

pub(super) struct Watched {
    pub(super) registry: Arc<Registry>,
    _keep: Option<oneshot::Sender<()>>,
}

impl Watched {
    pub(super) fn start(sockets: Vec<PathBuf>, timing: Timing) -> Self {
        let registry = Arc::new(Registry::new(sockets));
        let keep = start(registry.clone(), timing).unwrap();
        Self { registry, _keep: keep }
    }

    pub(super) fn state(&self) -> RuntimeState {
        self.registry.statuses()[0].state.clone()
    }

    pub(super) fn name(&self, id: &str) -> Option<String> {
        self.registry.metadata(id)?.name.clone()
    }

    /// Waits for something that must come true soon.
    pub(super) fn until(&self, what: &str, true_yet: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !true_yet(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", self.registry.statuses());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(super) fn is_failed(watched: &Watched, text: &str) -> bool {
    matches!(watched.state(), RuntimeState::Failed(error) if error.contains(text))
}
