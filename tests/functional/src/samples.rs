//! Samples of the Prometheus text format, read independently of the code that writes them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// One line of a scrape: a name, its labels, its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The whole name, `_bucket` and the like included.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value; `+Inf` and `NaN` are what they say.
    pub value: f64,
}

impl Sample {
    /// A label's value; empty if it has none, as Prometheus sees it.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// What one scrape returned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// All samples, in order.
    pub samples: Vec<Sample>,
}

impl Scrape {
    /// Parses the text format. An error names the line that is not of it.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| format!("the line `{line}`")));
        Ok(Self { samples: samples.collect::<Result<_>>()? })
    }

    /// The samples with this name whose labels include all of `labels`.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name && labels.iter().all(|(label, value)| sample.label(label) == *value)
        })
    }

    /// The sum of [`select`](Self::select); `None` if nothing was selected: absent is not zero.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.select(name, labels).map(|sample| sample.value).reduce(|sum, value| sum + value)
    }

    /// Whether any sample has this name.
    pub fn has(&self, name: &str) -> bool {
        self.select(name, &[]).next().is_some()
    }
}

fn sample(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ']).context("a name without a value")?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() {
        bail!("no name");
    }
    let mut labels = BTreeMap::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            inside = inside.trim_start_matches([',', ' ']);
            if let Some(after) = inside.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, quoted) = inside.split_once("=\"").context("a label without a value")?;
            let (value, after) = unquote(quoted).context("a label's value without an end")?;
            if labels.insert(label.to_owned(), value).is_some() {
                bail!("the label {label} comes twice");
            }
            inside = after;
        }
    }
    // A time stamp or an exemplar may follow.
    let value = rest.split_whitespace().next().context("no value")?;
    let value = value.parse().with_context(|| format!("the value {value}"))?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Undoes the escapes up to the closing quote; returns also what comes after it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            _ => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_scrape_is_read() {
        let text = "# HELP a_total Things.\n# TYPE a_total counter\n\
                    a_total{x=\"1\",y=\"q\\\"\\\\\\n,}\"} 3\na_total{x=\"2\"} 4.5 1700000000\n\
                    h_bucket{le=\"+Inf\"} +Inf\nplain 1e3\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!(scrape.sum("a_total", &[]), Some(7.5));
        assert_eq!(scrape.sum("a_total", &[("x", "1")]), Some(3.0));
        assert_eq!(scrape.samples[0].label("y"), "q\"\\\n,}");
        assert_eq!(scrape.sum("h_bucket", &[("le", "+Inf")]), Some(f64::INFINITY));
        assert_eq!(scrape.sum("plain", &[]), Some(1000.0));
        assert_eq!(scrape.sum("absent", &[]), None);
        assert!(scrape.has("plain") && !scrape.has("plai"));
    }

    #[test]
    fn what_is_no_sample_is_an_error() {
        for line in ["name", "{a=\"b\"} 1", "a{b=\"c\" 1", "a{b} 1", "a x", "a{b=\"1\",b=\"2\"} 1"] {
            assert!(Scrape::parse(line).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn a_label_of_any_text_comes_back(text in "[^\r\n]*", value in -1e9..1e9_f64) {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
            let scrape = Scrape::parse(&format!("m{{l=\"{escaped}\"}} {value}")).unwrap();
            prop_assert_eq!(scrape.samples[0].label("l"), &text);
            prop_assert!((scrape.samples[0].value - value).abs() < f64::EPSILON);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z{}=\"\\\\, 0-9\n]*") {
            let _ = Scrape::parse(&text);
        }
    }
}
