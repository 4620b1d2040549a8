//! What `-o` chooses, and the two formats for programs.
use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// The choices of `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    #[default]
    Table,
    /// All columns
    Wide,
    /// JSON; a stream has one object a line
    Json,
    /// YAML; a stream has one document an object
    Yaml,
}

impl Format {
    /// The encoding, if the format is for programs.
    pub(crate) fn encoding(self) -> Option<Encoding> {
        match self {
            Self::Table | Self::Wide => None,
            Self::Json => Some(Encoding::Json),
            Self::Yaml => Some(Encoding::Yaml),
        }
    }

    /// Whether a table shows its wide-only columns.
    pub(crate) fn is_wide(self) -> bool {
        self == Self::Wide
    }
}

/// A format for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// RFC 8259
    Json,
    /// YAML 1.2
    Yaml,
}

impl Encoding {
    /// Writes everything that was found as one document: in JSON an array with one item a line, which
    /// `jq` and `grep` can both read.
    pub(crate) fn list<T: Serialize>(self, to: &mut impl Write, items: &[T]) -> io::Result<()> {
        match self {
            Self::Json => {
                to.write_all(b"[")?;
                for (index, item) in items.iter().enumerate() {
                    to.write_all(if index == 0 { b"\n" } else { b",\n" })?;
                    to.write_all(&json(item)?)?;
                }
                to.write_all(if items.is_empty() { b"]\n" } else { b"\n]\n" })
            }
            Self::Yaml => to.write_all(yaml(&items)?.as_bytes()),
        }
    }

    /// Writes the next item of a stream.
    pub(crate) fn item<T: Serialize>(self, to: &mut impl Write, item: &T) -> io::Result<()> {
        match self {
            Self::Json => {
                let mut line = json(item)?;
                line.push(b'\n');
                to.write_all(&line)
            }
            Self::Yaml => write!(to, "---\n{}", yaml(item)?),
        }
    }
}

/// What a connection usually takes, and room for more.
const USUAL_ITEM: usize = 2048;

/// It is written in hundreds of pieces: into memory, where a piece costs next to nothing.
fn json<T: Serialize>(item: &T) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(USUAL_ITEM);
    serde_json::to_writer(&mut text, item)?;
    Ok(text)
}

/// One document, which ends with a line end.
fn yaml<T: Serialize>(value: &T) -> io::Result<String> {
    let mut text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Row {
        name: String,
        sent_bytes: u64,
        peer: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        rtt_us: Option<u64>,
    }

    fn row(name: &str, rtt_us: Option<u64>) -> Row {
        let peer = BTreeMap::from([("address".to_owned(), "10.0.0.1".to_owned())]);
        Row { name: name.to_owned(), sent_bytes: 7, peer, rtt_us }
    }

    fn written(write: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut bytes = Vec::new();
        write(&mut bytes).expect("memory takes all");
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn json() {
        let rows = [row("web", Some(812)), row("no", None)];
        insta::assert_snapshot!(written(|to| Encoding::Json.list(to, &rows)), @r#"
        [
        {"name":"web","sent_bytes":7,"peer":{"address":"10.0.0.1"},"rtt_us":812},
        {"name":"no","sent_bytes":7,"peer":{"address":"10.0.0.1"}}
        ]
        "#);
        insta::assert_snapshot!(written(|to| rows.iter().try_for_each(|row| Encoding::Json.item(to, row))), @r#"
        {"name":"web","sent_bytes":7,"peer":{"address":"10.0.0.1"},"rtt_us":812}
        {"name":"no","sent_bytes":7,"peer":{"address":"10.0.0.1"}}
        "#);
        assert_eq!(written(|to| Encoding::Json.list::<Row>(to, &[])), "[]\n");
    }

    #[test]
    fn yaml() {
        let rows = [row("web", Some(812)), row("no", None)];
        insta::assert_snapshot!(written(|to| Encoding::Yaml.list(to, &rows)), @r#"
        - name: web
          sent_bytes: 7
          peer:
            address: "10.0.0.1"
          rtt_us: 812
        - name: "no"
          sent_bytes: 7
          peer:
            address: "10.0.0.1"
        "#);
        insta::assert_snapshot!(written(|to| rows.iter().try_for_each(|row| Encoding::Yaml.item(to, row))), @r#"
        ---
        name: web
        sent_bytes: 7
        peer:
          address: "10.0.0.1"
        rtt_us: 812
        ---
        name: "no"
        sent_bytes: 7
        peer:
          address: "10.0.0.1"
        "#);
        assert_eq!(written(|to| Encoding::Yaml.list::<Row>(to, &[])), "[]\n");
    }

    #[test]
    fn only_tables_have_no_encoding() {
        let encodings = Format::value_variants().iter().map(|format| format.encoding());
        assert!(encodings.eq([None, None, Some(Encoding::Json), Some(Encoding::Yaml)]));
    }

    proptest! {
        #[test]
        fn both_can_be_read_back(names in prop::collection::vec("\\PC{0,12}|[ \\t\\n:#'\"{}0-9eE~-]{0,8}", 0..4)) {
            let rows: Vec<_> = names.iter().map(|name| row(name, None)).collect();
            let json = written(|to| Encoding::Json.list(to, &rows));
            prop_assert_eq!(&serde_json::from_str::<Vec<Row>>(&json).expect("JSON"), &rows);
            let yaml = written(|to| Encoding::Yaml.list(to, &rows));
            prop_assert_eq!(&serde_saphyr::from_str::<Vec<Row>>(&yaml).expect(&yaml), &rows);
            let stream = written(|to| rows.iter().try_for_each(|row| Encoding::Yaml.item(to, row)));
            prop_assert_eq!(&serde_saphyr::from_multiple::<Row>(&stream).expect(&stream), &rows);
        }
    }
}
