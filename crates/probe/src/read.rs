//! Bytes that the kernel side wrote, as the records they are.

use model::record;

/// A record: `repr(C)`, integers only, so that any bytes are a valid value.
///
/// # Safety
/// To be implemented for such types only.
pub(crate) unsafe trait Plain: Copy + Default {}

// SAFETY: generated from record.h: repr(C) structs of unsigned integers.
unsafe impl Plain for record::Connection {}
// SAFETY: as above.
unsafe impl Plain for record::Totals {}
// SAFETY: as above.
unsafe impl Plain for record::Strays {}
// SAFETY: as above.
unsafe impl Plain for record::CgroupEvent {}
// SAFETY: as above.
unsafe impl Plain for record::DnsAnswer {}

/// Reads a record. Bytes that are not there stay at their default (an event without its RTT samples is shorter); more
/// bytes than the record has are not looked at.
pub(crate) fn record<T: Plain>(bytes: &[u8]) -> T {
    let mut value = T::default();
    let len = bytes.len().min(size_of::<T>());
    // SAFETY: `value` is `len` or more bytes of plain integers, the ranges do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut value).cast::<u8>(), len) };
    value
}
