//! Forward and backward over a packed batch: every task's rows lie end to end in one matrix.
//!
//! All rows of a fused group go through each layer at once. Three things are per segment, that is per task: weight and bias
//! gradients (each into the task's own row of J), the heads, and the row-sparse embedding gradient.

use crate::machine::driver::Address;
use crate::machine::host::HostMemory;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
pub use crate::model::batch::{Batch, Part, Targets, group_rows};
use crate::model::encoders::activations::{Activations, HostAllocator};
use crate::model::encoders::{self, Encoder, Gradients as GradientsAt, Group, Values};
use crate::model::gradients::GroupGradients;
pub use crate::model::gradients::{Gradients, Keep};
use crate::model::spec::{HeadKind, HeadSpec, ModelSpec, ParamTable};
use crate::model::transformer::{TokenGroup, TokenLimits};
pub use crate::ops::dropout::Randomness;
use crate::ops::embedding_bag::Table;
use crate::ops::loss::{self, Losses};
use crate::ops::pair_loss::PairLoss;
use crate::ops::row_gradients::RowGradient;

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
    /// Pairs of the largest micro-batch whose texts are compared.
    pub pairs: usize,
    /// The same where those over a whole vocabulary are computed some rows at a time, and an evaluation has few such rows; none
    /// without such a head.
    pub logits_at_once: Option<usize>,
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
    /// Training examples that lie on the device; zeros where they come with their rounds.
    pub data: DataLimits,
}

/// A run's training examples, all tasks'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataLimits {
    pub examples: usize,
    /// N-grams for the `bag`, tokens for the `transformer`.
    pub entries: usize,
}

impl Limits {
    /// Of a group alone, without a round around it.
    pub fn of_group(&self) -> Self {
        let tokens = TokenLimits { round_tokens: self.tokens.group_tokens, ..self.tokens };
        let (bag_rows, task_rows) = (Vec::new(), Vec::new());
        Self { round_rows: self.group_rows, present: 0, bag_rows, task_rows, tokens, data: DataLimits::default(), ..*self }
    }
}

/// Activations of one group on the host.
pub struct Scratch {
    at: Activations,
    buffers: Vec<Buffer>,
    /// A piece of a row of J that is kept in bf16, while it is computed.
    staging: Buffer,
}

impl Scratch {
    pub fn new(memory: &mut Memory, encoder: &dyn Encoder, limits: &Limits) -> anyhow::Result<Self> {
        let mut room = HostAllocator::new(memory);
        Ok(Self { at: encoder.activations(&mut room, limits)?, buffers: room.buffers, staging: Buffer::empty() })
    }

    /// With room for a piece of a row of J ([`Encoder::largest_piece`]), for rows kept in bf16.
    pub fn staged(self, memory: &mut Memory, piece: usize) -> anyhow::Result<Self> {
        Ok(Self { staging: memory.buffer("scratch: piece of a row of J in f32", piece)?, ..self })
    }

    /// As tapes see it, with the room for a piece.
    fn lend<'a>(&'a mut self, memory: &mut HostMemory<'a>) -> (&'a Activations, Tensor) {
        for buffer in &mut self.buffers {
            memory.lend_mut(&mut buffer[..]);
        }
        (&self.at, memory.lend_mut(&mut self.staging[..]))
    }

    /// Where a tensor's values lie.
    fn buffer(&mut self, tensor: Tensor) -> &mut [f32] {
        let own = self.buffers.iter_mut().find(|buffer| buffer.as_ptr() as Address == tensor.at);
        own.map_or(&mut [], |buffer| &mut buffer[..])
    }

    /// What an evaluation batch may have, for an encoder that reads tokens.
    pub fn token_room(&self) -> Option<TokenRoom> {
        self.at.token_room()
    }

    /// (rows x hidden) what the heads saw in the last forward pass, of so many rows.
    pub fn hidden(&mut self, rows: usize) -> &[f32] {
        let hidden = self.at.hidden;
        &self.buffer(hidden)[..rows * hidden.columns]
    }

    /// Logits of the last forward pass, part after part.
    pub fn logits(&mut self) -> &[f32] {
        self.buffer(self.at.logits)
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
}

