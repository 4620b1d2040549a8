//! Lists one kind of objects and watches what becomes of them.
//!
//! A list tells its version, and a watch begins at that. It ends every few minutes, and the next one begins where it
//! left: events tell how far it came, and bookmarks where nothing happens. When the server no longer has what came
//! since, all is listed again; meanwhile what was known stays.

use std::collections::HashSet;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use kube::api::ListParams;
use kube::core::WatchEvent;
use tokio::time::sleep;

use super::Timing;
use super::client::{Api, Failure, Next};
use super::tables::{Object, Shared};

/// Objects on one page of a list.
const PAGE: u32 = 250;
/// The most pages taken: more objects than any cluster has.
const MOST_PAGES: usize = 10_000;
/// How long a watch lasts, in seconds, and at most that much longer: not all of a cluster's agents at once.
const WATCH_SECONDS: u32 = 200;

/// How far a watch came. Outlives connections.
#[derive(Default)]
pub(super) struct Position {
    version: Option<String>,
    /// Whether a list must be as new as can be, so that it is not older than what was seen.
    newest: bool,
}

/// How long to wait before the next try: doubled each time, until one lasted.
pub(super) struct Pause {
    next: Duration,
    first: Duration,
    longest: Duration,
}

impl Pause {
    pub(super) fn new(timing: &Timing) -> Self {
        Self { next: timing.retry, first: timing.retry, longest: timing.longest_retry }
    }

    /// The pause after something that lasted so long: between half and all of it, by chance.
    pub(super) fn after(&mut self, lasted: Duration) -> Duration {
        if lasted >= self.longest {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (2 * pause).min(self.longest);
        pause.mul_f64(0.5 + chance() / 2.0)
    }
}

/// A number between 0 and 1, by chance: the standard library's hash tables have keys that are.
fn chance() -> f64 {
    f64::from(RandomState::new().hash_one(0) as u32) / f64::from(u32::MAX)
}

/// Keeps `shared` as the server tells, until it no longer answers.
///
/// # Errors
/// What was tried and what came of it.
pub(super) async fn follow<T: Object>(
    api: &Api,
    shared: &Shared,
    selector: Option<&str>,
    position: &mut Position,
    timing: &Timing,
) -> anyhow::Result<Infallible> {
    let mut pause = Pause::new(timing);
    loop {
        let begun = Instant::now();
        match round::<T>(api, shared, selector, position).await {
            Ok(()) => {
                let (lasted, wait) = (begun.elapsed(), pause.after(begun.elapsed()));
                // A watch that ended in its time is no reason to wait.
                if lasted < timing.longest_retry {
                    sleep(wait).await;
                }
            }
            Err(Failure::Gone) => {
                *position = Position { version: None, newest: true };
                sleep(pause.after(begun.elapsed())).await;
            }
            Err(Failure::Denied(why)) => {
                shared.settled(T::KIND, Err(why));
                *position = Position::default();
                sleep(timing.denied).await;
            }
            Err(Failure::Failed(error)) => return Err(error),
        }
    }
}

/// One list, unless the position is known, and one watch from there.
async fn round<T: Object>(
    api: &Api,
    shared: &Shared,
    selector: Option<&str>,
    position: &mut Position,
) -> Result<(), Failure> {
    let version = match &position.version {
        Some(version) => version.clone(),
        None => list::<T>(api, shared, selector, position.newest).await?,
    };
    let seconds = WATCH_SECONDS + (chance() * f64::from(WATCH_SECONDS) / 4.0) as u32;
    let watch = api.watch(T::KIND, selector, &version, seconds).await;
    // Noted all along: when something else fails, this ends at any await.
    *position = Position { version: Some(version), newest: false };
    let mut events = watch?;
    shared.settled(T::KIND, Ok(()));
    loop {
        match events.next::<T>().await {
            Ok(Next::End) => return Ok(()),
            Ok(Next::Event(event)) => position.version = take(event, shared).or(position.version.take()),
            Err(failure) => {
                // What could not be read would be there again: that needs a list.
                position.version = None;
                return Err(failure);
            }
        }
    }
}

/// Takes over an event. Returns the version after it.
pub(super) fn take<T: Object>(event: WatchEvent<T>, shared: &Shared) -> Option<String> {
    match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            let version = object.meta().resource_version.clone();
            if object.meta().is_named() {
                object.put(shared);
            }
            Some(version)
        }
        WatchEvent::Deleted(object) => {
            T::remove(&object.meta().key(), shared);
            Some(object.meta().resource_version.clone())
        }
        WatchEvent::Bookmark(mark) => Some(mark.metadata.resource_version),
        WatchEvent::Error(_) => None,
    }
    .filter(|version| !version.is_empty())
}

/// Takes over all there are. Returns the version of the list.
pub(super) async fn list<T: Object>(
    api: &Api,
    shared: &Shared,
    selector: Option<&str>,
    newest: bool,
) -> Result<String, Failure> {
    let mut params = match selector {
        // A few, which the server can tell from what it has at hand.
        Some(selector) if !newest => ListParams::default().fields(selector).match_any(),
        Some(selector) => ListParams::default().fields(selector),
        None => ListParams::default().limit(PAGE),
    };
    let mut listed = HashSet::new();
    for _ in 0..MOST_PAGES {
        let page = api.list::<T>(T::KIND, &params).await?;
        for object in page.items {
            if object.meta().is_named() {
                listed.insert(object.meta().key());
                object.put(shared);
            }
        }
        if page.metadata.next.is_empty() {
            T::keep(&listed, shared);
            shared.settled(T::KIND, Ok(()));
            return Ok(page.metadata.resource_version);
        }
        params.continue_token = Some(page.metadata.next);
    }
    Err(anyhow!("list {}: it does not end", T::KIND.plural).into())
}
