//! What the conflicts of a run came to, round by round: every round counts, whether it is reported or not.

use serde::Serialize;
use serde_json::{Value, json};

use super::conflict::{Conflicts, RoundConflicts};
use super::methods::state::{Saved, pack_all};
use super::spread::{self, Spread};

/// Weight of a new cosine in the moving mean.
const FRESH: f64 = 0.05;

/// What the conflicts of a run came to: every round counts, whether it is reported or not.
pub struct Ledger {
    tasks: usize,
    /// (tasks x tasks) moving means of the cosines, 0 before the first.
    cosines: Vec<f64>,
    /// (tasks x tasks) rounds in which both were present, and in which they conflicted.
    rounds: Vec<f64>,
    conflicts: Vec<f64>,
    /// Over the rounds, of the mean of the present pairs' cosines.
    mean: Spread,
}

/// Two tasks and how they got on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    pub tasks: [usize; 2],
    /// Over their common rounds.
    pub cosine: Spread,
    /// Share of their common rounds with a negative product.
    pub share: f64,
    pub rounds: u64,
}

/// A block of the encoder and how the tasks got on in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ContestedBlock {
    pub block: String,
    /// Share of all (pair, round) with a negative product.
    pub share: f64,
    #[serde(flatten)]
    pub cosine: MeanCosine,
}

/// A mean cosine, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeanCosine {
    /// Mean over the rounds: of a pair's cosine, or of the mean over the pairs that were present.
    pub cosine: f64,
    /// Of that mean; none of fewer than two rounds.
    pub standard_error: Option<f64>,
    /// It differs from 0 by more than two standard errors.
    #[serde(skip)]
    pub is_sure: bool,
}

impl From<Spread> for MeanCosine {
    fn from(spread: Spread) -> Self {
        Self { cosine: spread.mean(), standard_error: spread.standard_error(), is_sure: spread.differs_from_zero() }
    }
}

/// As [`Pair`], with names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamedPair {
    pub tasks: [String; 2],
    #[serde(flatten)]
    pub cosine: MeanCosine,
    pub share: f64,
    pub rounds: u64,
}

impl Pair {
    pub fn named(&self, names: &[&str]) -> NamedPair {
        let tasks = self.tasks.map(|task| names[task].to_owned());
        NamedPair { tasks, cosine: self.cosine.into(), share: self.share, rounds: self.rounds }
    }
}

impl Ledger {
    pub fn new(tasks: usize) -> Self {
        let zeros = vec![0.0; tasks * tasks];
        Self { tasks, cosines: zeros.clone(), rounds: zeros.clone(), conflicts: zeros, mean: Spread::default() }
    }

    /// Adds a round of the present `tasks` (run-wide indices).
    pub fn add(&mut self, conflicts: &Conflicts, tasks: &[usize]) {
        for (i, &one) in tasks.iter().enumerate() {
            for (j, &other) in tasks.iter().enumerate() {
                let (cell, cosine) = (one * self.tasks + other, conflicts.cosines[i * tasks.len() + j]);
                let share = if self.rounds[cell] == 0.0 { 1.0 } else { FRESH };
                self.cosines[cell] += share * (cosine - self.cosines[cell]);
                self.rounds[cell] += 1.0;
                self.conflicts[cell] += f64::from(cosine < 0.0);
            }
        }
        if let Some(mean) = mean_over_pairs(conflicts, tasks.len()) {
            self.mean.add(mean);
        }
    }

    /// (T x T) moving means of these tasks' cosines.
    pub fn cosines(&self, tasks: &[usize]) -> Vec<f64> {
        tasks.iter().flat_map(|one| tasks.iter().map(move |other| self.cosines[one * self.tasks + other])).collect()
    }

    /// Conflict share over all pairs that met; none if no pair did.
    fn share(&self) -> Option<f64> {
        let cells = || pairs(self.tasks).map(|[i, j]| i * self.tasks + j);
        let sum = |values: &[f64]| cells().map(|cell| values[cell]).sum::<f64>();
        let rounds = sum(&self.rounds);
        (rounds > 0.0).then(|| sum(&self.conflicts) / rounds)
    }

