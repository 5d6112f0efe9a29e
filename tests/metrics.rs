//! Metrics held against scikit-learn and SciPy, also where these have none (fixture and its script: tests/fixtures/metrics.*).

use serde_json::Value;
use taskloom::config::schema::MetricKind;
use taskloom::data::Targets;
use taskloom::train::metrics::Predictions;

/// Null is NaN; what JSON has no number for is a string.
fn number(value: &Value) -> f32 {
    match value {
        Value::String(text) => text.parse().unwrap(),
        value => value.as_f64().map_or(f32::NAN, |x| x as f32),
    }
}

fn targets(case: &Value) -> Targets {
    let list = case["targets"].as_array().unwrap();
    match case["head"].as_str().unwrap() {
        "classification" => Targets::Class(list.iter().map(|class| class.as_u64().unwrap() as u32).collect()),
        _ => Targets::Values { dim: case["outputs"].as_u64().unwrap() as usize, values: list.iter().map(number).collect() },
    }
}

#[test]
fn every_metric_has_the_value_of_the_libraries_or_none() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/metrics.json")).unwrap();
    let mut measured = 0;
    for case in &cases {
        let rows = case["logits"].as_array().unwrap();
        let logits: Vec<f32> = rows.iter().flat_map(|row| row.as_array().unwrap().iter().map(number)).collect();
        let outputs = case["outputs"].as_u64().unwrap() as usize;
        let predictions = Predictions { outputs, logits: &logits, targets: &targets(case), only: None };
        for (name, expected) in case["expected"].as_object().unwrap() {
            let kind: MetricKind = serde_json::from_value(name.as_str().into()).unwrap();
            let (found, expected) = (predictions.metric(kind).ok(), expected.as_f64());
            // Sums of at most 100 terms in f64, in another order.
            let same = match (found, expected) {
                (Some(found), Some(expected)) => (found - expected).abs() <= 1e-12 * expected.abs().max(1.0),
                (found, expected) => found == expected,
            };
            assert!(same, "{}: {name} is {found:?}, expected {expected:?}", case["name"]);
            measured += 1;
        }
    }
    assert!(measured > 150, "{measured}");
}
