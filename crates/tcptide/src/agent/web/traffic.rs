//! How many connections the HTTP server has, and what it turned away.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Why a connection or a request got no answer, or not the one that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// There were as many connections as may be.
    Connections,
    /// The request's head did not come in time.
    ReadTimeout,
    /// The request's head is too long, or has too many headers.
    HeadSize,
    /// It is no HTTP request.
    Malformed,
    /// A method other than GET and HEAD.
    Method,
    /// The answer was not taken in time.
    WriteTimeout,
    /// Nothing was asked for too long.
    IdleTimeout,
    /// TLS could not be agreed upon: versions, ciphers, or the client's certificate.
    Tls,
    /// A name or a password is missing or wrong.
    Unauthorized,
}

impl Reason {
    const ALL: [Self; 9] = [
        Self::Connections,
        Self::ReadTimeout,
        Self::HeadSize,
        Self::Malformed,
        Self::Method,
        Self::WriteTimeout,
        Self::IdleTimeout,
        Self::Tls,
        Self::Unauthorized,
    ];

    /// As a label's value.
    fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ReadTimeout => "read_timeout",
            Self::HeadSize => "head_size",
            Self::Malformed => "malformed",
            Self::Method => "method",
            Self::WriteTimeout => "write_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::Tls => "tls",
            Self::Unauthorized => "unauthorized",
        }
    }
}

/// The counts, which the server writes and a scrape reads.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    open: AtomicU64,
    rejected: [AtomicU64; Reason::ALL.len()],
    /// Whether the web configuration is the one that its files have.
    configured: Mutex<Option<bool>>,
}

impl Traffic {
    pub(super) fn reject(&self, reason: Reason) {
        self.rejected[reason as usize].fetch_add(1, Relaxed);
    }

    /// Counts a connection as open for as long as what is returned lives.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Relaxed);
        Open(Arc::clone(self))
    }

    pub(super) fn configured(&self, as_written: bool) {
        *self.configured.lock().unwrap_or_else(PoisonError::into_inner) = Some(as_written);
    }

    /// Whether the last version of the web configuration is in use; none without one.
    pub(crate) fn is_configured(&self) -> Option<bool> {
        *self.configured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that are open now.
    pub(crate) fn connections(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// What was turned away so far, by reason.
    pub(crate) fn rejected(&self) -> Vec<(&'static str, u64)> {
        Reason::ALL.iter().map(|&why| (why.name(), self.rejected[why as usize].load(Relaxed))).collect()
    }
}

/// An open connection.
pub(super) struct Open(Arc<Traffic>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_count_of_its_own() {
        let traffic = Arc::new(Traffic::default());
        for (at, &reason) in Reason::ALL.iter().enumerate() {
            (0..=at).for_each(|_| traffic.reject(reason));
        }
        let counts: Vec<_> = traffic.rejected().into_iter().map(|(_, n)| n).collect();
        assert_eq!(counts, (1..=Reason::ALL.len() as u64).collect::<Vec<_>>());
        let open = traffic.open();
        assert_eq!(traffic.connections(), 1);
        drop(open);
        assert_eq!(traffic.connections(), 0);
    }
}
