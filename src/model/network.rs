//! Forward and backward over a packed batch: every task's rows lie end to end in one matrix.
//!
//! All rows of a fused group go through each layer at once. Three things are per segment, that is per task: weight and bias
//! gradients (each into the task's own row of J), the heads, and the row-sparse embedding gradient.

use std::ops::Range;

use crate::machine::host::HostMemory;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tape::{Op, Tape};
use crate::machine::tensor::Tensor;
use crate::model::encoders::dense::{self, Activations, Group};
use crate::model::gradients::GroupGradients;
pub use crate::model::gradients::{Gradients, Keep};
use crate::model::spec::{EncoderSpec, HeadKind, HeadSpec, ModelSpec, ParamTable};
use crate::model::transformer::{self, TokenBatch, TokenLimits, Transformer};
use crate::ops::activation::Activation;
pub use crate::ops::dropout::Randomness;
use crate::ops::dropout::RowKey;
use crate::ops::embedding_bag::{Bags, Table};
use crate::ops::loss::{self, Losses};

/// Rows of all tasks of a round (or of one evaluation batch), packed.
#[derive(Default)]
pub struct Batch {
    pub parts: Vec<Part>,
    /// Fused groups: consecutive parts, no task twice in one.
    pub groups: Vec<Range<usize>>,
    /// (rows) who each row is, for everything random.
    pub keys: Vec<RowKey>,
    /// (rows x inputs) for the `linear` encoder, else empty.
    pub features: Vec<f32>,
    /// One bag a row for the `bag` encoder, one bag a token for the `transformer`, else empty.
    pub bags: Bags,
    /// For the `transformer`, else empty.
    pub tokens: TokenBatch,
}

/// One task's micro-batch.
pub struct Part {
    /// Run-wide index of the task.
    pub task: usize,
    /// Its position among the tasks present this round.
    pub present: usize,
    /// Which of a round's independent batches it belongs to; 0 where there is one.
    pub batch: usize,
    pub rows: Range<usize>,
    pub targets: Targets,
    /// Factor on d(sum of losses): the task's weight over its observed targets of the round.
    pub scale: f32,
    /// The first micro-batch of its task and batch in this round: its gradients replace those of the round before.
    pub first: bool,
}

/// What the rows of a part should give.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// (rows; masked tokens for an `mlm` head) class index.
    Class(Vec<u32>),
    /// (rows x outputs), NaN where missing.
    Values(Vec<f32>),
}

impl Targets {
    /// Rows of logits they are held against.
    pub fn rows(&self, outputs: usize) -> usize {
        match self {
            Self::Class(classes) => classes.len(),
            Self::Values(values) => values.len() / outputs,
        }
    }

    /// Targets that are there.
    pub fn observed(&self) -> usize {
        match self {
            Self::Class(classes) => classes.len(),
            Self::Values(values) => values.iter().filter(|value| !value.is_nan()).count(),
        }
    }
}

/// Read access to every parameter.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub shared: &'a [f32],
    pub frozen: &'a [f32],
    pub heads: &'a [f32],
    pub rows: Option<Table<'a>>,
}

/// Largest shapes of a run, known from the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Rows of the largest fused group or evaluation batch.
    pub group_rows: usize,
    /// Rows of the largest round.
    pub round_rows: usize,
    /// Logits of the largest group.
    pub group_logits: usize,
    /// Most tasks in one round.
    pub present: usize,
    /// Embedding rows that one round of each task can touch; empty without a table that is trained.
    pub bag_rows: Vec<usize>,
    /// N-grams of the largest round of all tasks, or of the largest evaluation batch, if those are more; 0 without bags.
    pub bag_entries: usize,
    /// Embedding rows that the whole run of each task can touch; empty without a table.
    pub task_rows: Vec<usize>,
    /// For the `transformer`, else zeros.
    pub tokens: TokenLimits,
}

/// Activations of one group.
pub struct Scratch {
    input: Buffer,
    pre: Buffer,
    pub(super) hidden: Buffer,
    pub(super) dhidden: Buffer,
    shortcut: Buffer,
    pub(super) logits: Buffer,
    pub(super) dlogits: Buffer,
    /// A piece of a row of J that is kept in bf16, while it is computed.
    pub(super) staging: Buffer,
    pub(super) transformer: Option<transformer::Scratch>,
}

