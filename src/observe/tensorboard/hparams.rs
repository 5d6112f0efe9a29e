//! What TensorBoard's HPARAMS tab reads: hyper-parameters when a run begins, and how it ended. Its metrics are the run's scalars.
//!
//! HParamsPluginData { session_start_info = 3, session_end_info = 4 } as a summary's plugin data, beside an empty tensor.

use serde_json::Value;

use super::{event, put_bytes, put_double};

/// Keys and values that were set: numbers, booleans and strings.
pub type HyperParameters = Vec<(String, Value)>;

/// SessionEndInfo's status.
const SUCCESS: u8 = 1;
const FAILURE: u8 = 2;

/// The event that a line of metrics.jsonl makes, if it is the run's beginning or its end.
pub fn of_line(line: &Value, parameters: &HyperParameters) -> Option<Vec<u8>> {
    let time = line["time"].as_f64().unwrap_or_default();
    match line["kind"].as_str()? {
        "start" if !parameters.is_empty() => {
            let mut start = Vec::new();
            for (name, value) in parameters {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, name.as_bytes());
                put_bytes(&mut entry, 2, &protocol_value(value));
                put_bytes(&mut start, 1, &entry);
            }
            put_double(&mut start, 5, time);
            Some(summary("_hparams_/session_start_info", 3, &start, time))
        }
        "end" => {
            let reason = line["reason"].as_str().unwrap_or_default();
            if reason.starts_with("interrupted") {
                return None;
            }
            let status = if reason == "every task has failed" { FAILURE } else { SUCCESS };
            let mut end = vec![1 << 3, status];
            put_double(&mut end, 2, time);
            Some(summary("_hparams_/session_end_info", 4, &end, time))
        }
        _ => None,
    }
}

/// google.protobuf.Value { number_value = 2, string_value = 3, bool_value = 4 }.
fn protocol_value(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Bool(value) => out.extend([4 << 3, u8::from(*value)]),
        Value::Number(number) => put_double(&mut out, 2, number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => put_bytes(&mut out, 3, text.as_bytes()),
        other => put_bytes(&mut out, 3, other.to_string().as_bytes()),
    }
    out
}

/// Summary.Value { tag = 1, tensor = 8, metadata = 9 { plugin_data = 1 { plugin_name = 1, content = 2 } } }.
fn summary(tag: &str, field: u8, info: &[u8], time: f64) -> Vec<u8> {
    let nest = |field: u8, inner: &[u8]| {
        let mut out = Vec::new();
        put_bytes(&mut out, field, inner);
        out
    };
    let plugin = [nest(1, b"hparams"), nest(2, &nest(field, info))].concat();
    // A float tensor of shape (1): dtype = 1, tensor_shape = 2 { dim = 2 { size = 1 } }, float_val = 5.
    let tensor = [&[1 << 3, 1][..], &nest(2, &nest(2, &[1 << 3, 1])), &nest(5, &0f32.to_le_bytes())].concat();
    let value = [nest(1, tag.as_bytes()), nest(8, &tensor), nest(9, &nest(1, &plugin))].concat();
    event(time, 0, &nest(1, &value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn contains(event: &[u8], part: &[u8]) -> bool {
        event.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn a_run_begins_with_its_hyper_parameters() {
        let parameters = vec![("lr".to_owned(), json!(0.5)), ("on".to_owned(), json!(true)), ("m".to_owned(), json!("sum"))];
        let event = of_line(&json!({"kind": "start", "time": 2.0}), &parameters).unwrap();
        assert!(contains(&event, b"_hparams_/session_start_info") && contains(&event, b"hparams"));
        let lr = [&[0x0a, 2][..], b"lr", &[0x12, 9, 0x11], &0.5f64.to_le_bytes()].concat();
        assert!(contains(&event, &lr) && contains(&event, &[0x12, 2, 0x20, 1]) && contains(&event, b"\x12\x05\x1a\x03sum"));
        assert_eq!(of_line(&json!({"kind": "start", "time": 2.0}), &Vec::new()), None);
    }

    #[test]
    fn a_run_ends_once() {
        let end = |reason: &str| of_line(&json!({"kind": "end", "time": 2.0, "reason": reason}), &Vec::new());
        let status = |status: u8| [&[0x08, status, 0x11][..], &2f64.to_le_bytes()].concat();
        assert!(contains(&end("finished").unwrap(), &status(SUCCESS)));
        assert!(contains(&end("every task has failed").unwrap(), &status(FAILURE)));
        assert_eq!(end("interrupted; continue with `taskloom resume`"), None);
    }
}
