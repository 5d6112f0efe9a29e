//! Numbers and names as the page writes them.

use std::cmp::Ordering;

use maud::{Markup, html};

/// A score or a loss: four digits behind the point, fewer where it is large.
pub fn value(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        _ if size >= 1e5 || (size > 0.0 && size < 1e-3) => format!("{size:.2e}"),
        _ if size >= 100.0 => format!("{size:.1}"),
        _ => format!("{size:.4}"),
    };
    if value < 0.0 { with_sign(value, digits) } else { digits }
}

pub fn optional(found: Option<f64>) -> String {
    found.map_or_else(|| "–".to_owned(), value)
}

/// With its sign, so that changes are seen as such.
pub fn signed(value: f64) -> String {
    with_sign(value, format!("{:.4}", value.abs()))
}

/// A size with the sign of its value; none where nothing is left of it.
fn with_sign(value: f64, size: String) -> String {
    let sign = match value {
        _ if !size.contains(|digit: char| matches!(digit, '1'..='9')) => "",
        _ if value < 0.0 => "−",
        _ => "+",
    };
    format!("{sign}{size}")
}

/// A change in parts of a hundred, with its sign.
pub fn signed_percent(change: f64) -> String {
    with_sign(change, format!("{:.1} %", 100.0 * change.abs()))
}

pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Of microseconds.
pub fn time(micros: f64) -> String {
    match micros {
        _ if micros < 1e3 => format!("{micros:.0} µs"),
        _ if micros < 1e6 => format!("{:.2} ms", micros / 1e3),
        _ if micros < 6e7 => format!("{:.2} s", micros / 1e6),
        _ => format!("{:.1} min", micros / 6e7),
    }
}

pub fn seconds(seconds: f64) -> String {
    time(seconds * 1e6)
}

/// `1 round`, `2 rounds`.
pub fn count(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Says that something is missing.
pub fn missing(sentence: &str) -> Markup {
    html! { p.missing { (sentence) } }
}

/// Names with numbers in the order of the numbers: `layer.2` before `layer.10`.
pub fn by_number(one: &str, other: &str) -> Ordering {
    let parts = |name: &str| -> Vec<(u64, String)> {
        let mut parts = Vec::new();
        let mut rest = name;
        while !rest.is_empty() {
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let (word, after) = rest.split_at(letters);
            let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            parts.push((after[..digits].parse().unwrap_or(0), word.to_owned()));
            rest = &after[digits..];
        }
        parts
    };
    let (one_parts, other_parts) = (parts(one), parts(other));
    let key = |(number, word): &(u64, String)| (word.clone(), *number);
    one_parts.iter().map(key).cmp(other_parts.iter().map(key)).then_with(|| one.cmp(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([value(0.123_456), value(250.06), value(2e-5), value(0.0)], ["0.1235", "250.1", "2.00e-5", "0.0000"]);
        assert_eq!([time(12.0), time(1500.0), time(2e6), time(1.2e8)], ["12 µs", "1.50 ms", "2.00 s", "2.0 min"]);
        assert_eq!(
            [signed(1e-9), signed_percent(-1e-9), signed_percent(0.25), value(-1.0)],
            ["0.0000", "0.0 %", "+25.0 %", "−1.0000"]
        );
        assert_eq!([signed(-0.5), count(1, "round"), count(2, "round")], ["−0.5000", "1 round", "2 rounds"]);
    }

    #[test]
    fn layers_are_in_order() {
        let mut names = ["layer.10", "layer.2", "embedding", "layer.2.x", "99999999999999999999999"];
        names.sort_by(|a, b| by_number(a, b));
        assert_eq!(names, ["99999999999999999999999", "embedding", "layer.2", "layer.2.x", "layer.10"]);
    }
}
