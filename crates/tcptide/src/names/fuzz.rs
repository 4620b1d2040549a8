//! What DNS servers and containers' `/etc/hosts` say, as bytes.
// That is how a finding is told.
#![allow(clippy::missing_panics_doc)]

use super::{hosts, message, streams::Streams};

/// Reads a DNS message.
pub fn dns(bytes: &[u8]) -> bool {
    let answer = message::read(bytes);
    if let Some(answer) = &answer {
        assert!(!answer.name.is_empty() && answer.name.chars().all(|c| c.is_ascii_graphic()), "{answer:?}");
    }
    answer.is_some()
}

/// Reads segments of DNS over TCP: of each connection and place, length and length that is there, in four bytes before it.
pub fn dns_stream(bytes: &[u8]) -> bool {
    let mut streams = Streams::default();
    let mut is_any = false;
    let mut rest = bytes;
    while let Some(([cookie, seq, length, here], after)) = rest.split_first_chunk::<4>() {
        let (segment, after) = after.split_at(after.len().min((*here).into()));
        let seq = u32::from(*seq).wrapping_sub(100);
        streams.take(u64::from(*cookie), seq, (*length).into(), segment, |message| is_any |= dns(message));
        rest = after;
    }
    is_any
}

/// Reads a hosts file.
pub fn hosts(bytes: &[u8]) -> bool {
    !hosts::parse(&String::from_utf8_lossy(bytes)).is_empty()
}
