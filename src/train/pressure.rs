//! What gives when a run does not fit into `memory.device`.

use anyhow::Result;

use crate::config::Config;
use crate::data::Corpus;
use crate::train::plan::Plan;

/// The plan of the run, its shapes made smaller as far as the budget asks for it and `memory.on_pressure` allows; each step in
/// words. Follows from configuration and data alone, so that a resumed run takes the same steps.
pub fn fit(config: &mut Config, corpus: &Corpus) -> Result<(Plan, Vec<String>)> {
    let mut said = Vec::new();
    loop {
        let plan = Plan::new(config, corpus)?;
        let Err(refusal) = plan.check_budget(config) else { return Ok((plan, said)) };
        let may_split = config.memory.on_pressure.iter().any(|way| way == "split");
        let step = if may_split { split(config, &plan) } else { None };
        let Some(step) = step else { return Err(refusal) };
        said.push(step);
    }
}

/// The next smaller shapes: first what changes no result at all, then what changes it by rounding.
fn split(config: &mut Config, plan: &Plan) -> Option<String> {
    let train = &mut config.train;
    let tasks = plan.limits.present;
    let fused = if train.fuse == 0 { tasks } else { train.fuse.min(tasks) };
    let group = fused * train.micro_batch;
    if config.eval.batch > group {
        config.eval.batch = group;
        return Some(format!("evaluation in batches of {group}"));
    }
    if fused > 1 {
        train.fuse = fused.div_ceil(2);
        return Some(format!("fused groups of at most {} tasks", train.fuse));
    }
    if train.micro_batch.is_multiple_of(2) {
        train.micro_batch /= 2;
        train.accumulate *= 2;
        return Some(format!("micro-batches of {}, {} of them a round", train.micro_batch, train.accumulate));
    }
    None
}
