//! What a DNS message says: the name that was asked for, and its addresses.

use std::{fmt::Write as _, net::IpAddr};

use simple_dns::{CLASS, Packet, PacketFlag, RCODE, rdata::RData};

/// The longest chain of aliases that is followed.
const LONGEST_CHAIN: usize = 16;
/// The most addresses that are taken of one answer.
const MOST_ADDRESSES: usize = 64;

/// An answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The name that was asked for, in lower case and without the final dot; what is not printable in it is `\DDD`.
    pub(super) name: String,
    /// Its addresses, with the seconds that each may be used for.
    pub(super) addresses: Vec<(IpAddr, u32)>,
}

/// Reads a message. `None`: it is no good answer to a question for addresses, or was cut short, so that whoever asked does
/// not use it either.
pub(super) fn read(message: &[u8]) -> Option<Answer> {
    let packet = Packet::parse(message).ok()?;
    let is_whole = packet.has_flags(PacketFlag::RESPONSE) && !packet.has_flags(PacketFlag::TRUNCATION);
    let [question] = packet.questions.as_slice() else { return None };
    if !is_whole || packet.rcode() != RCODE::NoError {
        return None;
    }
    let asked = text(&question.qname);
    if asked.is_empty() {
        return None;
    }
    // Made once each: an answer may have hundreds of records.
    let records: Vec<_> = packet.answers.iter().map(|record| (text(&record.name), record)).collect();
    // Whatever else a server puts into its answer is nobody's name.
    let mut chain = vec![asked.clone()];
    let mut least = u32::MAX;
    for _ in 0..LONGEST_CHAIN {
        let next = records.iter().find_map(|(name, record)| match &record.rdata {
            RData::CNAME(alias) if chain.last() == Some(name) => Some((text(&alias.0), record.ttl)),
            _ => None,
        });
        match next {
            Some((name, ttl)) if !chain.contains(&name) => {
                least = least.min(ttl);
                chain.push(name);
            }
            _ => break,
        }
    }
    let owner = chain.last()?;
    let addresses = records.iter().filter(|(name, record)| record.class == CLASS::IN && name == owner);
    let addresses = addresses.filter_map(|(_, record)| {
        let address: IpAddr = match &record.rdata {
            RData::A(a) => std::net::Ipv4Addr::from(a.address).into(),
            RData::AAAA(aaaa) => std::net::Ipv6Addr::from(aaaa.address).into(),
            _ => return None,
        };
        Some((address.to_canonical(), record.ttl.min(least)))
    });
    let addresses: Vec<_> = addresses.take(MOST_ADDRESSES).collect();
    (!addresses.is_empty()).then_some(Answer { name: asked, addresses })
}

/// As people write it.
fn text(name: &simple_dns::Name<'_>) -> String {
    let mut text = String::new();
    for label in name.get_labels() {
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label.as_ref() {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                b'!'..=b'~' => text.push(char::from(byte.to_ascii_lowercase())),
                // Writing into a string cannot fail.
                _ => drop(write!(text, "\\{byte:03}")),
            }
        }
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use simple_dns::{
        Name, QCLASS, QTYPE, Question, ResourceRecord, TYPE,
        rdata::{A, AAAA, CNAME},
    };

    use super::*;

    /// An answer as a server sends it: aliases, and the addresses of the last of them.
    pub(in super::super) fn answer(names: &[&str], addresses: &[&str], ttl: u32) -> Vec<u8> {
        let mut packet = Packet::new_reply(7);
        let name = |at: usize| Name::new(names[at]).unwrap();
        packet.questions.push(Question::new(name(0), QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
        for at in 1..names.len() {
            let alias = RData::CNAME(CNAME(name(at)));
            packet.answers.push(ResourceRecord::new(name(at - 1), CLASS::IN, ttl, alias));
        }
        for address in addresses {
            let data = match address.parse().unwrap() {
                IpAddr::V4(v4) => RData::A(A { address: v4.into() }),
                IpAddr::V6(v6) => RData::AAAA(AAAA { address: v6.into() }),
            };
            packet.answers.push(ResourceRecord::new(name(names.len() - 1), CLASS::IN, ttl, data));
        }
        packet.build_bytes_vec_compressed().unwrap()
    }

    fn told(message: &[u8]) -> Option<(String, Vec<String>)> {
        let Answer { name, addresses } = read(message)?;
        Some((name, addresses.iter().map(|(address, ttl)| format!("{address} {ttl}")).collect()))
    }

    #[test]
    fn the_name_that_was_asked_for_has_the_addresses() {
        let told_of = |names, addresses| told(&answer(names, addresses, 30));
        let is =
            |name: &str, of: &[&str]| Some((name.to_owned(), of.iter().map(|a| format!("{a} 30")).collect()));
        assert_eq!(
            told_of(&["DB.example."], &["192.0.2.1", "192.0.2.2"]),
            is("db.example", &["192.0.2.1", "192.0.2.2"])
        );
        assert_eq!(told_of(&["a.b", "c.d", "e.f"], &["2001:db8::1"]), is("a.b", &["2001:db8::1"]));
        assert_eq!(told_of(&["a.b"], &["::ffff:192.0.2.9"]), is("a.b", &["192.0.2.9"]));
        assert_eq!(told_of(&["a.b", "c.d"], &[]), None);
        assert_eq!(told_of(&["a.b", "c.d", "a.b"], &["192.0.2.1"]), None, "aliases in a circle");
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let good = answer(&["a.b"], &["192.0.2.1"], 30);
        for (at, bits, what) in [
            (2, 0x80, "a query"),
            (2, 0x02, "truncated"),
            (3, 0x03, "an error"),
            (5, 0x03, "two questions"),
            (7, 0x03, "more answers than there are"),
        ] {
            let mut bad = good.clone();
            bad[at] ^= bits;
            assert_eq!(told(&bad), None, "{what}");
        }
        // An address of another name than that which was asked for.
        let mut other = Packet::new_reply(7);
        let name = |name| Name::new(name).unwrap();
        other.questions.push(Question::new(
            name("a.b"),
            QTYPE::TYPE(TYPE::A),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        let data = RData::A(A { address: 1 });
        other.answers.push(ResourceRecord::new(name("c.d"), CLASS::IN, 30, data));
        assert_eq!(told(&other.build_bytes_vec_compressed().unwrap()), None);
    }

    #[test]
    fn pointers_in_a_circle_end() {
        // The question's name points to itself; the answer's, to a name that points back.
        let mut message = answer(&["a.b"], &["192.0.2.1"], 30);
        message.truncate(12);
        message[7] = 0;
        message.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(told(&message), None);
        let mut message = answer(&["a.b"], &["192.0.2.1"], 30);
        let at = message.len() - 16;
        message[at] = 0xc0;
        message[at + 1] = u8::try_from(at).unwrap();
        assert_eq!(told(&message), None);
    }

    #[test]
    fn odd_names_are_escaped() {
        assert_eq!(
            told(&answer(&[r#"a\.b\010\255."x"#], &["192.0.2.1"], 1)).unwrap().0,
            r#"a\.b\010\255."x"#
        );
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn no_change_is_too_odd(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6), cut in any::<usize>()) {
            let mut message = answer(&["shop.example.com", "web.example.net"], &["192.0.2.1", "2001:db8::1"], 60);
            for (at, byte) in changes {
                let at = at % message.len();
                message[at] = byte;
            }
            message.truncate(cut % (2 * message.len()) + 1);
            let _ = read(&message);
        }
    }
}
