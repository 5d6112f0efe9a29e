//! Bytes of the device: what is reserved, who waits for room.

use std::collections::{BTreeMap, VecDeque};

use super::task::Spec;

/// Admission and reservation. Tasks are admitted in the order of asking and never overtaken, so that a large one cannot starve.
#[derive(Clone, Debug)]
pub struct Budget {
    /// 0: no limit.
    limit: u64,
    reserved: u64,
    /// Part of `reserved` that admitted tasks keep to their end.
    kept: u64,
    peak: u64,
    /// Bytes that quanta leave free because the first in line is next.
    promised: u64,
    /// Scratch of the admitted tasks, with how many take so much: room for the largest is kept, so that each of them can run
    /// alone at any time.
    scratch: BTreeMap<u64, usize>,
    waiting: VecDeque<u32>,
}

impl Budget {
    /// `shared` bytes are taken from the start.
    pub fn new(limit: u64, shared: u64) -> Self {
        let waiting = VecDeque::new();
        Self { limit, reserved: shared, kept: shared, peak: shared, promised: 0, scratch: BTreeMap::new(), waiting }
    }

    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Most bytes reserved at once.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Whether a quantum may take these bytes now.
    pub fn fits(&self, bytes: u64) -> bool {
        self.within(self.reserved.saturating_add(self.promised).saturating_add(bytes))
    }

    fn within(&self, bytes: u64) -> bool {
        self.limit == 0 || bytes <= self.limit
    }

    /// Takes the bytes of a quantum that fits.
    pub fn reserve(&mut self, bytes: u64) {
        debug_assert!(self.within(self.reserved + bytes));
        self.reserved += bytes;
        self.peak = self.peak.max(self.reserved);
    }

    /// Gives the bytes of a quantum back.
    pub fn release(&mut self, bytes: u64) {
        self.reserved -= bytes;
    }

    /// Gives back what an admitted task kept.
    pub fn dismiss(&mut self, persistent: u64, scratch: u64) {
        if let Some(count) = self.scratch.get_mut(&scratch) {
            *count -= 1;
            if *count == 0 {
                self.scratch.remove(&scratch);
            }
        }
        self.kept -= persistent;
        self.release(persistent);
    }

    /// Puts a task at the end of the line.
    pub fn ask(&mut self, task: u32) {
        self.waiting.push_back(task);
    }

    /// The next task in line, once it fits beside a quantum of any admitted task. `needs`: bytes to keep and scratch of a task.
    pub fn admit(&mut self, needs: impl Fn(u32) -> (u64, u64)) -> Option<u32> {
        let &task = self.waiting.front()?;
        let (persistent, scratch) = needs(task);
        let largest = self.scratch.last_key_value().map_or(scratch, |(&most, _)| scratch.max(most));
        if !self.within(self.kept.saturating_add(persistent).saturating_add(largest)) {
            return None;
        }
        if !self.within(self.reserved.saturating_add(persistent)) {
            self.promised = persistent;
            return None;
        }
        self.waiting.pop_front();
        self.promised = 0;
        *self.scratch.entry(scratch).or_default() += 1;
        self.kept += persistent;
        self.reserve(persistent);
        Some(task)
    }

    /// Takes a task that will never run out of the line.
    pub fn forget(&mut self, task: u32) {
        if self.waiting.front() == Some(&task) {
            self.promised = 0;
        }
        self.waiting.retain(|&waiting| waiting != task);
    }
}

/// Why a task can never run inside these budgets, with the numbers; `shared` bytes are taken before it.
pub fn refusal(spec: &Spec, device: u64, shared: u64) -> Option<String> {
    let own = spec.persistent.saturating_add(spec.scratch);
    if spec.budget > 0 && own > spec.budget {
        return Some(format!(
            "task {} needs {own} bytes ({} to keep, {} for a quantum), its own budget is {}: {} too few",
            spec.name,
            spec.persistent,
            spec.scratch,
            spec.budget,
            own - spec.budget
        ));
    }
    let all = shared.saturating_add(own);
    (device > 0 && all > device).then(|| {
        format!(
            "task {} needs {own} bytes ({} to keep, {} for a quantum) beside {shared} shared ones, the device's budget is {device}: \
             {} too few",
            spec.name,
            spec.persistent,
            spec.scratch,
            all - device
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_overtakes_a_large_task() {
        let mut budget = Budget::new(100, 10);
        let needs = |task: u32| [(40, 20), (60, 20), (5, 5)][task as usize];
        (0..3).for_each(|task| budget.ask(task));
        assert_eq!(budget.admit(needs), Some(0));
        // 10 + 40 + 60 + 20 do not fit, and task 2, which would, waits behind.
        assert_eq!(budget.admit(needs), None);
        budget.dismiss(40, 20);
        assert_eq!(budget.admit(needs), Some(1));
        assert_eq!(budget.admit(needs), Some(2));
        assert_eq!(budget.reserved(), 75);
    }

    #[test]
    fn quanta_make_room_for_the_next_in_line() {
        let mut budget = Budget::new(100, 0);
        let needs = |task: u32| [(10, 40), (30, 40)][task as usize];
        (0..2).for_each(|task| budget.ask(task));
        budget.admit(needs);
        budget.reserve(40);
        budget.reserve(40);
        assert_eq!(budget.admit(needs), None);
        budget.release(40);
        // 10 + 40 + 40 would fit, were it not for the 30 that are promised.
        assert_eq!(budget.admit(needs), Some(1));
        assert!(!budget.fits(40));
    }

    #[test]
    fn what_can_never_fit_is_refused_with_numbers() {
        let spec = Spec { persistent: 60, scratch: 50, ..Spec::new("books", 1) };
        assert_eq!(refusal(&spec, 0, 10), None);
        assert_eq!(refusal(&spec, 120, 10), None);
        let text = refusal(&spec, 100, 10).unwrap();
        assert!(text.contains("task books needs 110 bytes") && text.ends_with("20 too few"), "{text}");
        let own = refusal(&Spec { budget: 100, ..spec }, 0, 0).unwrap();
        assert!(own.ends_with("100: 10 too few"), "{own}");
    }
}
