//! The mixin: Grafana's dashboards, and Prometheus's rules. Dashboards are made here, of the table of metrics; rules are
//! held to that table. Whether the queries say something is a story of its own (`tests/functional/tests/mixin.rs`).

#![allow(clippy::unwrap_used)]

mod dashboards;
mod grafana;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use model::edge::EDGE_LABELS;
use model::metrics::{Kind, METRICS, NAMESPACE_METRICS, OWN_METRICS, OWNER_LABELS};
use model::namespace::NAMESPACE_EVENTS;
use serde_json::Value;

/// Those that Prometheus adds.
const LABELS_OF_A_SCRAPE: [&str; 4] = ["job", "instance", "alertname", "le"];
/// Those that Prometheus makes of a scrape itself.
const METRICS_OF_A_SCRAPE: [&str; 2] = ["up", "scrape_duration_seconds"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every query of the dashboards, as Grafana sends it.
fn queries() -> Vec<String> {
    let panels = dashboards::all().into_iter().flat_map(|dashboard| dashboard.rows).flat_map(|row| row.1);
    panels.flat_map(|panel| panel.queries).map(|(query, _)| dashboards::expand(query)).collect()
}

/// The rules of a file, each as it stands there.
fn rules(file: &str) -> Vec<Value> {
    let path = repository().join("packaging/prometheus").join(file);
    let file: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let groups = file["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn text<'a>(rule: &'a Value, field: &str) -> &'a str {
    rule[field].as_str().unwrap_or_else(|| panic!("no {field} in {rule}"))
}

fn alerts() -> Vec<Value> {
    rules("tcptide.alerts.yml")
}

/// Every expression there is: of dashboards, of recording rules, of alerts.
fn expressions() -> Vec<String> {
    let rules = rules("tcptide.rules.yml").into_iter().chain(alerts());
    queries().into_iter().chain(rules.map(|rule| text(&rule, "expr").to_owned())).collect()
}

/// The values that a label of a metric may have; `None`: any.
fn values(metric: &str, label: &str) -> Option<BTreeSet<&'static str>> {
    if metric == "tcptide_namespace_events_total" && label == "event" {
        return Some(NAMESPACE_EVENTS.iter().map(|event| event.name).collect());
    }
    let metric = METRICS.iter().find(|row| row.name == metric)?;
    let label = metric.labels.iter().find(|row| row.name == label)?;
    Some(label.values.iter().flatten().copied().collect())
}

/// The labels of a metric of the table.
fn labels(metric: &str) -> BTreeSet<&'static str> {
    let own = NAMESPACE_METRICS.iter().chain(OWN_METRICS).find(|row| row.name == metric);
    let mut all: BTreeSet<_> = if let Some(row) = METRICS.iter().find(|row| row.name == metric) {
        OWNER_LABELS.into_iter().chain(row.labels.iter().map(|label| label.name)).collect()
    } else if let Some(row) = own {
        row.labels.iter().copied().collect()
    } else {
        EDGE_LABELS.into()
    };
    all.extend(LABELS_OF_A_SCRAPE);
    all
}

/// `make docs` writes them anew.
#[test]
fn the_dashboards_are_current() {
    for dashboard in dashboards::all() {
        let path = repository().join(format!("packaging/grafana/{}.json", dashboard.name));
        if std::env::var_os("TCPTIDE_WRITE_DOCS").is_some() {
            fs::write(&path, dashboard.file()).unwrap();
        }
        let file = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(file == dashboard.file(), "{} is not current: run `make docs`", path.display());
    }
}

#[test]
fn panels_lie_side_by_side_and_tell_what_they_show() {
    for dashboard in dashboards::all() {
        let file: Value = serde_json::from_str(&dashboard.file()).unwrap();
        let panels = file["panels"].as_array().unwrap();
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len());
        let mut taken = BTreeSet::new();
        for panel in panels {
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{panel}");
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(taken.insert((x, y)), "two panels at {x}, {y} of {}: {panel}", dashboard.name);
                }
            }
            if panel["type"] != "row" {
                assert!(!panel["description"].as_str().unwrap().is_empty(), "{panel}");
                assert!(!panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap().is_empty());
            }
        }
    }
}

