//! Runs on synthetic data, prepared as `taskloom train` prepares any other: configuration, corpus, plan, trainer.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::commands::check;
use crate::config::Config;
use crate::config::schema::EncoderKind;
use crate::data::{Corpus, Inputs};
use crate::machine::driver::Driver;
use crate::machine::memory::Memory;
use crate::model::Model;
use crate::model::network::{Batch, Gradients, Keep, Randomness, Scratch};
use crate::observe::console::Console;
use crate::ops::philox::{Keyed, Stream};
use crate::ops::storage::Storage;
use crate::train::ahead::{Ahead, DEPTH, Draw};
use crate::train::batch::{Purpose, Share, training_batch};
use crate::train::plan::Plan;
use crate::train::rates::rates;
use crate::train::round::{Committed, Trainer};
use crate::train::run::Built;
use crate::train::setup::load_corpus;
use crate::train::shapes::fuse;
use crate::train::tokens::sequence_len;
use crate::train::{Counts, DeviceLanes, OpTime};

/// Width of the encoders whose rounds are timed; see [`Shape::hidden`].
pub const HIDDEN: usize = 768;
/// BERT's vocabulary, of which texts are made of the words after the special ones.
const VOCABULARY: u32 = 30_522;
const FIRST_WORD: u32 = 1000;
/// Words of the bag's texts: with their bigrams about 100 n-grams, as the review tasks have after word dropout.
const WORDS: usize = 50;
/// Batches that rounds go through in turn.
pub const BATCHES: usize = 3;
const SEED: u64 = 1;
/// Examples of all tasks together in a round.
pub const MOST_EXAMPLES: usize = 1 << 18;
const MOST_TOKENS: usize = 1 << 24;

/// What a run is like; see the options of `bench step`.
pub struct Shape<'a> {
    pub encoder: EncoderKind,
    /// Width of the encoder, and features of an example of the linear one.
    pub hidden: usize,
    pub tasks: usize,
    pub batch: usize,
    pub layers: usize,
    pub seq: usize,
    pub recompute: bool,
    pub device: &'a str,
    pub method: &'a str,
    pub lanes: usize,
    pub rounds: usize,
}

/// A run whose rounds can be computed.
pub struct Prepared {
    config: Config,
    corpus: Corpus,
    plan: Plan,
    trainer: Trainer,
}

impl Prepared {
    pub fn new(shape: &Shape) -> Result<Self> {
        let Shape { tasks, batch, seq, .. } = *shape;
        let examples = tasks * batch;
        ensure!(
            examples <= MOST_EXAMPLES,
            "--tasks {tasks} x --batch {batch} are {examples} examples a round; at most {MOST_EXAMPLES}"
        );
        ensure!(
            shape.encoder != EncoderKind::Transformer || examples * seq <= MOST_TOKENS,
            "--tasks {tasks} x --batch {batch} x --seq {seq} are {} tokens a round; at most {MOST_TOKENS}",
            examples * seq
        );
        let folder = tempfile::tempdir().context("cannot create a temporary folder (TMPDIR)")?;
        Self::within(folder.path(), shape).with_context(|| {
            let Shape { device, method, lanes, .. } = shape;
            format!("--tasks {tasks} --batch {batch} --device {device} --method {method} --lanes {lanes}")
        })
    }

