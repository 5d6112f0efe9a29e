//! The tables as JSON schemas, which editors complete and check a file by as it is written.
//!
//! Draft 4, because that is what Taplo, the TOML language server, reads. No key is required: a file may have it from its
//! `base`, and a base need not be complete.

use serde_json::{Map, Value, json};

use super::defaults::literal;
use super::keys::{Bounds, Default, Key, Kind, Section};
use super::reference::explain;
use super::schema::ROOT;
use super::sweep::SWEEP;
use super::tree::Node;
use super::workload::WORKLOAD;

/// Of the file of a run.
pub fn run_schema() -> String {
    file("A run of Taskloom", &ROOT)
}

/// Of the file that `taskloom simulate` reads.
pub fn workload_schema() -> String {
    file("A workload of Taskloom's simulator", &WORKLOAD)
}

/// Of the file that `taskloom sweep` reads.
pub fn sweep_schema() -> String {
    file("A sweep of Taskloom", &SWEEP)
}

fn file(title: &str, section: &Section) -> String {
    let mut schema = table(section);
    schema["$schema"] = json!("http://json-schema.org/draft-04/schema#");
    schema["title"] = json!(title);
    schema["properties"]["base"] = json!({
        "type": "string",
        "description": "The file that this one is put over, named relative to this one.",
    });
    if let Some(parameters) = schema["properties"].get_mut("parameters") {
        // Their names may be dotted keys, which are tables in tables.
        parameters["additionalProperties"] = json!({});
    }
    format!("{schema:#}\n")
}

fn table(section: &Section) -> Value {
    let keys = section.keys.iter().map(|key| (key.name.to_owned(), property(key)));
    json!({ "type": "object", "properties": Map::from_iter(keys), "additionalProperties": false })
}

fn property(key: &Key) -> Value {
    let mut schema = values(&key.kind);
    schema["description"] = json!(explain(key));
    if matches!(key.default, Default::Is(_)) && key.kind.section().is_none() {
        schema["default"] = json!(Node::default(literal(key)).to_toml());
    }
    schema
}

/// What a key of the kind may hold.
fn values(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Int(least, i64::MAX) => json!({ "type": "integer", "minimum": least }),
        Kind::Int(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Kind::Float(bounds) => number(bounds),
        Kind::Text => json!({ "type": "string" }),
        Kind::Column | Kind::Path(_) | Kind::Tokenizer => json!({ "type": "string", "minLength": 1 }),
        Kind::Name => json!({ "type": "string", "pattern": "^[A-Za-z0-9_-][A-Za-z0-9_.-]*$" }),
        Kind::OneOf(values) => json!({ "type": "string", "enum": values }),
        Kind::Device => json!({ "type": "string", "pattern": "^(auto|cpu|emulated|cuda(:[0-9]{1,4})?)$" }),
        Kind::Bytes => {
            let size = json!({ "type": "string", "pattern": "^[0-9]+\\s*(B|KiB|MiB|GiB|TiB)?$" });
            json!({ "anyOf": [{ "type": "integer", "minimum": 0 }, size] })
        }
        Kind::Every => json!({ "anyOf": [{ "type": "string", "enum": ["epoch", "end"] }, { "type": "integer", "minimum": 1 }] }),
        Kind::Plain => json!({}),
        Kind::NumberOr(bounds, other) => json!({ "anyOf": [number(bounds), values(other)] }),
        Kind::WordOr(word, other) => json!({ "anyOf": [{ "type": "string", "enum": [word] }, values(other)] }),
        Kind::List(item) => json!({ "anyOf": [values(item), { "type": "array", "items": values(item) }] }),
        Kind::Section(section) => table(section),
        Kind::Sections(section) => json!({ "type": "object", "additionalProperties": table(section) }),
    }
}

fn number(bounds: &Bounds) -> Value {
    let mut schema = json!({ "type": "number", "minimum": bounds.low, "exclusiveMinimum": !bounds.low_included });
    if bounds.high.is_finite() {
        schema["maximum"] = json!(bounds.high);
        schema["exclusiveMaximum"] = json!(!bounds.high_included);
    }
    schema
}
