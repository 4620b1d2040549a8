//! Which connections a person asked for: `--container 'web*,!web-test' --port 80,443 --peer 10.0.0.0/8`.
//!
//! Each option is a [`List`]: items parted by commas, a leading `!` excludes. A list matches when any of
//! its includes matches, or it has none, and no exclude matches. What is not known of a connection is
//! matched by no item: it fails a list that includes and passes one that only excludes.
//!
//! The kernel side filters peers by longest prefix: [`List::prefixes`] says the same in its terms.
use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

/// All that was asked for: a connection must match every list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A container's name, or the beginning of its id.
    pub container: List<Pattern>,
    /// A pod's name.
    pub pod: List<Pattern>,
    /// A namespace's name.
    pub namespace: List<Pattern>,
    /// The owning cgroup.
    pub cgroup: List<CgroupRef>,
    /// The owning process.
    pub pid: List<u32>,
    /// The port of either end.
    pub port: List<u16>,
    /// The address of the far end.
    pub peer: List<IpNet>,
}

/// What was written for each option; one that was given twice has two texts, which make one list.
#[derive(Clone, Debug, Default)]
pub struct FilterText {
    /// `--container`
    pub container: Vec<String>,
    /// `--pod`
    pub pod: Vec<String>,
    /// `--namespace`
    pub namespace: Vec<String>,
    /// `--cgroup`
    pub cgroup: Vec<String>,
    /// `--pid`
    pub pid: Vec<String>,
    /// `--port`
    pub port: Vec<String>,
    /// `--peer`
    pub peer: Vec<String>,
}

/// What a [`Filter`] looks at. `None` is "not known".
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// The container's name.
    pub container_name: Option<&'a str>,
    /// The container's whole id, as its runtime gives it.
    pub container_id: Option<&'a str>,
    /// The pod's name.
    pub pod: Option<&'a str>,
    /// The namespace's name.
    pub namespace: Option<&'a str>,
    /// The cgroup's id: its directory's inode number.
    pub cgroup_id: Option<u64>,
    /// The cgroup's path below the cgroup2 root, beginning with `/`.
    pub cgroup_path: Option<&'a str>,
    /// The process id.
    pub pid: Option<u32>,
    /// This end's port.
    pub local_port: Option<u16>,
    /// The far end's port.
    pub peer_port: Option<u16>,
    /// The far end's address. IPv4 mapped into IPv6 is IPv4.
    pub peer_addr: Option<IpAddr>,
}

/// What is wrong with what was written for an option.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("--{option}: {error}")]
pub struct FilterError {
    /// The option's name, without the dashes.
    pub option: &'static str,
    /// What is wrong with its list.
    pub error: ListError,
}

/// What is wrong with a list.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ListError {
    /// Nothing stands between two commas, after a `!`, or at all.
    #[error("an item of `{list}` is empty; write {expected}")]
    Empty {
        /// The whole list as given.
        list: String,
        /// What is right, with an example.
        expected: &'static str,
    },
    /// An item is not what this list is made of.
    #[error("`{item}` {reason}; write {expected}")]
    Item {
        /// The item as given.
        item: String,
        /// Why it is wrong.
        reason: String,
        /// What is right, with an example.
        expected: &'static str,
    },
}

impl Filter {
    /// Reads what was written for each option.
    pub fn parse(text: &FilterText) -> Result<Self, FilterError> {
        Ok(Self {
            container: parse_option("container", &text.container)?,
            pod: parse_option("pod", &text.pod)?,
            namespace: parse_option("namespace", &text.namespace)?,
            cgroup: parse_option("cgroup", &text.cgroup)?,
            pid: parse_option("pid", &text.pid)?,
            port: parse_option("port", &text.port)?,
            peer: parse_option("peer", &text.peer)?,
        })
    }

