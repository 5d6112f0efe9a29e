//! Every method against updates made by its reference implementation (`tests/fixtures/surgery_vectors.jsonl`), through
//! the same request handling as `taskloom surgery`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use taskloom::surgery::request::answer_line;

/// CAGrad's references come from a cone solver with its own tolerance, and so does Nash-MTL's, which shows where rows are
/// a thousand long: that reference misses its own equation a_i (G a)_i = 1 by 2e-4, and with ECOS set to 1e-13 it moves to
/// the answer given here. All others are closed or exact.
fn tolerance(method: &str, case: &str) -> f64 {
    match (method, case) {
        ("cagrad", _) | ("nash_mtl", "gauss4x64*1e3") => 1e-4,
        _ => 1e-6,
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|value| value.as_f64().expect("a number")).collect()
}

/// Largest difference over largest expected value.
fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let difference = found.iter().zip(expected).fold(0.0_f64, |most, (f, e)| most.max((f - e).abs()));
    if difference == 0.0 { 0.0 } else { difference / largest }
}

#[test]
fn updates_match_the_references() {
    let text = std::fs::read_to_string("tests/fixtures/surgery_vectors.jsonl").expect("the fixture");
    let mut worst: BTreeMap<String, f64> = BTreeMap::new();
    let mut faults = Vec::new();
    for line in text.lines() {
        let vector: Map<String, Value> = serde_json::from_str(line).expect("a JSON line");
        let text = |field: &str| vector[field].as_str().expect("a name");
        let (method, case) = (text("method"), text("case"));
        let mut request = vector.clone();
        request.retain(|field, _| !matches!(field.as_str(), "case" | "update"));
        let answer: Value = serde_json::from_str(&answer_line(&Value::from(request).to_string())).expect("an answer");
        if let Some(fault) = answer.get("error") {
            faults.push(format!("{method} {case}: {fault}"));
            continue;
        }
        let error = relative_error(&numbers(&answer["update"]), &numbers(&vector["update"]));
        if error.is_nan() || error > tolerance(method, case) {
            faults.push(format!("{method} {} {case}: error {error:.1e}, {}", vector["params"], answer["status"]));
        }
        let entry = worst.entry(method.to_owned()).or_default();
        *entry = entry.max(error);
    }
    for (method, error) in &worst {
        println!("{method:14} {error:.1e}");
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
