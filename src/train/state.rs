//! What a run remembers at its start, and whether a checkpoint's memory fits the data.

use anyhow::{Context, Result};

use crate::config::Config;
use crate::data::cursor::Cursor;
use crate::data::{Corpus, Split, TaskData};
use crate::train::checkpoint::{State, TaskFailures, TaskState};
use crate::train::plan::Plan;
use crate::train::round::Trainer;
use crate::train::shapes::largest_micro_batch;

/// A checkpoint continues only over the data it was made from.
pub fn check_data(corpus: &Corpus, state: &State) -> Result<()> {
    let advice = "restore the files, or start a new run";
    let ours: Vec<&str> = corpus.tasks.iter().map(|task| task.name.as_str()).collect();
    let theirs: Vec<&str> = state.tasks.iter().map(|task| task.name.as_str()).collect();
    anyhow::ensure!(
        ours == theirs,
        "the data now has the tasks {}, the run started with {}; {advice}",
        ours.join(", "),
        theirs.join(", ")
    );
    let pairs = corpus.tasks.iter().zip(&state.tasks);
    let changed: Vec<&str> =
        pairs.filter(|(task, state)| fingerprint(task) != state.data).map(|(task, _)| task.name.as_str()).collect();
    anyhow::ensure!(changed.is_empty(), "the data of {} is not what the run started with; {advice}", changed.join(", "));
    Ok(())
}

/// Scales the data and weighs its classes as for the checkpoint, whatever the configuration says: one of an earlier version was
/// trained on it as it is.
pub fn scale_data(corpus: &mut Corpus, state: &State) -> Result<()> {
    for (task, kept) in corpus.tasks.iter_mut().zip(&state.tasks) {
        let scaled = task.scale(kept.feature_scale.clone(), kept.label_scale.clone());
        let weighed = scaled.and_then(|()| task.take_class_weights(kept.class_weights.clone()));
        weighed.with_context(|| format!("task {}: the checkpoint does not fit the data", task.name))?;
    }
    Ok(())
}

/// Tasks whose settings ask for features to be scaled, and whose checkpoint was trained without.
pub fn unscaled_tasks<'a>(corpus: &'a Corpus, state: &State) -> Vec<&'a str> {
    let tasks = corpus.tasks.iter().zip(&state.tasks);
    let unscaled = tasks.filter(|(task, kept)| task.scales_features() && kept.feature_scale.is_none());
    unscaled.map(|(task, _)| task.name.as_str()).collect()
}

/// What a checkpoint counts has to lie within what the run can have done: training goes on from these numbers.
pub(super) fn check_counts(config: &Config, corpus: &Corpus, plan: &Plan, state: &State) -> Result<()> {
    let within = |what: &str, found: u64, most: u64| {
        anyhow::ensure!(found <= most, "its state says {found} for {what}, this run can have {most} at most");
        Ok(())
    };
    within("round", state.round, plan.rounds)?;
    for (what, rounds) in
        [("commits", state.commits), ("dropped_rounds", state.dropped_rounds), ("bad_rounds", state.bad_rounds.into())]
    {
        within(what, rounds, state.round)?;
    }
    within("the rounds in `took`", state.took.len() as u64, state.round)?;
    if let Some(under_way) = state.evaluation {
        let examples: usize = corpus.tasks.iter().filter_map(|task| task.dev.as_ref()).map(Split::len).sum();
        within("evaluation.batches", under_way.batches, examples as u64)?;
    }
    for (task, counted) in corpus.tasks.iter().zip(&state.tasks) {
        let named = |what: &str| format!("{what} of task {}", task.name);
        within(&named("cursor.position"), counted.cursor.position, task.train.len() as u64 - 1)?;
        within(&named("reached"), counted.reached.unwrap_or(0), state.round)?;
        let largest = largest_micro_batch(config, &task.settings) as u64;
        within(&named("micro_batch"), counted.micro_batch.unwrap_or(1) as u64, largest)?;
        anyhow::ensure!(counted.micro_batch != Some(0), "its state says 0 for {}", named("micro_batch"));
    }
    Ok(())
}

fn fingerprint(task: &TaskData) -> String {
    blake3::Hash::from_bytes(task.fingerprint).to_hex().to_string()
}

/// Nothing has been done yet.
pub(super) fn fresh_state(corpus: &Corpus, trainer: &Trainer) -> State {
    let task = |task: &TaskData| TaskState {
        name: task.name.clone(),
        kind: task.settings.head,
        outputs: task.outputs,
        classes: task.classes.clone(),
        data: fingerprint(task),
        features: task.settings.features.clone(),
        feature_scale: task.feature_scale.as_deref().cloned(),
        label_scale: task.label_scale.clone(),
        class_weights: task.class_weights.as_deref().map(<[f32]>::to_vec),
        taken: 0,
        cursor: Cursor::default(),
        reached: None,
        micro_batch: None,
        watch: Default::default(),
        failures: TaskFailures::default(),
    };
    State {
        version: State::version(),
        round: 0,
        commits: 0,
        bad_rounds: 0,
        dropped_rounds: 0,
        evaluation_due: false,
        evaluation: None,
        best: None,
        evaluations_without_best: 0,
        stopped_early: false,
        tasks: corpus.tasks.iter().map(task).collect(),
        incidents: Vec::new(),
        took: Vec::new(),
        faults: Default::default(),
        method: trainer.method().name().to_owned(),
        method_state: trainer.method_state(),
        balancer: trainer.solver.balancer.name().to_owned(),
        balancer_state: trainer.solver.balancer.state(),
        conflicts: trainer.solver.ledger.state(),
        fallbacks: Default::default(),
        events: 0,
        hashes: Default::default(),
    }
}
