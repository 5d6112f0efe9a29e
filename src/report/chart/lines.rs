//! Curves over rounds.

use std::collections::BTreeMap;

use anyhow::Result;
use maud::{Markup, html};
use plotters::chart::{ChartBuilder, LabelAreaPosition};
use plotters::element::{Circle, PathElement};
use plotters::prelude::LineSeries;
use plotters::style::ShapeStyle;

use super::ink::{HUES, Ink, MOST_SERIES};
use super::{failed, letters, picture, range, short};

const SIZE: (u32, u32) = (1000, 460);

/// Points that are few enough to be marked.
const MOST_DOTS: usize = 40;

pub struct Series {
    pub name: String,
    /// Hue and dashes; series of one number are shown and hidden together.
    pub number: usize,
    pub points: Vec<(f64, f64)>,
}

/// A chart with its title and legend.
pub struct Chart<'a> {
    pub title: &'a str,
    /// What lies on the x axis.
    pub x: &'a str,
    pub series: Vec<Series>,
    /// The y axis holds this value, which has a line of its own.
    pub baseline: Option<f64>,
    pub legend: bool,
}

impl Chart<'_> {
    /// The chart as a figure; nothing where it has no points.
    pub fn figure(&self) -> Result<Markup> {
        let drawn: Vec<&Series> = self.series.iter().filter(|series| !series.points.is_empty()).collect();
        let (drawn, left_out): (Vec<&Series>, Vec<&Series>) = drawn.into_iter().partition(|series| series.number < MOST_SERIES);
        if drawn.is_empty() {
            return Ok(html! {});
        }
        Ok(html! {
            figure.chart {
                figcaption { (self.title) }
                (self.draw(&drawn)?)
                @if self.legend { (legend(&drawn)) }
                @if !left_out.is_empty() { p.note { "Without " (left_out.len()) " more, which could not be told apart." } }
            }
        })
    }

    fn draw(&self, drawn: &[&Series]) -> Result<Markup> {
        let points = || drawn.iter().flat_map(|series| &series.points);
        let (xs, ys) =
            (range(points().map(|point| point.0), 0.0), range(points().map(|point| point.1).chain(self.baseline), 0.05));
        let with_dots = drawn.iter().all(|series| series.points.len() <= MOST_DOTS);
        picture(SIZE, |area| {
            let mut chart = ChartBuilder::on(area)
                .margin_top(16)
                .margin_right(34)
                .set_label_area_size(LabelAreaPosition::Left, 118)
                .set_label_area_size(LabelAreaPosition::Bottom, 84)
                .build_cartesian_2d(xs.clone(), ys)
                .map_err(failed)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .max_light_lines(0)
                .bold_line_style(Ink::Grid.mark())
                .axis_style(Ink::Axis.mark())
                .label_style(letters())
                .axis_desc_style(letters())
                .x_desc(self.x)
                .x_labels(6)
                .y_labels(5)
                .x_label_formatter(&|x| short(*x))
                .y_label_formatter(&|y| short(*y))
                .draw()
                .map_err(failed)?;
            if let Some(y) = self.baseline {
                let line = PathElement::new([(xs.start, y), (xs.end, y)], ShapeStyle::from(Ink::Axis.mark()).stroke_width(2));
                chart.draw_series([line]).map_err(failed)?;
            }
            for series in drawn {
                let style = ShapeStyle::from(Ink::Series(series.number).mark()).stroke_width(if with_dots { 3 } else { 2 });
                chart.draw_series(LineSeries::new(series.points.iter().copied(), style)).map_err(failed)?;
                if with_dots || series.points.len() == 1 {
                    let dots = series.points.iter().map(|&point| Circle::new(point, 5, style.filled()));
                    chart.draw_series(dots).map_err(failed)?;
                }
            }
            Ok(())
        })
    }
}

/// Names beside their colours; where there is a script, a click hides a series and shows it again.
fn legend(drawn: &[&Series]) -> Markup {
    let entries: BTreeMap<usize, &str> = drawn.iter().rev().map(|series| (series.number, series.name.as_str())).collect();
    html! {
        @if entries.len() > 1 {
            ul.legend { @for (number, name) in entries { li { (entry(name, number)) } } }
        }
    }
}

fn entry(name: &str, number: usize) -> Markup {
    let line = format!("d{}", number / HUES);
    html! {
        button type="button" data-series=(format!("s{number}")) aria-pressed="true" {
            svg.key viewBox="0 0 26 10" aria-hidden="true" {
                line.(line) x1="0" y1="5" x2="26" y2="5" stroke=(Ink::Series(number).css()) stroke-width="3" {}
            }
            (name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, number: usize, points: &[(f64, f64)]) -> Series {
        Series { name: name.to_owned(), number, points: points.to_vec() }
    }

    #[test]
    fn names_are_escaped_and_colours_are_variables() {
        let series = vec![series("<b>&", 0, &[(0.0, 1.0), (1.0, 2.0)]), series("c", 1, &[(0.0, 3.0)]), series("d", 2, &[])];
        let chart = Chart { title: "loss <x>", x: "round", series, baseline: Some(0.0), legend: true };
        let html = chart.figure().unwrap().into_string();
        assert!(html.contains("&lt;b&gt;&amp;") && html.contains("loss &lt;x&gt;") && !html.contains("<b>"), "{html}");
        assert!(
            html.contains("class=\"s0 d0\" stroke=\"var(--s0)\"") && !html.contains("#FACE") && !html.contains("http"),
            "{html}"
        );
        assert!(!html.contains("data-series=\"s2\""), "a series without points is not in the legend");
    }

    #[test]
    fn without_points_there_is_no_chart() {
        let chart = Chart { title: "t", x: "round", series: vec![series("a", 0, &[])], baseline: None, legend: true };
        assert_eq!(chart.figure().unwrap().into_string(), "");
    }
}
