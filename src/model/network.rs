//! Forward and backward over a packed batch: every task's rows lie end to end in one matrix.
//!
//! All rows of a fused group go through each layer at once. Three things are per segment, that is per task: weight and bias
//! gradients (each into the task's own row of J), the heads, and the row-sparse embedding gradient.

use std::ops::Range;

use crate::device::memory::{Buffer, Memory};
use crate::model::gradients::GroupGradients;
pub use crate::model::gradients::{Gradients, Keep};
use crate::model::jacobian::JacobianRows;
use crate::model::spec::{EncoderSpec, HeadKind, HeadSpec, Input, ModelSpec, ParamTable};
use crate::model::transformer::{self, TokenBatch, TokenLimits, Transformer};
use crate::ops::activation::{Activation, activation_backward, bias_activation_forward};
use crate::ops::dropout::{RowKey, dropout};
use crate::ops::embedding_bag::{Bags, Table, embedding_bag_forward};
use crate::ops::heads::{self, heads_backward, heads_forward};
use crate::ops::linear::{linear_forward, linear_input_backward};
use crate::ops::loss::{binary_cross_entropy, cross_entropy, squared_error};
use crate::ops::vocabulary_loss::vocabulary_cross_entropy;

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
    /// N-grams of the largest round of all tasks; 0 without bags.
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
        let separate = if needs_hidden(encoder) { rows * encoder.hidden } else { 0 };
        let transformer = match encoder.transformer() {
            Some(spec) => Some(transformer::Scratch::new(memory, spec, encoder.hidden, &limits.tokens)?),
            None => None,
        };
        Ok(Self {
            transformer,
            input: memory.buffer("scratch: encoder input", input)?,
            pre: memory.buffer("scratch: pre-activations", if dense { rows * encoder.hidden } else { 0 })?,
            hidden: memory.buffer("scratch: hidden states", separate)?,
            dhidden: memory.buffer("scratch: gradient of hidden states", rows * encoder.hidden)?,
            logits: memory.buffer("scratch: logits", limits.group_logits)?,
            dlogits: memory.buffer("scratch: gradient of logits", limits.group_logits)?,
            staging: Buffer::empty(),
        })
    }

    /// With room for a piece of a row of J ([`Network::largest_piece`]), for rows kept in bf16.
    pub fn staged(self, memory: &mut Memory, piece: usize) -> anyhow::Result<Self> {
        Ok(Self { staging: memory.buffer("scratch: piece of a row of J in f32", piece)?, ..self })
    }

    /// Tokens that fit, for an encoder that reads tokens.
    pub fn token_room(&self, hidden: usize) -> Option<usize> {
        self.transformer.as_ref().map(|own| own.token_room(hidden))
    }

    /// Masked tokens that fit, for an encoder that reads tokens.
    pub fn masked_room(&self) -> usize {
        self.transformer.as_ref().map_or(0, transformer::Scratch::masked_room)
    }

    /// Logits of the last forward pass, part after part.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
}

/// Whether the hidden states are something else than the pre-activations.
fn needs_hidden(encoder: &EncoderSpec) -> bool {
    encoder.activation != Activation::None || encoder.transformer().is_some()
}

