//! What `bench step --profile` says of each operation of a round.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::{Value, json};

use super::{median, millis, number};
use crate::train::OpTime;

/// One operation of a round: medians over rounds.
struct Line {
    op: &'static str,
    kernels: BTreeSet<&'static str>,
    launches: u64,
    ms: f64,
    bytes: f64,
    operations: f64,
}

impl Line {
    fn of(op: &'static str, rounds: &[BTreeMap<&'static str, OpTime>]) -> Self {
        let none = OpTime::default();
        let own = || rounds.iter().map(|ops| ops.get(op).unwrap_or(&none));
        let middle = |of: fn(&OpTime) -> f64| median(own().map(of));
        let is_known = own().all(|op| !op.is_partly_known);
        Self {
            op,
            kernels: own().flat_map(|op| &op.kernels).copied().collect(),
            launches: middle(|op| op.launches as f64) as u64,
            ms: middle(|op| millis(op.time)),
            bytes: if is_known { middle(|op| op.work.bytes as f64) } else { 0.0 },
            operations: middle(|op| op.work.operations as f64),
        }
    }

    /// So many a millisecond, in units of `unit` a second; null where either is not known.
    fn rate(&self, count: f64, unit: f64) -> Option<f64> {
        (count > 0.0 && self.ms > 0.0).then(|| count / self.ms * 1e3 / unit)
    }
}

/// The longest first; `bandwidth` is that of a copy, in bytes a second.
pub fn operations(rounds: &[BTreeMap<&'static str, OpTime>], bandwidth: f64) -> Value {
    let names: BTreeSet<&'static str> = rounds.iter().flat_map(|ops| ops.keys().copied()).collect();
    let mut lines: Vec<Line> = names.into_iter().map(|op| Line::of(op, rounds)).collect();
    lines.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let all: f64 = lines.iter().map(|line| line.ms).sum();
    let share = |ms: f64| if all > 0.0 { ms / all } else { 0.0 };
    let line = |line: &Line| {
        let gbps = line.rate(line.bytes, 1e9);
        json!({
            "operation": line.op,
            "kernels": line.kernels,
            "launches": line.launches,
            "ms": line.ms,
            "share": share(line.ms),
            "gbps": gbps,
            "ratio_to_copy": gbps.map(|gbps| gbps * 1e9 / bandwidth),
            "tflops": line.rate(line.operations, 1e12),
        })
    };
    lines.iter().map(line).collect()
}

/// A table; nothing without --profile.
pub fn operations_text(report: &Value) -> String {
    let Some(lines) = report["operations"].as_array() else { return String::new() };
    let mut text = format!("\n  one kernel after the other; a copy reaches {:.0} GB/s", number(&report["copy_gbps"]));
    for line in lines {
        let rate = |key: &str, unit: &str| line[key].as_f64().map_or_else(String::new, |rate| format!("  {rate:7.1} {unit}"));
        let _ = write!(
            text,
            "\n    {:<28} {:8.4} ms  {:5.1} %  {:4} launches{}{}",
            line["operation"].as_str().unwrap_or_default(),
            number(&line["ms"]),
            100.0 * number(&line["share"]),
            line["launches"],
            rate("gbps", "GB/s"),
            rate("tflops", "TFLOP/s"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::machine::launch::Work;

    fn took(millis: u64, bytes: u64) -> OpTime {
        OpTime { launches: 2, time: Duration::from_millis(millis), work: Work { bytes, operations: 0 }, ..OpTime::default() }
    }

    #[test]
    fn the_longest_comes_first_and_rates_follow_from_known_bytes() {
        let round = |long, short| BTreeMap::from([("short", took(short, 4_000_000)), ("long", took(long, 0))]);
        let lines = operations(&[round(3, 1), round(3, 1), round(90, 70)], 8e9);
        assert_eq!([&lines[0]["operation"], &lines[1]["operation"]], ["long", "short"]);
        assert_eq!([&lines[0]["share"], &lines[1]["share"]], [0.75, 0.25]);
        assert_eq!([&lines[0]["gbps"], &lines[0]["tflops"]], [&Value::Null; 2]);
        assert_eq!([&lines[1]["gbps"], &lines[1]["ratio_to_copy"]], [4.0, 0.5]);
    }
}
