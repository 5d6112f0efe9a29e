//! A task as the scheduler sees it: what it may take, where it stands, and which changes of state exist.

use super::Nanos;

/// What is known of a task before anything runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub name: String,
    /// Share of the time under [`super::policy::weighted`], relative to the others'.
    pub weight: f64,
    /// The larger goes first under [`super::policy::priority`].
    pub priority: i64,
    /// Least time between two releases; 0: no such promise, the task is best-effort.
    pub period: Nanos,
    /// From release to completion; 0: the period.
    pub deadline: Nanos,
    /// Longest a quantum takes.
    pub cost: Nanos,
    /// Bytes held from admission to the end.
    pub persistent: u64,
    /// Bytes that a quantum of the largest shape takes beside them.
    pub scratch: u64,
    /// Bytes of both the task may take; 0: no limit of its own.
    pub budget: u64,
    /// Tasks that must be done before this one starts.
    pub parents: Vec<usize>,
}

impl Spec {
    /// A task with nothing but a name and a cost.
    pub fn new(name: impl Into<String>, cost: Nanos) -> Self {
        Self {
            name: name.into(),
            weight: 1.0,
            priority: 0,
            period: 0,
            deadline: 0,
            cost,
            persistent: 0,
            scratch: 0,
            budget: 0,
            parents: Vec::new(),
        }
    }

    /// Release to latest completion; none for a best-effort task.
    pub fn relative_deadline(&self) -> Option<Nanos> {
        match (self.deadline, self.period) {
            (0, 0) => None,
            (0, period) => Some(period),
            (deadline, _) => Some(deadline),
        }
    }
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Waiting: for its parents, for admission, for work, or for its turn.
    Pending,
    Running,
    /// Backing off after a failure.
    Retrying,
    /// Being brought back to its last commit.
    Rollback,
    Done,
    Failed,
}

impl State {
    /// Whether a task may go from here to `next`.
    pub fn allows(self, next: State) -> bool {
        use State::*;
        matches!(
            (self, next),
            (Pending, Running | Done | Failed)
                | (Running, Pending | Done | Retrying | Rollback)
                | (Retrying, Pending)
                | (Rollback, Pending | Failed)
        )
    }

    pub fn is_final(self) -> bool {
        matches!(self, State::Done | State::Failed)
    }

    pub fn name(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Running => "running",
            State::Retrying => "retrying",
            State::Rollback => "rollback",
            State::Done => "done",
            State::Failed => "failed",
        }
    }
}

/// Integer weights in the proportions of `weights`: scaling all of them by one factor changes nothing.
///
/// Exact where a power of ten up to a million makes all of them whole; otherwise to a millionth of the largest.
pub fn normalised_weights(weights: &[f64]) -> Vec<u64> {
    let largest = weights.iter().copied().fold(0.0, f64::max);
    let is_whole = |value: f64| value <= 1e12 && (value - value.round()).abs() <= 1e-9 * value && value >= 1.0;
    let powers = (0..7).map(|power| 10f64.powi(power));
    let factor = powers.into_iter().find(|factor| weights.iter().all(|weight| is_whole(weight * factor)));
    let factor = factor.unwrap_or(1e6 / largest);
    let integers: Vec<u64> = weights.iter().map(|weight| ((weight * factor).round() as u64).max(1)).collect();
    let divisor = integers.iter().copied().fold(0, gcd).max(1);
    integers.into_iter().map(|weight| weight / divisor).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_states_stay() {
        use State::*;
        for from in [Done, Failed] {
            assert!([Pending, Running, Retrying, Rollback, Done, Failed].into_iter().all(|to| !from.allows(to)));
        }
        assert!(!Pending.allows(Retrying) && !Retrying.allows(Running) && !Running.allows(Failed));
    }

    #[test]
    fn weights_keep_their_proportions() {
        assert_eq!(normalised_weights(&[1.0, 2.0, 0.5]), [2, 4, 1]);
        assert_eq!(normalised_weights(&[3.0, 1.0]), normalised_weights(&[0.3, 0.1]));
        assert_eq!(normalised_weights(&[7.0; 3]), [1; 3]);
        assert_eq!(normalised_weights(&[0.7, 0.3]), [7, 3]);
        assert_eq!(normalised_weights(&[1e9, 1e-9]), [1_000_000, 1]);
    }
}
