//! Horizontal bars with their names and values.

use anyhow::Result;
use maud::{Markup, html};
use plotters::coord::Shift;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::{DrawingArea, SVGBackend};
use plotters::style::ShapeStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::ink::Ink;
use super::{failed, letters, picture, range};

const WIDTH: u32 = 1000;
/// Room for names on the left and for values on the right.
const NAMES: f64 = 300.0;
const VALUES: f64 = 170.0;
const BAR: u32 = 30;
const GAP: u32 = 16;
/// Letters of a name that fit.
const MOST_LETTERS: usize = 18;

pub struct Row {
    pub name: String,
    pub bars: Vec<Bar>,
}

/// A bar from zero on, with its value in words beside it.
pub struct Bar {
    pub value: f64,
    pub text: String,
    pub ink: Ink,
    /// A pale and wider bar behind it, e.g. what it was before.
    pub behind: Option<f64>,
}

pub struct Bars<'a> {
    pub title: &'a str,
    pub rows: Vec<Row>,
    /// A line across all rows, with its name.
    pub limit: Option<(f64, String)>,
}

impl Bars<'_> {
    /// The bars as a figure; nothing where there are none.
    pub fn figure(&self) -> Result<Markup> {
        if self.rows.iter().all(|row| row.bars.is_empty()) {
            return Ok(html! {});
        }
        let drawn = self.draw()?;
        Ok(html! { figure.chart.bars { figcaption { (self.title) } (drawn) } })
    }

    fn draw(&self) -> Result<Markup> {
        let bars = || self.rows.iter().flat_map(|row| &row.bars);
        let ends =
            bars().flat_map(|bar| [Some(bar.value), bar.behind]).chain([Some(0.0), self.limit.as_ref().map(|limit| limit.0)]);
        let axis = range(ends.flatten(), 0.0);
        let scale = (f64::from(WIDTH) - NAMES - VALUES) / (axis.end - axis.start);
        let x = |value: f64| (NAMES + scale * (value.clamp(axis.start, axis.end) - axis.start)).round() as i32;
        let top = if self.limit.is_some() { 44 } else { 8 };
        let height = top + self.rows.iter().map(|row| BAR * row.bars.len() as u32 + GAP).sum::<u32>();
        picture((WIDTH, height), |area| {
            let mut y = top as i32;
            for row in &self.rows {
                let below = y + (BAR as usize * row.bars.len()) as i32;
                text(area, &shortened(&row.name), (NAMES as i32 - 16, i32::midpoint(y, below)), HPos::Right)?;
                for bar in &row.bars {
                    draw_bar(area, bar, y, &x)?;
                    y += BAR as i32;
                }
                y = below + GAP as i32;
            }
            line(area, x(0.0), top as i32, height as i32, Ink::Axis)?;
            if let Some((limit, name)) = &self.limit {
                line(area, x(*limit), 30, height as i32, Ink::Negative)?;
                text(area, name, (x(*limit), 14), HPos::Right)?;
            }
            Ok(())
        })
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_bar(area: &Area, bar: &Bar, y: i32, x: &impl Fn(f64) -> i32) -> Result<()> {
    let block = |value: f64, inset: i32, ink: Ink| {
        let (from, to) = (x(value).min(x(0.0)), x(value).max(x(0.0)));
        let corners = [(from, y + inset), (to.max(from + 2), y + BAR as i32 - inset)];
        area.draw(&Rectangle::new(corners, ShapeStyle::from(ink.mark()).filled())).map_err(failed)
    };
    let (mut right, mut inset) = (x(bar.value), 4);
    if let Some(before) = bar.behind.filter(|before| before.is_finite()) {
        block(before, 1, Ink::Soft)?;
        (right, inset) = (right.max(x(before)), 8);
    }
    if bar.value.is_finite() {
        block(bar.value, inset, bar.ink)?;
    }
    text(area, &bar.text, (right.max(x(0.0)) + 10, y + BAR as i32 / 2), HPos::Left)
}

fn text(area: &Area, text: &str, at: (i32, i32), side: HPos) -> Result<()> {
    let style = letters().pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
}

fn line(area: &Area, x: i32, top: i32, bottom: i32, ink: Ink) -> Result<()> {
    area.draw(&PathElement::new([(x, top), (x, bottom)], ShapeStyle::from(ink.mark()).stroke_width(2))).map_err(failed)
}

pub fn shortened(name: &str) -> String {
    let count = name.chars().count();
    if count <= MOST_LETTERS {
        name.to_owned()
    } else {
        format!("{}…", name.chars().take(MOST_LETTERS - 1).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bar_has_its_value_beside_it() {
        let bar = |value, behind| Bar { value, text: format!("v{value}"), ink: Ink::Positive, behind };
        let rows = vec![Row { name: "a<".to_owned(), bars: vec![bar(0.5, Some(0.25)), bar(-0.5, None)] }];
        let html = Bars { title: "t", rows, limit: Some((1.0, "most".to_owned())) }.figure().unwrap().into_string();
        assert_eq!(html.matches("<rect").count(), 3);
        assert!(["v0.5", "v-0.5", "a&lt;", "most", "var(--soft)"].iter().all(|part| html.contains(part)), "{html}");
        assert_eq!(Bars { title: "t", rows: Vec::new(), limit: None }.figure().unwrap().into_string(), "");
    }

    #[test]
    fn long_names_are_cut_by_letters() {
        assert_eq!(shortened("ééééééééééééééééééééééééé").chars().count(), MOST_LETTERS);
    }
}
