//! The OpenAPI document: made from the table of endpoints, the options behind their parameters, and the types of the answers.

use clap::{Arg, ArgAction};
use model::metrics::METRICS;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{Said, endpoints::ENDPOINTS};

/// OpenAPI 3.1.
pub(super) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let parameters: Vec<_> = (endpoint.parameters)().get_arguments().filter_map(parameter).collect();
        let content = match endpoint.answer {
            Some(answer) => json!({ "application/json": { "schema": answer(&mut generator) } }),
            None => json!({ "text/event-stream": { "schema": { "type": "string" } } }),
        };
        let mut responses = json!({
            "200": { "description": "What there is.", "content": content },
            "400": refusal(&mut generator, "A parameter is wrong, or what was asked for is not counted."),
            "500": refusal(&mut generator, "The kernel or the agent failed."),
        });
        for (status, why) in endpoint.refusals {
            responses[*status] = refusal(&mut generator, why);
        }
        let operation = json!({
            "operationId": endpoint.path.trim_start_matches('/').replace('.', "_"),
            "summary": endpoint.summary,
            "parameters": parameters,
            "responses": responses,
        });
        paths.insert(endpoint.path.to_owned(), json!({ "get": operation }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tcptide",
            "description": "TCP connections of this host, by container. Absent means not measured. Times are RFC 3339 in UTC, \
                            `_us` whole microseconds.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/api/v1" }],
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn refusal(generator: &mut SchemaGenerator, description: &str) -> Value {
    let schema = generator.subschema_for::<Said>();
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn parameter(arg: &Arg) -> Option<Value> {
    let name = arg.get_long()?.replace('-', "_");
    let values: Vec<_> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let default = arg.get_default_values().first().and_then(|value| value.to_str());
    let is_flag = values == ["true", "false"];
    let value_name = arg.get_value_names().and_then(|names| names.first()).map(clap::builder::Str::as_str);
    let mut schema = match (value_name, is_flag) {
        (_, true) => json!({ "type": "boolean", "default": false }),
        (Some("NUMBER"), _) => json!({ "type": "integer", "minimum": 1, "maximum": super::query::MOST }),
        (Some("COOKIE"), _) => json!({ "type": "integer", "minimum": 1, "maximum": u64::MAX }),
        (Some(what), _) => match pattern(what) {
            Some(pattern) => json!({ "type": "string", "pattern": pattern }),
            None => json!({ "type": "string", "minLength": 1 }),
        },
        (None, _) => json!({ "type": "string" }),
    };
    if let (Some("NUMBER"), Some(Ok(default)), Some(schema)) =
        (value_name, default.map(str::parse::<u64>), schema.as_object_mut())
    {
        schema.insert("default".to_owned(), default.into());
    }
    if arg.get_action().takes_values() && !values.is_empty() && !is_flag {
        schema = json!({ "type": "string", "pattern": list_of(values.iter().map(String::as_str)) });
    }
    if value_name == Some("QUESTION") {
        schema =
            json!({ "type": "array", "items": schema, "minItems": 1, "maxItems": super::query::QUESTIONS });
    }
    debug_assert!(!matches!(arg.get_action(), ArgAction::SetTrue), "a flag takes true and false here");
    let description = arg.get_help().map(ToString::to_string);
    Some(
        json!({ "name": name, "in": "query", "required": arg.is_required_set(), "description": description, "schema": schema }),
    )
}

/// An address or a network; of IPv6 those that are written out, or end in `::`.
const NETWORK: &str = "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}\
                       (/(3[0-2]|[12]?[0-9]))?|\
                       (([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|([0-9a-f]{1,4}:){1,7}:)\
                       (/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)";

/// A list of some of these.
fn list_of<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let one = values.collect::<Vec<_>>().join("|");
    format!("^({one})(,({one}))*$")
}

/// What values look like, by what the options call them.
fn pattern(what: &str) -> Option<String> {
    let list = match what {
        "NAMES" => r"^!?[^,!\s]+(,!?[^,!\s]+)*$",
        "PORTS" => "^!?[1-9][0-9]{0,3}(,!?[1-9][0-9]{0,3})*$",
        "PIDS" => "^!?[1-9][0-9]{0,8}(,!?[1-9][0-9]{0,8})*$",
        "PATHS" => r"^!?(/[^,!\s]*|[0-9]{1,18})(,!?(/[^,!\s]*|[0-9]{1,18}))*$",
        "METRICS" => return Some(list_of(METRICS.iter().map(|metric| metric.name))),
        "CIDRS" => return Some(format!("^!?{NETWORK}(,!?{NETWORK})*$")),
        "TIME" => "^[1-9][0-9]{0,4}(ms|s|m|h)$",
        _ => return None,
    };
    Some(list.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `make docs` writes it anew.
    #[test]
    fn the_document_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let text = format!("{:#}\n", document());
        if std::env::var_os("TCPTIDE_WRITE_DOCS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap() == text, "run `make docs`");
    }

    #[test]
    fn every_parameter_of_a_list_says_what_it_looks_like() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        assert_eq!(paths.len(), ENDPOINTS.len());
        for (path, operations) in paths {
            for parameter in operations["get"]["parameters"].as_array().unwrap() {
                let (name, schema) = (&parameter["name"], &parameter["schema"]);
                let is_bounded = schema["type"] != "string" || schema["pattern"].is_string();
                assert!(is_bounded && parameter["description"].is_string(), "{path} {name}: {schema}");
            }
        }
    }
}
