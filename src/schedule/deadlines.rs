//! Whether every deadline can be met, decided before anything runs.
//!
//! A quantum is never interrupted, so a task also waits for one quantum of lower rank that has just begun. Best-effort tasks
//! have a share of the time and may spend one saved quantum at once.

use std::cmp::Reverse;

use super::Nanos;
use super::task::Spec;

/// A deadline set that cannot be admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// The task that may be late.
    pub task: usize,
    /// By how much at worst.
    pub by: Nanos,
    pub message: String,
}

/// Points of time looked at before a set is judged by its density instead, which is enough but not necessary: periods without
/// a common multiple in reach have no end of points.
const MOST_POINTS: usize = 200_000;

/// The demands of the deadline class, and what may delay it.
struct Class<'a> {
    specs: &'a [Spec],
    /// Tasks with a deadline.
    members: Vec<usize>,
    /// Longest quantum of a best-effort task.
    best_effort: Nanos,
    server_share: f64,
}

impl<'a> Class<'a> {
    fn new(specs: &'a [Spec], server_share: f64) -> Self {
        let of_class = |&task: &usize| specs[task].relative_deadline().is_some();
        let members: Vec<usize> = (0..specs.len()).filter(of_class).collect();
        let others = specs.iter().filter(|spec| spec.relative_deadline().is_none());
        let best_effort = others.map(|spec| spec.cost).max().unwrap_or(0);
        Self { specs, members, best_effort, server_share: if best_effort > 0 { server_share } else { 0.0 } }
    }

    fn deadline(&self, task: usize) -> Nanos {
        self.specs[task].relative_deadline().unwrap_or(Nanos::MAX)
    }

    /// Least time between two releases of a task; its deadline where no period is promised.
    fn period(&self, task: usize) -> Nanos {
        if self.specs[task].period > 0 { self.specs[task].period } else { self.deadline(task) }
    }

    fn cost(&self, task: usize) -> f64 {
        self.specs[task].cost as f64
    }

    fn late(&self, task: usize, by: f64, why: String) -> Late {
        let by = by.ceil() as Nanos;
        let message = format!(
            "the deadline of task {} ({}) cannot be promised: {why}, {} too much",
            self.specs[task].name,
            millis(self.deadline(task) as f64),
            millis(by as f64)
        );
        Late { task, by, message }
    }

    /// A quantum longer than its own deadline needs no further test.
    fn single(&self) -> Option<Late> {
        self.members.iter().find(|&&task| self.specs[task].cost > self.deadline(task)).map(|&task| {
            let over = self.cost(task) - self.deadline(task) as f64;
            self.late(task, over, format!("one quantum alone takes {}", millis(self.cost(task))))
        })
    }

    fn utilisation(&self) -> f64 {
        self.members.iter().map(|&task| self.cost(task) / self.period(task) as f64).sum::<f64>() + self.server_share
    }

    /// Earliest deadline first without preemption (Jeffay, Stanat & Martel, RTSS 1991; with deadlines before the period's end:
    /// George, Rivierre & Spuri, INRIA 2966): at every t, what must be finished by then, and the longest quantum that
    /// need not be, have to fit into t.
    fn edf(&self) -> Option<Late> {
        let total = self.utilisation();
        let &largest = self.members.iter().max_by(|&&a, &&b| self.cost(a).total_cmp(&self.cost(b)))?;
        if total > 1.0 {
            let second = 1e9;
            let why = format!("all deadline tasks and the best-effort share take {} of every second", millis(total * second));
            return Some(self.late(largest, (total - 1.0) * second, why));
        }
        // Beyond this point the demand stays below the line (Baruah's bound with the blocking added).
        let slack: f64 = self
            .members
            .iter()
            .map(|&task| {
                let (period, deadline) = (self.period(task) as f64, self.deadline(task) as f64);
                self.cost(task) / period * (period - deadline).max(0.0)
            })
            .sum();
        let burst = self.best_effort as f64;
        let blocking = self.cost(largest).max(burst);
        let longest = self.members.iter().map(|&task| self.deadline(task)).max().unwrap_or(0) as f64;
        let horizon = if total < 1.0 { ((slack + burst + blocking) / (1.0 - total)).max(longest) } else { f64::INFINITY };
        let points: f64 = self.members.iter().map(|&task| horizon / self.period(task) as f64 + 1.0).sum();
        if points > MOST_POINTS as f64 {
            return self.density();
        }
        let mut dues = Vec::with_capacity(points as usize + 1);
        for &task in &self.members {
            let first = self.deadline(task);
            let later = |&time: &Nanos| time.checked_add(self.period(task));
            let times = std::iter::successors(Some(first), later);
            dues.extend(times.take_while(|&time| time as f64 <= horizon).map(|time| (time, task)));
        }
        dues.sort_unstable();
        self.first_excess(&dues)
    }

