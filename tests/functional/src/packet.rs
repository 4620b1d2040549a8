//! Just enough of IP and TCP to pick packets on a path, and to answer them as a network would.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// TCP header flags, as RFC 9293 numbers them.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push function.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
}

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;

/// What an IP header says that a path needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// The transport protocol's number (6 is TCP).
    pub protocol: u8,
    /// Where the transport header begins.
    pub transport: usize,
}

impl Header {
    /// Reads an IPv4 or IPv6 header (IPv6 extension headers are not followed: hosts do not send
    /// them with TCP). `None` if `packet` is neither, or too short.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let transport = usize::from(packet[0] & 0x0f) * 4;
                let header = packet.get(..transport.max(IPV4_HEADER))?;
                Some(Self {
                    source: IpAddr::from(Ipv4Addr::from(array::<4>(header, 12)?)),
                    destination: IpAddr::from(Ipv4Addr::from(array::<4>(header, 16)?)),
                    protocol: header[9],
                    transport: header.len(),
                })
            }
            6 => {
                let header = packet.get(..IPV6_HEADER)?;
                Some(Self {
                    source: IpAddr::from(Ipv6Addr::from(array::<16>(header, 8)?)),
                    destination: IpAddr::from(Ipv6Addr::from(array::<16>(header, 24)?)),
                    protocol: header[6],
                    transport: IPV6_HEADER,
                })
            }
            _ => None,
        }
    }
}

/// A TCP segment in an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// [`flags`].
    pub flags: u8,
    /// The bytes it carries.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads the segment; `None` if `packet` is no TCP over IP, or too short.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let header = Header::parse(packet)?;
        if header.protocol != TCP {
            return None;
        }
        let tcp = packet.get(header.transport..)?;
        let data_offset = usize::from(tcp.get(12)? >> 4) * 4;
        let port = |at| Some(u16::from_be_bytes(array::<2>(tcp, at)?));
        Some(Self {
            source: SocketAddr::new(header.source, port(0)?),
            destination: SocketAddr::new(header.destination, port(2)?),
            sequence: u32::from_be_bytes(array::<4>(tcp, 4)?),
            acknowledgment: u32::from_be_bytes(array::<4>(tcp, 8)?),
            flags: *tcp.get(13)?,
            payload: tcp.get(data_offset.max(TCP_HEADER)..)?,
        })
    }

    /// Whether all of `wanted` are set.
    pub fn has(&self, wanted: u8) -> bool {
        self.flags & wanted == wanted
    }
}

/// Whether `packet` is a SYN without ACK: the first segment of a connection.
pub fn is_syn(packet: &[u8]) -> bool {
    Segment::parse(packet).is_some_and(|segment| segment.flags & (flags::SYN | flags::ACK) == flags::SYN)
}

/// Whether `packet` is a SYN-ACK.
pub fn is_syn_ack(packet: &[u8]) -> bool {
    Segment::parse(packet).is_some_and(|segment| segment.has(flags::SYN | flags::ACK))
}

/// Whether `packet` carries TCP payload.
pub fn has_payload(packet: &[u8]) -> bool {
    Segment::parse(packet).is_some_and(|segment| !segment.payload.is_empty())
}

