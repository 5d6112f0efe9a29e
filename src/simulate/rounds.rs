//! Synchronous rounds: who is still expected in this one, and who has brought a gradient.

/// The round in progress.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    pub number: u64,
    /// Gradients on their way.
    expected: usize,
    /// Tasks whose gradient is there, and the sample it was made of.
    present: Vec<(usize, u64)>,
    committing: bool,
}

impl Rounds {
    /// A task's job belongs to this round: it was scheduled, or it came back from a failure.
    pub fn expect(&mut self) {
        self.expected += 1;
    }

    /// The round goes on without the task.
    pub fn leave_out(&mut self) {
        self.expected -= 1;
    }

    pub fn arrived(&mut self, task: usize, sample: u64) {
        self.expected -= 1;
        self.present.push((task, sample));
    }

    /// Whether the commit is due; true once a round.
    pub fn commit_is_due(&mut self) -> bool {
        let due = self.expected == 0 && !self.present.is_empty() && !self.committing;
        self.committing |= due;
        due
    }

    /// Nothing is under way: a new round has to be scheduled.
    pub fn is_empty(&self) -> bool {
        self.expected == 0 && self.present.is_empty() && !self.committing
    }

    /// The commit is done: whose gradients it took, in task order.
    pub fn committed(&mut self) -> Vec<(usize, u64)> {
        self.committing = false;
        self.number += 1;
        let mut present = std::mem::take(&mut self.present);
        present.sort_unstable();
        present
    }
}