    fn within(folder: &Path, shape: &Shape) -> Result<Self> {
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text).context("cannot write to TMPDIR");
        if shape.encoder != EncoderKind::Linear {
            write("vocab.txt", vocabulary())?;
            write("rows.tsv", rows(shape))?;
        }
        write("bench.toml", shape.toml())?;
        let mut config = check::load(&folder.join("bench.toml"), &[format!("run.device={}", shape.device)])?.config;
        let corpus = load_corpus(&mut config, &Console::new())?;
        let plan = Plan::new(&config, &corpus)?;
        plan.check_budget(&config)?;
        plan.check_machine(&config)?;
        let trainer = Built::new(&config, &corpus, &plan)?.trainer;
        Ok(Self { config, corpus, plan, trainer })
    }

    /// Rounds from here on give a device one kernel after the other, and say how long each operation took. The bytes a second of a copy.
    pub fn profile(&mut self) -> Result<f64> {
        self.trainer.profile()
    }

    /// Bytes of the run by its plan.
    pub fn planned_bytes(&self) -> Result<u64> {
        Ok(self.plan.buffers(&self.config)?.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Tokens of a round, the mean of all batches.
    pub fn tokens(&self) -> f64 {
        let lengths = |inputs: &Inputs| match inputs {
            Inputs::Tokens(store) => (0..store.len()).map(|example| sequence_len(store, example)).sum(),
            Inputs::Features(_) => 0,
        };
        self.corpus.tasks.iter().map(|task| lengths(&task.train.inputs)).sum::<usize>() as f64 / BATCHES as f64
    }

    /// One of the [`BATCHES`], of some tasks.
    pub fn batch(&self, number: usize, tasks: Range<usize>) -> Batch {
        let shares = shares(&self.config, number, tasks);
        let purpose = self.trainer.purpose(SEED, number as u64);
        let fuse = fuse(&self.config, self.corpus.tasks.len());
        training_batch(&self.corpus, &*self.plan.spec.encoder, fuse, &shares, purpose).0
    }

    /// Computes `body` with rounds of the batches in turn, of all tasks. On a device the next rounds' batches are packed meanwhile, as in
    /// a run; as in one whose rounds are timed, a step is waited for.
    pub fn with_rounds<R>(&mut self, body: impl FnOnce(&mut dyn FnMut(u64) -> Result<Timed>) -> R) -> R {
        let tasks = 0..self.corpus.tasks.len();
        if !self.trainer.is_accelerated() {
            let batches: Vec<Batch> = (0..BATCHES).map(|number| self.batch(number, tasks.clone())).collect();
            let present: Vec<usize> = tasks.collect();
            return body(&mut |round| {
                let committed = self.run_round(&batches[round as usize % BATCHES], &present, round)?;
                Ok(Timed { committed, counts: Counts::default(), ops: BTreeMap::new() })
            });
        }
        let Self { config, corpus, plan, trainer } = self;
        let (config, fuse, purpose) = (&*config, fuse(config, corpus.tasks.len()), trainer.purpose(SEED, 0));
        let draw = |round: u64| Draw {
            shares: shares(config, round as usize % BATCHES, tasks.clone()),
            purpose: Purpose { round, ..purpose },
        };
        trainer.time_quanta(true);
        thread::scope(|scope| {
            let mut ahead = Ahead::start(scope, corpus, plan.spec.clone(), fuse, Vec::new());
            (0..DEPTH as u64).for_each(|round| ahead.foresee(draw(round)));
            trainer.expect(ahead.take_next(), None);
            body(&mut |round| {
                let before = trainer.device_counts().unwrap_or_default();
                let Draw { shares, purpose } = draw(round);
                let foreseen = ahead.foresaw(&shares, purpose);
                let packed = trainer.expected(foreseen).context("the thread that packs has ended")?;
                ahead.foresee(draw(round + DEPTH as u64));
                let rates = |round| rates(&config.optimizer, round, plan.rounds, round);
                let is_followed = config.schedule.depth > 1 && round + 1 < plan.rounds;
                trainer.expect(ahead.take_next(), is_followed.then(|| rates(round + 1)));
                trainer.prepare(Some(packed.prepared));
                let rates = rates(round);
                let outcome = trainer.run_round(&packed.batch, &packed.present, round, &rates)?;
                let committed = outcome.map_err(|anomaly| anyhow!("{anomaly:?}"))?;
                let counts = trainer.device_counts().unwrap_or_default() - before;
                Ok(Timed { committed, counts, ops: trainer.profiled() })
            })
        })
    }

    /// A round of a batch of `tasks`.
    pub fn run_round(&mut self, batch: &Batch, tasks: &[usize], round: u64) -> Result<Committed> {
        let rates = rates(&self.config.optimizer, round, self.plan.rounds, round);
        self.trainer.run_round(batch, tasks, round, &rates)?.map_err(|anomaly| anyhow!("{anomaly:?}"))
    }

    /// Lanes of a device that compute forward passes of a batch, with a copy of the parameters.
    pub fn device_lanes(&self, driver: Box<dyn Driver>, batch: &Batch, lanes: usize) -> Result<DeviceLanes> {
        DeviceLanes::new(driver, &self.trainer.model, batch, &self.plan.limits, lanes)
    }

    /// What one of several lanes computes micro-batches with, in memory of its own.
    pub fn passes<'a>(&'a self, batches: &'a [Batch]) -> Result<Passes<'a>> {
        let (model, limits) = (&self.trainer.model, &self.plan.limits);
        let keep = Keep { stored: false, batches: 1, storage: Storage::F32 };
        let mut memory = Memory::unlimited();
        let scratch = Scratch::new(&mut memory, &*model.network.spec.encoder, limits)?;
        let gradients = Gradients::new(&mut memory, &model.network, keep, limits)?;
        Ok(Passes { model, batches, scratch, gradients })
    }
}

/// A round, and what it asked of a device.
pub struct Timed {
    pub committed: Committed,
    pub counts: Counts,
    /// By name, where [`Prepared::profile`] asked for them.
    pub ops: BTreeMap<&'static str, OpTime>,
}

/// Examples of some tasks in one of the batches.
fn shares(config: &Config, number: usize, tasks: Range<usize>) -> Vec<Share> {
    let size = config.train.micro_batch;
    let examples = (number * size) as u32..((number + 1) * size) as u32;
    tasks.map(|task| Share { task, examples: examples.clone().collect(), micro_batch: size }).collect()
}

/// Passes forward and backward with a run's parameters, which stay as they are.
pub struct Passes<'a> {
    model: &'a Model,
    batches: &'a [Batch],
    scratch: Scratch,
    gradients: Gradients,
}

