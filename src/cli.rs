//! What can be typed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::data::SplitName;
use crate::failure::BAD_INPUT;
use crate::observe;
use crate::output;

/// Version, and what was built in.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (cuda: ", env!("TASKLOOM_CUDA"), ")");

/// Train one shared encoder on many tasks at once
#[derive(Parser)]
#[command(name = "taskloom", version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Report every error of a configuration at once
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// Print the resolved configuration, each value with where it comes from
        #[arg(long)]
        print: bool,
    },
    /// Show bytes, rounds and groups of a run without starting it
    Plan {
        #[command(flatten)]
        config: ConfigArgs,
        #[arg(long)]
        json: bool,
    },
    /// Train; SIGINT, SIGTERM, SIGHUP or SIGUSR1 finish the round, write a checkpoint and exit with 130
    Train {
        #[command(flatten)]
        config: ConfigArgs,
        /// Folder of the run [default: run.out/run.name, counted up]
        #[arg(long)]
        run_dir: Option<PathBuf>,
    },
    /// Continue a run from its newest whole checkpoint
    Resume {
        run_dir: PathBuf,
        /// Change a key from here on, e.g. --set optimizer.lr=1e-4; docs/configuration.md marks those that may change
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
    },
    /// Score a run (its best parameters) or one checkpoint
    Eval {
        /// Run folder or checkpoint folder
        path: PathBuf,
        #[arg(long, value_enum, default_value = "dev")]
        split: EvalSplit,
        #[arg(long)]
        json: bool,
    },
    /// Answer texts (or features as JSON lists), from --text or one a line from stdin
    Predict {
        /// Run folder or checkpoint folder
        path: PathBuf,
        #[arg(long)]
        task: String,
        /// The two texts of a pair are separated by a tab
        #[arg(long)]
        text: Option<String>,
    },
    /// Write a trained transformer as a Hugging Face folder, with its heads
    Export {
        /// Run folder or checkpoint folder
        path: PathBuf,
        #[arg(long)]
        out: PathBuf,
    },
    /// Solve surgery problems: JSON lines from stdin to stdout, or one Jacobian from a safetensors file
    Surgery(SurgeryArgs),
    /// Describe every surgery method and loss balancer
    Methods {
        #[arg(long, conflicts_with = "markdown")]
        json: bool,
        /// The page docs/methods.md
        #[arg(long)]
        markdown: bool,
    },
    /// Run the scheduler on synthetic tasks over a virtual clock
    Simulate(Simulate),
    /// Measure a part of the program on synthetic data
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Args)]
struct ConfigArgs {
    /// Configuration file
    config: PathBuf,
    /// Set a key, e.g. --set train.epochs=2; wins over the file and its bases
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

#[derive(Args)]
pub struct Simulate {
    /// Workload file; ready ones are in configs/workloads
    pub workload: PathBuf,
    /// Set a key, e.g. --set schedule.policy=edf
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    #[arg(long)]
    pub json: bool,
    /// Receives every quantum, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Receives the timeline as a picture
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Milliseconds shown in it; 0 shows all
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    pub svg_ms: f64,
}

#[derive(Args)]
pub struct SurgeryArgs {
    /// File with the f32 tensor `jacobian` (T x P), and where a method needs them `losses` (T) and `jacobian2` (T x P)
    #[arg(long, requires_all = ["method", "out"])]
    pub jacobian: Option<PathBuf>,
    #[arg(long, requires = "jacobian")]
    pub method: Option<String>,
    /// A parameter of the method
    #[arg(long = "param", value_name = "NAME=VALUE", requires = "jacobian")]
    pub params: Vec<String>,
    /// Receives the tensors `update` (P) and `weights` (T)
    #[arg(long, requires = "jacobian")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum EvalSplit {
    Dev,
    Test,
}

#[derive(Subcommand)]
enum Bench {
    /// One training round, stage by stage
    Step(BenchStep),
    /// Gram matrix, solve and fused update on a synthetic Jacobian, beside the time memory alone takes
    Surgery(BenchSurgery),
    /// The CUDA kernels on a card, beside a ceiling measured in the same run
    Kernels(BenchKernels),
    /// The scheduler beside real rounds on the CPU: its own time, shares by weight, and an urgent task beside busy ones
    Schedule(BenchSchedule),
}

#[derive(Args)]
pub struct BenchSchedule {
    /// Examples of a quantum, which is one round of one task
    #[arg(long, default_value_t = 96)]
    pub batch: usize,
    /// Quanta of the tasks that share the time by weight
    #[arg(long, default_value_t = 1000)]
    pub quanta: usize,
    /// Requests of the urgent task, alone and beside the others
    #[arg(long, default_value_t = 100)]
    pub requests: usize,
    /// Quanta of one request
    #[arg(long, default_value_t = 20)]
    pub request: usize,
    /// Milliseconds from the end of a request to the next
    #[arg(long, default_value_t = 30.0)]
    pub pause_ms: f64,
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct BenchKernels {
    /// The card: cuda or cuda:N
    #[arg(long, default_value = "cuda")]
    pub device: String,
    /// Columns of the Jacobian of 8 tasks
    #[arg(long, default_value_t = 100_000_000)]
    pub params: usize,
    /// Runs of ten launches to time, after two to warm up
    #[arg(long, default_value_t = 15)]
    pub runs: usize,
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct BenchSurgery {
    #[arg(long, default_value_t = 8)]
    pub tasks: usize,
    /// Columns of the Jacobian
    #[arg(long, default_value_t = 10_000_000)]
    pub params: usize,
    /// Surgery method
    #[arg(long, default_value = "pcgrad")]
    pub method: String,
    /// Numbers of the Jacobian
    #[arg(long, value_enum, default_value = "f32")]
    pub storage: BenchStorage,
    /// Runs to time, after two to warm up
    #[arg(long, default_value_t = 15)]
    pub runs: usize,
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchStorage {
    F32,
    Bf16,
}

#[derive(Args)]
pub struct BenchStep {
    #[arg(long, value_enum, default_value = "linear")]
    pub encoder: BenchEncoder,
    #[arg(long, default_value_t = 8)]
    pub tasks: usize,
    /// Examples of one task in a round
    #[arg(long, default_value_t = 256)]
    pub batch: usize,
    /// Layers of the transformer
    #[arg(long, default_value_t = 2)]
    pub layers: usize,
    /// Longest sequence of the transformer; lengths are uniform from a quarter of it
    #[arg(long, default_value_t = 64)]
    pub seq: usize,
    /// Keep only the transformer layers' inputs
    #[arg(long)]
    pub recompute: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Surgery method
    #[arg(long, default_value = "pcgrad")]
    pub method: String,
    /// Groups computed at the same time on the CPU, each on its share of the threads
    #[arg(long, default_value_t = 1)]
    pub lanes: usize,
    /// Rounds to time, after two to warm up
    #[arg(long, default_value_t = 20)]
    pub runs: usize,
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchEncoder {
    Linear,
    Bag,
    Transformer,
}

pub fn run() -> Result<ExitCode> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return tell(&answer),
    };
    observe::init_logging();
    match cli.command {
        Command::Check { config, print } => commands::check::run(&config.config, &config.sets, print)?,
        Command::Plan { config, json } => commands::plan::run(&config.config, &config.sets, json)?,
        Command::Train { config, run_dir } => {
            return commands::train::train(&config.config, &config.sets, run_dir.as_deref());
        }
        Command::Resume { run_dir, sets } => return commands::train::resume(&run_dir, &sets),
        Command::Eval { path, split, json } => {
            let split = match split {
                EvalSplit::Dev => SplitName::Dev,
                EvalSplit::Test => SplitName::Test,
            };
            commands::eval::run(&path, split, json)?;
        }
        Command::Predict { path, task, text } => commands::predict::run(&path, &task, text.as_deref())?,
        Command::Export { path, out } => commands::export::run(&path, &out)?,
        Command::Surgery(args) => commands::surgery::run(&args)?,
        Command::Methods { json, markdown } => commands::methods::run(json, markdown)?,
        Command::Simulate(options) => commands::simulate::run(&options)?,
        Command::Bench(Bench::Step(options)) => commands::bench::step(&options)?,
        Command::Bench(Bench::Surgery(options)) => commands::bench_surgery::run(&options)?,
        Command::Bench(Bench::Kernels(options)) => commands::bench_kernels::run(&options)?,
        Command::Bench(Bench::Schedule(options)) => commands::bench_schedule::run(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Help and version are results; what is wrong with the words typed is a message.
fn tell(answer: &clap::Error) -> Result<ExitCode> {
    let printed = answer.print();
    if answer.use_stderr() {
        return Ok(ExitCode::from(BAD_INPUT));
    }
    output::written(printed)?;
    Ok(ExitCode::SUCCESS)
}
