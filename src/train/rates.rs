//! Step sizes over a run.

use crate::config::schema::{LrSchedule, LrScheduleKind, Optimizer, OptimizerKind};
use crate::ops::adamw::Rule;
use crate::surgery::update::Rates;

/// Rates of round `round` of `total`; `commits` counts the rounds committed before.
pub fn rates(optimizer: &Optimizer, round: u64, total: u64, commits: u64) -> Rates {
    let lr = optimizer.lr * schedule_factor(&optimizer.schedule, round, total);
    let step = (commits + 1) as f64;
    let rule = match optimizer.kind {
        OptimizerKind::Adamw => Rule::AdamW {
            beta1: optimizer.beta1 as f32,
            beta2: optimizer.beta2 as f32,
            eps: optimizer.eps as f32,
            correction1: (1.0 - optimizer.beta1.powf(step)) as f32,
            correction2: (1.0 - optimizer.beta2.powf(step)) as f32,
        },
        OptimizerKind::Sgd => Rule::Sgd { momentum: optimizer.momentum as f32 },
    };
    Rates {
        rule,
        lr,
        head_lr: lr * optimizer.head_lr_scale,
        embedding_lr: lr * optimizer.embedding_lr_scale,
        weight_decay: optimizer.weight_decay,
    }
}

/// Share of the learning rate at a round: linear warm-up, then constant, or down to `end` along a line or half a cosine.
pub fn schedule_factor(schedule: &LrSchedule, round: u64, total: u64) -> f64 {
    let warmup = if schedule.warmup < 1.0 { (schedule.warmup * total as f64).round() } else { schedule.warmup };
    let position = round as f64;
    if position < warmup {
        return (position + 1.0) / warmup;
    }
    let progress = ((position - warmup) / (total as f64 - warmup).max(1.0)).min(1.0);
    let left = match schedule.kind {
        LrScheduleKind::Constant => return 1.0,
        LrScheduleKind::Linear => 1.0 - progress,
        LrScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    };
    schedule.end + (1.0 - schedule.end) * left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(kind: LrScheduleKind, warmup: f64, round: u64) -> f64 {
        schedule_factor(&LrSchedule { kind, warmup, end: 0.1 }, round, 110)
    }

    #[test]
    fn warmup_rises_in_equal_steps() {
        for warmup in [10.0, 10.0 / 110.0] {
            assert!((factor(LrScheduleKind::Linear, warmup, 0) - 0.1).abs() < 1e-12);
            assert!((factor(LrScheduleKind::Linear, warmup, 9) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn decay_ends_at_its_share() {
        assert_eq!(factor(LrScheduleKind::Constant, 10.0, 100), 1.0);
        assert!((factor(LrScheduleKind::Linear, 10.0, 60) - 0.55).abs() < 1e-12);
        assert!((factor(LrScheduleKind::Cosine, 10.0, 60) - 0.55).abs() < 1e-12);
        assert!((factor(LrScheduleKind::Linear, 10.0, 110) - 0.1).abs() < 1e-12);
    }
}
