//! Colours that follow the page: charts are drawn in marks, and each mark becomes a variable of the style sheet.

use plotters::style::RGBColor;

/// What something is drawn for; the style sheet says how it looks, by day and by night.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    Text,
    Grid,
    Axis,
    /// The number of a series; hues repeat, with other dashes.
    Series(usize),
    /// Fills of bars.
    Positive,
    Negative,
    Soft,
    /// Quanta of a schedule.
    Gradient,
    Commit,
    Evaluation,
    Checkpoint,
    Failure,
}

/// The first two bytes of every mark.
const MARK: &str = "#FACE";

const NAMED: [(Ink, &str); 11] = [
    (Ink::Text, "ink"),
    (Ink::Grid, "grid"),
    (Ink::Axis, "axis"),
    (Ink::Positive, "pos"),
    (Ink::Negative, "neg"),
    (Ink::Soft, "soft"),
    (Ink::Gradient, "gradient"),
    (Ink::Commit, "commit"),
    (Ink::Evaluation, "evaluation"),
    (Ink::Checkpoint, "checkpoint"),
    (Ink::Failure, "failure"),
];

/// Hues of the style sheet.
pub const HUES: usize = 8;

/// Series that can be told apart by hue and dashes.
pub const MOST_SERIES: usize = 4 * HUES;

impl Ink {
    /// The mark of [`Ink::Text`].
    pub const TEXT: RGBColor = RGBColor(0xFA, 0xCE, 0);

    /// A colour that stands for it until [`paint`].
    pub fn mark(self) -> RGBColor {
        let code = match self {
            Ink::Series(number) => NAMED.len() + number % MOST_SERIES,
            named => NAMED.iter().position(|(ink, _)| *ink == named).unwrap_or(0),
        };
        RGBColor(0xFA, 0xCE, code as u8)
    }

    /// As a value in a style sheet.
    pub fn css(self) -> String {
        match self {
            Ink::Series(number) => format!("var(--s{})", number % HUES),
            named => NAMED.iter().find(|(ink, _)| *ink == named).map_or_else(String::new, |(_, name)| format!("var(--{name})")),
        }
    }

    fn of(code: usize) -> Option<Self> {
        match NAMED.get(code) {
            Some((ink, _)) => Some(*ink),
            None => (code < NAMED.len() + MOST_SERIES).then(|| Ink::Series(code - NAMED.len())),
        }
    }

    /// The attribute `name` in this colour, with the classes by which a script finds the series.
    fn attribute(self, name: &str) -> String {
        let css = self.css();
        match self {
            Ink::Series(number) => format!("class=\"s{number} d{}\" {name}=\"{css}\"", number / HUES),
            _ => format!("{name}=\"{css}\""),
        }
    }
}

/// Puts the style sheet's variables in place of the marks, and leaves out what a page does not need of a picture.
pub fn paint(svg: &str) -> String {
    let mut painted = String::with_capacity(svg.len());
    for line in svg.lines() {
        match line.split_once(MARK).and_then(|(before, after)| Some((before, painted_mark(before, after)?))) {
            Some((before, (name, attribute, rest))) => {
                painted += before.trim_end_matches(&format!("{name}=\""));
                painted += &attribute;
                painted += rest;
            }
            None => painted += line,
        }
        painted.push('\n');
    }
    let plain = painted
        .replace(" opacity=\"1\"", "")
        .replace(" stroke=\"none\"", "")
        .replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    plain.replace(" \"/>", "\"/>")
}

/// Name of the attribute that a mark is the value of, the attribute in its colour, and what follows it.
fn painted_mark<'a>(before: &str, after: &'a str) -> Option<(String, String, &'a str)> {
    let name = before.strip_suffix("=\"")?.rsplit(' ').next()?;
    let ink = Ink::of(usize::from_str_radix(after.get(..2)?, 16).ok()?)?;
    Some((name.to_owned(), ink.attribute(name), after.get(3..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_variables() {
        let mark = |ink: Ink| {
            let RGBColor(r, g, b) = ink.mark();
            format!("#{r:02X}{g:02X}{b:02X}")
        };
        let line = format!("<polyline fill=\"none\" opacity=\"1\" stroke=\"{}\" points=\"1,2 \"/>", mark(Ink::Series(9)));
        assert_eq!(paint(&line), "<polyline fill=\"none\" class=\"s9 d1\" stroke=\"var(--s1)\" points=\"1,2\"/>\n");
        let text = format!("<text x=\"1\" fill=\"{}\">\n#FACEoff &lt;b&gt;\n</text>", mark(Ink::Text));
        assert_eq!(paint(&text), "<text x=\"1\" fill=\"var(--ink)\">\n#FACEoff &lt;b&gt;\n</text>\n");
    }

    #[test]
    fn every_ink_has_a_mark_of_its_own() {
        let all = NAMED.iter().map(|(ink, _)| *ink).chain((0..MOST_SERIES).map(Ink::Series));
        for ink in all {
            assert_eq!(Ink::of(ink.mark().2.into()), Some(ink));
        }
    }
}
