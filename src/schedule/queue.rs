//! Whose turn it is: the order of ready tasks under each policy. Every operation takes O(log n).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::{Nanos, Policy};

/// Smaller key first, then the one that has been ready for longer.
type Entry = Reverse<(u64, u64, u32)>;

/// A ready task as the queue needs it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub task: u32,
    /// Number of the job, ascending in the order of becoming ready.
    pub ticket: u64,
    /// Absolute; none for a best-effort task.
    pub deadline: Option<Nanos>,
    /// Least time between releases, or the deadline if that is shorter; what `rms` goes by.
    pub period: Nanos,
    pub priority: i64,
    /// Weighted service so far; what `weighted` goes by.
    pub pass: u64,
    /// Planned time of the quantum.
    pub cost: Nanos,
}

/// Ready tasks in order. Tasks that the policy would pass over for ever run under a server: it earns `share` of all time,
/// saves at most one of its quanta, and goes first whenever it can pay for one.
#[derive(Clone, Debug)]
pub struct Ready {
    policy: &'static Policy,
    first: BinaryHeap<Entry>,
    /// Best-effort tasks beside a deadline class, by pass.
    rest: BinaryHeap<Entry>,
    /// Where the policy serves the oldest: everyone, by ticket.
    oldest: VecDeque<(u64, u32)>,
    /// Tasks that are ready.
    live: usize,
    server: Server,
}

#[derive(Clone, Copy, Debug)]
struct Server {
    share: f64,
    credit: f64,
    /// Longest quantum seen of those it serves.
    most: Nanos,
    updated: Nanos,
}

/// Where the next task was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub task: u32,
    source: Source,
}

impl Choice {
    /// On the server's account.
    pub fn is_served(self) -> bool {
        matches!(self.source, Source::Oldest | Source::Served)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    First,
    Rest,
    Oldest,
    /// `Rest` on the server's account.
    Served,
}

impl Ready {
    pub fn new(policy: &'static Policy, server_share: f64) -> Self {
        let server = Server { share: server_share, credit: 0.0, most: 0, updated: 0 };
        Self { policy, first: BinaryHeap::new(), rest: BinaryHeap::new(), oldest: VecDeque::new(), live: 0, server }
    }

    pub fn push(&mut self, new: &Candidate) {
        let Candidate { task, ticket, .. } = *new;
        self.live += 1;
        let Some(key) = (self.policy.key)(new) else {
            self.rest.push(Reverse((new.pass, u64::from(task), task)));
            self.server.most = self.server.most.max(new.cost);
            return;
        };
        let second = if self.policy.by_weight { u64::from(task) } else { ticket };
        self.first.push(Reverse((key, second, task)));
        if self.policy.serves_oldest {
            self.oldest.push_back((ticket, task));
            self.server.most = self.server.most.max(new.cost);
        }
    }

    /// Who is next at `now`; [`Ready::take`] takes it out. `current(task)`: ticket of the job the task waits with, and its
    /// cost; entries of jobs that have been started or withdrawn are passed over.
    pub fn choose(&mut self, now: Nanos, current: impl Fn(u32) -> Option<(u64, Nanos)>) -> Option<Choice> {
        self.server.earn(now);
        let is_current = |task, ticket| current(task).is_some_and(|(known, _)| known == ticket);
        let waits = |task, ticket| if self.policy.by_weight { current(task).is_some() } else { is_current(task, ticket) };
        // Where the oldest is served, every task stands in two lines; what was taken from one is left behind in the other.
        if self.policy.serves_oldest && self.first.len().max(self.oldest.len()) > 2 * self.live + 64 {
            self.first.retain(|&Reverse((_, ticket, task))| waits(task, ticket));
            self.oldest.retain(|&(ticket, task)| waits(task, ticket));
        }
        prune(&mut self.first, waits);
        prune(&mut self.rest, |task, _| current(task).is_some());
        while self.oldest.front().is_some_and(|&(ticket, task)| !waits(task, ticket)) {
            self.oldest.pop_front();
        }
        let cost = |task| current(task).map_or(0, |(_, cost)| cost);
        let served = if self.policy.serves_oldest {
            self.oldest.front().map(|&(_, task)| (task, Source::Oldest))
        } else {
            self.rest.peek().map(|&Reverse((_, _, task))| (task, Source::Served))
        };
        if let Some((task, source)) = served.filter(|&(task, _)| self.server.can_pay(cost(task))) {
            return Some(Choice { task, source });
        }
        let peek = |heap: &BinaryHeap<Entry>, source| heap.peek().map(|&Reverse((_, _, task))| Choice { task, source });
        peek(&self.first, Source::First).or_else(|| peek(&self.rest, Source::Rest))
    }