    /// Whether nothing was asked for, so that everything matches.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a connection is one of those asked for.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let peer = subject.peer_addr.map(|address| address.to_canonical());
        let ports = [subject.local_port, subject.peer_port];
        let named = |list: &List<Pattern>, name: Option<&str>| {
            list.matches(|pattern| name.is_some_and(|name| pattern.matches(name)))
        };
        self.container.matches(|pattern| pattern.is_of(subject.container_name, subject.container_id))
            && named(&self.pod, subject.pod)
            && named(&self.namespace, subject.namespace)
            && self.cgroup.matches(|cgroup| cgroup.holds(subject.cgroup_id, subject.cgroup_path))
            && self.pid.matches(|pid| subject.pid == Some(*pid))
            && self.port.matches(|port| ports.contains(&Some(*port)))
            && self.peer.matches(|net| peer.is_some_and(|address| net.contains(&address)))
    }

    /// How the filter reads, on one line: `container web* or api, but not web-test; port 80`.
    pub fn describe(&self) -> String {
        let parts = [
            self.container.describe("container"),
            self.pod.describe("pod"),
            self.namespace.describe("namespace"),
            self.cgroup.describe("cgroup"),
            self.pid.describe("pid"),
            self.port.describe("port"),
            self.peer.describe("peer"),
        ];
        let said: Vec<String> = parts.into_iter().flatten().collect();
        if said.is_empty() { "everything".to_owned() } else { said.join("; ") }
    }
}

fn parse_option<T: Item>(option: &'static str, texts: &[String]) -> Result<List<T>, FilterError> {
    let mut list = List::default();
    for text in texts {
        list.add(text).map_err(|error| FilterError { option, error })?;
    }
    Ok(list)
}

/// What one option asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T> {
    includes: Vec<T>,
    excludes: Vec<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { includes: Vec::new(), excludes: Vec::new() }
    }
}

impl<T> List<T> {
    /// Items one of which must match, unless there are none.
    pub fn includes(&self) -> &[T] {
        &self.includes
    }

    /// Items none of which may match.
    pub fn excludes(&self) -> &[T] {
        &self.excludes
    }

    /// Whether nothing was asked for, so that everything matches.
    pub fn is_empty(&self) -> bool {
        self.includes.is_empty() && self.excludes.is_empty()
    }

    /// Whether the list lets pass what `hit` tells each item to match.
    pub fn matches(&self, hit: impl Fn(&T) -> bool) -> bool {
        (self.includes.is_empty() || self.includes.iter().any(&hit)) && !self.excludes.iter().any(&hit)
    }
}

impl<T: Item> List<T> {
    fn add(&mut self, text: &str) -> Result<(), ListError> {
        for item in text.split(',') {
            let (side, item) = match item.trim().strip_prefix('!') {
                Some(rest) => (&mut self.excludes, rest.trim()),
                None => (&mut self.includes, item.trim()),
            };
            if item.is_empty() {
                return Err(ListError::Empty { list: text.to_owned(), expected: T::EXPECTED });
            }
            let read = T::read(item).map_err(|reason| ListError::Item {
                item: item.to_owned(),
                reason,
                expected: T::EXPECTED,
            })?;
            side.push(read);
        }
        Ok(())
    }

    fn describe(&self, label: &str) -> Option<String> {
        let either = |items: &[T]| {
            let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
            texts.join(" or ")
        };
        match (self.includes.is_empty(), self.excludes.is_empty()) {
            (true, true) => None,
            (false, true) => Some(format!("{label} {}", either(&self.includes))),
            (true, false) => Some(format!("{label} not {}", either(&self.excludes))),
            (false, false) => {
                Some(format!("{label} {}, but not {}", either(&self.includes), either(&self.excludes)))
            }
        }
    }
}

/// So that an option parser can read a list by itself.
impl<T: Item> FromStr for List<T> {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        let mut list = Self::default();
        list.add(text)?;
        Ok(list)
    }
}

/// What a [`List`] can be made of.
pub trait Item: fmt::Display + Sized {
    /// What is right, with an example: the end of an error message.
    const EXPECTED: &'static str;

    /// Reads an item, or says why it is wrong: the rest of a sentence that begins with the item.
    fn read(text: &str) -> Result<Self, String>;
}