    /// The first point at which too much may have to be finished; `dues` are all points before the horizon, in order.
    ///
    /// Within any span of length t: what is due within it, what the server may take meanwhile and have saved before, and the
    /// longest quantum that may have just begun and is not due itself.
    fn first_excess(&self, dues: &[(Nanos, usize)]) -> Option<Late> {
        let mut waiting: Vec<usize> = self.members.clone();
        waiting.sort_by_key(|&task| Reverse(self.deadline(task)));
        // By the tasks with the latest deadlines: the longest quantum of so many of them.
        let longest: Vec<Nanos> = std::iter::once(self.best_effort)
            .chain(waiting.iter().scan(self.best_effort, |most, &task| {
                *most = self.specs[task].cost.max(*most);
                Some(*most)
            }))
            .collect();
        let saved = if self.server_share > 0.0 { self.best_effort as f64 } else { 0.0 };
        let (mut due, mut left) = (0.0, waiting.len());
        dues.chunk_by(|(one, _), (other, _)| one == other).find_map(|at_once| {
            let (time, task) = at_once[0];
            due += at_once.iter().map(|&(_, task)| self.cost(task)).sum::<f64>();
            while left > 0 && self.deadline(waiting[left - 1]) <= time {
                left -= 1;
            }
            let demand = self.server_share * time as f64 + saved + due + longest[left] as f64;
            let over = demand - time as f64;
            let why = || format!("within {} there may be {} to do", millis(time as f64), millis(demand));
            (over > 0.0).then(|| self.late(task, over, why()))
        })
    }

    /// Enough, not necessary: each task's cost and the longest quantum, over the shortest span, fit together.
    fn density(&self) -> Option<Late> {
        let span = |task: usize| self.period(task).min(self.deadline(task)) as f64;
        let sum: f64 = self.members.iter().map(|&task| self.cost(task) / span(task)).sum();
        let &first = self.members.iter().min_by(|&&a, &&b| span(a).total_cmp(&span(b)))?;
        let blocking = self.members.iter().map(|&task| self.specs[task].cost).max().unwrap_or(0).max(self.best_effort);
        let burst = if self.server_share > 0.0 { self.best_effort } else { 0 };
        let load = sum + self.server_share + (blocking + burst) as f64 / span(first);
        (load > 1.0).then(|| {
            let why = format!("within {} there may be {} to do", millis(span(first)), millis(load * span(first)));
            self.late(first, (load - 1.0) * span(first), why)
        })
    }

