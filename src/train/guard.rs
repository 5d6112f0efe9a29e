//! What happens when a round is not finite: nothing is committed, the culprit is named, and too many in a row stop the run.

use crate::failure::Stopped;
use crate::train::round::Anomaly;

/// Counts bad rounds in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    pub in_a_row: u32,
}

impl Guard {
    pub fn committed(&mut self) {
        self.in_a_row = 0;
    }

    /// Records a bad round. An error once there are `limit` in a row.
    pub fn failed(&mut self, message: &str, limit: u32) -> Result<(), Stopped> {
        self.in_a_row += 1;
        if self.in_a_row >= limit {
            let advice = "lower optimizer.lr, set clip.norm, or look at the named examples";
            return Err(Stopped(format!("{message}; that is {} rounds in a row without a commit: {advice}", self.in_a_row)));
        }
        Ok(())
    }
}

/// "round 12 not committed: task books has loss NaN on train examples 4, 8, 15, ... (32 in all)".
pub fn describe(anomaly: &Anomaly, round: u64, task_names: &[&str], examples: &[u32]) -> String {
    let Anomaly { task, what, value } = anomaly;
    let who = task.map_or("the sum over all tasks".to_owned(), |task| format!("task {}", task_names[task]));
    let mut message = format!("round {round} not committed: {who} has {what} {value}");
    if !examples.is_empty() {
        let first: Vec<String> = examples.iter().take(5).map(u32::to_string).collect();
        let more = if examples.len() > 5 { ", ..." } else { "" };
        message += &format!(" on train examples {}{more} ({} in all)", first.join(", "), examples.len());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_a_row_stop_the_run() {
        let mut guard = Guard::default();
        assert!(guard.failed("x", 3).is_ok());
        guard.committed();
        assert!(guard.failed("x", 3).is_ok());
        assert!(guard.failed("x", 3).is_ok());
        assert!(guard.failed("x", 3).unwrap_err().0.contains("3 rounds in a row"));
    }

    #[test]
    fn the_task_and_its_batch_are_named() {
        let anomaly = Anomaly { task: Some(1), what: "loss", value: f64::NAN };
        let message = describe(&anomaly, 12, &["a", "books"], &[4, 8, 15, 16, 23, 42]);
        assert_eq!(message, "round 12 not committed: task books has loss NaN on train examples 4, 8, 15, 16, 23, ... (6 in all)");
    }
}