    fn state(&self) -> Value {
        json!({
            "cosines": pack_all(&self.cosines),
            "rounds": pack_all(&self.rounds),
            "conflicts": pack_all(&self.conflicts),
            "mean": spread::pack(&[self.mean]),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open("conflicts", state)?;
        let values = |name| saved.values(name, self.tasks * self.tasks);
        (self.cosines, self.rounds, self.conflicts) = (values("cosines")?, values("rounds")?, values("conflicts")?);
        restore_spreads(state, "mean", std::slice::from_mut(&mut self.mean))
    }
}

/// Every two of so many tasks.
fn pairs(tasks: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..tasks).flat_map(move |i| (i + 1..tasks).map(move |j| [i, j]))
}

/// None of fewer than two tasks.
fn mean_over_pairs(conflicts: &Conflicts, tasks: usize) -> Option<f64> {
    let sum: f64 = pairs(tasks).map(|[i, j]| conflicts.cosines[i * tasks + j]).sum();
    (tasks > 1).then(|| sum / pairs(tasks).count() as f64)
}

/// Checkpoints of earlier versions have none: what is counted then begins with the rounds after them.
fn restore_spreads(state: &Value, name: &str, into: &mut [Spread]) -> Result<(), String> {
    state.get(name).map_or(Ok(()), |saved| spread::unpack("conflicts", saved, into))
}

/// What the conflicts of a run came to, in the whole encoder and in each of its blocks.
pub struct RunLedger {
    whole: Ledger,
    /// By pair as [`pairs`] has them: the cosine in the whole encoder.
    spreads: Vec<Spread>,
    /// (B); empty where the encoder is one block.
    blocks: Vec<Ledger>,
}

impl RunLedger {
    pub fn new(tasks: usize, blocks: usize) -> Self {
        let parts = if blocks > 1 { blocks } else { 0 };
        let spreads = vec![Spread::default(); pairs(tasks).count()];
        Self { whole: Ledger::new(tasks), spreads, blocks: (0..parts).map(|_| Ledger::new(tasks)).collect() }
    }

    /// Adds a round of the present `tasks` (run-wide indices).
    pub fn add(&mut self, conflicts: &RoundConflicts, tasks: &[usize]) {
        self.whole.add(&conflicts.whole, tasks);
        for [i, j] in pairs(tasks.len()) {
            let place = place(self.whole.tasks, tasks[i].min(tasks[j]), tasks[i].max(tasks[j]));
            self.spreads[place].add(conflicts.whole.cosines[i * tasks.len() + j]);
        }
        self.blocks.iter_mut().zip(&conflicts.blocks).for_each(|(ledger, block)| ledger.add(block, tasks));
    }

    /// (1 + B) of (T x T): moving means of these tasks' cosines in the whole encoder, then in each block.
    pub fn cosines(&self, tasks: &[usize]) -> Vec<Vec<f64>> {
        std::iter::once(&self.whole).chain(&self.blocks).map(|ledger| ledger.cosines(tasks)).collect()
    }

    /// At most `most` pairs that have conflicted, the most opposed first; those whose mean cosine may be noise come last.
    pub fn worst(&self, most: usize) -> Vec<Pair> {
        let mut found: Vec<Pair> =
            pairs(self.whole.tasks).zip(&self.spreads).filter_map(|(tasks, cosine)| self.pair(tasks, *cosine)).collect();
        let may_be_noise = |pair: &Pair| !pair.cosine.differs_from_zero();
        let order = |a: &Pair, b: &Pair| a.cosine.mean().total_cmp(&b.cosine.mean());
        found.sort_by(|a, b| may_be_noise(a).cmp(&may_be_noise(b)).then(order(a, b)));
        found.truncate(most);
        found
    }

    fn pair(&self, tasks: [usize; 2], cosine: Spread) -> Option<Pair> {
        let cell = tasks[0] * self.whole.tasks + tasks[1];
        let (rounds, conflicts) = (self.whole.rounds[cell], self.whole.conflicts[cell]);
        (conflicts > 0.0).then(|| Pair { tasks, cosine, share: conflicts / rounds, rounds: rounds as u64 })
    }

    /// At most `most` blocks in which tasks have conflicted, by the share of conflicts; those whose mean cosine may be noise come
    /// last.
    pub fn contested(&self, names: &[String], most: usize) -> Vec<ContestedBlock> {
        let block = |(name, ledger): (&String, &Ledger)| {
            let share = ledger.share()?;
            (share > 0.0).then(|| ContestedBlock { block: name.clone(), share, cosine: ledger.mean.into() })
        };
        let mut found: Vec<ContestedBlock> = names.iter().zip(&self.blocks).filter_map(block).collect();
        let order = |a: &ContestedBlock, b: &ContestedBlock| b.cosine.is_sure.cmp(&a.cosine.is_sure);
        found.sort_by(|a, b| order(a, b).then(b.share.total_cmp(&a.share)));
        found.truncate(most);
        found
    }

