//! The kernel's own counters of one network namespace, read from the text of `/proc/net/snmp` and
//! `/proc/net/netstat`.
//!
//! Both have a line of names and a line of numbers for each group: `Tcp: ActiveOpens …` and then `Tcp: 17 …`. Which
//! names there are depends on the kernel: a counter that it does not have is `None`, never 0.

use std::collections::BTreeMap;

/// Counters by group (`Tcp`, `TcpExt`) and name (`ActiveOpens`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, BTreeMap<String, i64>>);

impl Counters {
    /// Reads the text of either file, or of both together. What is not of its format is passed over.
    pub fn parse(text: &str) -> Self {
        let mut counters = Self::default();
        let mut lines = text.lines().filter_map(|line| line.split_once(':')).peekable();
        while let Some((group, names)) = lines.next() {
            // Without its numbers a line of names says nothing.
            let Some((_, numbers)) = lines.next_if(|(next, _)| *next == group) else { continue };
            let named = names.split_whitespace().zip(numbers.split_whitespace());
            let read = named.filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)));
            counters.0.entry(group.to_owned()).or_default().extend(read);
        }
        counters
    }

    /// One counter; `None` where the kernel does not have it.
    pub fn get(&self, group: &str, name: &str) -> Option<i64> {
        self.0.get(group)?.get(name).copied()
    }

    /// What was added since an earlier reading, of the counters that both have.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let grown = self.0.iter().map(|(group, counters)| {
            let grown = counters.iter().filter_map(|(name, now)| {
                let before = earlier.get(group, name)?;
                Some((name.clone(), now.wrapping_sub(before)))
            });
            (group.clone(), grown.collect())
        });
        Self(grown.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    const SNMP: &str = "Ip: Forwarding DefaultTTL\nIp: 2 64\n\
        Tcp: RtoAlgorithm MaxConn ActiveOpens RetransSegs\nTcp: 1 -1 17 4\n\
        IcmpMsg: InType3\nIcmpMsg: 9\n";
    const NETSTAT: &str = "TcpExt: SyncookiesSent TCPTimeouts\nTcpExt: 0 5\nIpExt: InOctets\nIpExt: 1234\n";

    #[test]
    fn reads_both_files() {
        let counters = Counters::parse(&format!("{SNMP}{NETSTAT}"));
        assert_eq!(counters.get("Tcp", "ActiveOpens"), Some(17));
        assert_eq!(counters.get("Tcp", "MaxConn"), Some(-1));
        assert_eq!(counters.get("TcpExt", "TCPTimeouts"), Some(5));
        assert_eq!(counters.get("TcpExt", "ActiveOpens"), None);
        assert_eq!(counters.get("Udp", "InDatagrams"), None);
    }

    #[test]
    fn what_has_no_numbers_is_not_there() {
        for text in ["", "Tcp: ActiveOpens", "Tcp: ActiveOpens\nIp: 3\nIp: 4\n", "Tcp: ActiveOpens\nTcp: x\n"]
        {
            assert_eq!(Counters::parse(text).get("Tcp", "ActiveOpens"), None, "{text:?}");
        }
        // What follows is read all the same.
        let counters = Counters::parse("Tcp: ActiveOpens\nIp: Forwarding\nIp: 2\n");
        assert_eq!(counters.get("Ip", "Forwarding"), Some(2));
    }

    #[test]
    fn a_counter_that_one_reading_lacks_has_not_grown_by_anything() {
        let earlier = Counters::parse("Tcp: ActiveOpens\nTcp: 17\n");
        let later = Counters::parse("Tcp: ActiveOpens RetransSegs\nTcp: 20 4\n");
        let grown = later.since(&earlier);
        assert_eq!((grown.get("Tcp", "ActiveOpens"), grown.get("Tcp", "RetransSegs")), (Some(3), None));
    }

    fn any_counters() -> impl Strategy<Value = BTreeMap<String, BTreeMap<String, i64>>> {
        let group = prop::collection::btree_map("[A-Z][A-Za-z0-9]{0,8}", any::<i64>(), 0..6);
        prop::collection::btree_map("[A-Z][A-Za-z]{0,6}", group, 0..5)
    }

    fn written(counters: &BTreeMap<String, BTreeMap<String, i64>>) -> String {
        let mut text = String::new();
        for (group, counters) in counters {
            let names: Vec<_> = counters.keys().cloned().collect();
            let numbers: Vec<_> = counters.values().map(ToString::to_string).collect();
            writeln!(text, "{group}: {}\n{group}: {}", names.join(" "), numbers.join(" ")).unwrap();
        }
        text
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(counters in any_counters()) {
            prop_assert_eq!(Counters::parse(&written(&counters)), Counters(counters));
        }

        #[test]
        fn growth_leads_from_one_reading_to_the_other(earlier in any_counters(), grown in any::<i64>()) {
            let mut later = earlier.clone();
            later.values_mut().flat_map(BTreeMap::values_mut).for_each(|n| *n = n.wrapping_add(grown));
            let since = Counters(later).since(&Counters(earlier));
            prop_assert!(since.0.values().flat_map(BTreeMap::values).all(|n| *n == grown));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[A-Za-z0-9: \n-]*", end in 0..SNMP.len()) {
            let _ = Counters::parse(&text);
            let _ = Counters::parse(&SNMP[..end]);
        }
    }
}
