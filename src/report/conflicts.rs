//! How the tasks' gradients got on, from the `conflict` lines.

use std::collections::BTreeMap;

use super::curve::{Curve, Thinned};
use super::lines::{Conflict, ConflictMaps, Map};

/// Steps of the heat map's slider, at least so many where there are twice as many lines.
const STEPS: usize = 30;

/// Blocks with a curve of their own.
const MOST_BLOCKS: usize = 256;

#[derive(Default)]
pub struct Conflicts {
    /// Lines read.
    pub lines: u64,
    /// Share of pairs with a negative product: in the whole encoder, and by block.
    pub share: Curve,
    pub block_shares: BTreeMap<String, Curve>,
    pub tasks: BTreeMap<String, TaskConflicts>,
    /// The lines themselves, for the heat map, if there is to be one.
    kept: Option<Thinned<Vec<u8>>>,
}

#[derive(Default)]
pub struct TaskConflicts {
    pub norm: Curve,
    /// Change of the task's weight by surgery.
    pub change: Curve,
    /// Lines the task was in, and those in which surgery took weight from it.
    pub lines: u64,
    pub yielded: u64,
    pub others: BTreeMap<String, Pair>,
}

/// With another task.
#[derive(Clone, Copy, Default)]
pub struct Pair {
    pub lines: u64,
    pub conflicts: u64,
    pub sum_cosines: f64,
}

impl Pair {
    pub fn mean_cosine(&self) -> f64 {
        self.sum_cosines / self.lines as f64
    }
}

impl Conflicts {
    pub fn new(with_maps: bool) -> Self {
        Self { kept: with_maps.then(|| Thinned::new(STEPS)), ..Self::default() }
    }

    /// `text` is the line itself.
    pub fn add(&mut self, line: &Conflict, text: &[u8]) {
        let x = line.round as f64;
        self.lines += 1;
        // A task alone has nobody to conflict with.
        if line.tasks.len() > 1 {
            self.share.add(x, line.share.unwrap_or(f64::NAN));
            if let Some(kept) = &mut self.kept {
                kept.add(text.to_vec());
            }
        }
        for (block, share) in line.blocks.iter().filter(|_| line.tasks.len() > 1) {
            if self.block_shares.len() < MOST_BLOCKS || self.block_shares.contains_key(block) {
                self.block_shares.entry(block.clone()).or_default().add(x, share.share.unwrap_or(f64::NAN));
            }
        }
        for (number, task) in line.tasks.iter().enumerate() {
            let own = self.tasks.entry(task.clone()).or_default();
            own.lines += 1;
            let at = |values: &[Option<f64>]| values.get(number).copied().flatten().unwrap_or(f64::NAN);
            let (norm, yielded) = (at(&line.norms), at(&line.yielded));
            own.norm.add(x, norm);
            own.change.add(x, yielded / norm);
            own.yielded += u64::from(yielded < 0.0);
            let cosines = line.cosines.get(number).map_or(&[][..], Vec::as_slice);
            for (other, cosine) in line.tasks.iter().zip(cosines).filter(|(other, _)| *other != task) {
                let Some(cosine) = cosine else { continue };
                let pair = own.others.entry(other.clone()).or_default();
                pair.lines += 1;
                pair.conflicts += u64::from(*cosine < 0.0);
                pair.sum_cosines += cosine;
            }
        }
    }

    /// The lines that the heat map shows, in order.
    pub fn maps(&self) -> Vec<ConflictMaps> {
        self.kept.iter().flat_map(Thinned::kept).filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

impl TaskConflicts {
    /// Share of its pairs that conflicted.
    pub fn share(&self) -> Option<f64> {
        let sum = |of: fn(&Pair) -> u64| self.others.values().map(of).sum::<u64>();
        let lines = sum(|pair| pair.lines);
        (lines > 0).then(|| sum(|pair| pair.conflicts) as f64 / lines as f64)
    }

    /// Whose gradient pointed most against its own, where one did on average.
    pub fn opponent(&self) -> Option<(&str, f64)> {
        let means = self.others.iter().map(|(name, pair)| (name.as_str(), pair.mean_cosine()));
        means.min_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, cosine)| *cosine < 0.0)
    }
}

impl ConflictMaps {
    /// Names of the maps of a line: the whole encoder, then its blocks.
    pub fn parts(&self) -> impl Iterator<Item = (&str, &Map)> {
        let blocks = self.blocks.iter().map(|(name, map)| (name.as_str(), map));
        std::iter::once(("", &self.whole)).chain(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(round: u64, cosine: f64) -> (Conflict, Vec<u8>) {
        let square = serde_json::json!([[1.0, cosine], [cosine, 1.0]]);
        let line = serde_json::json!({
            "round": round, "tasks": ["a", "b"], "norms": [2.0, 1.0], "cosines": square, "mean_cosines": square,
            "share": f64::from(u8::from(cosine < 0.0)), "yielded": [-1.0, 0.5],
        });
        (serde_json::from_value(line.clone()).unwrap(), line.to_string().into_bytes())
    }

    #[test]
    fn it_is_counted_who_opposes_whom_and_who_yields() {
        let mut conflicts = Conflicts::new(true);
        for (round, cosine) in [-0.5, -0.25, 0.25].into_iter().enumerate() {
            let (line, text) = line(round as u64, cosine);
            conflicts.add(&line, &text);
        }
        let a = &conflicts.tasks["a"];
        assert_eq!((a.lines, a.yielded, a.opponent().unwrap().0), (3, 3, "b"));
        assert!((a.share().unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(a.change.mean(), Some(-0.5));
        assert_eq!(conflicts.tasks["b"].yielded, 0);
        let maps = conflicts.maps();
        assert_eq!((maps.len(), maps[2].whole.mean_cosines[0][1]), (3, Some(0.25)));
    }
}
