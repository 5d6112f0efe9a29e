//! Lines that are written again and again where they stand, on a terminal; elsewhere only what stays is said.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

pub struct Board {
    bars: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl Board {
    pub fn new() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(4)), lines: Vec::new() }
    }

    pub fn is_terminal(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// One line that stays.
    pub fn say(&self, message: &str) {
        if self.is_terminal() {
            // A closed terminal is no reason to stop.
            let _ = self.bars.println(message);
        } else {
            output::message(message);
        }
    }

    /// These lines in place of those before.
    pub fn show(&mut self, lines: &[String]) {
        if !self.is_terminal() {
            return;
        }
        while self.lines.len() > lines.len() {
            self.lines.pop().iter().for_each(ProgressBar::finish_and_clear);
        }
        while self.lines.len() < lines.len() {
            let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            self.lines.push(self.bars.add(ProgressBar::new_spinner().with_style(style)));
        }
        self.lines.iter().zip(lines).for_each(|(bar, line)| bar.set_message(line.clone()));
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}
