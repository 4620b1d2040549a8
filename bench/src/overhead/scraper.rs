//! A reader of an agent's metrics, as regular as Prometheus.

use std::{
    net::SocketAddr,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use functional::http;

/// A thread that scrapes. It ends with this.
pub(crate) struct Scraper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Scraper {
    /// The first scrape is at once: a measurement may be shorter than the period.
    pub(crate) fn start(agent: SocketAddr, period: Duration) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut scrapes = 0;
            loop {
                http::get(agent, "/metrics")?.ok()?;
                scrapes += 1;
                if stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
                    return Ok(scrapes);
                }
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }

    /// Ends it; returns how often it scraped.
    pub(crate) fn end(mut self) -> Result<u64> {
        self.join().unwrap_or(Ok(0))
    }

    fn join(&mut self) -> Option<Result<u64>> {
        drop(self.stop.take());
        let thread = self.thread.take()?;
        Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        let _ = self.join();
    }
}
