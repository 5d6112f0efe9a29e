//! What the conflicts of a run came to, round by round: every round counts, whether it is reported or not.

use serde::Serialize;
use serde_json::{Value, json};

use super::conflict::{Conflicts, RoundConflicts};
use super::methods::state::{Saved, pack_all};

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
}

/// Two tasks and how they got on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    pub tasks: [usize; 2],
    /// Moving mean.
    pub cosine: f64,
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
    /// Mean over the pairs of the cosines' moving means.
    pub cosine: f64,
}

/// As [`Pair`], with names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamedPair {
    pub tasks: [String; 2],
    pub cosine: f64,
    pub share: f64,
    pub rounds: u64,
}

impl Pair {
    pub fn named(&self, names: &[&str]) -> NamedPair {
        let tasks = self.tasks.map(|task| names[task].to_owned());
        NamedPair { tasks, cosine: self.cosine, share: self.share, rounds: self.rounds }
    }
}

impl Ledger {
    pub fn new(tasks: usize) -> Self {
        let zeros = vec![0.0; tasks * tasks];
        Self { tasks, cosines: zeros.clone(), rounds: zeros.clone(), conflicts: zeros }
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
    }

    /// (T x T) moving means of these tasks' cosines.
    pub fn cosines(&self, tasks: &[usize]) -> Vec<f64> {
        tasks.iter().flat_map(|one| tasks.iter().map(move |other| self.cosines[one * self.tasks + other])).collect()
    }

    /// At most `most` pairs that have conflicted, the most opposed first.
    pub fn worst(&self, most: usize) -> Vec<Pair> {
        let pairs = (0..self.tasks).flat_map(|i| (i + 1..self.tasks).map(move |j| [i, j]));
        let mut found: Vec<Pair> = pairs.filter_map(|tasks| self.pair(tasks)).collect();
        found.sort_by(|a, b| a.cosine.total_cmp(&b.cosine));
        found.truncate(most);
        found
    }

    fn pair(&self, tasks: [usize; 2]) -> Option<Pair> {
        let cell = tasks[0] * self.tasks + tasks[1];
        let (rounds, conflicts) = (self.rounds[cell], self.conflicts[cell]);
        let pair = || Pair { tasks, cosine: self.cosines[cell], share: conflicts / rounds, rounds: rounds as u64 };
        (conflicts > 0.0).then(pair)
    }

    /// Conflict share and mean cosine over all pairs that met; none if no pair did.
    fn over_pairs(&self) -> Option<[f64; 2]> {
        let cells = || (0..self.tasks).flat_map(|i| (i + 1..self.tasks).map(move |j| i * self.tasks + j));
        let met = || cells().filter(|&cell| self.rounds[cell] > 0.0);
        let sum = |values: &[f64]| met().map(|cell| values[cell]).sum::<f64>();
        let rounds = sum(&self.rounds);
        (rounds > 0.0).then(|| [sum(&self.conflicts) / rounds, sum(&self.cosines) / met().count() as f64])
    }

    fn state(&self) -> Value {
        json!({ "cosines": pack_all(&self.cosines), "rounds": pack_all(&self.rounds), "conflicts": pack_all(&self.conflicts) })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open("conflicts", state)?;
        let values = |name| saved.values(name, self.tasks * self.tasks);
        (self.cosines, self.rounds, self.conflicts) = (values("cosines")?, values("rounds")?, values("conflicts")?);
        Ok(())
    }
}

/// What the conflicts of a run came to, in the whole encoder and in each of its blocks.
pub struct RunLedger {
    pub whole: Ledger,
    /// (B); empty where the encoder is one block.
    blocks: Vec<Ledger>,
}

impl RunLedger {
    pub fn new(tasks: usize, blocks: usize) -> Self {
        let parts = if blocks > 1 { blocks } else { 0 };
        Self { whole: Ledger::new(tasks), blocks: (0..parts).map(|_| Ledger::new(tasks)).collect() }
    }

    /// Adds a round of the present `tasks` (run-wide indices).
    pub fn add(&mut self, conflicts: &RoundConflicts, tasks: &[usize]) {
        self.whole.add(&conflicts.whole, tasks);
        self.blocks.iter_mut().zip(&conflicts.blocks).for_each(|(ledger, block)| ledger.add(block, tasks));
    }

    /// (1 + B) of (T x T): moving means of these tasks' cosines in the whole encoder, then in each block.
    pub fn cosines(&self, tasks: &[usize]) -> Vec<Vec<f64>> {
        std::iter::once(&self.whole).chain(&self.blocks).map(|ledger| ledger.cosines(tasks)).collect()
    }

    /// At most `most` blocks in which tasks have conflicted, by the share of conflicts.
    pub fn contested(&self, names: &[String], most: usize) -> Vec<ContestedBlock> {
        let block = |(name, ledger): (&String, &Ledger)| {
            let [share, cosine] = ledger.over_pairs()?;
            (share > 0.0).then(|| ContestedBlock { block: name.clone(), share, cosine })
        };
        let mut found: Vec<ContestedBlock> = names.iter().zip(&self.blocks).filter_map(block).collect();
        found.sort_by(|a, b| b.share.total_cmp(&a.share));
        found.truncate(most);
        found
    }

    /// For the checkpoint.
    pub fn state(&self) -> Value {
        json!({ "whole": self.whole.state(), "blocks": self.blocks.iter().map(Ledger::state).collect::<Vec<_>>() })
    }

    /// Takes back what [`RunLedger::state`] gave.
    pub fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open("conflicts", state)?;
        let blocks = saved.field("blocks")?.as_array().filter(|blocks| blocks.len() == self.blocks.len());
        let blocks = blocks.ok_or_else(|| format!("conflicts: the saved state is not of {} blocks", self.blocks.len()))?;
        self.whole.restore(saved.field("whole")?)?;
        self.blocks.iter_mut().zip(blocks).try_for_each(|(ledger, block)| ledger.restore(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_counts_only_common_rounds() {
        let mut ledger = Ledger::new(3);
        ledger.add(&Conflicts::of(&[1.0, -0.5, -0.5, 1.0], 2), &[0, 2]);
        ledger.add(&Conflicts::of(&[1.0, 0.5, 0.5, 1.0], 2), &[0, 2]);
        ledger.add(&Conflicts::of(&[1.0, 0.5, 0.5, 1.0], 2), &[0, 1]);
        let worst = ledger.worst(5);
        assert_eq!(worst.len(), 1);
        assert_eq!((worst[0].tasks, worst[0].share, worst[0].rounds), ([0, 2], 0.5, 2));
        assert!((worst[0].cosine + 0.45).abs() < 1e-12);
        let mut copy = Ledger::new(3);
        copy.restore(&ledger.state()).unwrap();
        assert_eq!(copy.worst(5), worst);
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