    /// For the checkpoint.
    pub fn state(&self) -> Value {
        let blocks: Vec<Value> = self.blocks.iter().map(Ledger::state).collect();
        json!({ "whole": self.whole.state(), "spreads": spread::pack(&self.spreads), "blocks": blocks })
    }

    /// Takes back what [`RunLedger::state`] gave.
    pub fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open("conflicts", state)?;
        let blocks = saved.field("blocks")?.as_array().filter(|blocks| blocks.len() == self.blocks.len());
        let blocks = blocks.ok_or_else(|| format!("conflicts: the saved state is not of {} blocks", self.blocks.len()))?;
        self.whole.restore(saved.field("whole")?)?;
        restore_spreads(state, "spreads", &mut self.spreads)?;
        self.blocks.iter_mut().zip(blocks).try_for_each(|(ledger, block)| ledger.restore(block))
    }
}

/// Where [`pairs`] has two tasks, `i` before `j`.
fn place(tasks: usize, i: usize, j: usize) -> usize {
    i * (2 * tasks - i - 1) / 2 + j - i - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(tasks: usize, rounds: &[(f64, [usize; 2])]) -> RunLedger {
        let mut ledger = RunLedger::new(tasks, 1);
        for (product, tasks) in rounds {
            let whole = Conflicts::of(&[1.0, *product, *product, 1.0], 2);
            ledger.add(&RoundConflicts { whole, blocks: Vec::new() }, tasks);
        }
        ledger
    }

    #[test]
    fn every_pair_has_a_place() {
        for (at, [i, j]) in pairs(7).enumerate() {
            assert_eq!(place(7, i, j), at);
        }
    }

    #[test]
    fn the_ledger_counts_only_common_rounds() {
        let ledger = ledger(3, &[(-0.5, [0, 2]), (0.5, [2, 0]), (0.5, [0, 1])]);
        let worst = ledger.worst(5);
        assert_eq!(worst.len(), 1);
        assert_eq!((worst[0].tasks, worst[0].share, worst[0].rounds), ([0, 2], 0.5, 2));
        assert_eq!((worst[0].cosine.mean(), worst[0].cosine.differs_from_zero()), (0.0, false));
        assert!((ledger.cosines(&[0, 2])[0][1] + 0.45).abs() < 1e-12);
        let mut copy = RunLedger::new(3, 1);
        copy.restore(&ledger.state()).unwrap();
        assert_eq!(copy.worst(5), worst);
    }

    #[test]
    fn what_may_be_noise_comes_last() {
        let sure = [(-0.2, [0, 1]), (-0.21, [0, 1]), (-0.2, [0, 1])];
        let noise = [(-0.9, [1, 2]), (0.1, [1, 2])];
        let worst = ledger(3, &[&sure[..], &noise].concat()).worst(5);
        assert_eq!([worst[0].tasks, worst[1].tasks], [[0, 1], [1, 2]]);
    }

    /// The counts go on; means over the rounds begin where there were none.
    #[test]
    fn a_checkpoint_of_an_earlier_version_has_no_spreads() {
        let before = ledger(2, &[(-0.5, [0, 1]), (-0.5, [0, 1])]);
        let mut state = before.state();
        state.as_object_mut().unwrap().remove("spreads");
        state["whole"].as_object_mut().unwrap().remove("mean");
        let mut after = RunLedger::new(2, 1);
        after.restore(&state).unwrap();
        let pair = &after.worst(1)[0];
        assert_eq!((pair.rounds, pair.cosine.standard_error()), (2, None));
    }

    #[test]
    fn the_most_contested_block_comes_first() {
        let round = |product: f64| Conflicts::of(&[1.0, product, product, 1.0], 2);
        let mut ledger = RunLedger::new(2, 3);
        for products in [[0.5, -0.5, -0.1], [0.5, -0.5, 0.1]] {
            let conflicts = RoundConflicts { whole: round(-0.1), blocks: products.map(round).to_vec() };
            ledger.add(&conflicts, &[0, 1]);
        }
        let names = ["a", "b", "c"].map(str::to_owned);
        let found = ledger.contested(&names, 5);
        let shares: Vec<(&str, f64)> = found.iter().map(|block| (block.block.as_str(), block.share)).collect();
        assert_eq!(shares, [("b", 1.0), ("c", 0.5)]);
        let mut copy = RunLedger::new(2, 3);
        copy.restore(&ledger.state()).unwrap();
        assert_eq!(copy.contested(&names, 5), found);
        assert!(RunLedger::new(2, 2).restore(&ledger.state()).is_err());
    }
}
