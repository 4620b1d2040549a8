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
unsafe impl Plain for record::Watched {}
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

/// What the kernel reads of a record.
pub(crate) fn bytes<T: Plain>(record: &T) -> &[u8] {
    // SAFETY: plain integers without padding, for as long as they are borrowed.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
}

/// Where the kernel writes a record.
pub(crate) fn bytes_of<T: Plain>(record: &mut T) -> &mut [u8] {
    // SAFETY: plain integers, for as long as they are borrowed; any bytes are a valid value.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(record).cast(), size_of::<T>()) }
}

/// `TCP_SYN_RECV` of include/net/tcp_states.h.
const SYN_RECV: u8 = 3;

/// The opening that an event stands for, too: it comes before the event.
pub(crate) fn opened_too(event: &mut record::Connection) -> Option<record::Connection> {
    let both =
        (event.event, event.detail) == (record::event::EVENT_ESTABLISHED as u8, record::OPENED_TOO as u8);
    if !both {
        return None;
    }
    event.detail = 0;
    let mut open = *event;
    (open.event, open.state) = (record::event::EVENT_OPEN as u8, SYN_RECV);
    Some(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_comes_with_what_it_led_to() {
        let established = record::Connection {
            event: record::event::EVENT_ESTABLISHED as u8,
            state: 1,
            cookie: 7,
            ..Default::default()
        };
        let mut both = record::Connection { detail: record::OPENED_TOO as u8, ..established };
        let open = opened_too(&mut both).unwrap();
        assert_eq!((open.event, open.state, open.cookie, open.detail), (0, SYN_RECV, 7, 0));
        assert_eq!((both.event, both.state, both.cookie, both.detail), (1, 1, 7, 0));
        assert!(opened_too(&mut established.clone()).is_none());
        let retransmit = record::Connection { event: 4, detail: 1, ..Default::default() };
        assert!(opened_too(&mut retransmit.clone()).is_none());
    }
}
