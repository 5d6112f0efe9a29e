//! Standard error, where it is a terminal: lines above bars that stay where they are. Elsewhere lines alone.

use indicatif::{MultiProgress, ProgressDrawTarget};

use crate::output;

pub struct Terminal {
    pub bars: MultiProgress,
}

impl Terminal {
    /// Bars are drawn so many times a second at most.
    pub fn new(hertz: u8) -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(hertz)) }
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
}
