//! Which of a task's training rows are held out for dev and test.

use crate::data::split::SplitName;
use crate::random::mix;

/// Shares of the training rows, and what decides which.
#[derive(Clone, Copy, Debug)]
pub(super) struct HoldOut {
    pub dev: f64,
    pub test: f64,
    pub seed: u64,
}

impl HoldOut {
    /// Where each row goes. `groups` are rows that are shared out one by one, as those of a class; `places` say by row where in the
    /// files it stands, and nothing else of it counts. A group keeps one row to train on at least.
    pub(super) fn splits(&self, groups: &[Vec<usize>], places: &[u64]) -> Vec<SplitName> {
        let order = |row: usize| (mix(mix(self.seed) ^ places[row]), row);
        let mut sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        let total = places.len();
        let mut splits = vec![SplitName::Train; total];
        let mut shuffled: Vec<Vec<usize>> = groups.to_vec();
        shuffled.iter_mut().for_each(|group| group.sort_by_key(|&row| order(row)));
        for (split, share) in [(SplitName::Test, self.test), (SplitName::Dev, self.dev)] {
            let all: Vec<usize> = groups.iter().map(Vec::len).collect();
            for ((group, size), quota) in shuffled.iter_mut().zip(&mut sizes).zip(quotas(share, &all)) {
                let taken = quota.min(size.saturating_sub(1));
                group.drain(..taken).for_each(|row| splits[row] = split);
                *size -= taken;
            }
        }
        splits
    }
}

/// Rows of each group that add up to the share of all of them: whole rows first, then one each for the largest rests.
fn quotas(share: f64, sizes: &[usize]) -> Vec<usize> {
    let exact = |size: usize| share * size as f64;
    let total = exact(sizes.iter().sum()).round() as usize;
    let mut quotas: Vec<usize> = sizes.iter().map(|&size| exact(size) as usize).collect();
    let rest = |group: usize| exact(sizes[group]).fract();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|&a, &b| rest(b).total_cmp(&rest(a)));
    let left = total.saturating_sub(quotas.iter().sum());
    order.into_iter().take(left).for_each(|group| quotas[group] += 1);
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(splits: &[SplitName], rows: &[usize], split: SplitName) -> usize {
        rows.iter().filter(|&&row| splits[row] == split).count()
    }

    #[test]
    fn every_class_gives_its_share() {
        let groups: Vec<Vec<usize>> = vec![(0..700).collect(), (700..970).collect(), (970..1000).collect()];
        let places: Vec<u64> = (0..1000).collect();
        let splits = HoldOut { dev: 0.1, test: 0.2, seed: 3 }.splits(&groups, &places);
        for (rows, [dev, test]) in groups.iter().zip([[70, 140], [27, 54], [3, 6]]) {
            assert_eq!([count(&splits, rows, SplitName::Dev), count(&splits, rows, SplitName::Test)], [dev, test]);
        }
    }

    #[test]
    fn shares_add_up_over_small_classes() {
        assert_eq!(quotas(0.1, &[5, 5, 5, 5]), [1, 1, 0, 0]);
        assert_eq!(quotas(0.25, &[3, 9]), [1, 2]);
        assert_eq!(quotas(0.1, &[4]), [0]);
    }

    #[test]
    fn a_class_keeps_a_row_to_train_on() {
        let splits = HoldOut { dev: 0.45, test: 0.45, seed: 3 }.splits(&[vec![0], vec![1, 2]], &[0, 1, 2]);
        assert_eq!(splits[0], SplitName::Train);
        assert!(splits[1..].contains(&SplitName::Train));
    }

    /// Another seed, another choice; a row's choice does not hang on what else there is.
    #[test]
    fn the_seed_decides() {
        let rows: Vec<usize> = (0..100).collect();
        let places: Vec<u64> = (0..100).collect();
        let held = |seed| HoldOut { dev: 0.2, test: 0.0, seed }.splits(std::slice::from_ref(&rows), &places);
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
        let dev: Vec<usize> = rows.iter().copied().filter(|&row| held(1)[row] == SplitName::Dev).collect();
        assert_eq!(dev, [6, 8, 9, 12, 21, 28, 29, 30, 31, 34, 36, 51, 52, 67, 68, 71, 76, 84, 90, 92]);
    }
}
