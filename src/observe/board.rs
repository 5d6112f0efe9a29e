//! Lines that are written again and again where they stand, on a terminal; elsewhere only what stays is said.

use indicatif::{ProgressBar, ProgressStyle};

use super::terminal::Terminal;

pub struct Board {
    terminal: Terminal,
    lines: Vec<ProgressBar>,
}

impl Board {
    pub fn new() -> Self {
        Self { terminal: Terminal::new(4), lines: Vec::new() }
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal.is_terminal()
    }

    /// One line that stays.
    pub fn say(&self, message: &str) {
        self.terminal.say(message);
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
            self.lines.push(self.terminal.bars.add(ProgressBar::new_spinner().with_style(style)));
        }
        self.lines.iter().zip(lines).for_each(|(bar, line)| bar.set_message(line.clone()));
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}
