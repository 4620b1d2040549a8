//! What the service manager is told, where there is one that wants to know: `sd_notify(3)`.

use std::time::{Duration, Instant};

use sd_notify::{NotifyState, notify, watchdog_enabled};

/// It is attached and serves here.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its settings; [`ready`] ends that. `Type=notify-reload` wants the time.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("cannot tell the service manager the time: {error}"),
    }
}

/// It ends in order.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("ending")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(states) {
        tracing::warn!("cannot tell the service manager {states:?} (NOTIFY_SOCKET): {error}");
    }
}

/// Who does not say often enough that it lives is started again (`WatchdogSec=`).
pub(crate) struct Watchdog {
    /// Twice as often as is asked for.
    period: Option<Duration>,
    last: Option<Instant>,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        Self { period: watchdog_enabled().map(|limit| limit / 2), last: None }
    }

    /// To be called more often than that.
    pub(crate) fn beat(&mut self) {
        if let Some(period) = self.period
            && self.last.is_none_or(|last| last.elapsed() >= period)
        {
            self.last = Some(Instant::now());
            tell(&[NotifyState::Watchdog]);
        }
    }
}
