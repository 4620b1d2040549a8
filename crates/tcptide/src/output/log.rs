//! Where warnings go: to stderr, unless a screen is on the terminal, which they would tear. Then they are kept until it is
//! left.

use std::{
    io::{self, Write},
    mem,
    sync::{Mutex, PoisonError},
};

/// How much is kept: the first, as what goes wrong first is why.
const ROOM: usize = 64 << 10;

/// What is kept, while it is.
static KEPT: Mutex<Option<Vec<u8>>> = Mutex::new(None);

fn kept() -> impl std::ops::DerefMut<Target = Option<Vec<u8>>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to stderr.
pub(crate) fn stderr() -> Stderr {
    Stderr
}

/// From now on what is written is kept.
pub(crate) fn keep() {
    kept().get_or_insert_default();
}

/// Says what was kept, and from now on what is written, at once.
pub(crate) fn release() {
    if let Some(text) = mem::take(&mut *kept()) {
        // Where nobody listens any more, it is not said.
        let _ = io::stderr().write_all(&text);
    }
}

/// Standard error, or what is kept of it.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(kept) = &mut *kept() else { return io::stderr().write(bytes) };
        if kept.len() + bytes.len() <= ROOM {
            kept.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