impl Scratch {
    pub fn new(memory: &mut Memory, encoder: &EncoderSpec, limits: &Limits) -> anyhow::Result<Self> {
        let dense = encoder.transformer().is_none();
        let rows = if dense { limits.group_rows } else { limits.tokens.head_rows };
        let input = if encoder.bag().is_some() { rows * encoder.inputs() } else { 0 };
        let activated = encoder.activation != Activation::None;
        let passes_on = encoder.bag().is_some() && encoder.residual;
        let transformer = match encoder.transformer() {
            Some(spec) => Some(transformer::Scratch::new(memory, spec, encoder.hidden, &limits.tokens)?),
            None => None,
        };
        Ok(Self {
            transformer,
            input: memory.buffer("scratch: encoder input", input)?,
            pre: memory.buffer("scratch: pre-activations", if dense && activated { rows * encoder.hidden } else { 0 })?,
            hidden: memory.buffer("scratch: hidden states", rows * encoder.hidden)?,
            dhidden: memory.buffer("scratch: gradient of hidden states", rows * encoder.hidden)?,
            shortcut: memory.buffer("scratch: gradient of the shortcut", if passes_on { rows * encoder.hidden } else { 0 })?,
            logits: memory.buffer("scratch: logits", limits.group_logits)?,
            dlogits: memory.buffer("scratch: gradient of logits", limits.group_logits)?,
            staging: Buffer::empty(),
        })
    }

    /// With room for a piece of a row of J ([`Network::largest_piece`]), for rows kept in bf16.
    pub fn staged(self, memory: &mut Memory, piece: usize) -> anyhow::Result<Self> {
        Ok(Self { staging: memory.buffer("scratch: piece of a row of J in f32", piece)?, ..self })
    }

    /// As tapes see it.
    fn lend<'a>(
        &'a mut self,
        memory: &mut HostMemory<'a>,
        encoder: &EncoderSpec,
    ) -> (Activations, Option<transformer::Scratch<Tensor>>) {
        let mut rows = |values: &'a mut Buffer, columns: usize| {
            let rows = values.len() / columns;
            memory.lend_mut(&mut values[..]).as_rows(rows, columns)
        };
        let [input, pre] = [rows(&mut self.input, encoder.inputs()), rows(&mut self.pre, encoder.hidden)];
        let [hidden, dhidden, shortcut] =
            [&mut self.hidden, &mut self.dhidden, &mut self.shortcut].map(|values| rows(values, encoder.hidden));
        let [logits, dlogits, staging] =
            [&mut self.logits, &mut self.dlogits, &mut self.staging].map(|values| memory.lend_mut(&mut values[..]));
        let tokens = self.transformer.as_mut().zip(encoder.transformer());
        let tokens = tokens.map(|(own, spec)| own.lend(memory, spec, encoder.hidden));
        let row_losses = Tensor::NONE;
        (Activations { input, pre, hidden, dhidden, shortcut, logits, dlogits, staging, row_losses }, tokens)
    }

    /// What an evaluation batch may have, for an encoder that reads tokens.
    pub fn token_room(&self, hidden: usize) -> Option<TokenRoom> {
        self.transformer.as_ref().map(|own| TokenRoom { tokens: own.token_room(hidden), masked: own.masked_room() })
    }

    /// Logits of the last forward pass, part after part.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
}

/// Most tokens of an evaluation batch, and of these most that are masked.
#[derive(Clone, Copy, Debug)]
pub struct TokenRoom {
    pub tokens: usize,
    pub masked: usize,
}

pub struct Network {
    pub spec: ModelSpec,
    /// Label smoothing of classification losses while training.
    pub label_smoothing: f64,
    pub table: ParamTable,
    encoder: Encoder,
}

/// The code that runs the encoder.
enum Encoder {
    /// One layer over features or bags: the methods here.
    Dense,
    Transformer(Box<Transformer>),
}

impl Network {
    pub fn new(spec: ModelSpec) -> Self {
        let table = ParamTable::new(&spec);
        let encoder = match spec.encoder.transformer() {
            Some(transformer) => Encoder::Transformer(Box::new(Transformer::new(transformer, &spec.encoder))),
            None => Encoder::Dense,
        };
        Self { spec, label_smoothing: 0.0, table, encoder }
    }

    /// Encoder and heads of one group; logits are left in `scratch`.
    pub fn forward(&self, weights: Weights, batch: &Batch, group: &[Part], scratch: &mut Scratch, random: Option<Randomness>) {
        let packed;
        let mut memory = HostMemory::new();
        let mut tape = Tape::default();
        let (at, tokens) = scratch.lend(&mut memory, &self.spec.encoder);
        if let (Encoder::Transformer(transformer), Some(tokens)) = (&self.encoder, tokens) {
            packed = transformer.pack(self, batch, group);
            let pass = transformer.pass(&mut memory, weights, batch, &packed, tokens, random);
            let heads = self.lend_heads(&mut memory, weights);
            transformer.forward(&mut tape, self, &pass, group, heads, &at);
            return tape.run(&memory);
        }
        let group = self.lend_group(&mut memory, weights, batch, group, at);
        dense::forward(&mut tape, self, &group, random);
        tape.run(&memory);
    }