impl Network {
    pub fn new(spec: ModelSpec) -> Self {
        let table = ParamTable::new(&spec);
        Self { spec, label_smoothing: 0.0, table }
    }

    /// Encoder and heads of one group; logits are left in `scratch`.
    pub fn forward(&self, weights: Weights, batch: &Batch, parts: &[Part], scratch: &mut Scratch, random: Option<Randomness>) {
        let tokens = self.tokens(batch, parts);
        let (mut memory, mut tape) = (HostMemory::new(), Tape::default());
        let at = scratch.lend(&mut memory).0;
        let group = self.lend_group(&mut memory, weights, batch, parts, tokens.as_ref(), at);
        self.emit_forward(&mut tape, &group, random);
        tape.run(&memory);
    }

    /// As [`Encoder::tokens`].
    pub fn tokens(&self, batch: &Batch, parts: &[Part]) -> Option<TokenGroup> {
        self.spec.encoder.tokens(batch, parts, &self.spec.heads)
    }

    /// As [`Encoder::forward`].
    pub fn emit_forward<'a>(&self, tape: &mut Tape<'a>, group: &Group<'a>, random: Option<Randomness>) {
        self.spec.encoder.forward(tape, self, group, random);
    }

    /// Losses after [`Network::emit_forward`], and the gradients of the logits; `sums` (present tasks) and `row_losses` (rows) are
    /// f64. Losses over a whole vocabulary come with all that follows from their logits, for which there are `gradients` if wanted.
    pub fn emit_losses<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        group: &Group<'a>,
        [sums, row_losses]: [Tensor; 2],
        gradients: Option<&GradientsAt>,
    ) {
        let part = |(number, part): (usize, &'a Part)| {
            let (own, first) = (self.loss_part(part), part.first && part.batch == 0);
            let targets = match (own.targets, group.tokens) {
                (loss::Targets::Word(_), Some(tokens)) if !group.at.keeps_words => {
                    loss::Targets::Known { rows: tokens.part_heads[number].len(), logits: 0 }
                }
                (targets, _) => targets,
            };
            loss::Part { sum: part.present, first, targets, ..own }
        };
        if !group.at.keeps_words {
            self.spec.encoder.word_losses(tape, self, group, row_losses, gradients);
        }
        let (dlogits, logits) = (group.at.dlogits, group.at.logits);
        let parts: Vec<loss::Part> = group.parts.iter().enumerate().map(part).collect();
        self.emit_pair_losses(tape, group.parts, &parts, group.at, row_losses);
        tape.push(Losses { sums, dlogits, logits, row_losses, parts });
    }

    /// Losses of pairs of texts, into their rows of `row_losses`, and the gradients of their unit vectors.
    fn emit_pair_losses(&self, tape: &mut Tape, group: &[Part], losses: &[loss::Part], at: &Activations, row_losses: Tensor) {
        let (mut row, mut logit) = (0, 0);
        for (part, own) in group.iter().zip(losses) {
            let (rows, logits) = (row..row + own.rows(), logit..logit + own.len());
            (row, logit) = (rows.end, logits.end);
            let Targets::Pairs(pairs) = part.targets else { continue };
            let [units, dunits] = [at.logits, at.dlogits].map(|all| all.range(logits.clone()).as_rows(rows.len(), own.outputs));
            let (scores, row_losses) = (at.scores.as_rows(pairs, pairs), row_losses.range(rows));
            let temperature = self.spec.heads[part.task].temperature as f32;
            tape.push(PairLoss { units, dunits, scores, row_losses, temperature, scale: part.scale });
        }
    }

    /// As [`Encoder::backward`].
    pub fn emit_backward<'a>(&self, tape: &mut Tape<'a>, group: &Group<'a>, gradients: GradientsAt, random: Randomness) {
        self.spec.encoder.backward(tape, self, group, gradients, random);
    }

    /// All heads' values, and the word table where a head reads it whole.
    fn lend_heads<'a>(&self, memory: &mut HostMemory<'a>, weights: Weights<'a>) -> [Tensor; 2] {
        let words = weights.rows.filter(|_| self.spec.mlm_head().is_some());
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
        tokens: Option<&'a TokenGroup>,
        at: &'a Activations,
    ) -> Group<'a> {
        let (rows, inputs) = (group_rows(parts), self.spec.encoder.inputs());
        let features = match &batch.features[..] {
            [] => Tensor::NONE,
            all => memory.lend(&all[rows.start * inputs..rows.end * inputs]).as_rows(rows.len(), inputs),
        };
        let [shared, frozen] = [weights.shared, weights.frozen].map(|values| {
            let wide = memory.lend(values);
            Values { wide, narrow: wide }
        });
        let [heads, words] = self.lend_heads(memory, weights);
        let table = weights.rows.map(|Table { slots, values, init, .. }| encoders::Table {
            slots,
            values: memory.lend(values).as_rows(values.len() / inputs, inputs),
            init,
        });
        let weights = encoders::Weights { shared, frozen, heads, mlm_layers: Tensor::NONE, words };
        let states = Tensor::NONE;
        Group { parts, batch, rows, tokens, features, fetched: None, table, states, weights, at }
    }

    /// A group's gradients as tapes see them.
    fn lend_gradients<'a>(
        &self,
        memory: &mut HostMemory<'a>,
        group: &Group,
        gradients: GroupGradients<'a>,
        staging: Tensor,
    ) -> GradientsAt {
        let GroupGradients { jacobian, heads, words, dinput } = gradients;
        let jacobian = jacobian.lend(memory, group.parts, &group.batch.input_segments(group.parts), staging);
        let heads = heads.into_iter().map(|head| memory.lend_mut(head)).collect();
        let whole = |(part, row): (&Part, Option<&'a mut RowGradient>)| {
            let (Some(row), HeadKind::Mlm) = (row, self.spec.heads[part.task].kind) else { return Tensor::NONE };
            memory.lend_mut(row.whole(self.spec.heads[part.task].outputs))
        };
        let words = group.parts.iter().zip(words).map(whole).collect();
        let inputs = self.spec.encoder.inputs();
        let dinput = memory.lend_mut(dinput);
        let rows = group.batch.input_rows(group.parts).len();
        let dinput = if dinput.is_none() { dinput } else { dinput.as_rows(rows, inputs) };
        GradientsAt { jacobian, heads, words, dinput }
    }

    /// (tokens x hidden) what a transformer's frozen prefix makes of a batch of one group; none for other encoders.
    pub fn prefix<'a>(&self, weights: Weights, batch: &Batch, scratch: &'a mut Scratch) -> Option<&'a [f32]> {
        let transformer = self.spec.encoder.transformer()?;
        let tokens = self.tokens(batch, &batch.parts);
        let states = {
            let (mut memory, mut tape) = (HostMemory::new(), Tape::default());
            let at = scratch.lend(&mut memory).0;
            let group = self.lend_group(&mut memory, weights, batch, &batch.parts, tokens.as_ref(), at);
            transformer.compute_prefix(&mut tape, &transformer.pass(&group, None));
            tape.run(&memory);
            at.transformer.as_ref()?.prefix(&transformer.spec)
        };
        let count = batch.bags.rows.len() * transformer.hidden;
        Some(&scratch.buffer(states)[..count])
    }

    /// Sum of losses of each part (f64, over observed targets); leaves scaled logit gradients in `scratch`.
    pub fn losses(&self, group: &[Part], scratch: &mut Scratch) -> Vec<f64> {
        let part = |(sum, part)| loss::Part { sum, ..self.loss_part(part) };
        let parts: Vec<loss::Part> = group.iter().enumerate().map(part).collect();
        let compares = group.iter().any(|part| matches!(part.targets, Targets::Pairs(_)));
        let rows = if compares { parts.iter().map(loss::Part::rows).sum() } else { 0 };
        let (mut sums, mut row_losses) = (vec![0.0; group.len()], vec![0.0; rows]);
        let (mut memory, mut tape) = (HostMemory::new(), Tape::default());
        let (sums_at, row_losses) = (memory.lend_mut(&mut sums), memory.lend_mut(&mut row_losses));
        let at = scratch.lend(&mut memory).0;
        self.emit_pair_losses(&mut tape, group, &parts, at, row_losses);
        tape.push(Losses { sums: sums_at, dlogits: at.dlogits, logits: at.logits, row_losses, parts });
        tape.run(&memory);
        drop((tape, memory));
        sums
    }

    /// As [`HeadSpec::observed`], of a part.
    pub fn observed(&self, part: &Part) -> f64 {
        self.spec.heads[part.task].observed(&part.targets)
    }

    /// What a part's logits are held against.
    pub fn loss_part<'a>(&'a self, part: &'a Part) -> loss::Part<'a> {
        loss_of(&self.spec.heads[part.task], &part.targets, self.label_smoothing, part.scale)
    }

    /// Scales the logit gradients that [`Network::losses`] left: `factors` by present task.
    pub fn scale_logit_gradients(&self, group: &[Part], scratch: &mut Scratch, factors: &[f64]) {
        let mut rest = scratch.buffer(scratch.at.dlogits);
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
        parts: &[Part],
        scratch: &mut Scratch,
        gradients: GroupGradients,
        random: Randomness,
    ) {
        let tokens = self.tokens(batch, parts);
        let (mut memory, mut tape) = (HostMemory::new(), Tape::default());
        let (at, staging) = scratch.lend(&mut memory);
        let group = self.lend_group(&mut memory, weights, batch, parts, tokens.as_ref(), at);
        let gradients = self.lend_gradients(&mut memory, &group, gradients, staging);
        self.emit_backward(&mut tape, &group, gradients, random);
        tape.run(&memory);
    }

    /// Row-sparse embedding gradients of every present task, once all groups of the round are through.
    pub fn row_gradients(&self, batch: &Batch, gradients: &mut Gradients, present: usize) {
        if gradients.dinput.is_empty() {
            return;
        }
        let (dinput, batches) = (&gradients.dinput, gradients.keep.batches);
        use rayon::prelude::*;
        gradients.rows[..present * batches].par_iter_mut().with_max_len(1).enumerate().for_each(|(index, gradient)| {
            let mut own = batch.parts.iter().filter(|part| part.present * batches + part.batch == index).peekable();
            let words = own.peek().is_some_and(|part| self.spec.heads[part.task].kind == HeadKind::Mlm);
            let rows = own.flat_map(|part| batch.input_rows(std::slice::from_ref(part)));
            if words {
                gradient.backward_onto_whole(dinput, &batch.bags, rows);
            } else {
                gradient.backward(dinput, &batch.bags, rows);
            }
        });
    }
}

fn loss_of<'a>(head: &'a HeadSpec, targets: &'a Targets, smoothing: f64, scale: f32) -> loss::Part<'a> {
    let targets = match (targets, head.kind) {
        (Targets::Pairs(pairs), _) => loss::Targets::Known { rows: 2 * pairs, logits: 2 * pairs * head.outputs },
        (Targets::Class(words), HeadKind::Mlm) => loss::Targets::Word(words),
        (Targets::Class(classes), _) => {
            loss::Targets::Class(classes, smoothing, head.class_weights.as_deref().unwrap_or_default())
        }
        (Targets::Values(labels), HeadKind::Multilabel) => loss::Targets::Label(labels),
        (Targets::Values(values), _) => loss::Targets::Value(values),
    };
    loss::Part { targets, outputs: head.outputs, scale, sum: 0, first: true }
}
