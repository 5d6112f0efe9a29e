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

    fn largest(&self) -> Option<usize> {
        self.members.iter().copied().max_by(|&a, &b| self.cost(a).total_cmp(&self.cost(b)))
    }

    /// More than all of the time.
    fn overload(&self) -> Option<Late> {
        let (total, second) = (self.utilisation(), 1e9);
        let why = || format!("all deadline tasks and the best-effort share take {} of every second", millis(total * second));
        (total > 1.0).then(|| self.late(self.largest().unwrap_or(0), (total - 1.0) * second, why()))
    }

    /// Earliest deadline first without preemption (Jeffay, Stanat & Martel, RTSS 1991; with deadlines before the period's end:
    /// George, Rivierre & Spuri, INRIA 2966): at every t, what must be finished by then, and the longest quantum that
    /// need not be, have to fit into t.
    fn edf(&self) -> Option<Late> {
        let total = self.utilisation();
        let largest = self.largest()?;
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

    /// Shortest time between releases, or the deadline if that is shorter: the shorter, the higher the rank.
    fn span(&self, task: usize) -> Nanos {
        self.period(task).min(self.deadline(task))
    }

    /// Rate-monotonic order without preemption, by the longest time that each task can take (Davis, Burns, Bril & Lukkien,
    /// Real-Time Systems 35, 2007, section 3): all of its and higher ranks are released just after the longest quantum of a
    /// lower one began. Tasks of equal rank count as higher, since either may come first.
    fn rms(&self) -> Option<Late> {
        let mut steps = MOST_POINTS;
        self.members.iter().find_map(|&task| match self.longest_response(task, &mut steps) {
            Some(response) => {
                let over = response - self.deadline(task) as f64;
                let why = || format!("it may be done {} after its release", millis(response));
                (over > 0.0).then(|| self.late(task, over, why()))
            }
            None => self.load_of_ranks(task),
        })
    }

    /// From release to completion at worst, or a time beyond the deadline; none where that takes more than so many steps to find.
    fn longest_response(&self, task: usize, steps: &mut usize) -> Option<f64> {
        let (mut higher, mut lower) = (Vec::new(), self.best_effort);
        for &other in self.members.iter().filter(|&&other| other != task) {
            if self.span(other) <= self.span(task) {
                higher.push((self.cost(other), self.period(other) as f64));
            } else {
                lower = lower.max(self.specs[other].cost);
            }
        }
        let before = lower as f64 + if self.server_share > 0.0 { self.best_effort as f64 } else { 0.0 };
        let (cost, period, deadline) = (self.cost(task), self.period(task) as f64, self.deadline(task) as f64);
        // The least time by which nothing of these ranks waits any more.
        let end = least(|end| {
            *steps = steps.checked_sub(1 + higher.len())?;
            let all = higher.iter().copied().chain([(cost, period)]);
            Some(before + self.server_share * end + all.map(|(cost, period)| (end / period).ceil().max(1.0) * cost).sum::<f64>())
        })?;
        let mut longest = 0.0f64;
        for earlier in 0..(end / period).ceil() as usize {
            // When this quantum begins: everything that goes first is done.
            let start = least(|start| {
                *steps = steps.checked_sub(1 + higher.len())?;
                let others = higher.iter().map(|&(cost, period)| ((start / period).floor() + 1.0) * cost);
                Some(before + earlier as f64 * cost + self.server_share * start + others.sum::<f64>())
            })?;
            longest = longest.max(start + cost - earlier as f64 * period);
            if longest > deadline {
                break;
            }
        }
        Some(longest)
    }

    /// Enough, not necessary: the load of a task and all higher ranks, the server, and one quantum of a lower rank stay below
    /// n (2^(1/n) - 1) (Liu & Layland, JACM 1973, with blocking).
    fn load_of_ranks(&self, task: usize) -> Option<Late> {
        let span = self.span(task) as f64;
        let (first, last): (Vec<usize>, Vec<usize>) =
            self.members.iter().partition(|&&other| self.span(other) <= self.span(task));
        let blocking = last.iter().map(|&other| self.specs[other].cost).max().unwrap_or(0).max(self.best_effort);
        let burst = if self.server_share > 0.0 { self.best_effort } else { 0 };
        let load: f64 = first.iter().map(|&other| self.cost(other) / self.span(other) as f64).sum();
        let count = (first.len() + usize::from(self.server_share > 0.0)) as f64;
        let bound = count * (2f64.powf(1.0 / count) - 1.0);
        let over = load + self.server_share + (blocking + burst) as f64 / span - bound;
        (over > 0.0).then(|| {
            let why =
                format!("with those before it {} of at most {} may be due", millis((over + bound) * span), millis(bound * span));
            self.late(task, over * span, why)
        })
    }
}

