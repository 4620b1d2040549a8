//! Walking a cgroup path, and the shapes of ids that several runtimes share.

use std::iter;

/// One component of a path.
pub(super) struct Step<'a> {
    /// The path up to and including this component.
    pub(super) path: &'a str,
    /// The path above it, without a slash at its end.
    pub(super) above: &'a str,
    /// The component itself, never empty.
    pub(super) name: &'a str,
    /// The component directly below, if there is one.
    pub(super) below: Option<&'a str>,
}

impl<'a> Step<'a> {
    /// The component directly above; empty at the root.
    pub(super) fn parent(&self) -> &'a str {
        last(self.above)
    }

    /// The slice or folder that holds this cgroup. runc given a systemd path but the cgroupfs driver
    /// writes both into one directory name, `<slice>:<prefix>:<id>`.
    pub(super) fn holder(&self) -> &'a str {
        self.name.split_once(':').map_or_else(|| self.parent(), |(slice, _)| slice)
    }
}

/// The components of `path` from the root downwards.
pub(super) fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    let mut end = 0;
    iter::from_fn(move || {
        let rest = &path[end..];
        let start = end + rest.find(|c| c != '/')?;
        end = path[start..].find('/').map_or(path.len(), |length| start + length);
        Some(Step {
            path: &path[..end],
            above: path[..start].trim_end_matches('/'),
            name: &path[start..end],
            below: path[end..].split('/').find(|name| !name.is_empty()),
        })
    })
}

/// The last component of `path`.
pub(super) fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Whether `text` is a container id as Docker, Podman and CRI runtimes make them: 64 hex digits.
pub(super) fn is_id(text: &str) -> bool {
    is_hex(text, 64)
}

/// Whether `text` is exactly `length` lower-case hex digits.
pub(super) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `text` is a UUID in its usual notation.
pub(super) fn is_uuid(text: &str) -> bool {
    text.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && text.split('-').all(|part| is_hex(part, part.len()))
}

/// What people are shown of a long id.
pub(super) fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Splits `<prefix>-<id>.scope` (systemd driver), `<prefix>-<id>` (cgroupfs driver) and
/// `<slice>:<prefix>:<id>` into prefix and id.
pub(super) fn prefixed_id(name: &str) -> Option<(&str, &str)> {
    let (prefix, id) = match name.rsplit_once(':') {
        Some((head, id)) => (head.rsplit_once(':')?.1, id),
        None => name.strip_suffix(".scope").unwrap_or(name).rsplit_once('-')?,
    };
    is_id(id).then_some((prefix, id))
}

/// Undoes systemd's `\xNN` in a unit name. A lone `-` stays: machine names keep theirs.
pub(super) fn unescape_unit(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match rest {
            [b'\\', b'x', high, low, after @ ..] => match (hex_digit(*high), hex_digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (*first, tail),
            },
            _ => (*first, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_walk_down() {
        let seen: Vec<_> = steps("/a//bé/c").map(|s| (s.path, s.above, s.name, s.below)).collect();
        assert_eq!(
            seen,
            [
                ("/a", "", "a", Some("bé")),
                ("/a//bé", "/a", "bé", Some("c")),
                ("/a//bé/c", "/a//bé", "c", None)
            ]
        );
        assert_eq!(steps("//").count(), 0);
        assert_eq!(steps("").count(), 0);
    }

    #[test]
    fn unit_names_are_unescaped() {
        assert_eq!(unescape_unit(r"my\x2dweb-1"), "my-web-1");
        assert_eq!(unescape_unit(r"caf\xc3\xa9"), "café");
        assert_eq!(unescape_unit(r"\x2\xzz\"), r"\x2\xzz\");
    }

    #[test]
    fn uuids_have_five_groups() {
        assert!(is_uuid("6c1f2f5e-9f0d-4f0c-8a5e-0d1b2c3d4e5f"));
        assert!(!is_uuid("6c1f2f5e-9f0d-4f0c-8a5e0d1b2c3d4e5f"));
        assert!(!is_uuid("6c1f2f5g-9f0d-4f0c-8a5e-0d1b2c3d4e5f"));
    }
}