impl Item for u16 {
    const EXPECTED: &'static str = "ports from 1 to 65535, as in `80,443` or `!22`";

    fn read(text: &str) -> Result<Self, String> {
        read_number(text, u64::from(Self::MAX), "port").map(|port| port as Self)
    }
}

impl Item for u32 {
    const EXPECTED: &'static str = "process ids, as in `1234` or `!1`";

    fn read(text: &str) -> Result<Self, String> {
        // Process ids are positive `pid_t`s.
        read_number(text, i32::MAX as u64, "process id").map(|pid| pid as Self)
    }
}

fn read_number(text: &str, max: u64, what: &str) -> Result<u64, String> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("is not a number".to_owned());
    }
    match text.parse() {
        Ok(0) => Err(format!("is no {what}: they begin at 1")),
        Ok(number) if number <= max => Ok(number),
        _ => Err(format!("is too large for a {what}: they end at {max}")),
    }
}

/// A name in which `*` stands for any characters, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// So short a beginning of an id is taken for a name only.
    const MIN_ID: usize = 6;

    /// Whether the whole `name` is like this.
    pub fn matches(&self, name: &str) -> bool {
        let mut pieces = self.0.split('*');
        let Some(mut rest) = name.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
        let Some(end) = pieces.next_back() else { return rest.is_empty() };
        // The leftmost place for each piece leaves the most room for those that follow.
        for piece in pieces {
            let Some((_, after)) = rest.split_once(piece) else { return false };
            rest = after;
        }
        rest.ends_with(end)
    }

    /// Whether this is a container of that name or id, as far as they are known.
    pub fn is_of(&self, name: Option<&str>, id: Option<&str>) -> bool {
        name.is_some_and(|name| self.matches(name)) || id.is_some_and(|id| self.begins_id(id))
    }

    /// Whether this is the `id`, or at least six hexadecimal digits of its beginning.
    pub fn begins_id(&self, id: &str) -> bool {
        let long = self.0.len() >= Self::MIN_ID && self.0.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.0 == id
            || long && id.get(..self.0.len()).is_some_and(|start| start.eq_ignore_ascii_case(&self.0))
    }
}

impl Item for Pattern {
    const EXPECTED: &'static str = "names, in which `*` stands for anything, as in `web*,api` or `!db`";

    fn read(text: &str) -> Result<Self, String> {
        if text.starts_with('!') {
            return Err("begins with a second `!`".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A cgroup as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupRef {
    /// The cgroup with this id: its directory's inode number.
    Id(u64),
    /// The cgroup at this path below the cgroup2 root and all below it. Begins with `/`, ends without.
    Path(String),
}

impl CgroupRef {
    /// Where cgroup2 is usually mounted, with and without version 1 beside it: a path that a person has
    /// copied from there means the same cgroup.
    const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

    /// Whether the cgroup with this id and path is the one named, or lies below the path named.
    pub fn holds(&self, id: Option<u64>, path: Option<&str>) -> bool {
        match self {
            Self::Id(named) => id == Some(*named),
            Self::Path(named) => path.is_some_and(|path| below(path, named).is_some()),
        }
    }
}

/// What follows `parent` in `path`, if that is the same place or lies below it.
fn below<'a>(path: &'a str, parent: &str) -> Option<&'a str> {
    path.strip_prefix(parent).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Item for CgroupRef {
    const EXPECTED: &'static str = "paths below the cgroup2 root or cgroup ids, as in `/system.slice,!/system.slice/cron.service` or `4711`";

    fn read(text: &str) -> Result<Self, String> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Id).map_err(|_| "is too large for a cgroup id".to_owned());
        }
        if !text.starts_with('/') {
            return Err("is neither a number nor a path that begins with `/`".to_owned());
        }
        let path = Self::MOUNTS.iter().find_map(|mount| below(text, mount)).unwrap_or(text);
        Ok(Self::Path(path.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for CgroupRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Path(path) if path.is_empty() => f.write_str("/"),
            Self::Path(path) => f.write_str(path),
        }
    }
}

impl Item for IpNet {
    const EXPECTED: &'static str =
        "addresses or networks, as in `10.0.0.0/8,!10.1.0.0/16`, `192.0.2.7` or `fd00::/8`";

