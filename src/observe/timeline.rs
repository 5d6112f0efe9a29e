//! A schedule as a picture: one row per task, one box per quantum.

use std::collections::BTreeMap;

use super::trace::{Kind, Span};

const LEFT: f64 = 110.0;
const WIDTH: f64 = 760.0;
const ROW: f64 = 22.0;
const TOP: f64 = 30.0;

/// An SVG of the first `millis` milliseconds (0: all). Boxes are filled by what the quantum does; thin lines show waiting.
pub fn svg(spans: &[Span], names: &[String], millis: f64) -> String {
    let last = spans.iter().map(|span| span.end).fold(0.0, f64::max);
    let end = if millis > 0.0 { (millis * 1e3).min(last) } else { last }.max(1.0);
    let mut rows: BTreeMap<usize, Vec<&Span>> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.start < end) {
        if let Some(task) = span.task {
            rows.entry(task).or_default().push(span);
        }
    }
    let height = TOP + ROW * rows.len() as f64 + 46.0;
    let x = |time: f64| LEFT + WIDTH * time.min(end) / end;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        LEFT + WIDTH + 20.0
    );
    for tick in 0..=8 {
        let time = end * f64::from(tick) / 8.0;
        let (at, bottom) = (x(time), height - 42.0);
        text += &format!("<line x1=\"{at:.1}\" y1=\"22\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"#dddddd\"/>\n");
        text += &format!("<text x=\"{at:.1}\" y=\"16\" text-anchor=\"middle\" fill=\"#666666\">{:.0} ms</text>\n", time / 1e3);
    }
    for (row, (&task, spans)) in rows.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        text +=
            &format!("<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n", LEFT - 8.0, y + 14.0, escape(&names[task]));
        for span in spans {
            let (from, to) = (x(span.start), x(span.end));
            if span.due < span.start {
                let (due, middle) = (x(span.due), y + 10.0);
                text += &format!(
                    "<line x1=\"{due:.1}\" y1=\"{middle:.1}\" x2=\"{from:.1}\" y2=\"{middle:.1}\" stroke=\"#bbbbbb\" stroke-dasharray=\"2 2\"/>\n"
                );
            }
            text += &format!(
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{}\"><title>{} {}</title></rect>\n",
                y + 3.0,
                (to - from).max(0.8),
                colour(span.kind),
                span.kind.name(),
                escape(&span.note)
            );
        }
    }
    let present = Kind::ALL.into_iter().filter(|kind| rows.values().flatten().any(|span| span.kind == *kind));
    for (number, kind) in present.enumerate() {
        let (at, y) = (LEFT + 110.0 * number as f64, height - 26.0);
        text += &format!("<rect x=\"{at:.0}\" y=\"{y:.0}\" width=\"12\" height=\"12\" fill=\"{}\"/>\n", colour(kind));
        text += &format!("<text x=\"{:.0}\" y=\"{:.0}\">{}</text>\n", at + 18.0, y + 10.0, kind.name());
    }
    text + "</svg>\n"
}

/// Told apart also by people who see colours differently (Okabe & Ito).
fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Gradient => "#56b4e9",
        Kind::Commit => "#d55e00",
        Kind::Evaluation => "#009e73",
        Kind::Checkpoint => "#999999",
        Kind::Failure => "#000000",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_that_ran_has_a_row_and_each_quantum_a_box() {
        let span = |task, start| Span {
            kind: Kind::Gradient,
            task: Some(task),
            lane: 0,
            due: 0.0,
            start,
            end: start + 500.0,
            waited_for: None,
            note: String::new(),
        };
        let names = ["a<b", "idle", "c"].map(str::to_owned);
        let text = svg(&[span(0, 0.0), span(2, 500.0), span(0, 2000.0)], &names, 1.0);
        assert!(text.contains("a&lt;b") && text.contains(">c<") && !text.contains("idle"));
        // Two boxes begin within the first millisecond; the background and the legend are boxes, too.
        assert_eq!(text.matches("<rect").count(), 4);
        assert!(text.ends_with("</svg>\n"));
    }
}
