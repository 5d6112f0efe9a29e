//! Which micro-batches of a round are packed into one fused group.

/// One micro-batch: task and its number within the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub task: usize,
    /// 0 for the task's first micro-batch of the round.
    pub turn: usize,
}

/// Groups in order; each holds a task at most once, tasks ascending, at most `limit` of them (0: no limit).
pub fn groups(micro_batches: &[usize], limit: usize) -> Vec<Vec<Slot>> {
    let turns = micro_batches.iter().copied().max().unwrap_or(0);
    let mut groups = Vec::new();
    for turn in 0..turns {
        let wave: Vec<Slot> =
            (0..micro_batches.len()).filter(|&task| micro_batches[task] > turn).map(|task| Slot { task, turn }).collect();
        let size = if limit == 0 { wave.len() } else { limit };
        groups.extend(wave.chunks(size).map(<[Slot]>::to_vec));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_hold_a_task_once() {
        let names: Vec<Vec<(usize, usize)>> =
            groups(&[2, 0, 1, 3], 2).iter().map(|group| group.iter().map(|slot| (slot.task, slot.turn)).collect()).collect();
        assert_eq!(names, [vec![(0, 0), (2, 0)], vec![(3, 0)], vec![(0, 1), (3, 1)], vec![(3, 2)]]);
        assert_eq!(groups(&[1, 1, 1], 0).len(), 1);
        assert!(groups(&[0, 0], 0).is_empty());
    }
}
