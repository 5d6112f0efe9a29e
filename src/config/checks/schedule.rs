//! What `[schedule]` asks for together.

use super::super::schema::{Feedback, ScheduleMode};
use super::Checker;

pub fn check(checker: &mut Checker) {
    let schedule = &checker.config.schedule;
    if let Some(Feedback { min, max, .. }) = schedule.feedback
        && min > max
    {
        let message = format!("asks for weights of at least {min} and at most {max}");
        checker.error(&["schedule.feedback", "schedule.feedback.min", "schedule.feedback.max"], message, "");
    }
    let (lanes, begun) = (schedule.lanes, schedule.begun());
    if schedule.mode == ScheduleMode::TimeSliced && lanes > begun {
        let message = format!(
            "are {lanes}, but a time-sliced run computes {} at a time (schedule.max_staleness = {})",
            if begun == 1 { "one round".to_owned() } else { format!("{begun} rounds") },
            begun - 1
        );
        checker.error(&["schedule.lanes", "schedule.mode", "schedule.max_staleness"], message, "raise schedule.max_staleness");
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{errors, load_text, locations};

    #[test]
    fn lanes_need_rounds_that_do_not_wait_for_each_other() {
        let text = |schedule: &str| {
            let rest = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n";
            format!("[schedule]\nmode = \"time_sliced\"\n{schedule}\n{rest}")
        };
        let few = errors(&text("lanes = 2"));
        assert_eq!(locations(&few), [(3, 9, "schedule.lanes")]);
        assert!(few.diagnostics()[0].message.contains("are 2, but a time-sliced run computes one round at a time"));
        assert!(load_text(&text("lanes = 2\nmax_staleness = 1"), &[]).is_ok());
        let crossed = errors(&text("policy = \"weighted\"\nfeedback = { min = 50, max = 20 }"));
        assert!(crossed.diagnostics()[0].message.contains("at least 50 and at most 20"));
    }
}
