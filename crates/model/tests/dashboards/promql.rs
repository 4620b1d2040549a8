//! As much of PromQL as it takes to find the names in an expression.

use crate::grafana::all_metrics;

/// What an expression is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A metric, function, keyword or label.
    Word(String),
    /// What stood between quotes.
    Text(String),
    /// Any other character, but for space.
    Sign(char),
}

/// `label op "value"` in a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matcher {
    pub(crate) metric: String,
    pub(crate) label: String,
    pub(crate) value: String,
}

fn tokens(expr: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expr;
    while let Some(first) = rest.chars().next() {
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let length = if first == '"' {
            let length = rest[1..].find('"').expect("a closing quote");
            tokens.push(Token::Text(rest[1..=length].to_owned()));
            length + 2
        } else if is_of_word(first) || first == '$' {
            let length = rest[1..].find(|c| !is_of_word(c)).map_or(rest.len(), |end| end + 1);
            if first.is_ascii_alphabetic() {
                tokens.push(Token::Word(rest[..length].to_owned()));
            }
            length
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Sign(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

fn is_metric(word: &str) -> bool {
    word.starts_with("tcptide_") || word.contains(':')
}

/// The metrics in an expression, recorded ones too, as they stand there.
pub(crate) fn names(expr: &str) -> Vec<String> {
    let metrics = tokens(expr).into_iter().filter_map(|token| match token {
        Token::Word(word) if is_metric(&word) => Some(word),
        _ => None,
    });
    metrics.collect()
}

/// The matchers of all selectors.
pub(crate) fn matchers(expr: &str) -> Vec<Matcher> {
    let mut all = Vec::new();
    let (mut metric, mut label, mut inside) = (String::new(), String::new(), false);
    for token in tokens(expr) {
        match token {
            Token::Sign('{') => inside = true,
            Token::Sign('}') => inside = false,
            Token::Word(word) if inside => label = word,
            Token::Word(word) => metric = word,
            Token::Text(value) if inside => {
                all.push(Matcher { metric: metric.clone(), label: label.clone(), value });
            }
            _ => {}
        }
    }
    all
}

/// The labels in `by (…)` and the like.
pub(crate) fn grouped_by(expr: &str) -> Vec<String> {
    const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let (mut all, mut begins, mut inside) = (Vec::new(), false, false);
    for token in tokens(expr) {
        match token {
            Token::Sign('(') => inside = begins,
            Token::Sign(')') => inside = false,
            Token::Word(word) if inside => all.push(word),
            Token::Word(word) => {
                begins = GROUPING.contains(&word.as_str());
                continue;
            }
            _ => {}
        }
        begins = false;
    }
    all
}

/// The metric of the table that a name in an expression is of.
pub(crate) fn metric(name: &str) -> Option<(&'static str, &'static str)> {
    let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    let of = |name: &str| all_metrics().find(|metric| metric.0 == name);
    of(name).or_else(|| of(stem?))
}

#[test]
fn names_labels_and_groups_are_found() {
    let expr = r#"sum by (le, job) (rate(tcptide_rtt_seconds_bucket{container=~"$container", x!="a|b"}[5m]))
        / on (pod) group_left () container:y:rate5m > 1e3"#;
    assert_eq!(names(expr), ["tcptide_rtt_seconds_bucket", "container:y:rate5m"]);
    assert_eq!(grouped_by(expr), ["le", "job", "pod"]);
    let matchers: Vec<_> = matchers(expr).into_iter().map(|m| (m.metric, m.label, m.value)).collect();
    let expected = [("container", "$container"), ("x", "a|b")];
    assert_eq!(
        matchers,
        expected.map(|(label, value)| {
            ("tcptide_rtt_seconds_bucket".to_owned(), label.to_owned(), value.to_owned())
        })
    );
    assert_eq!(metric("tcptide_rtt_seconds_bucket").unwrap().0, "tcptide_rtt_seconds");
    assert_eq!(metric("tcptide_walk_sockets").unwrap().0, "tcptide_walk_sockets");
    assert_eq!(metric("tcptide_walk_sockets_count_of"), None);
}
