//! Multi-Krum: keep the gradients with the nearest neighbours, drop those that lie apart.
//!
//! Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017. A row's
//! score is the sum of its distances (not squared, as in TorchJD) to its T - byzantine - 2 nearest others; the `selected`
//! rows of least score are averaged. Parameters: `byzantine` (1), `selected` (1). A round with fewer than byzantine + 3
//! (or fewer than selected) tasks falls back to the mean.
//!
//! Exact ties are the rule, not the exception: with one neighbour, the two nearest rows are each other's. The paper leaves
//! them open; here [`least`] decides as PyTorch's `topk` does on a CPU, so that runs agree with TorchJD's.

use super::linalg::diagonal;
use super::params::Param;
use super::registry::Descriptor;
use super::{Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "krum",
    formula: "score_i = sum of |g_i - g_j| over the T-byzantine-2 nearest j; w = 1/selected on the least scores",
    needs: Needs::GRAM,
    averages: true,
    params: &[
        Param::count("byzantine", 1, 0, "gradients that may be arbitrary"),
        Param::count("selected", 1, 1, "gradients that are averaged"),
    ],
    reference: "Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017",
    build: |params, tasks| {
        let krum = Krum { byzantine: params.count("byzantine"), selected: params.count("selected") };
        match krum.shortage(tasks) {
            Some(shortage) => Err(format!("krum {shortage}")),
            None => Ok(Box::new(krum)),
        }
    },
};

struct Krum {
    byzantine: u64,
    selected: u64,
}

impl Krum {
    /// What is missing for `rows` rows to be judged.
    fn shortage(&self, rows: usize) -> Option<String> {
        let least = self.byzantine.saturating_add(3).max(self.selected);
        let (byzantine, selected) = (self.byzantine, self.selected);
        (least > rows as u64)
            .then(|| format!("with byzantine = {byzantine}, selected = {selected} needs {least} tasks, found {rows}"))
    }
}

impl Method for Krum {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        if let Some(shortage) = self.shortage(count) {
            return Solution::mean(count, format_args!("krum {shortage}"));
        }
        let neighbours = count - self.byzantine as usize - 2;
        let scores: Vec<f64> = (0..count).map(|row| score(inputs.gram, count, row, neighbours)).collect();
        if scores.iter().any(|score| score.is_nan()) {
            return Solution::mean(count, "krum cannot rank distances that are not numbers");
        }
        let mut weights = vec![0.0; count];
        for row in least(&scores, self.selected as usize) {
            weights[row] = 1.0 / self.selected as f64;
        }
        Solution::ok(weights)
    }
}

/// Sum of row `row`'s distances to its nearest `neighbours` others.
fn score(gram: &[f64], count: usize, row: usize, neighbours: usize) -> f64 {
    let squares = diagonal(gram, count);
    let distance = |other: usize| (squares[row] + squares[other] - 2.0 * gram[row * count + other]).max(0.0).sqrt();
    let mut distances: Vec<f64> = (0..count).filter(|&other| other != row).map(distance).collect();
    distances.sort_by(f64::total_cmp);
    distances[..neighbours].iter().sum()
}

/// Indices of the `wanted` least scores (none NaN): quickselect around medians of three, which settles ties the way it does.
fn least(scores: &[f64], wanted: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let (mut from, mut to) = (0, order.len());
    while to - from > 3 {
        let cut = partition(&mut order[from..to], scores) + from;
        if cut < wanted { from = cut } else { to = cut }
    }
    // A stable sort of what is left, as insertion sort is.
    order[from..to].sort_by(|&left, &right| scores[left].total_cmp(&scores[right]));
    order.truncate(wanted);
    order
}

/// Splits `order` around the median of its second, middle and last score; returns where the upper part starts.
fn partition(order: &mut [usize], scores: &[f64]) -> usize {
    let (second, middle, last) = (1, order.len() / 2, order.len() - 1);
    let below = |order: &[usize], left: usize, right: usize| scores[order[left]] < scores[order[right]];
    let median = match (below(order, second, middle), below(order, second, last), below(order, middle, last)) {
        (true, _, true) | (false, false, false) => middle,
        (true, true, false) | (false, false, true) => last,
        (true, false, false) | (false, true, _) => second,
    };
    order.swap(0, median);
    let (mut low, mut high) = (1, order.len() - 1);
    loop {
        // The pivot's former neighbours bound both scans: one of them is not below it, one not above.
        while below(order, low, 0) {
            low += 1;
        }
        while below(order, 0, high) {
            high -= 1;
        }
        if low >= high {
            return low;
        }
        order.swap(low, high);
        low += 1;
        high -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::bits;
    use super::super::testing::{build, inputs};
    use super::super::{Status, registry};
    use super::*;
    use serde_json::{Map, json};

    #[test]
    fn the_outlier_is_not_chosen() {
        // Gram of the numbers 1, 1.1, 1.2, 100 on a line.
        let points = [1.0, 1.1, 1.2, 100.0];
        let gram: Vec<f64> = points.iter().flat_map(|a| points.iter().map(move |b| a * b)).collect();
        let mut method = build("krum", json!({"selected": 3, "byzantine": 0}), 4);
        let weights = method.solve(&Inputs { gram: &gram, ..inputs(&[0, 1, 2, 3]) }).weights;
        assert_eq!(weights, [1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0]);
    }

    /// `torch.topk(scores, k, largest=False)` of PyTorch 2.x on a CPU.
    #[test]
    fn ties_are_settled_as_in_the_reference() {
        let sorted = |scores: &[f64], wanted| {
            let mut rows = least(scores, wanted);
            rows.sort_unstable();
            rows
        };
        assert_eq!(sorted(&[1.0, 1.0, 2.0, 3.0], 1), [1]);
        assert_eq!(sorted(&[9.0, 1.0, 1.0, 3.0], 1), [1]);
        assert_eq!(sorted(&[3.0, 1.0, 2.0, 1.0, 1.0, 5.0, 1.0], 2), [3, 6]);
        assert_eq!(sorted(&[2.0; 6], 3), [3, 4, 5]);
        assert_eq!(sorted(&[4.0, 2.0, 2.0, 7.0, 1.0, 2.0, 9.0, 2.0], 3), [4, 5, 7]);
        assert_eq!(sorted(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0], 2), [2, 4]);
    }

    #[test]
    fn selection_finds_the_least() {
        for seed in 0..50 {
            let count = 4 + seed as usize % 20;
            let scores: Vec<f64> = (0..count as u64).map(|row| (bits(seed, 0, row) % 7) as f64).collect();
            for wanted in 1..=count {
                let mut found: Vec<f64> = least(&scores, wanted).into_iter().map(|row| scores[row]).collect();
                let mut sorted = scores.clone();
                sorted.sort_by(f64::total_cmp);
                found.sort_by(f64::total_cmp);
                assert_eq!(found, sorted[..wanted]);
            }
        }
    }

    #[test]
    fn too_few_tasks_are_refused_at_build_and_survived_in_a_round() {
        let fault = registry::build("krum", &Map::new(), 3).err().expect("a fault");
        assert_eq!(fault, "krum with byzantine = 1, selected = 1 needs 4 tasks, found 3");
        let solution = build("krum", json!({}), 4).solve(&Inputs { gram: &[1.0], ..inputs(&[2]) });
        assert_eq!(solution.weights, [1.0]);
        assert!(matches!(solution.status, Status::Fallback(_)));
    }
}
