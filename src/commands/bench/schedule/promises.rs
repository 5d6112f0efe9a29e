//! Three promises: the dispatcher takes next to no time, shares of time are those of the weights, and an urgent task waits for no more
//! than the quantum that runs.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::Args;
use super::rounds::{Rounds, Size};
use super::shares::{Bench, Shares, WEIGHTS, shares};
use super::urgent::{Latencies, Urgent, urgent};
use crate::commands::bench::prepared::HIDDEN;
use crate::commands::bench::{median, millis, number, print, quantile, report};
use crate::train::lanes::Lanes;

pub fn run(args: &Args) -> Result<()> {
    let size = Size { tasks: WEIGHTS.len(), batch: args.batch, hidden: HIDDEN, method: "pcgrad", device: "cpu" };
    let report = Lanes::alone(&mut Rounds::new(&size)?, |lane| -> Result<Value> {
        let mut bench = Bench { lane, times: Vec::new(), overhead: Duration::ZERO };
        let shares = shares(&mut bench, args.quanta)?;
        let urgent = urgent(&mut bench, args)?;
        Ok(document(args, &bench.times, &shares, &urgent))
    });
    print(args.json, &report?, text)
}

fn document(args: &Args, times: &[Duration], shares: &Shares, urgent: &Urgent) -> Value {
    let times: Vec<f64> = times.iter().copied().map(millis).collect();
    let quantum = median(times.iter().copied());
    let [between, empty] = shares.overhead;
    let p99 = |found: &Latencies| [&found.beside, &found.alone].map(|times| quantile(times.iter().copied(), 0.99));
    let [slow, slow_alone] = p99(&urgent.whole);
    let [single, single_alone] = p99(&urgent.single);
    let more = json!({
        "batch": args.batch,
        "quanta": args.quanta,
        "requests": urgent.whole.alone.len(),
        "request": args.request,
        "pause_ms": args.pause_ms,
        "threads": rayon::current_num_threads(),
        "overhead_us": between,
        "overhead_empty_us": empty,
        "overhead_share": between / 1e3 / quantum,
        "share_error_points": shares.error,
        "request_ms": median(urgent.whole.beside.iter().copied()),
        "request_alone_ms": median(urgent.whole.alone.iter().copied()),
        "request_p99_ms": slow,
        "request_p99_alone_ms": slow_alone,
        "request_p99_ratio": slow / slow_alone,
        "single_ms": median(urgent.single.beside.iter().copied()),
        "single_alone_ms": median(urgent.single.alone.iter().copied()),
        "single_p99_ms": single,
        "single_p99_alone_ms": single_alone,
        "single_extra_quanta": (single - single_alone) / quantum,
        "background_share": urgent.background_share(),
    });
    report("schedule", &times, more)
}

fn text(report: &Value) -> String {
    let number = |name: &str| number(&report[name]);
    format!(
        "quanta of {:.2} ms (median of {})\n\
         \x20 dispatcher    {:.2} us a quantum ({:.2} with nothing between), {:.3} % of it\n\
         \x20 shares        off by at most {:.2} points\n\
         \x20 urgent        p99 {:.1} ms beside others, {:.1} ms alone ({:.3} times), {} requests of {} quanta\n\
         \x20               p99 {:.2} ms beside others, {:.2} ms alone ({:+.2} quanta), {} requests of one quantum\n\
         \x20 background    keeps {:.1} % of its quanta a second, the urgent task's counted out",
        number("ms"),
        report["runs"],
        number("overhead_us"),
        number("overhead_empty_us"),
        100.0 * number("overhead_share"),
        number("share_error_points"),
        number("request_p99_ms"),
        number("request_p99_alone_ms"),
        number("request_p99_ratio"),
        report["requests"],
        report["request"],
        number("single_p99_ms"),
        number("single_p99_alone_ms"),
        number("single_extra_quanta"),
        report["requests"],
        100.0 * number("background_share")
    )
}