    fn read(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("is not an address: `{address}`"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => bits,
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| *length <= bits)
                .ok_or_else(|| format!("has no prefix length from 0 to {bits} after the `/`"))?,
        };
        let net = Self::new(address, length).map_err(|error| error.to_string())?;
        Ok(unmapped(net.trunc()))
    }
}

/// IPv4 that was written as IPv6 (`::ffff:10.0.0.0/104`) is IPv4.
fn unmapped(net: IpNet) -> IpNet {
    let (address, length) = (net.network().to_canonical(), net.prefix_len());
    match (address, length.checked_sub(MAPPED_BITS)) {
        (IpAddr::V4(address), Some(length)) => Ipv4Net::new(address, length).map_or(net, IpNet::V4),
        _ => net,
    }
}

/// The length of `::ffff:0:0/96`, where IPv4 addresses lie among IPv6 ones.
const MAPPED_BITS: u8 = 96;

/// A peer list for a lookup by longest prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// The answer for an address that no prefix covers.
    pub default: bool,
    /// The prefixes, no two of them the same.
    pub entries: Vec<Prefix>,
}

/// The answer for the addresses of which this is the longest prefix among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// How many leading bits of `address` count: 0 to 128.
    pub length: u8,
    /// An IPv6 address in network order; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// Whether the connection is one of those asked for.
    pub include: bool,
}

impl List<IpNet> {
    /// The list as prefixes, of which the longest that covers an address decides.
    ///
    /// Prefixes that cover one address cover each other. Hence the longest one lies within all others, and
    /// what the list says of the longest as a whole it says of the address.
    pub fn prefixes(&self) -> Prefixes {
        let default = self.includes.is_empty();
        let nets = || self.includes.iter().chain(&self.excludes);
        let mut entries: Vec<Prefix> =
            nets().map(|net| prefix(net, self.matches(|other| other.contains(net)))).collect();
        // To the list IPv4 is not a part of `::/0`, to the trie it is.
        let mapped = prefix(&IpNet::V4(Ipv4Net::default()), default);
        let known =
            entries.iter().any(|entry| (entry.length, entry.address) == (mapped.length, mapped.address));
        if !known && nets().any(|net| matches!(net, IpNet::V6(net) if covers_mapped(net))) {
            entries.push(mapped);
        }
        entries.sort_unstable();
        entries.dedup();
        Prefixes { default, entries }
    }
}

fn prefix(net: &IpNet, include: bool) -> Prefix {
    match net {
        IpNet::V4(net) => Prefix {
            length: MAPPED_BITS + net.prefix_len(),
            address: net.network().to_ipv6_mapped().octets(),
            include,
        },
        IpNet::V6(net) => Prefix { length: net.prefix_len(), address: net.network().octets(), include },
    }
}