/// The first deadline that cannot be promised on one lane under `edf`; none if all of them can.
pub fn late_under_edf(specs: &[Spec], server_share: f64) -> Option<Late> {
    let class = Class::new(specs, server_share);
    class.single().or_else(|| class.overload()).or_else(|| class.edf())
}

/// The same under `rms`.
pub fn late_under_rms(specs: &[Spec], server_share: f64) -> Option<Late> {
    let class = Class::new(specs, server_share);
    class.single().or_else(|| class.overload()).or_else(|| class.rms())
}

/// The least whole x with x >= next(x), for a function that does not fall.
fn least(mut next: impl FnMut(f64) -> Option<f64>) -> Option<f64> {
    let mut at = 0.0;
    loop {
        let then = next(at)?.ceil();
        if then <= at {
            return Some(at);
        }
        at = then;
    }
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

    /// The time a task takes when all higher ranks come with it, just after a longer quantum began, played out.
    fn played(specs: &[Spec], task: usize) -> Nanos {
        let rank = |of: usize| specs[of].period;
        let blocking = (0..specs.len()).filter(|&of| rank(of) > rank(task)).map(|of| specs[of].cost).max().unwrap_or(0);
        let first: Vec<usize> = (0..specs.len()).filter(|&of| rank(of) <= rank(task)).collect();
        let mut released = vec![0u64; specs.len()];
        let (mut now, mut longest) = (blocking, 0);
        loop {
            let waits = |of: &&usize| released[**of] * specs[**of].period <= now;
            // Of equal ranks the task itself comes last.
            let Some(&next) = first.iter().filter(waits).min_by_key(|&&of| (rank(of), of == task)) else { return longest };
            now += specs[next].cost;
            if next == task {
                longest = longest.max(now - released[task] * specs[task].period);
            }
            released[next] += 1;
        }
    }

    #[test]
    fn rate_monotonic_sets_are_admitted_if_and_only_if_the_worst_case_played_out_is_in_time() {
        let mut random = crate::random::Random(3);
        let (mut admitted, mut beyond_the_bound) = (0, 0);
        for _ in 0..2000 {
            let count = 2 + (random.next() % 4) as usize;
            let specs: Vec<Spec> = (0..count)
                .map(|_| {
                    let period = 4 + random.next() % 60;
                    periodic(1 + random.next() % (period / 3 + 1), period)
                })
                .collect();
            let load: f64 = specs.iter().map(|spec| spec.cost as f64 / spec.period as f64).sum();
            if load > 0.99 {
                assert!(load <= 1.0 || late_under_rms(&specs, 0.0).is_some());
                continue;
            }
            let in_time = (0..count).all(|task| played(&specs, task) <= specs[task].period);
            assert_eq!(late_under_rms(&specs, 0.0).is_none(), in_time, "{specs:?}");
            let class = Class::new(&specs, 0.0);
            admitted += usize::from(in_time);
            beyond_the_bound += usize::from(in_time && (0..count).any(|task| class.load_of_ranks(task).is_some()));
        }
        assert!(admitted > 200 && beyond_the_bound > 50, "{admitted} admitted, {beyond_the_bound} of them beyond the bound");
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
