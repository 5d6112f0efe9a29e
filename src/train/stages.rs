//! How long the stages of a round took.

use std::time::{Duration, Instant};

/// Time spent in the stages of a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    pub forward_backward: Duration,
    pub gram: Duration,
    pub solve: Duration,
    pub update: Duration,
}

impl Stages {
    /// All but the gradients.
    pub fn after_gradients(&self) -> Duration {
        self.gram + self.solve + self.update
    }
}

/// Times the stages of a round.
pub(super) struct Lap {
    /// When the gradients were begun.
    pub began: Instant,
    pub clock: Instant,
    pub forward_backward: Duration,
}

impl Lap {
    pub fn new(began: Instant) -> Self {
        Self { began, clock: Instant::now(), forward_backward: Duration::ZERO }
    }

    /// Since the last stage ended.
    pub fn time(&mut self) -> Duration {
        std::mem::replace(&mut self.clock, Instant::now()).elapsed()
    }
}
