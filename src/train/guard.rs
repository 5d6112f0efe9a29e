//! What happens when a round is not finite: nothing of it is committed, the culprit is named, and too many in a row stop the run.

use crate::failure::Stopped;
use crate::train::round::Anomaly;

/// Counts rounds in a row that were not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    pub in_a_row: u32,
}

impl Guard {
    pub fn committed(&mut self) {
        self.in_a_row = 0;
    }

    /// Records a round without a commit. An error once there are `limit` in a row, if `hopeless`: if no task is left that might do
    /// better.
    pub fn failed(&mut self, message: &str, limit: u32, hopeless: bool) -> Result<(), Stopped> {
        self.in_a_row += 1;
        if self.in_a_row >= limit && hopeless {
            let advice =
                "lower optimizer.lr or set clip.norm (`taskloom resume RUN_DIR --set KEY=VALUE`), or look at the named examples";
            return Err(Stopped(format!("{message}; that is {} rounds in a row without a commit: {advice}", self.in_a_row)));
        }
        Ok(())
    }
}

/// "loss NaN on train examples 4, 8, 15, ... (32 in all)".
pub fn what_happened(anomaly: &Anomaly, examples: &[u32]) -> String {
    let mut message = format!("{} {}", anomaly.what, anomaly.value);
    if !examples.is_empty() {
        message += &format!(" on {}", name_examples("train", examples));
    }
    message
}

/// "train examples 4, 8, 15, ... (32 in all)".
pub fn name_examples(split: &str, examples: &[u32]) -> String {
    let first: Vec<String> = examples.iter().take(5).map(u32::to_string).collect();
    let more = if examples.len() > 5 { ", ..." } else { "" };
    format!("{split} examples {}{more} ({} in all)", first.join(", "), examples.len())
}

/// "round 12 not committed: task books has loss NaN on train examples 4, 8, 15, ... (32 in all)".
pub fn describe(task: Option<&str>, what: &str, round: u64) -> String {
    let who = task.map_or("the sum over all tasks".to_owned(), |task| format!("task {task}"));
    format!("round {round} not committed: {who} has {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_a_row_stop_the_run() {
        let mut guard = Guard::default();
        assert!(guard.failed("x", 3, true).is_ok());
        guard.committed();
        assert!(guard.failed("x", 3, true).is_ok());
        assert!(guard.failed("x", 3, true).is_ok());
        assert!(guard.failed("x", 3, false).is_ok(), "a task is left that does not fail");
        assert!(guard.failed("x", 3, true).unwrap_err().0.contains("4 rounds in a row"));
    }

    #[test]
    fn the_task_and_its_batch_are_named() {
        let anomaly = Anomaly { task: Some(1), what: "loss", value: f64::NAN };
        let message = describe(Some("books"), &what_happened(&anomaly, &[4, 8, 15, 16, 23, 42]), 12);
        assert_eq!(message, "round 12 not committed: task books has loss NaN on train examples 4, 8, 15, 16, 23, ... (6 in all)");
    }
}
