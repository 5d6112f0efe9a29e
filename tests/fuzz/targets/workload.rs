//! Workloads of the simulator.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use taskloom::commands;

use super::Input;
use crate::mutate;
use crate::random::Random;
use crate::tree::{self, Tree};

/// The example workloads, each task with little to do, and one that says every key.
static SEEDS: LazyLock<Vec<Tree>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/workloads");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).expect("the workloads").map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let texts = paths.iter().map(|path| std::fs::read_to_string(path).expect("a workload"));
    let mut seeds: Vec<Tree> = texts.chain([EVERY_KEY.to_owned()]).map(|text| Tree::parse_toml(&text)).collect();
    for seed in &mut seeds {
        let Some(Tree::Table(tasks)) = seed.get_mut("tasks") else { continue };
        for (_, task) in tasks {
            task.set("quanta", Tree::Literal("20".to_owned()));
        }
        if let Some(sweep) = seed.get_mut("sweep") {
            sweep.set("concurrency", Tree::List(vec![Tree::Literal("5".to_owned())]));
        }
    }
    seeds
});

const EVERY_KEY: &str = r#"
[schedule]
seed = 1
mode = "synchronous"
policy = "edf"
lanes = 2
server_share = 0.1
blocks = 3
commit_ms = 0.5
max_staleness = 2
on_stale = "refuse"
max_retries = 2
retry_base_ms = 10
retry_cap_ms = 100
[memory]
device = "10MiB"
shared = "1MiB"
split = true
[sweep]
concurrency = [2, 5]
[tasks.a]
count = 2
quanta = 20
cost_ms = 2
spread = 0.2
tail_share = 0.1
tail_factor = 1.5
arrival = "trace"
at_ms = [0, 1, 2.5]
weight = 2
period_ms = 12
deadline_ms = 10
write_share = 0.3
blocks = [0, 2]
persistent = "1MiB"
scratch = "1MiB"
memory = "4MiB"
timeout_ms = 20
[tasks.a.faults]
out_of_memory = 0.1
not_finite = 0.1
crash = 0.05
stall = 0.1
stall_factor = 4
[tasks.b]
cost_ms = 1
arrival = "periodic"
period_ms = 5
offset_ms = 1
period = 2
depends_on = ["a"]
[tasks.c]
cost_ms = 1
arrival = "bursty"
gap_ms = 10
burst = 3
[tasks.d]
cost_ms = 1
arrival = "closed"
think_ms = 3
priority = -1
"#;

pub fn make(random: &mut Random) -> Input {
    let mut tree = SEEDS[random.below(SEEDS.len())].clone();
    tree::mutate(random, &mut tree, &SEEDS);
    let mut text = tree.toml().into_bytes();
    if random.once_in(8) {
        mutate::bytes(random, &mut text);
    }
    text.truncate(mutate::MOST_BYTES);
    let words = if random.once_in(4) { vec!["pictures".to_owned()] } else { Vec::new() };
    Input { files: vec![("workload.toml".into(), text)], words }
}

pub fn run(place: &Path, words: &[String]) -> Result<()> {
    let with_pictures = !words.is_empty();
    commands::simulate::run(&commands::simulate::Args {
        workload: Some(place.join("workload.toml")),
        replay: None,
        sets: Vec::new(),
        json: true,
        trace: with_pictures.then(|| place.join("trace.json")),
        svg: with_pictures.then(|| place.join("timeline.svg")),
        svg_ms: 0.0,
    })
}