    /// All heads' values, and the word table where a head reads it whole.
    fn lend_heads<'a>(&self, memory: &mut HostMemory<'a>, weights: Weights<'a>) -> [Tensor; 2] {
        let words = weights.rows.filter(|_| self.spec.heads.iter().any(|head| head.kind == HeadKind::Mlm));
        let words = words.map_or(Tensor::NONE, |table| {
            assert!(table.slots[0] == 0, "a tied decoder reads the whole table in row order");
            memory.lend(table.values)
        });
        [memory.lend(weights.heads), words]
    }

    /// A group as tapes see it.
    fn lend_group<'a>(
        &self,
        memory: &mut HostMemory<'a>,
        weights: Weights<'a>,
        batch: &'a Batch,
        parts: &'a [Part],
        at: Activations,
    ) -> Group<'a> {
        let (rows, inputs) = (group_rows(parts), self.spec.encoder.inputs());
        let features = match self.spec.encoder.bag() {
            None => memory.lend(&batch.features[rows.start * inputs..rows.end * inputs]).as_rows(rows.len(), inputs),
            Some(_) => Tensor::NONE,
        };
        let (shared, heads) = (memory.lend(weights.shared), memory.lend(weights.heads));
        let [weight, bias] = [&self.table.shared[0], &self.table.shared[1]].map(|param| shared.range(param.range()));
        let weights_at = dense::Weights { weight: weight.as_rows(self.spec.encoder.hidden, inputs), bias, heads };
        let keys = &batch.keys[rows.clone()];
        let table =
            weights.rows.map(|Table { slots, values, init, .. }| dense::Table { slots, values: memory.lend(values), init });
        Group { parts, rows, keys, features, bags: &batch.bags, table, weights: weights_at, at }
    }

    /// (tokens x hidden) what a transformer's frozen prefix makes of a batch of one group; none for other encoders.
    pub fn prefix<'a>(&self, weights: Weights, batch: &Batch, scratch: &'a mut Scratch) -> Option<&'a [f32]> {
        let Encoder::Transformer(transformer) = &self.encoder else { return None };
        let packed = transformer.pack(self, batch, &batch.parts);
        {
            let mut memory = HostMemory::new();
            let tokens = scratch.lend(&mut memory, &self.spec.encoder).1?;
            let pass = transformer.pass(&mut memory, weights, batch, &packed, tokens, None);
            let mut tape = Tape::default();
            transformer.compute_prefix(&mut tape, &pass);
            tape.run(&memory);
        }
        let count = batch.bags.rows.len() * transformer.hidden;
        Some(&scratch.transformer.as_ref()?.prefix(&transformer.spec)[..count])
    }

    /// Sum of losses of each part (f64, over observed targets); leaves scaled logit gradients in `scratch`.
    pub fn losses(&self, group: &[Part], scratch: &mut Scratch) -> Vec<f64> {
        let mut sums = vec![0.0; group.len()];
        let mut memory = HostMemory::new();
        let (logits, dlogits) = (memory.lend(&scratch.logits), memory.lend_mut(&mut scratch.dlogits));
        let part = |(sum, part)| loss::Part { sum, ..self.loss_part(part) };
        let parts = group.iter().enumerate().map(part).collect();
        let losses = Losses { sums: memory.lend_mut(&mut sums), dlogits, logits, row_losses: Tensor::NONE, parts };
        losses.host(&memory);
        drop(memory);
        sums
    }

    /// What a part's logits are held against.
    pub fn loss_part<'a>(&self, part: &'a Part) -> loss::Part<'a> {
        loss_of(&self.spec.heads[part.task], &part.targets, self.label_smoothing, part.scale)
    }

    /// Scales the logit gradients that [`Network::losses`] left: `factors` by present task.
    pub fn scale_logit_gradients(&self, group: &[Part], scratch: &mut Scratch, factors: &[f64]) {
        let mut rest = &mut scratch.dlogits[..];
        for part in group {
            let outputs = self.spec.heads[part.task].outputs;
            let (own, tail) = rest.split_at_mut(part.targets.rows(outputs) * outputs);
            own.iter_mut().for_each(|d| *d *= factors[part.present] as f32);
            rest = tail;
        }
    }

    /// Sum of losses of one row of a task's logits (outputs), labels not smoothed; `room` is for use inside.
    pub fn row_loss(&self, task: usize, targets: &Targets, logits: &[f32], room: &mut Vec<f32>) -> f64 {
        room.resize(logits.len(), 0.0);
        loss_of(&self.spec.heads[task], targets, 0.0, 0.0).loss(room, logits)
    }

    /// Backward pass of a group after [`Network::forward`] and [`Network::losses`]; `gradients` are the group's own.
    pub fn backward(
        &self,
        weights: Weights,
        batch: &Batch,
        group: &[Part],
        scratch: &mut Scratch,
        gradients: GroupGradients,
        random: Randomness,
    ) {
        let packed;
        let mut memory = HostMemory::new();
        let mut tape = Tape::default();
        let (at, tokens) = scratch.lend(&mut memory, &self.spec.encoder);
        if let (Encoder::Transformer(transformer), Some(tokens)) = (&self.encoder, tokens) {
            packed = transformer.pack(self, batch, group);
            let pass = transformer.pass(&mut memory, weights, batch, &packed, tokens, Some(random));
            let heads = self.lend_heads(&mut memory, weights);
            transformer.backward(&mut tape, self, &mut memory, &pass, group, heads, &at, gradients);
            return tape.run(&memory);
        }
        let own = self.lend_group(&mut memory, weights, batch, group, at);
        let GroupGradients { jacobian, heads, dinput, .. } = gradients;
        let rows: Vec<Range<usize>> =
            group.iter().map(|part| part.rows.start - own.rows.start..part.rows.end - own.rows.start).collect();
        let gradients = dense::Gradients {
            jacobian: jacobian.lend(&mut memory, group, &rows, own.at.staging),
            heads: heads.into_iter().map(|head| memory.lend_mut(head)).collect(),
            dinput: memory.lend_mut(dinput).as_rows(own.rows.len(), self.spec.encoder.inputs()),
        };
        dense::backward(&mut tape, self, &own, gradients, random);
        tape.run(&memory);
    }

    /// Row-sparse embedding gradients of every present task, once all groups of the round are through.
    pub fn row_gradients(&self, batch: &Batch, gradients: &mut Gradients, present: usize) {
        if gradients.dinput.is_empty() {
            return;
        }
        let (dinput, batches) = (&gradients.dinput, gradients.batches);
        use rayon::prelude::*;
        let own = |index: usize| batch.parts.iter().filter(move |part| part.present * batches + part.batch == index);
        let transformer = matches!(self.encoder, Encoder::Transformer(_));
        gradients.rows[..present * batches].par_iter_mut().with_max_len(1).enumerate().for_each(|(index, gradient)| {
            if transformer {
                let mut own = own(index).peekable();
                let words = own.peek().is_some_and(|part| self.spec.heads[part.task].kind == HeadKind::Mlm);
                let tokens = own.flat_map(|part| batch.tokens.tokens(&part.rows));
                if words {
                    gradient.backward_onto_whole(dinput, &batch.bags, tokens);
                } else {
                    gradient.backward(dinput, &batch.bags, tokens);
                }
                return;
            }
            gradient.backward(dinput, &batch.bags, own(index).flat_map(|part| part.rows.clone()));
        });
    }

    /// Most columns of J that a backward pass writes at once.
    pub fn largest_piece(&self) -> usize {
        match &self.encoder {
            Encoder::Dense => self.table.shared_len(),
            Encoder::Transformer(transformer) => transformer.largest_piece(),
        }
    }

    /// Rows (tokens, for a transformer) of the encoder's input that belong to a group.
    pub(super) fn input_rows(&self, batch: &Batch, group: &[Part]) -> Range<usize> {
        let rows = group_rows(group);
        if self.spec.encoder.transformer().is_some() { batch.tokens.tokens(&rows) } else { rows }
    }
}

fn group_rows(group: &[Part]) -> Range<usize> {
    match (group.first(), group.last()) {
        (Some(first), Some(last)) => first.rows.start..last.rows.end,
        _ => 0..0,
    }
}

fn loss_of<'a>(head: &HeadSpec, targets: &'a Targets, smoothing: f64, scale: f32) -> loss::Part<'a> {
    let targets = match (targets, head.kind) {
        (Targets::Class(words), HeadKind::Mlm) => loss::Targets::Word(words),
        (Targets::Class(classes), _) => loss::Targets::Class(classes, smoothing),
        (Targets::Values(labels), HeadKind::Multilabel) => loss::Targets::Label(labels),
        (Targets::Values(values), _) => loss::Targets::Value(values),
    };
    loss::Part { targets, outputs: head.outputs, scale, sum: 0, first: true }
}
