//! Charts as SVG, drawn by plotters in the page's own colours.

pub mod bars;
pub mod ink;
pub mod lines;
pub mod timeline;

use std::ops::Range;

use anyhow::{Result, anyhow};
use maud::{Markup, PreEscaped};
use plotters::coord::Shift;
use plotters::prelude::{DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::style::{IntoFont, RGBColor, TextStyle};

use ink::Ink;

/// Size of letters in the units of a chart; the style sheet has the last word.
const LETTERS: u32 = 26;

/// A picture of so many units, which `draw` fills.
fn picture(size: (u32, u32), draw: impl FnOnce(&DrawingArea<SVGBackend, Shift>) -> Result<()>) -> Result<Markup> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    draw(&area)?;
    area.present().map_err(failed)?;
    drop(area);
    let painted = ink::paint(&svg);
    let (width, height) = size;
    let sized = painted.replacen(&format!(" width=\"{width}\" height=\"{height}\""), " role=\"img\"", 1);
    Ok(PreEscaped(sized))
}

/// The style of a chart's letters.
fn letters() -> TextStyle<'static> {
    static INK: RGBColor = Ink::TEXT;
    TextStyle::from(("sans-serif", LETTERS).into_font()).color(&INK)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw a chart: {error}")
}

/// Values beyond are drawn at the edge.
const LARGEST: f64 = 1e100;

/// A range that holds all values, widened where it is too narrow to be divided.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let values = values.filter(|value| value.is_finite()).map(|value| value.clamp(-LARGEST, LARGEST));
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return 0.0..1.0;
    }
    let size = low.abs().max(high.abs());
    let room = match high - low {
        width if width > (1e-9 * size).max(1.0 / LARGEST) => margin * width,
        _ if size > 1.0 / LARGEST => 0.1 * size,
        _ => 0.5,
    };
    low - room..high + room
}

/// Few digits, whatever the size: `0.85`, `12k`, `3e-5`.
pub fn short(value: f64) -> String {
    let size = value.abs();
    let plain = |digits: usize| {
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match size {
        _ if size < 1e-12 => "0".to_owned(),
        _ if size < 1e-3 => format!("{value:.0e}"),
        _ if size < 0.1 => plain(4),
        _ if size < 10.0 => plain(3),
        _ if size < 1e4 => plain(1),
        _ if size < 1e6 => format!("{}k", short_of(value / 1e3)),
        _ if size < 1e9 => format!("{}M", short_of(value / 1e6)),
        _ => format!("{value:.1e}"),
    }
}

fn short_of(value: f64) -> String {
    format!("{value:.1}").trim_end_matches(".0").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        let shown = [0.0, 0.85, 12_000.0, 3e-5, -0.0325, 9_999.0, 1_500_000.0].map(short);
        assert_eq!(shown, ["0", "0.85", "12k", "3e-5", "-0.0325", "9999", "1.5M"]);
    }

    #[test]
    fn a_range_is_never_empty() {
        let narrow = [1.0, 1.0 + f64::EPSILON];
        for values in [&[][..], &[2.0], &[0.0, 0.0], &[f64::NAN, 1.0], &narrow, &[f64::MAX, f64::MIN]] {
            let range = range(values.iter().copied(), 0.05);
            assert!(range.end - range.start > 1e-4 && (range.end - range.start).is_finite(), "{values:?}");
        }
    }
}