#[test]
fn every_name_is_in_the_table() {
    let recorded: BTreeSet<_> =
        rules("tcptide.rules.yml").iter().map(|rule| text(rule, "record").to_owned()).collect();
    for expr in expressions() {
        for name in promql::names(&expr) {
            if name.contains(':') {
                assert!(recorded.contains(&name), "{name} is not recorded: {expr}");
                continue;
            }
            let (metric, _) = promql::metric(&name).unwrap_or_else(|| panic!("{name} is no metric: {expr}"));
            let is_histogram = METRICS.iter().any(|row| row.name == metric && row.kind == Kind::Histogram);
            assert_eq!(metric != name, is_histogram, "{name} of a metric of another kind: {expr}");
        }
    }
}

#[test]
fn every_label_and_value_can_occur() {
    let all: BTreeSet<_> = grafana::all_metrics().flat_map(|(metric, _)| labels(metric)).collect();
    for expr in expressions() {
        for matcher in promql::matchers(&expr) {
            if METRICS_OF_A_SCRAPE.contains(&matcher.metric.as_str()) {
                assert!(["job", "instance"].contains(&matcher.label.as_str()), "{expr}");
                continue;
            }
            let (metric, _) = promql::metric(&matcher.metric).unwrap();
            assert!(
                labels(metric).contains(matcher.label.as_str()),
                "{metric} has no {}: {expr}",
                matcher.label
            );
            let Some(values) = values(metric, &matcher.label) else { continue };
            for value in matcher.value.split('|').filter(|value| !value.starts_with('$')) {
                assert!(values.contains(value), "{metric} has no {}=\"{value}\": {expr}", matcher.label);
            }
        }
        for label in promql::grouped_by(&expr) {
            assert!(all.contains(label.as_str()), "no metric has the label {label}: {expr}");
        }
    }
}

#[test]
fn every_metric_is_on_a_dashboard_or_left_out() {
    let shown: BTreeSet<_> = queries()
        .iter()
        .flat_map(|query| promql::names(query))
        .filter_map(|name| Some(promql::metric(&name)?.0))
        .collect();
    let left_out: BTreeMap<_, _> = dashboards::LEFT_OUT.iter().copied().collect();
    for (metric, _) in grafana::all_metrics() {
        let is_left_out = left_out.contains_key(metric);
        assert!(shown.contains(metric) != is_left_out, "{metric}: shown and left out, or neither");
    }
    for (metric, why) in left_out {
        assert!(promql::metric(metric).is_some() && !why.is_empty(), "{metric}");
    }
}

#[test]
fn what_series_are_called_exists() {
    let panels = dashboards::all().into_iter().flat_map(|dashboard| dashboard.rows).flat_map(|row| row.1);
    for (query, legend) in panels.flat_map(|panel| panel.queries) {
        let query = dashboards::expand(query);
        let all: BTreeSet<_> = promql::names(&query)
            .iter()
            .filter_map(|name| promql::metric(name))
            .flat_map(|(metric, _)| labels(metric))
            .chain(LABELS_OF_A_SCRAPE)
            .collect();
        for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
            assert!(all.contains(label), "{label} in {legend} of {query}");
        }
    }
}

#[test]
fn an_alert_has_a_severity_a_text_a_runbook_and_a_test() {
    let tests = fs::read_to_string(repository().join("packaging/prometheus/tests.yml")).unwrap();
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = text(&alert, "alert");
        assert!(names.insert(name.to_owned()), "{name} is there twice");
        let severity = text(&alert["labels"], "severity");
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        for annotation in ["summary", "description"] {
            assert!(!text(&alert["annotations"], annotation).is_empty(), "{name}");
        }
        let runbook = format!("docs/runbooks/{name}.md");
        assert_eq!(text(&alert["annotations"], "runbook_url"), runbook);
        let page = fs::read_to_string(repository().join(&runbook)).unwrap_or_default();
        assert!(page.starts_with(&format!("# {name}\n")), "{runbook} is missing, or has another heading");
        for heading in ["## Meaning", "## Impact", "## How to look", "## Causes", "## What to do"] {
            assert!(page.lines().any(|line| line == heading), "{runbook} has no {heading}");
        }
        assert!(tests.contains(&format!("- name: {name}\n")), "{name} has no test in tests.yml");
    }
    let pages = fs::read_dir(repository().join("docs/runbooks")).unwrap();
    for page in pages {
        let page = page.unwrap().path();
        let name = page.file_stem().unwrap().to_str().unwrap();
        assert!(name == "README" || names.contains(name), "{} is of no alert", page.display());
    }
}