fn covers_mapped(net: &Ipv6Net) -> bool {
    net.contains(&Ipv4Net::default().network().to_ipv6_mapped())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn list<T: Item>(text: &str) -> List<T> {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refusal<T: Item + fmt::Debug>(text: &str) -> String {
        text.parse::<List<T>>().expect_err(text).to_string()
    }

    fn peer_passes(filter: &str, address: &str) -> bool {
        let subject = Subject { peer_addr: Some(address.parse().expect(address)), ..Subject::default() };
        Filter { peer: list(filter), ..Filter::default() }.matches(&subject)
    }

    fn container_passes(filter: &str, name: Option<&str>, id: Option<&str>) -> bool {
        let subject = Subject { container_name: name, container_id: id, ..Subject::default() };
        Filter { container: list(filter), ..Filter::default() }.matches(&subject)
    }

    fn cgroup_passes(filter: &str, path: &str) -> bool {
        let subject = Subject { cgroup_id: Some(4711), cgroup_path: Some(path), ..Subject::default() };
        Filter { cgroup: list(filter), ..Filter::default() }.matches(&subject)
    }

    #[test]
    fn ports_match_either_end() {
        let passes = |filter, local, peer| {
            let subject = Subject { local_port: Some(local), peer_port: Some(peer), ..Subject::default() };
            Filter { port: list(filter), ..Filter::default() }.matches(&subject)
        };
        assert!(passes("80,443", 80, 40000));
        assert!(passes("80,443", 40000, 443));
        assert!(!passes("80,443", 40000, 8080));
        assert!(!passes("!22", 22, 40000));
        assert!(!passes("!22", 40000, 22));
        assert!(passes("!22", 40000, 80));
        assert!(!passes("80,!40000", 80, 40000));
    }

    #[test]
    fn peers_match_by_network() {
        assert!(peer_passes("10.0.0.0/8,!10.1.0.0/16", "10.2.0.1"));
        assert!(!peer_passes("10.0.0.0/8,!10.1.0.0/16", "10.1.0.1"));
        assert!(!peer_passes("10.0.0.0/8,!10.1.0.0/16", "192.0.2.1"));
        assert!(!peer_passes("!10.0.0.0/8,10.1.0.0/16", "10.1.0.1"), "an exclude wins in any order");
        assert!(peer_passes("10.0.0.0/8", "::ffff:10.2.0.1"), "mapped IPv4 is IPv4");
        assert!(peer_passes("::ffff:10.0.0.0/104", "10.2.0.1"));
        assert!(!peer_passes("::/0", "10.2.0.1"), "IPv4 is no IPv6");
        assert!(peer_passes("fd00::/8", "fd00::1"));
        assert!(peer_passes("192.0.2.7", "192.0.2.7"));
        assert!(!peer_passes("192.0.2.7", "192.0.2.8"));
        assert!(peer_passes("10.9.8.7/8", "10.2.0.1"), "host bits do not count");
    }

    #[test]
    fn containers_match_by_name_or_id() {
        let id = "4f8a1bc09e3d5f6a7b8c9d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c";
        assert!(container_passes("web,api", Some("web"), None));
        assert!(!container_passes("web", Some("web-1"), None));
        assert!(container_passes("web*", Some("web-1"), None));
        assert!(!container_passes("!db", Some("db"), None));
        assert!(container_passes("4f8a1b", Some("db"), Some(id)));
        assert!(container_passes("4F8A1BC09E3D", None, Some(id)));
        assert!(container_passes(id, None, Some(id)));
        assert!(!container_passes("4f8a1", None, Some(id)), "five digits are a name");
        assert!(!container_passes("4f8*", None, Some(id)), "a pattern is of names");
        assert!(container_passes("machine-1", None, Some("machine-1")), "not every id is hexadecimal");
    }

    #[test]
    fn what_is_not_known_matches_no_item() {
        for (include, exclude) in [("db", "!db"), ("*", "!*")] {
            assert!(!container_passes(include, None, None));
            assert!(container_passes(exclude, None, None));
        }
        let known = Filter { pid: list("!1"), port: list("!80"), peer: list("!::/0"), ..Filter::default() };
        assert!(known.matches(&Subject::default()));
    }

    #[test]
    fn cgroups_match_with_all_below_them() {
        assert!(cgroup_passes("/system.slice", "/system.slice"));
        assert!(cgroup_passes("/system.slice/", "/system.slice/nginx.service"));
        assert!(!cgroup_passes("/system.slice", "/system.slice2/x"));
        assert!(!cgroup_passes("/,!/system.slice", "/system.slice/nginx.service"));
        assert!(cgroup_passes("/", "/user.slice"));
        assert!(cgroup_passes("/sys/fs/cgroup/system.slice", "/system.slice/x"));
        assert!(cgroup_passes("/sys/fs/cgroup/unified/system.slice", "/system.slice/x"));
        assert!(cgroup_passes("/sys/fs/cgroup", "/system.slice/x"));
        assert!(cgroup_passes("4711", "/anything"));
        assert!(!cgroup_passes("4712", "/4712"));
    }

    #[test]
    fn every_list_must_match() {
        let subject = Subject {
            container_name: Some("web"),
            pod: Some("web-1"),
            namespace: Some("shop"),
            cgroup_path: Some("/kubepods/web"),
            pid: Some(12),
            local_port: Some(80),
            peer_addr: Some(Ipv4Addr::LOCALHOST.into()),
            ..Subject::default()
        };
        let right = FilterText {
            container: vec!["web".into()],
            pod: vec!["web*".into()],
            namespace: vec!["other".into(), "shop".into()],
            cgroup: vec!["/kubepods".into()],
            pid: vec!["12".into()],
            port: vec!["80".into()],
            peer: vec!["127.0.0.0/8".into()],
        };
        assert!(Filter::parse(&right).expect("right").matches(&subject));
        let break_one: [fn(&mut FilterText); 7] = [
            |text| text.container = vec!["db".into()],
            |text| text.pod = vec!["web".into()],
            |text| text.namespace = vec!["!shop".into()],
            |text| text.cgroup = vec!["/system.slice".into()],
            |text| text.pid = vec!["13".into()],
            |text| text.port = vec!["443".into()],
            |text| text.peer = vec!["::1".into()],
        ];
        for (index, change) in break_one.iter().enumerate() {
            let mut wrong = right.clone();
            change(&mut wrong);
            assert!(!Filter::parse(&wrong).expect("well written").matches(&subject), "list {index}");
        }
    }

    #[test]
    fn an_empty_filter_matches_everything() {
        let filter = Filter::parse(&FilterText::default()).expect("empty");
        assert!(filter.is_empty() && filter.matches(&Subject::default()));
        assert_eq!(filter.describe(), "everything");
        assert!(!Filter { pid: list("!1"), ..Filter::default() }.is_empty());
    }

    #[test]
    fn it_reads_on_one_line() {
        let filter = Filter {
            container: list("web*, api, ! web-test"),
            cgroup: list("/,!4711"),
            pid: list("!1,!2"),
            port: list("80"),
            peer: list("10.1.2.3/8,fd00::1"),
            ..Filter::default()
        };
        assert_eq!(
            filter.describe(),
            "container web* or api, but not web-test; cgroup /, but not 4711; pid not 1 or 2; port 80; \
             peer 10.0.0.0/8 or fd00::1/128"
        );
    }

    #[test]
    fn errors_say_what_why_and_what_is_right() {
        let text = FilterText { port: vec!["80".into(), "443,70000".into()], ..FilterText::default() };
        assert_eq!(
            Filter::parse(&text).expect_err("no such port").to_string(),
            "--port: `70000` is too large for a port: they end at 65535; \
             write ports from 1 to 65535, as in `80,443` or `!22`"
        );
        assert!(refusal::<u16>("0").starts_with("`0` is no port: they begin at 1; write ports"));
        assert!(refusal::<u16>("99999999999999999999").contains("too large"));
        for wrong in ["abc", "-1", "+80", "80-90", "!!80"] {
            assert!(refusal::<u16>(wrong).contains("is not a number"), "{wrong}");
        }
        for empty in ["", "80,", ",80", "80,,443", "!", "80,! "] {
            assert!(refusal::<u16>(empty).starts_with(&format!("an item of `{empty}` is empty")), "{empty}");
        }
        assert!(refusal::<u32>("4294967295").contains("they end at 2147483647"));
        let net = |text| refusal::<IpNet>(text);
        assert!(
            net("10.0.0.0/33").starts_with("`10.0.0.0/33` has no prefix length from 0 to 32 after the `/`;")
        );
        assert!(net("fd00::/129").contains("from 0 to 128"));
        assert!(net("10.0.0.0/").contains("has no prefix length"));
        assert!(net("10.0.0/8").starts_with("`10.0.0/8` is not an address: `10.0.0`; write addresses"));
        assert!(net("example.org").contains("is not an address"));
        assert!(refusal::<Pattern>("!!db").contains("second `!`"));
        assert!(refusal::<CgroupRef>("system.slice").contains("neither a number nor a path"));
        assert!(refusal::<CgroupRef>("99999999999999999999").contains("too large"));
    }

    #[test]
    fn an_include_inside_an_exclude_comes_out_as_an_exclude() {
        let prefixes = list::<IpNet>("10.1.0.0/16,!10.0.0.0/8").prefixes();
        assert!(!prefixes.default);
        let lengths: Vec<_> = prefixes.entries.iter().map(|entry| (entry.length, entry.include)).collect();
        assert_eq!(lengths, [(104, false), (112, false)]);
    }

    /// Few bits set, so that networks nest and addresses fall into them often.
    fn address() -> impl Strategy<Value = IpAddr> {
        let byte = || prop_oneof![Just(0_u8), Just(10), Just(255), Just(128)];
        prop_oneof![
            [byte(), byte(), byte(), byte()].prop_map(|octets| Ipv4Addr::from(octets).into()),
            [byte(), byte(), byte(), byte()].prop_map(|o| Ipv4Addr::from(o).to_ipv6_mapped().into()),
            [byte(), byte()].prop_map(|[high, low]| {
                let mut octets = [0; 16];
                (octets[0], octets[15]) = (high, low);
                Ipv6Addr::from(octets).into()
            }),
        ]
    }

    fn nets() -> impl Strategy<Value = Vec<(bool, IpAddr, u8)>> {
        let length = prop_oneof![0..=128_u8, Just(0), Just(8), Just(80), Just(96), Just(104)];
        prop::collection::vec((any::<bool>(), address(), length), 0..8)
    }

    fn spelled(nets: &[(bool, IpAddr, u8)]) -> List<IpNet> {
        let mut list = List::default();
        for (exclude, address, length) in nets {
            let length = if address.is_ipv4() { length % 33 } else { *length };
            let mark = if *exclude { "!" } else { "" };
            list.add(&format!("{mark}{address}/{length}")).expect("a network");
        }
        list
    }

    /// What an LPM trie answers.
    fn looked_up(prefixes: &Prefixes, address: IpAddr) -> bool {
        let mapped = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let covering = prefixes.entries.iter().filter(|entry| {
            let shared = (u128::from_be_bytes(entry.address) ^ mapped.to_bits()).leading_zeros();
            shared >= u32::from(entry.length)
        });
        covering.max_by_key(|entry| entry.length).map_or(prefixes.default, |entry| entry.include)
    }

    /// `*` by trying every length for it.
    fn globbed(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|skip| globbed(rest, &name[skip..])),
            [first, rest @ ..] => name.first() == Some(first) && globbed(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn longest_prefix_decides_as_the_list_does(nets in nets(), address in address()) {
            let peer = spelled(&nets);
            let prefixes = peer.prefixes();
            let subject = Subject { peer_addr: Some(address), ..Subject::default() };
            let expected = Filter { peer, ..Filter::default() }.matches(&subject);
            prop_assert_eq!(looked_up(&prefixes, address), expected, "{:?}", prefixes);
            let mut keys: Vec<_> = prefixes.entries.iter().map(|e| (e.length, e.address)).collect();
            keys.dedup();
            prop_assert_eq!(keys.len(), prefixes.entries.len());
        }

        #[test]
        fn patterns_match_as_globs(pattern in "[ab*]{1,7}", name in "[ab]{0,9}") {
            prop_assert_eq!(Pattern(pattern.clone()).matches(&name), globbed(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<List<u16>>();
            let _ = text.parse::<List<u32>>();
            let _ = text.parse::<List<IpNet>>();
            let _ = text.parse::<List<CgroupRef>>();
            if let Ok(list) = text.parse::<List<Pattern>>() {
                let _ = list.matches(|pattern| pattern.begins_id(&text) || pattern.matches(&text));
            }
        }

        #[test]
        fn networks_are_read_or_refused(text in "[0-9a-f:./]{1,12}") {
            let _ = text.parse::<List<IpNet>>();
        }
    }
}