/// What a training pass draws its masks from; evaluation has none.
#[derive(Clone, Copy, Debug)]
pub struct Randomness {
    pub seed: u64,
    pub round: u32,
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
        if let Encoder::Transformer(transformer) = &self.encoder {
            return transformer.forward(self, weights, batch, group, scratch, random);
        }
        let encoder = &self.spec.encoder;
        let rows = group_rows(group);
        let (inputs, width, count) = (encoder.inputs(), encoder.hidden, rows.len());
        let [weight, bias] = self.dense(weights.shared);
        if let (Input::Bag(_), Some(table)) = (&encoder.input, weights.rows) {
            embedding_bag_forward(&mut scratch.input[..count * inputs], &batch.bags, rows.clone(), table);
        }
        let input: &[f32] = match encoder.bag() {
            None => &batch.features[rows.start * inputs..rows.end * inputs],
            Some(_) => &scratch.input[..count * inputs],
        };
        let pre = &mut scratch.pre[..count * width];
        linear_forward(pre, input, weight, inputs, width);
        let hidden = if needs_hidden(encoder) { &mut scratch.hidden[..count * width] } else { &mut [][..] };
        bias_activation_forward(hidden, pre, bias, encoder.activation);
        let hidden = if needs_hidden(encoder) { hidden } else { pre };
        if encoder.residual {
            add_shortcut(hidden, width, input, inputs);
        }
        if let Some(random) = random {
            dropout(hidden, width, &batch.keys[rows.clone()], encoder.dropout, random.seed, random.round);
        }
        heads_forward(&mut scratch.logits, hidden, width, &self.head_segments(weights.heads, group));
    }

    /// (tokens x hidden) what a transformer's frozen prefix makes of a batch of one group; none for other encoders.
    pub fn prefix<'a>(&self, weights: Weights, batch: &Batch, scratch: &'a mut Scratch) -> Option<&'a [f32]> {
        let Encoder::Transformer(transformer) = &self.encoder else { return None };
        Some(transformer.prefix(&self.spec.heads, weights, batch, scratch.transformer.as_mut()?))
    }

    /// Sum of losses of each part (f64, over observed targets); leaves scaled logit gradients in `scratch`.
    pub fn losses(&self, group: &[Part], scratch: &mut Scratch) -> Vec<f64> {
        let mut offset = 0;
        let mut losses = Vec::with_capacity(group.len());
        for part in group {
            let head = &self.spec.heads[part.task];
            let range = offset..offset + part.targets.rows(head.outputs) * head.outputs;
            offset = range.end;
            let (dlogits, logits) = (&mut scratch.dlogits[range.clone()], &scratch.logits[range]);
            losses.push(segment_loss(head, &part.targets, dlogits, logits, self.label_smoothing, part.scale));
        }
        losses
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

    /// Sum of losses of row `row` of a group of one task's rows after [`Network::forward`], labels not smoothed.
    pub fn row_loss(&self, task: usize, targets: &Targets, row: usize, scratch: &mut Scratch) -> f64 {
        let head = &self.spec.heads[task];
        let range = row * head.outputs..(row + 1) * head.outputs;
        segment_loss(head, targets, &mut scratch.dlogits[range.clone()], &scratch.logits[range], 0.0, 0.0)
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
        if let Encoder::Transformer(transformer) = &self.encoder {
            return transformer.backward(self, weights, batch, group, scratch, gradients, random);
        }
        let encoder = &self.spec.encoder;
        let rows = group_rows(group);
        let (inputs, width, count) = (encoder.inputs(), encoder.hidden, rows.len());
        let dhidden = &mut scratch.dhidden[..count * width];
        let hidden = if needs_hidden(encoder) { &scratch.hidden } else { &scratch.pre };
        let segments = self.head_segments(weights.heads, group);
        let GroupGradients { jacobian, heads, dinput, .. } = gradients;
        let mut head_gradients = self.head_gradients(heads, group);
        heads_backward(dhidden, &mut head_gradients, &scratch.dlogits, hidden, width, &segments);
        dropout(dhidden, width, &batch.keys[rows.clone()], encoder.dropout, random.seed, random.round);

        let wanted = !dinput.is_empty();
        if wanted && encoder.residual {
            // The shortcut passes dhidden on as it is here; the dense branch changes it in place below.
            let dinput = dinput.chunks_exact_mut(inputs);
            dinput.zip(dhidden.chunks_exact(width)).for_each(|(dx, dh)| dx.copy_from_slice(&dh[..inputs]));
        }
        activation_backward(dhidden, &scratch.pre[..count * width], width, encoder.activation);
        let input: &[f32] = match encoder.bag() {
            None => &batch.features[rows.start * inputs..rows.end * inputs],
            Some(_) => &scratch.input[..count * inputs],
        };
        let mut own = JacobianRows { rows: jacobian, parts: group, staging: &mut scratch.staging };
        let part_rows: Vec<Range<usize>> =
            group.iter().map(|part| part.rows.start - rows.start..part.rows.end - rows.start).collect();
        own.linear(0..self.table.shared_len(), &part_rows, dhidden, input, inputs, width);
        if wanted {
            let [weight, _] = self.dense(weights.shared);
            if encoder.residual {
                // The weight gradients were the last to read the input.
                let branch = &mut scratch.input[..count * inputs];
                linear_input_backward(branch, dhidden, weight, inputs, width);
                dinput.iter_mut().zip(branch).for_each(|(d, branch)| *d += *branch);
            } else {
                linear_input_backward(dinput, dhidden, weight, inputs, width);
            }
        }
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

    /// Weight and bias of the dense layer in a slice laid out like the shared parameters.
    fn dense<'a>(&self, shared: &'a [f32]) -> [&'a [f32]; 2] {
        [&shared[self.table.shared[0].range()], &shared[self.table.shared[1].range()]]
    }

    fn head_segments<'a>(&self, values: &'a [f32], group: &[Part]) -> Vec<heads::Segment<'a>> {
        let base = group_rows(group).start;
        let segment = |part: &Part| {
            let (weight, bias) = self.table.head(part.task);
            heads::Segment {
                rows: part.rows.start - base..part.rows.end - base,
                outputs: self.spec.heads[part.task].outputs,
                weight: &values[weight.range()],
                bias: &values[bias.range()],
            }
        };
        group.iter().map(segment).collect()
    }

    /// Weight and bias of the head gradients of a group's tasks, zeroed where the round starts.
    fn head_gradients<'a>(&self, heads: Vec<&'a mut [f32]>, group: &[Part]) -> Vec<heads::Gradient<'a>> {
        let gradient = |(own, part): (&'a mut [f32], &Part)| {
            if part.first && part.batch == 0 {
                own.fill(0.0);
            }
            let (weight, bias) = own.split_at_mut(self.table.head(part.task).0.len());
            heads::Gradient { weight, bias }
        };
        heads.into_iter().zip(group).map(gradient).collect()
    }

    /// Rows (tokens, for a transformer) of the encoder's input that belong to a group.
    pub(super) fn input_rows(&self, batch: &Batch, group: &[Part]) -> Range<usize> {
        let rows = group_rows(group);
        if self.spec.encoder.transformer().is_some() { batch.tokens.tokens(&rows) } else { rows }
    }
}

