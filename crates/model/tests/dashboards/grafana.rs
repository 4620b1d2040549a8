//! Dashboards as Grafana 10 and newer reads them.

use model::edge::EDGE_METRICS;
use model::metrics::{METRICS, NAMESPACE_METRICS, OWN_METRICS};
use serde_json::{Value, json};

use crate::dashboards::expand;
use crate::promql;

/// How a panel shows what it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Lines over time.
    Lines,
    /// Areas over time, one upon the other.
    Stack,
    /// A distribution over time, of one query by `le`.
    Heatmap,
    /// One number.
    Number,
    /// The labels of what there is now.
    Table,
}

/// A query, and what its series are called.
pub(crate) type Query = (&'static str, &'static str);

/// A panel.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// Of 24 columns.
    pub(crate) width: u32,
    pub(crate) shape: Shape,
    /// Grafana's name of it.
    pub(crate) unit: &'static str,
    pub(crate) queries: &'static [Query],
    /// What the helps of its metrics do not say.
    pub(crate) note: &'static str,
}

/// Panels under a heading.
pub(crate) type Row = (&'static str, Vec<Panel>);

/// A variable whose values are those of a label; each is looked for among what those before it leave.
pub(crate) struct Variable {
    pub(crate) label: &'static str,
    /// Whose values they are.
    pub(crate) of: &'static str,
}

/// A dashboard.
pub(crate) struct Dashboard {
    /// The file's name, and, behind `tcptide-`, the dashboard's id.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) description: &'static str,
    pub(crate) variables: &'static [Variable],
    pub(crate) rows: Vec<Row>,
}

pub(crate) const fn panel(
    title: &'static str,
    (width, shape, unit): (u32, Shape, &'static str),
    queries: &'static [Query],
) -> Panel {
    Panel { title, width, shape, unit, queries, note: "" }
}

impl Panel {
    pub(crate) const fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    fn json(&self, id: u32, (x, y): (u32, u32)) -> Value {
        let (kind, custom, options) = match self.shape {
            Shape::Lines => ("timeseries", lines(10, "none"), over_time()),
            Shape::Stack => ("timeseries", lines(50, "normal"), over_time()),
            Shape::Heatmap => ("heatmap", json!({}), heatmap(self.unit)),
            Shape::Number => ("stat", json!({}), number()),
            Shape::Table => ("table", json!({}), json!({ "showHeader": true })),
        };
        let targets: Vec<_> = (b'A'..).zip(self.queries).map(|(id, query)| self.target(id, *query)).collect();
        let mut panel = json!({
            "id": id,
            "type": kind,
            "title": self.title,
            "description": self.description(),
            "datasource": datasource(),
            "gridPos": { "x": x, "y": y, "w": self.width, "h": self.height() },
            "fieldConfig": { "defaults": { "unit": self.unit, "custom": custom }, "overrides": [] },
            "options": options,
            "targets": targets,
        });
        if matches!(self.shape, Shape::Lines | Shape::Stack) {
            panel["fieldConfig"]["defaults"]["min"] = json!(0);
        }
        if self.shape == Shape::Table {
            let hidden = json!({ "Time": true, "Value": true, "__name__": true, "job": true });
            panel["transformations"] = json!([{ "id": "organize", "options": { "excludeByName": hidden } }]);
        }
        panel
    }

    const fn height(&self) -> u32 {
        if matches!(self.shape, Shape::Number) { 4 } else { 8 }
    }

    fn target(&self, id: u8, (expr, legend): Query) -> Value {
        let now = matches!(self.shape, Shape::Table | Shape::Number);
        let format = match self.shape {
            Shape::Table => "table",
            Shape::Heatmap => "heatmap",
            _ => "time_series",
        };
        json!({
            "refId": char::from(id).to_string(),
            "datasource": datasource(),
            "editorMode": "code",
            "expr": expand(expr),
            "legendFormat": legend,
            "format": format,
            "instant": now,
            "range": !now,
        })
    }

    /// The note, and the help of each metric.
    fn description(&self) -> String {
        let mut names: Vec<_> =
            self.queries.iter().flat_map(|(expr, _)| promql::names(&expand(expr))).collect();
        names.sort();
        names.dedup();
        let helps = names.iter().filter_map(|name| {
            let (name, help) = promql::metric(name)?;
            Some(format!("{name}: {help}"))
        });
        let note = Some(self.note.to_owned()).filter(|note| !note.is_empty());
        note.into_iter().chain(helps).collect::<Vec<_>>().join("\n\n")
    }
}

fn lines(fill: u32, stacking: &str) -> Value {
    json!({
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": fill,
        "showPoints": "never",
        "spanNulls": false,
        "stacking": { "mode": stacking, "group": "A" },
    })
}

fn over_time() -> Value {
    json!({
        "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": [] },
        "tooltip": { "mode": "multi", "sort": "desc" },
    })
}

fn heatmap(unit: &str) -> Value {
    json!({
        "calculate": false,
        "cellGap": 1,
        "color": { "mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "exponent": 0.5, "steps": 64, "reverse": false },
        "filterValues": { "le": 1e-9 },
        "legend": { "show": true },
        "rowsFrame": { "layout": "auto" },
        "showValue": "never",
        "tooltip": { "show": true, "yHistogram": true },
        "yAxis": { "axisPlacement": "left", "reverse": false, "unit": unit },
    })
}

fn number() -> Value {
    json!({
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
        "textMode": "auto",
    })
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

impl Dashboard {
    /// The file.
    pub(crate) fn file(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.json()).unwrap();
        text.push('\n');
        text
    }

    fn json(&self) -> Value {
        let mut panels = Vec::new();
        let (mut id, mut y) = (1, 0);
        for (heading, row) in &self.rows {
            panels.push(json!({
                "id": id,
                "type": "row",
                "title": heading,
                "collapsed": false,
                "gridPos": { "x": 0, "y": y, "w": 24, "h": 1 },
                "panels": [],
            }));
            (id, y) = (id + 1, y + 1);
            let (mut x, mut height) = (0, 0);
            for panel in row {
                if x + panel.width > 24 {
                    (x, y, height) = (0, y + height, 0);
                }
                panels.push(panel.json(id, (x, y)));
                (id, x, height) = (id + 1, x + panel.width, height.max(panel.height()));
            }
            y += height;
        }
        json!({
            "uid": format!("tcptide-{}", self.name),
            "title": self.title,
            "description": self.description,
            "tags": ["tcptide"],
            "schemaVersion": 38,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "annotations": { "list": [] },
            "links": [{
                "type": "dashboards",
                "title": "tcptide",
                "tags": ["tcptide"],
                "asDropdown": true,
                "includeVars": true,
                "keepTime": true,
            }],
            "templating": { "list": self.templating() },
            "panels": panels,
        })
    }

    fn templating(&self) -> Vec<Value> {
        let mut all = vec![json!({
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
        })];
        let mut before = Vec::new();
        for Variable { label, of } in self.variables {
            let query = format!("label_values({of}{{{}}}, {label})", before.join(", "));
            all.push(json!({
                "name": label,
                "label": label,
                "type": "query",
                "datasource": datasource(),
                "definition": query,
                "query": { "query": query, "refId": label },
                "refresh": 2,
                "sort": 1,
                "multi": true,
                "includeAll": true,
                // What has no such label is among all, too.
                "allValue": ".*",
                "current": { "selected": true, "text": ["All"], "value": ["$__all"] },
            }));
            before.push(format!("{label}=~\"${label}\""));
        }
        all
    }
}

/// Every metric there is, with its help.
pub(crate) fn all_metrics() -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = NAMESPACE_METRICS.iter().chain(OWN_METRICS).map(|metric| (metric.name, metric.help));
    let edges = EDGE_METRICS.iter().map(|metric| (metric.name, metric.help));
    METRICS.iter().map(|metric| (metric.name, metric.help)).chain(edges).chain(own)
}
