//! What gives when a run does not fit into `memory.device`.

use anyhow::Result;

use crate::config::Config;
use crate::config::schema::DataPlace;
use crate::data::Corpus;
use crate::train::plan::Plan;
use crate::train::shapes::fuse;

/// A change of shapes; what it did in words, or none where it can do no more.
type Way = fn(&mut Config, &mut Corpus, &Plan) -> Option<String>;

/// What changes the result least goes first.
const WAYS: [(&str, Way); 3] = [("queue", queue), ("recompute", recompute), ("split", split)];

/// The plan of the run, its shapes made smaller as far as the budget asks for it and `memory.on_pressure` allows; each step in
/// words. Follows from configuration and data alone, so that a resumed run takes the same steps.
pub fn fit(config: &mut Config, corpus: &mut Corpus) -> Result<(Plan, Vec<String>)> {
    let asked: Vec<_> = corpus.tasks.iter().map(|task| task.settings.adaptive).collect();
    let mut said = Vec::new();
    loop {
        let plan = Plan::new(config, corpus)?;
        let Err(refusal) = plan.check_budget(config) else { return Ok((plan, said)) };
        if plan.limits.data.examples > 0 && config.data.resident == DataPlace::Auto {
            config.data.resident = DataPlace::Host;
            said.push("the training examples stay on the host".to_owned());
            continue;
        }
        let allowed = config.memory.on_pressure.clone();
        let mut ways = WAYS.iter().filter(|(name, _)| allowed.iter().any(|way| way == name));
        let Some(step) = ways.find_map(|(_, way)| evaluation(config, &plan).or_else(|| way(config, corpus, &plan))) else {
            // The corpus is shown as it was asked for.
            corpus.tasks.iter_mut().zip(asked).for_each(|(task, asked)| task.settings.adaptive = asked);
            return Err(refusal);
        };
        said.push(step);
    }
}

/// Tasks in a fused group.
fn fused(config: &Config, plan: &Plan) -> usize {
    let tasks = plan.limits.present;
    let fuse = fuse(config, tasks);
    if fuse == 0 { tasks } else { fuse.min(tasks) }
}

/// No larger batches than in training.
fn evaluation(config: &mut Config, plan: &Plan) -> Option<String> {
    let group = fused(config, plan) * config.train.micro_batch;
    (config.eval.batch > group).then(|| {
        config.eval.batch = group;
        format!("evaluation in batches of {group}")
    })
}

/// One group at a time; then half the tasks compute together, the others after them.
fn queue(config: &mut Config, _: &mut Corpus, plan: &Plan) -> Option<String> {
    let fused = fused(config, plan);
    if config.schedule.lanes > 1 {
        (config.schedule.lanes, config.train.fuse) = (1, fused);
        return Some("one lane".to_owned());
    }
    (fused > 1).then(|| {
        config.train.fuse = fused.div_ceil(2);
        format!("fused groups of at most {} tasks, one after another", config.train.fuse)
    })
}

/// A transformer keeps its layers' inputs only.
fn recompute(config: &mut Config, _: &mut Corpus, plan: &Plan) -> Option<String> {
    plan.spec.encoder.transformer().is_some_and(|transformer| !transformer.spec.recompute).then(|| {
        config.encoder.recompute = true;
        "the encoder's layers are computed again in the backward pass".to_owned()
    })
}

/// What follows the measured time grows less far; then half the examples at a time, twice as often.
fn split(config: &mut Config, corpus: &mut Corpus, _: &Plan) -> Option<String> {
    let round_options = || corpus.tasks.iter().filter_map(|task| task.settings.adaptive);
    if let Some(most) = round_options().filter(|rule| rule.max > rule.min).map(|rule| rule.max).max() {
        let half = most / 2;
        let settings = corpus.tasks.iter_mut().filter_map(|task| task.settings.adaptive.as_mut());
        settings.for_each(|rule| rule.max = rule.max.min(half.max(rule.min)));
        return Some(format!("adaptive micro-batches of at most {half}"));
    }
    let train = &mut config.train;
    train.micro_batch.is_multiple_of(2).then(|| {
        train.micro_batch /= 2;
        train.accumulate *= 2;
        format!("micro-batches of {}, {} of them a round", train.micro_batch, train.accumulate)
    })
}