/// hidden (n x width) += input (n x inputs) in its first columns: an identity shortcut, zero-padded where the layer is wider
/// than its input (option A of He et al., CVPR 2016).
fn add_shortcut(hidden: &mut [f32], width: usize, input: &[f32], inputs: usize) {
    for (hidden, input) in hidden.chunks_exact_mut(width).zip(input.chunks_exact(inputs)) {
        hidden.iter_mut().zip(input).for_each(|(h, x)| *h += x);
    }
}

fn group_rows(group: &[Part]) -> Range<usize> {
    match (group.first(), group.last()) {
        (Some(first), Some(last)) => first.rows.start..last.rows.end,
        _ => 0..0,
    }
}

fn segment_loss(head: &HeadSpec, targets: &Targets, dlogits: &mut [f32], logits: &[f32], smoothing: f64, scale: f32) -> f64 {
    match (targets, head.kind) {
        (Targets::Class(classes), HeadKind::Mlm) => vocabulary_cross_entropy(dlogits, logits, classes, head.outputs, scale),
        (Targets::Class(classes), _) => cross_entropy(dlogits, logits, classes, head.outputs, smoothing, scale),
        (Targets::Values(values), HeadKind::Multilabel) => binary_cross_entropy(dlogits, logits, values, scale),
        (Targets::Values(values), _) => squared_error(dlogits, logits, values, scale),
    }
}
