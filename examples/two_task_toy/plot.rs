//! The paths of some methods as an SVG picture: one panel each, over the mean of the two losses.

use std::fmt::Write;

/// Pixels of a panel's side, and between panels.
const SIDE: f64 = 260.0;
const GAP: f64 = 24.0;
/// Both axes show -LIMIT..LIMIT.
const LIMIT: f64 = 10.5;
const CELLS: usize = 42;
const LEVELS: usize = 14;

/// A method and its paths.
pub struct Panel<'a> {
    pub title: &'a str,
    pub paths: Vec<Vec<[f64; 2]>>,
}

/// `height` is shown as shades of grey, darker where lower.
pub fn svg(panels: &[Panel], height: impl Fn([f64; 2]) -> f64) -> String {
    let width = panels.len() as f64 * (SIDE + GAP) + GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<defs><g id=\"ground\">\n{}</g></defs>\n",
        SIDE + 2.0 * GAP + 8.0,
        ground(height)
    );
    for (number, panel) in panels.iter().enumerate() {
        let left = GAP + number as f64 * (SIDE + GAP);
        let _ = writeln!(out, "<g transform=\"translate({left} {})\"><use href=\"#ground\"/>", GAP + 8.0);
        let _ = writeln!(out, "<text x=\"{}\" y=\"-8\" text-anchor=\"middle\">{}</text>", SIDE / 2.0, panel.title);
        for path in &panel.paths {
            let points: Vec<String> = path.iter().map(|&point| place(point)).map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"#c03020\" stroke-width=\"1.6\"/>",
                points.join(" ")
            );
            let ends = [(path[0], "white"), (path[path.len() - 1], "black")];
            for ([x, y], fill) in ends.map(|(point, fill)| (place(point), fill)) {
                let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\" stroke=\"black\"/>");
            }
        }
        out += "</g>\n";
    }
    out + "</svg>\n"
}

fn place([x, y]: [f64; 2]) -> [f64; 2] {
    [(x + LIMIT) / (2.0 * LIMIT) * SIDE, (LIMIT - y) / (2.0 * LIMIT) * SIDE]
}

/// One path of squares for each level, levels holding equally many.
fn ground(height: impl Fn([f64; 2]) -> f64) -> String {
    let step = 2.0 * LIMIT / CELLS as f64;
    let center = |cell: usize| -LIMIT + (cell as f64 + 0.5) * step;
    let mut cells: Vec<(f64, [f64; 2])> =
        (0..CELLS * CELLS).map(|cell| [center(cell % CELLS), center(cell / CELLS)]).map(|point| (height(point), point)).collect();
    cells.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = SIDE / CELLS as f64;
    let mut out = String::new();
    for (level, cells) in cells.chunks(cells.len().div_ceil(LEVELS)).enumerate() {
        let shade = 120 + 120 * level / (LEVELS - 1);
        let _ = write!(out, "<path fill=\"rgb({shade},{shade},{})\" d=\"", shade + 10);
        for (_, point) in cells {
            let [x, y] = place(*point);
            let _ = write!(out, "M{:.1} {:.1}h{size:.2}v{size:.2}h-{size:.2}z", x - size / 2.0, y - size / 2.0);
        }
        out += "\"/>\n";
    }
    out
}