    /// Takes what was just chosen out of the queue.
    pub fn take(&mut self, choice: Choice, cost: Nanos) {
        self.live -= 1;
        match choice.source {
            Source::First => drop(self.first.pop()),
            Source::Rest => drop(self.rest.pop()),
            Source::Served => {
                self.rest.pop();
                self.server.credit -= cost as f64;
            }
            Source::Oldest => {
                self.oldest.pop_front();
                self.server.credit -= cost as f64;
            }
        }
    }

    /// Nobody is ready; what the server has earned stays.
    pub fn clear(&mut self) {
        self.first.clear();
        self.rest.clear();
        self.oldest.clear();
        self.live = 0;
    }

    /// A quantum that the server paid for took `cost` in place of what was planned.
    pub fn correct(&mut self, planned: Nanos, cost: Nanos) {
        self.server.credit += planned as f64 - cost as f64;
    }

    /// A ready task that will not run after all; its entries are passed over later.
    pub fn withdraw(&mut self) {
        self.live -= 1;
    }

    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }
}

impl Server {
    fn earn(&mut self, now: Nanos) {
        let elapsed = now.saturating_sub(self.updated) as f64;
        self.updated = now;
        self.credit = (self.credit + self.share * elapsed).min(self.most as f64);
    }

    fn can_pay(&self, cost: Nanos) -> bool {
        self.share > 0.0 && self.credit >= cost as f64
    }
}

fn prune(heap: &mut BinaryHeap<Entry>, keep: impl Fn(u32, u64) -> bool) {
    while heap.peek().is_some_and(|&Reverse((_, ticket, task))| !keep(task, ticket)) {
        heap.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::policy;

    fn candidate(task: u32) -> Candidate {
        Candidate { task, ticket: u64::from(task), deadline: None, period: 0, priority: 0, pass: 0, cost: 10 }
    }

    /// Takes everything out at time `now`.
    fn drain(mut ready: Ready, mut waiting: Vec<Candidate>, now: Nanos) -> Vec<u32> {
        waiting.iter().for_each(|new| ready.push(new));
        let mut order = Vec::new();
        while let Some(choice) =
            ready.choose(now, |task| waiting.iter().find(|known| known.task == task).map(|known| (known.ticket, known.cost)))
        {
            ready.take(choice, 10);
            waiting.retain(|known| known.task != choice.task);
            order.push(choice.task);
        }
        order
    }

    #[test]
    fn each_policy_has_its_order() {
        let tasks = vec![
            Candidate { priority: -1, pass: 5, deadline: Some(90), period: 10, ..candidate(0) },
            Candidate { priority: 7, pass: 9, deadline: Some(50), period: 20, ..candidate(1) },
            Candidate { priority: 7, pass: 1, deadline: None, ..candidate(2) },
        ];
        let order = |policy| drain(Ready::new(policy, 0.0), tasks.clone(), 0);
        assert_eq!(order(&policy::round_robin::POLICY), [0, 1, 2]);
        assert_eq!(order(&policy::weighted::POLICY), [2, 0, 1]);
        assert_eq!(order(&policy::priority::POLICY), [1, 2, 0]);
        assert_eq!(order(&policy::rms::POLICY), [0, 1, 2]);
        assert_eq!(order(&policy::edf::POLICY), [1, 0, 2]);
    }

    #[test]
    fn a_server_that_can_pay_goes_first() {
        let tasks = vec![Candidate { deadline: Some(5), ..candidate(0) }, candidate(1)];
        let order = |now| drain(Ready::new(&policy::edf::POLICY, 0.1), tasks.clone(), now);
        assert_eq!(order(99), [0, 1]);
        assert_eq!(order(100), [1, 0]);
    }

    #[test]
    fn under_priority_the_server_takes_the_oldest() {
        let tasks = vec![candidate(0), Candidate { priority: 9, ..candidate(1) }];
        let order = |now| drain(Ready::new(&policy::priority::POLICY, 0.1), tasks.clone(), now);
        assert_eq!(order(99), [1, 0]);
        assert_eq!(order(100), [0, 1]);
    }
}