    /// Rate-monotonic order without preemption: for each task the load of its and all higher ranks, the server, and one
    /// quantum of its own or a lower rank stay below n (2^(1/n) - 1) (Liu & Layland, JACM 1973, with blocking).
    fn rms(&self) -> Option<Late> {
        let span = |task: usize| self.period(task).min(self.deadline(task)) as f64;
        let mut order = self.members.clone();
        order.sort_by(|&a, &b| span(a).total_cmp(&span(b)));
        let mut blocking: Vec<Nanos> = order.iter().map(|&task| self.specs[task].cost).collect();
        let mut below = self.best_effort;
        for cost in blocking.iter_mut().rev() {
            below = below.max(*cost);
            *cost = below;
        }
        let burst = if self.server_share > 0.0 { self.best_effort } else { 0 };
        let mut load = self.server_share;
        order.iter().zip(blocking).enumerate().find_map(|(rank, (&task, blocking))| {
            load += self.cost(task) / span(task);
            let count = (rank + 1 + usize::from(self.server_share > 0.0)) as f64;
            let bound = count * (2f64.powf(1.0 / count) - 1.0);
            let over = load + (blocking + burst) as f64 / span(task) - bound;
            (over > 0.0).then(|| {
                let most = millis(bound * span(task));
                let why = format!("with those before it {} of at most {most} may be due", millis((over + bound) * span(task)));
                self.late(task, over * span(task), why)
            })
        })
    }
}

/// The first deadline that cannot be promised on one lane under `edf`; none if all of them can.
pub fn late_under_edf(specs: &[Spec], server_share: f64) -> Option<Late> {
    let class = Class::new(specs, server_share);
    class.single().or_else(|| class.edf())
}

/// The same under `rms`.
pub fn late_under_rms(specs: &[Spec], server_share: f64) -> Option<Late> {
    let class = Class::new(specs, server_share);
    class.single().or_else(|| class.rms())
}

fn millis(nanos: f64) -> String {
    format!("{:.3} ms", nanos / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn periodic(cost: Nanos, period: Nanos) -> Spec {
        Spec { period: period * MS, ..Spec::new(format!("every{period}"), cost * MS) }
    }

    #[test]
    fn half_a_load_is_admitted_and_more_than_all_is_not() {
        let light = [periodic(1, 10), periodic(2, 20)];
        assert_eq!(late_under_edf(&light, 0.05), None);
        assert_eq!(late_under_rms(&light, 0.05), None);
        let heavy = [periodic(6, 10), periodic(10, 20)];
        let late = late_under_edf(&heavy, 0.0).unwrap();
        assert!(late.message.contains("1100.000 ms, ") || late.message.contains("100.000 ms too much"), "{}", late.message);
        assert!(late_under_rms(&heavy, 0.0).is_some());
    }

    #[test]
    fn a_long_quantum_of_lower_rank_counts() {
        // 2 of 4 ms: fine alone, late once a quantum of 3 ms may have just begun.
        assert_eq!(late_under_edf(&[periodic(2, 4)], 0.0), None);
        let late = late_under_edf(&[periodic(2, 4), periodic(3, 100)], 0.0).unwrap();
        assert_eq!((late.task, late.by), (0, MS));
        let with_best_effort = [periodic(2, 4), Spec::new("background", 3 * MS)];
        assert!(late_under_edf(&with_best_effort, 0.0).is_some());
    }

    /// Periods without a common multiple in reach, at a load just below all of the time: judged by a test that is sufficient only.
    #[test]
    fn no_set_of_periods_takes_long_to_judge() {
        let primes = [999_983, 999_979, 999_961, 999_959];
        let specs: Vec<Spec> = primes.iter().map(|&period| Spec { period, ..Spec::new("p", period / 4) }).collect();
        assert!(late_under_edf(&specs, 0.0).is_some());
        let many: Vec<Spec> = (1..10_000).map(|n| Spec { period: 1_000_000_007 * n, ..Spec::new("m", 1) }).collect();
        assert_eq!(late_under_edf(&many, 0.05), None);
        let endless = Spec { period: Nanos::MAX, ..Spec::new("endless", 1) };
        assert_eq!(late_under_edf(&[endless], 0.0), None);
    }

    #[test]
    fn an_impossible_deadline_says_by_how_much() {
        let spec = Spec { deadline: 3 * MS, ..periodic(5, 10) };
        let late = late_under_edf(&[spec], 0.0).unwrap();
        assert_eq!(late.by, 2 * MS);
        assert!(late.message.contains("task every10") && late.message.contains("2.000 ms too much"), "{}", late.message);
    }
}
