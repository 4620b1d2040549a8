//! The rows of a walk: an array in the kernel, mapped into this process.

use std::{os::fd::BorrowedFd, ptr::NonNull};

use model::record::Connection;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::Error;

/// The mapping of the `walked` array.
pub(crate) struct Rows {
    first: NonNull<Connection>,
    capacity: usize,
}

impl Rows {
    /// Maps an array of `capacity` connections.
    pub(crate) fn map(array: BorrowedFd<'_>, capacity: usize) -> Result<Self, Error> {
        let bytes = capacity * size_of::<Connection>();
        // SAFETY: a new mapping of our own choosing of address; it is unmapped once, in Drop.
        let at = unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, array, 0) }
            .map_err(|e| Error::system("map the rows of a walk into memory", e))?;
        let first =
            NonNull::new(at.cast()).ok_or_else(|| Error::system("map the rows of a walk", "no address"))?;
        Ok(Self { first, capacity })
    }

    /// The first `used` rows. To be called between the reads of an iterator: only those write here.
    pub(crate) fn used(&self, used: usize) -> &[Connection] {
        // SAFETY: the mapping holds `capacity` records of plain integers, page-aligned, and nothing writes to it
        // while the iterator that `self`'s owner drives is not being read.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), used.min(self.capacity)) }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // SAFETY: exactly what map() mapped; no slice outlives self.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), self.capacity * size_of::<Connection>()) };
    }
}
