//! How many micro-batches each task gets in a round.
//!
//! Dealing is stratified: after any number of rounds a task has received its share to within one micro-batch. It is a pure
//! function of the round and of which tasks are done, so a resumed run deals the same.

/// What the dealer knows of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSampling {
    /// Micro-batches per round on average; 1 for each task under `round_robin`.
    pub rate: f64,
    /// Offset in [0, 1) that keeps tasks of one rate from taking part in the same rounds.
    pub phase: f64,
    /// Present every `period`-th round.
    pub period: u64,
    /// Rounds after which the task is done.
    pub rounds: Option<u64>,
    /// Tasks that must be done before this one starts.
    pub parents: Vec<usize>,
}

/// Sampling shares p ~ min(n, cap)^(1 / temperature), scaled so that all tasks together get `slots` micro-batches.
pub fn proportional_rates(sizes: &[u64], cap: u64, temperature: f64, slots: f64) -> Vec<f64> {
    let counted = |&size: &u64| if cap > 0 { size.min(cap) } else { size };
    // Relative to the largest, so that no power of it is beyond f64.
    let largest = sizes.iter().map(counted).max().unwrap_or(1) as f64;
    let weight = |size: &u64| (counted(size) as f64 / largest).powf(1.0 / temperature);
    share(&sizes.iter().map(weight).collect::<Vec<_>>(), slots)
}

/// `slots` divided in proportion to the weights.
pub fn share(weights: &[f64], slots: f64) -> Vec<f64> {
    let largest = weights.iter().copied().fold(0.0, f64::max);
    let weights: Vec<f64> = weights.iter().map(|weight| weight / largest).collect();
    let total: f64 = weights.iter().sum();
    // A share that is a whole number but for rounding is meant to be one.
    let snap = |rate: f64| if (rate - rate.round()).abs() < 1e-9 { rate.round() } else { rate };
    weights.iter().map(|weight| snap(slots * weight / total)).collect()
}

impl TaskSampling {
    pub fn is_done(&self, taken: u64) -> bool {
        self.rounds.is_some_and(|rounds| taken >= rounds)
    }

    /// Most micro-batches that one round can bring.
    pub fn most(&self) -> usize {
        self.rate.ceil() as usize
    }
}

/// Micro-batches of each task in round `round`; 0 means absent.
pub fn deal(samplings: &[TaskSampling], round: u64, done: &[bool]) -> Vec<usize> {
    let dealt = |(task, sampling): (usize, &TaskSampling)| {
        let waiting = sampling.parents.iter().any(|&parent| !done[parent]);
        if waiting || done[task] || !round.is_multiple_of(sampling.period) {
            return 0;
        }
        let turn = (round / sampling.period) as f64;
        let before = (turn * sampling.rate + sampling.phase).floor();
        (((turn + 1.0) * sampling.rate + sampling.phase).floor() - before) as usize
    };
    samplings.iter().enumerate().map(dealt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(rate: f64) -> TaskSampling {
        TaskSampling { rate, phase: 0.0, period: 1, rounds: None, parents: Vec::new() }
    }

    #[test]
    fn equal_sizes_all_take_part_in_every_round() {
        let rates = proportional_rates(&[1400; 16], 0, 1.0, 16.0);
        assert_eq!(rates, [1.0; 16]);
        let samplings: Vec<TaskSampling> = rates.into_iter().map(|rate| TaskSampling { phase: 0.7, ..sampling(rate) }).collect();
        assert!((0..100).all(|round| deal(&samplings, round, &[false; 16]) == [1; 16]));
    }

    #[test]
    fn temperature_and_cap_flatten() {
        assert_eq!(proportional_rates(&[100, 10_000], 0, 2.0, 11.0), [1.0, 10.0]);
        assert_eq!(proportional_rates(&[100, 10_000], 100, 1.0, 2.0), [1.0, 1.0]);
    }

    #[test]
    fn extreme_weights_give_finite_shares() {
        assert_eq!(proportional_rates(&[100, 10_000], 0, 1e-300, 2.0), [0.0, 2.0]);
        assert_eq!(proportional_rates(&[100, 10_000], 0, f64::MAX, 2.0), [1.0, 1.0]);
        assert_eq!(share(&[f64::MAX, f64::MAX], 2.0), [1.0, 1.0]);
    }

    #[test]
    fn periods_and_ends() {
        let samplings = [TaskSampling { period: 3, ..sampling(1.0) }, TaskSampling { rounds: Some(2), ..sampling(2.0) }];
        assert_eq!(deal(&samplings, 0, &[false; 2]), [1, 2]);
        assert_eq!(deal(&samplings, 1, &[false; 2]), [0, 2]);
        assert_eq!(deal(&samplings, 3, &[false, true]), [1, 0]);
        assert!(!samplings[1].is_done(1) && samplings[1].is_done(2) && !samplings[0].is_done(9));
    }

    #[test]
    fn a_child_waits_for_its_parent() {
        let samplings = [TaskSampling { rounds: Some(2), ..sampling(1.0) }, TaskSampling { parents: vec![0], ..sampling(1.0) }];
        assert_eq!(deal(&samplings, 0, &[false; 2]), [1, 0]);
        assert_eq!(deal(&samplings, 2, &[true, false]), [0, 1]);
    }

    proptest! {
        #[test]
        fn shares_are_kept_to_within_one(sizes in prop::collection::vec(1u64..100_000, 1..20), rounds in 1u64..500) {
            let slots = sizes.len() as f64;
            let samplings: Vec<TaskSampling> =
                proportional_rates(&sizes, 0, 1.5, slots).into_iter().map(|rate| TaskSampling { phase: 0.3, ..sampling(rate) }).collect();
            let done = vec![false; samplings.len()];
            let mut total = vec![0usize; samplings.len()];
            for round in 0..rounds {
                for ((total, dealt), sampling) in total.iter_mut().zip(deal(&samplings, round, &done)).zip(&samplings) {
                    prop_assert!(dealt <= sampling.most());
                    *total += dealt;
                }
            }
            for (total, sampling) in total.iter().zip(&samplings) {
                prop_assert!((*total as f64 - sampling.rate * rounds as f64).abs() < 1.0 + 1e-6);
            }
        }
    }
}
