//! DNS over TCP: each message comes after its length, in as many segments as it takes.

use std::collections::{HashMap, VecDeque};

/// The most connections that are put together at a time, the oldest make room.
const MOST: usize = 256;
/// A message and its length.
const LONGEST: usize = 2 + u16::MAX as usize;

/// Connections to DNS servers, by the socket's cookie.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: HashMap<u64, Stream>,
    /// The first one first.
    order: VecDeque<u64>,
}

#[derive(Debug)]
struct Stream {
    /// The number of the byte that comes next; `None`: something is missing, and nothing that follows can be told apart.
    next: Option<u32>,
    held: Vec<u8>,
}

impl Streams {
    /// Takes a segment, of which `length` bytes were sent and these are the first. Calls `each` with every message that is
    /// complete now.
    pub(super) fn take(
        &mut self,
        cookie: u64,
        seq: u32,
        length: u32,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) {
        if !self.open.contains_key(&cookie) {
            if self.order.len() >= MOST
                && let Some(oldest) = self.order.pop_front()
            {
                self.open.remove(&oldest);
            }
            self.order.push_back(cookie);
        }
        let stream = self.open.entry(cookie).or_insert(Stream { next: Some(seq), held: Vec::new() });
        let Some(next) = stream.next else { return };
        // What came already comes again at times.
        let known = next.wrapping_sub(seq);
        if known > length {
            let is_ahead = known > u32::MAX / 2;
            if is_ahead {
                stream.give_up();
            }
            return;
        }
        let Some(new) = bytes.get(known as usize..) else { return stream.give_up() };
        stream.held.extend_from_slice(new);
        while let Some((length, rest)) = stream.held.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(message) = rest.get(..length) else { break };
            each(message);
            stream.held.drain(..2 + length);
        }
        if bytes.len() < length as usize || stream.held.len() > LONGEST {
            stream.give_up();
        } else {
            stream.next = Some(seq.wrapping_add(length));
        }
    }
}

impl Stream {
    fn give_up(&mut self) {
        *self = Self { next: None, held: Vec::new() };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let frame =
            |message: &Vec<u8>| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
        messages.iter().flat_map(frame).collect()
    }

    fn take(streams: &mut Streams, cookie: u64, seq: u32, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        streams.take(cookie, seq, bytes.len() as u32, bytes, |message| all.push(message.to_vec()));
        all
    }

    proptest! {
        /// In pieces of any size, some of which come twice, from any number on.
        #[test]
        fn pieces_are_put_together(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..5),
            sizes in prop::collection::vec((1_usize..200, any::<bool>()), 1..50),
            first in any::<u32>(),
        ) {
            let (bytes, mut streams, mut all) = (framed(&messages), Streams::default(), Vec::new());
            let (mut at, mut sizes) = (0, sizes.iter().cycle());
            while at < bytes.len() {
                let &(size, again) = sizes.next().unwrap();
                let end = bytes.len().min(at + size);
                all.extend(take(&mut streams, 1, first.wrapping_add(at as u32), &bytes[at..end]));
                if again {
                    let from = at.saturating_sub(3);
                    all.extend(take(&mut streams, 1, first.wrapping_add(from as u32), &bytes[from..end]));
                }
                at = end;
            }
            prop_assert_eq!(all, messages);
        }
    }

    #[test]
    fn after_a_gap_nothing_is_told() {
        let bytes = framed(&[vec![1; 10], vec![2; 10], vec![3; 10]]);
        let mut streams = Streams::default();
        assert_eq!(take(&mut streams, 1, 0, &bytes[..12]).len(), 1);
        assert_eq!(take(&mut streams, 1, 13, &bytes[13..24]).len(), 0);
        assert_eq!(take(&mut streams, 1, 24, &bytes[24..]).len(), 0);
        // One that was cut: what is there of it, and nothing after.
        let mut all = Vec::new();
        streams.take(2, 0, 36, &bytes[..24], |message| all.push(message.to_vec()));
        streams.take(2, 36, 12, &bytes[..12], |message| all.push(message.to_vec()));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn the_number_of_streams_is_bounded() {
        let mut streams = Streams::default();
        for cookie in 0..10 * MOST as u64 {
            take(&mut streams, cookie, 0, &[0]);
        }
        assert_eq!((streams.open.len(), streams.order.len()), (MOST, MOST));
    }
}