/// The reset with which a host without a listener would answer the segment in `packet`.
pub fn reset_for(packet: &[u8]) -> Option<Vec<u8>> {
    let segment = Segment::parse(packet)?;
    let length = segment.payload.len() as u32
        + u32::from(segment.has(flags::SYN))
        + u32::from(segment.has(flags::FIN));
    // RFC 9293, 3.5.2: take the sequence number from the ACK if there is one, else acknowledge.
    let (sequence, acknowledgment, bits) = if segment.has(flags::ACK) {
        (segment.acknowledgment, 0, flags::RST)
    } else {
        (0, segment.sequence.wrapping_add(length), flags::RST | flags::ACK)
    };
    let mut tcp = Vec::with_capacity(TCP_HEADER);
    tcp.extend(segment.destination.port().to_be_bytes());
    tcp.extend(segment.source.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledgment.to_be_bytes());
    tcp.extend([5 << 4, bits]);
    tcp.extend([0; 6]);
    let (from, to) = (segment.destination.ip(), segment.source.ip());
    let sum = checksum(&[&pseudo_header(from, to, TCP, tcp.len()), &tcp]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    ip_packet(from, to, TCP, &tcp)
}

/// The "destination unreachable" with which a router would answer `packet`.
///
/// `code` counts as in ICMP for IPv4 (0 network, 1 host, 3 port), and for IPv6 as in its ICMP
/// (0 no route, 3 address, 4 port).
pub fn unreachable_for(packet: &[u8], code: u8) -> Option<Vec<u8>> {
    let header = Header::parse(packet)?;
    let (from, to) = (header.destination, header.source);
    let (protocol, kind) = if from.is_ipv4() { (ICMP, 3) } else { (ICMPV6, 1) };
    let quoted = &packet[..packet.len().min(header.transport + 64)];
    let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
    icmp.extend(quoted);
    let sum = if from.is_ipv4() {
        checksum(&[&icmp])
    } else {
        checksum(&[&pseudo_header(from, to, protocol, icmp.len()), &icmp])
    };
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ip_packet(from, to, protocol, &icmp)
}

/// Flips one bit, chosen by `random`, of the TCP payload, or without one of the transport segment.
///
/// The checksum stays as it was, so the receiver notices. `false` if there is nothing to flip.
pub(crate) fn flip_bit(packet: &mut [u8], random: u64) -> bool {
    let payload = Segment::parse(packet).map_or(0, |segment| segment.payload.len());
    let start = match Header::parse(packet) {
        Some(_) if payload > 0 => packet.len() - payload,
        Some(header) => header.transport,
        None => return false,
    };
    let bits = (packet.len().saturating_sub(start) * 8) as u64;
    if bits == 0 {
        return false;
    }
    let bit = (random % bits) as usize;
    packet[start + bit / 8] ^= 1 << (bit % 8);
    true
}

/// Sets the congestion mark (CE, RFC 3168) of a packet that says its transport is capable of ECN; `false` if it does
/// not, or bears the mark already.
pub(crate) fn mark_congestion(packet: &mut [u8]) -> bool {
    const CE: u8 = 0b11;
    let Some(header) = Header::parse(packet) else { return false };
    let v4 = header.source.is_ipv4();
    // IPv4: the low bits of the second byte; IPv6: in the middle of it.
    let shift = if v4 { 0 } else { 4 };
    let ecn = packet[1] >> shift & CE;
    if ecn == 0 || ecn == CE {
        return false;
    }
    packet[1] |= CE << shift;
    if v4 {
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..header.transport]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// An IP packet around `payload`; `None` if the addresses are of different families.
fn ip_packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(IPV6_HEADER + payload.len());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = u16::try_from(IPV4_HEADER + payload.len()).ok()?;
            packet.extend([0x45, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(u16::try_from(payload.len()).ok()?.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => return None,
    }
    packet.extend(payload);
    Some(packet)
}

/// The part of the IP header that a transport checksum covers.
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    // The same sum as IPv4's shorter form: zeros do not change it.
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// The Internet checksum (RFC 1071) over the parts; all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn syn(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        tcp.extend([0, 0, 0, 7, 0, 0, 0, 0, 5 << 4, flags::SYN, 0, 0, 0, 0, 0, 0]);
        ip_packet(from.ip(), to.ip(), TCP, &tcp).unwrap()
    }

    #[test]
    fn a_syn_is_answered_with_a_reset_that_acknowledges_it() {
        for (from, to) in [("198.18.0.1:1000", "198.18.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let packet = syn(from, to);
            assert!(is_syn(&packet) && !is_syn_ack(&packet) && !has_payload(&packet));
            let answer = reset_for(&packet).unwrap();
            let reset = Segment::parse(&answer).unwrap();
            assert_eq!((reset.source, reset.destination), (to.parse().unwrap(), from.parse().unwrap()));
            assert_eq!((reset.flags, reset.acknowledgment), (flags::RST | flags::ACK, 8));
            let header = Header::parse(&answer).unwrap();
            let tcp = &answer[header.transport..];
            let pseudo = pseudo_header(header.source, header.destination, TCP, tcp.len());
            assert_eq!(checksum(&[&pseudo, tcp]), 0, "a right checksum sums up to zero");
        }
    }

    #[test]
    fn an_unreachable_quotes_the_packet() {
        for (from, to) in [("198.18.0.1:1000", "198.18.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let packet = syn(from, to);
            let answer = unreachable_for(&packet, 1).unwrap();
            let header = Header::parse(&answer).unwrap();
            assert_eq!(header.destination, from.parse::<SocketAddr>().unwrap().ip());
            assert_eq!(&answer[header.transport + 8..], &packet[..]);
        }
    }

    #[test]
    fn a_congestion_mark_is_set_where_the_transport_is_capable_of_it() {
        for (from, to, shift) in [("198.18.0.1:1000", "198.18.0.2:80", 0), ("[fd00::1]:1", "[fd00::2]:2", 4)]
        {
            for (ecn, marked) in [(0, false), (1, true), (2, true), (3, false)] {
                let mut packet = syn(from, to);
                packet[1] |= ecn << shift;
                let before = packet.clone();
                assert_eq!(mark_congestion(&mut packet), marked, "{ecn}");
                assert_eq!(packet[1] >> shift & 3, if marked { 3 } else { ecn });
                assert_eq!(packet == before, !marked);
                if marked && shift == 0 {
                    assert_eq!(checksum(&[&packet[..IPV4_HEADER]]), 0, "a right checksum sums up to zero");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_parsers_panic(mut packet in prop::collection::vec(any::<u8>(), 0..120), random: u64) {
            if let Some(first) = packet.first_mut() {
                *first = (*first & 0x0f) | if random % 2 == 0 { 0x40 } else { 0x60 };
            }
            let _ = (Segment::parse(&packet), reset_for(&packet), unreachable_for(&packet, 1));
            let _ = mark_congestion(&mut packet.clone());
            let before = packet.clone();
            let flipped = flip_bit(&mut packet, random);
            let distance: u32 = before.iter().zip(&packet).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert_eq!(distance, u32::from(flipped));
        }
    }
}