impl Passes<'_> {
    /// Both passes of one of the batches, in turn by `number`.
    pub fn run(&mut self, number: usize) {
        let Self { model: Model { network, parameters }, batches, scratch, gradients } = self;
        let batch = &batches[number % batches.len()];
        let random = Randomness { seed: SEED, round: 0 };
        network.forward(parameters.weights(), batch, &batch.parts, scratch, Some(random));
        network.losses(&batch.parts, scratch);
        let gradients = gradients.of_group(network, batch, &batch.parts);
        network.backward(parameters.weights(), batch, &batch.parts, scratch, gradients, random);
    }
}

impl Shape<'_> {
    fn toml(&self) -> String {
        let Self { hidden, tasks, batch, layers, recompute, method, lanes, rounds, .. } = self;
        let kind = self.encoder.name();
        let examples = BATCHES * batch;
        // The linear encoder is PyTorch's nn.Linear(768, 768), so that both can be timed side by side; the transformer is BERT.
        let own = match self.encoder {
            EncoderKind::Linear => String::new(),
            EncoderKind::Bag => format!("tokenizer = \"vocab.txt\"\nmax_len = {WORDS}\nngrams = 2\nbuckets = {}\n", 1 << 19),
            EncoderKind::Transformer => {
                format!("tokenizer = \"vocab.txt\"\nmax_len = 512\nlayers = {layers}\nrecompute = {recompute}\n")
            }
        };
        let plain = match self.encoder {
            EncoderKind::Linear => "activation = \"none\"\n",
            EncoderKind::Bag => "activation = \"gelu\"\nresidual = false\ndropout = 0\nword_dropout = 0\n",
            EncoderKind::Transformer => "dropout = 0\nattention_dropout = 0\n",
        };
        let data = match self.encoder {
            EncoderKind::Linear => format!(
                "[synthetic]\nagree = 0\noppose = 0\nalone = {tasks}\nfeatures = {hidden}\ntrain = {examples}\ndev = 0\ntest = 0\n\
                 [task_defaults]\nhead = \"classification\"\n"
            ),
            _ => "[tasks_from]\nfile = \"rows.tsv\"\ntask = \"task\"\nsplit = \"split\"\n[task_defaults]\ntext = \"text\"\nlabel = \"label\"\n"
                .to_owned(),
        };
        format!(
            "[run]\nseed = {SEED}\n[encoder]\nkind = \"{kind}\"\nhidden = {hidden}\n{own}{plain}\
             [train]\nrounds = {rounds}\nmicro_batch = {batch}\n[optimizer]\nlr = 1e-4\nweight_decay = 0.01\n\
             [optimizer.schedule]\nkind = \"constant\"\n[clip]\nnorm = 0\n[surgery]\nmethod = \"{method}\"\n\
             [schedule]\nlanes = {lanes}\n[eval]\nevery = \"end\"\nbatch = 1\n[observe]\nconflict_every = 0\n{data}"
        )
    }
}

/// A word of its own for every id, the special ones at BERT's places.
fn vocabulary() -> String {
    let word = |id| match id {
        0 => "[PAD]\n".to_owned(),
        100 => "[UNK]\n".to_owned(),
        101 => "[CLS]\n".to_owned(),
        102 => "[SEP]\n".to_owned(),
        103 => "[MASK]\n".to_owned(),
        id => format!("w{id}\n"),
    };
    (0..VOCABULARY).map(word).collect()
}

