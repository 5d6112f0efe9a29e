//! A schedule as a picture: one row per lane and per task, a box per quantum, a thin line where a task waits.

use anyhow::Result;
use maud::Markup;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::style::ShapeStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::bars::shortened;
use super::ink::Ink;
use super::{failed, letters, picture, short};
use crate::observe::trace::Kind;

const WIDTH: u32 = 1900;
const NAMES: i32 = 300;
const ROW: i32 = 38;
const TOP: i32 = 44;
/// Most lines across.
const TICKS: f64 = 10.0;

/// A box; times in microseconds.
pub struct Mark {
    pub row: usize,
    pub kind: Kind,
    /// From when on it waited, if it did.
    pub due: f64,
    pub start: f64,
    pub end: f64,
}

pub struct Timeline {
    pub rows: Vec<String>,
    pub marks: Vec<Mark>,
    pub from: f64,
    pub to: f64,
}

pub fn ink(kind: Kind) -> Ink {
    match kind {
        Kind::Gradient => Ink::Gradient,
        Kind::Commit => Ink::Commit,
        Kind::Evaluation => Ink::Evaluation,
        Kind::Checkpoint => Ink::Checkpoint,
        Kind::Failure => Ink::Failure,
    }
}

impl Timeline {
    pub fn draw(&self) -> Result<Markup> {
        let span = (self.to - self.from).max(1e-3);
        let room = f64::from(WIDTH) - f64::from(NAMES) - 60.0;
        let x = |time: f64| NAMES + (room * ((time - self.from) / span).clamp(0.0, 1.0)).round() as i32;
        let height = TOP + ROW * self.rows.len() as i32 + 8;
        let style = |side| letters().pos(Pos::new(side, VPos::Center));
        picture((WIDTH, height as u32), |area| {
            let line = |points: [(i32, i32); 2], ink: Ink, width: u32| {
                area.draw(&PathElement::new(points, ShapeStyle::from(ink.mark()).stroke_width(width))).map_err(failed)
            };
            let write = |text: String, at: (i32, i32), side| area.draw(&Text::new(text, at, style(side))).map_err(failed);
            let step = step(span);
            for tick in (self.from / step).ceil() as i64..=(self.to / step).floor() as i64 {
                let time = tick as f64 * step;
                line([(x(time), TOP - 8), (x(time), height)], Ink::Grid, 1)?;
                write(short(time / 1e3), (x(time), 18), HPos::Center)?;
            }
            for (row, name) in self.rows.iter().enumerate() {
                write(shortened(name), (NAMES - 16, TOP + ROW * row as i32 + ROW / 2), HPos::Right)?;
            }
            for mark in &self.marks {
                let y = TOP + ROW * mark.row as i32;
                if mark.due < mark.start {
                    line([(x(mark.due), y + ROW / 2), (x(mark.start), y + ROW / 2)], Ink::Axis, 2)?;
                }
                let corners = [(x(mark.start), y + 6), (x(mark.end).max(x(mark.start) + 2), y + ROW - 6)];
                area.draw(&Rectangle::new(corners, ShapeStyle::from(ink(mark.kind).mark()).filled())).map_err(failed)?;
            }
            Ok(())
        })
    }
}

/// 1, 2 or 5 times a power of ten, such that few ticks fill the span.
fn step(span: f64) -> f64 {
    let rough = span / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!([step(1000.0), step(1800.0), step(7.0)], [100.0, 200.0, 1.0]);
    }

    #[test]
    fn a_quantum_is_a_box_and_a_wait_a_line() {
        let mark = |row, due| Mark { row, kind: Kind::Commit, due, start: 5.0, end: 9.0 };
        let rows = vec!["lane 0".to_owned(), "a<b".to_owned()];
        let html = Timeline { rows, marks: vec![mark(0, 5.0), mark(1, 0.0)], from: 0.0, to: 10.0 }.draw().unwrap().into_string();
        assert_eq!(html.matches("var(--commit)").count(), 2);
        assert_eq!(html.matches("stroke=\"var(--axis)\"").count(), 1);
        assert!(html.contains("a&lt;b"));
    }
}
