//! A trained model without its data: what `predict` and `export` work on.

use anyhow::{Result, ensure};

use crate::config::Config;
use crate::data::Tokenizer;
use crate::machine::memory::Memory;
use crate::model::network::{Limits, Network, Scratch};
use crate::model::spec::{HeadKind, HeadSpec, ModelSpec};
use crate::model::transformer::TokenLimits;
use crate::model::{Model, Start};
use crate::train::checkpoint::{self, TaskState};
use crate::train::encoder::encoder;
use crate::train::run_folder::Source;

/// A checkpoint's model, and room to run some examples at a time.
pub struct Stored {
    pub model: Model,
    pub scratch: Scratch,
    /// Of so many examples.
    pub limits: Limits,
    /// A text encoder's.
    pub tokenizer: Option<Tokenizer>,
}

/// With room for at most `examples` at a time.
pub fn stored_model(config: &Config, source: &Source, examples: usize) -> Result<Stored> {
    let tokenizer = config.encoder.tokenizer.as_ref().filter(|_| config.encoder.kind.reads_text());
    let tokenizer = tokenizer.map(|spec| Tokenizer::open(spec, config.encoder.lowercase)).transpose()?;
    let encoder = encoder(config, tokenizer.as_ref(), || checkpoint::input_columns(&source.checkpoint))?;
    let settings = |task: &TaskState| config.tasks.get(&task.name).unwrap_or(&config.task_defaults);
    let heads = source.state.tasks.iter();
    let head = |task: &TaskState| HeadSpec {
        task: task.name.clone(),
        kind: task.kind,
        outputs: task.outputs,
        class_weights: task.class_weights.as_deref().map(Into::into),
        temperature: settings(task).temperature,
    };
    let heads = heads.map(head).collect();
    let network = Network::new(ModelSpec { encoder, heads });
    checkpoint::check_shapes(&source.checkpoint, &network)?;
    // An `mlm` head's own parameters do not follow from its outputs, which are the words.
    let table_rows = network.spec.encoder.table().map_or(0, |table| table.rows);
    let outputs = network.spec.heads.iter().map(|head| if head.kind == HeadKind::Mlm { table_rows } else { head.outputs });
    let outputs = outputs.max().unwrap_or(0);
    let rows = examples * network.spec.heads.iter().map(|head| head.kind.rows()).max().unwrap_or(1);
    let tokens = config.encoder.positions * rows;
    let tokens = TokenLimits { group_tokens: tokens, group_queries: tokens, head_rows: rows, ..TokenLimits::default() };
    let bag_entries = config.encoder.max_len * config.encoder.ngrams * rows;
    let (group_rows, round_rows, group_logits) = (rows, rows, outputs * rows);
    let limits = Limits { group_rows, round_rows, group_logits, bag_entries, tokens, ..Limits::default() };
    let row_capacity = checkpoint::embedding_rows(&source.checkpoint)?;
    ensure!(
        row_capacity == table_rows || !network.spec.reads_whole_table(),
        "{} holds {row_capacity} embedding rows, its model reads a table of {table_rows}",
        source.checkpoint.display()
    );
    let start = Start { seed: config.run.seed, equal_heads: false, second_moment: false, row_moment: false, row_capacity };
    let mut memory = Memory::unlimited();
    let scratch = Scratch::new(&mut memory, &*network.spec.encoder, &limits)?;
    let mut model = Model::new(&mut memory, network, &start)?;
    checkpoint::read_model(&source.checkpoint, &mut model)?;
    Ok(Stored { model, scratch, limits, tokenizer })
}