/// Texts of random words, and labels of two classes in turn.
fn rows(shape: &Shape) -> String {
    let mut rows = String::from("task\tsplit\tlabel\ttext\n");
    for task in 0..shape.tasks {
        for example in 0..BATCHES * shape.batch {
            let random = Keyed::new(SEED, Stream::Synthetic, 0, task as u32, example as u32);
            let _ = write!(rows, "task{task}\ttrain\t{}\t", example % 2);
            for word in words(shape, random) {
                let _ = write!(rows, "w{} ", FIRST_WORD + word);
            }
            rows.push('\n');
        }
    }
    rows
}

/// Word frequencies of the bag fall like 1 / rank. Sequences of the transformer have uniform words, and with their two special ones
/// a uniform length from a quarter of the longest.
fn words(shape: &Shape, random: Keyed) -> Vec<u32> {
    let choices = VOCABULARY - FIRST_WORD;
    if shape.encoder == EncoderKind::Bag {
        return (0..WORDS as u32).map(|at| (f64::from(choices).powf(random.uniform(at)) as u32).min(choices - 1)).collect();
    }
    let shortest = (shape.seq / 4).max(3);
    let len = shortest + (random.uniform(0) * (shape.seq - shortest + 1) as f64) as usize;
    (1..len as u32 - 1).map(|at| random.word(at) % choices).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::driver::open_emulated;

    const BATCH: usize = 4;

    /// What a late one of some rounds asked of the device.
    fn steady(encoder: EncoderKind, tasks: usize) -> Counts {
        let (layers, seq, recompute, lanes, rounds) = (1, 8, false, 1, 7);
        let (batch, device, method) = (BATCH, "emulated", "pcgrad");
        let shape = Shape { encoder, hidden: 32, tasks, batch, layers, seq, recompute, device, method, lanes, rounds };
        let mut prepared = Prepared::new(&shape).expect("a small run");
        let counts = |next: &mut dyn FnMut(u64) -> Result<Timed>| -> Vec<Counts> {
            (0..rounds as u64).map(|round| next(round).expect("a round").counts).collect()
        };
        let [.., late, last] = prepared.with_rounds(counts)[..] else { unreachable!("so many rounds") };
        assert_eq!([last.launches, last.host_waits], [0, 1], "the device was given the last round before");
        late
    }

    #[test]
    fn a_profile_has_times_and_rates() {
        if open_emulated(0).is_err() {
            return;
        }
        let (layers, seq, recompute, lanes, rounds, hidden, tasks) = (1, 8, false, 1, 4, 32, 2);
        let (encoder, batch, device, method) = (EncoderKind::Linear, BATCH, "emulated", "pcgrad");
        let shape = Shape { encoder, hidden, tasks, batch, layers, seq, recompute, device, method, lanes, rounds };
        let mut prepared = Prepared::new(&shape).expect("a small run");
        assert!(prepared.profile().expect("a copy") > 0.0);
        let ops = prepared.with_rounds(|next| next(0).expect("a round").ops);
        let linear = &ops["linear_forward"];
        // Of this round, and of the next one where the device was given it meanwhile.
        assert!((1..=2).contains(&linear.launches) && !linear.is_partly_known);
        assert_eq!(linear.work.operations, linear.launches * (2 * tasks * BATCH * hidden * hidden) as u64);
        assert!(linear.work.bytes >= linear.launches * (2 * hidden * hidden) as u64);
        assert!(ops.values().map(|op| op.time).sum::<std::time::Duration>() > std::time::Duration::ZERO);
    }

    /// Where examples lie on the device, whatever they are and however many tasks there are.
    #[test]
    fn a_round_is_one_graph_and_brings_little() {
        if open_emulated(0).is_err() {
            return;
        }
        for encoder in [EncoderKind::Linear, EncoderKind::Bag] {
            let [few, many] = [2, 8].map(|tasks| steady(encoder, tasks));
            assert_eq!(few.launches, many.launches, "{}: kernels hang on the number of tasks", encoder.name());
            for (counts, tasks) in [(few, 2), (many, 8)] {
                assert_eq!([counts.graph_launches, counts.host_waits], [1, 1], "{}", encoder.name());
                let most = 8 * (BATCH * tasks) as u64 + 4096;
                assert!(counts.uploaded_bytes <= most, "{}, {tasks} tasks: {counts:?}, at most {most}", encoder.name());
            }
        }
    }
}
