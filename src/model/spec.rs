//! What a model is made of, and the parameter table that follows from it.

use serde::{Deserialize, Serialize};

use crate::model::transformer::{TransformerSpec, mlm_params, params};
use crate::ops::activation::Activation;

/// The shared trunk.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderSpec {
    pub input: Input,
    /// Width of what the heads see.
    pub hidden: usize,
    pub activation: Activation,
    pub residual: bool,
    pub dropout: f64,
}

/// What the dense layer reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Dense features of this many columns.
    Features(usize),
    /// The sum of embedding rows of a text's n-grams.
    Bag(BagSpec),
    /// A text's tokens, each with its embedding row; transformer layers stand in the dense layer's place.
    Tokens(TransformerSpec),
}

/// The embedding table, kept by row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableSpec {
    pub rows: usize,
    pub dim: usize,
    /// Standard deviation of the initial rows.
    pub init: f64,
    /// It has moments.
    pub trained: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BagSpec {
    /// Rows of the table: vocabulary first, then hash buckets.
    pub rows: usize,
    pub dim: usize,
    /// Standard deviation of the initial rows.
    pub init: f64,
    pub word_dropout: f64,
    /// How a text becomes rows.
    pub vocabulary: Option<usize>,
    pub buckets: usize,
    pub ngrams: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    Classification,
    Regression,
    Multilabel,
    /// Masked language modelling: the words at masked places, out of the whole vocabulary.
    Mlm,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HeadSpec {
    pub task: String,
    pub kind: HeadKind,
    pub outputs: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub encoder: EncoderSpec,
    /// In task order.
    pub heads: Vec<HeadSpec>,
}

impl ModelSpec {
    /// Every embedding row takes part in each step or is read whole, so all of them are kept from the start.
    pub fn reads_whole_table(&self) -> bool {
        let mlm = self.heads.iter().any(|head| head.kind == HeadKind::Mlm);
        self.encoder.transformer().is_some_and(|spec| mlm || spec.dense_steps)
    }

    /// Every embedding row takes part in every step.
    pub fn steps_whole_table(&self) -> bool {
        self.encoder.transformer().is_some_and(|spec| spec.dense_steps && !spec.embeddings_frozen())
    }
}

impl EncoderSpec {
    /// Columns of the dense layer's input.
    pub fn inputs(&self) -> usize {
        match &self.input {
            Input::Features(columns) => *columns,
            Input::Bag(bag) => bag.dim,
            Input::Tokens(_) => self.hidden,
        }
    }

    pub fn bag(&self) -> Option<&BagSpec> {
        match &self.input {
            Input::Bag(bag) => Some(bag),
            _ => None,
        }
    }

    pub fn transformer(&self) -> Option<&TransformerSpec> {
        match &self.input {
            Input::Tokens(spec) => Some(spec),
            _ => None,
        }
    }

    pub fn table(&self) -> Option<TableSpec> {
        match &self.input {
            Input::Features(_) => None,
            Input::Bag(bag) => Some(TableSpec { rows: bag.rows, dim: bag.dim, init: bag.init, trained: true }),
            Input::Tokens(spec) => {
                let trained = !spec.embeddings_frozen();
                Some(TableSpec { rows: spec.vocabulary, dim: self.hidden, init: spec.init, trained })
            }
        }
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zero,
    /// Uniform in +-bound, as PyTorch's `nn.Linear` with bound = 1/sqrt(inputs).
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    One,
}

/// One dense parameter of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Hugging Face's name where it has one.
    pub name: String,
    pub shape: Vec<usize>,
    /// The unit of layer-wise statistics and locking.
    pub block: String,
    /// First element in its space, shared parameters and heads being two spaces.
    pub offset: usize,
    pub init: Init,
    /// Weight decay: matrices yes, biases no.
    pub decay: bool,
}

impl Param {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The one list of every dense parameter: those all tasks share, and the heads'. The embedding table is kept by row beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamTable {
    pub shared: Vec<Param>,
    /// Shared parameters that do not change, a space of their own.
    pub frozen: Vec<Param>,
    /// Per task weight (outputs x hidden) and bias (outputs); an `mlm` head has its own five (see [`ParamTable::head_params`]).
    pub heads: Vec<Param>,
    /// (tasks + 1) bounds of each task's parameters in `heads`.
    head_bounds: Vec<usize>,
}

impl ParamTable {
    pub fn new(spec: &ModelSpec) -> Self {
        let encoder = &spec.encoder;
        let (mut shared, mut frozen) = (Vec::new(), Vec::new());
        match encoder.transformer() {
            Some(transformer) => (shared, frozen) = params(transformer, encoder.hidden),
            None => {
                let (name, bound) = ("encoder.dense", 1.0 / (encoder.inputs() as f64).sqrt());
                push_linear(&mut shared, name, name, [encoder.hidden, encoder.inputs()], Init::Uniform(bound));
            }
        }
        let mut heads = Vec::new();
        let mut head_bounds = vec![0];
        let bound = 1.0 / (encoder.hidden as f64).sqrt();
        for head in &spec.heads {
            let name = format!("heads.{}", head.task);
            match (head.kind, encoder.transformer()) {
                (HeadKind::Mlm, Some(spec)) => mlm_params(&mut heads, &name, encoder.hidden, spec.vocabulary, spec.init),
                _ => push_linear(&mut heads, &name, &name, [head.outputs, encoder.hidden], Init::Uniform(bound)),
            }
            head_bounds.push(heads.len());
        }
        Self { shared, frozen, heads, head_bounds }
    }

    /// P, the columns of a dense row of J.
    pub fn shared_len(&self) -> usize {
        self.shared.last().map_or(0, |param| param.range().end)
    }

    pub fn heads_len(&self) -> usize {
        self.heads.last().map_or(0, |param| param.range().end)
    }

    /// Task t's output layer: its weight and its bias.
    pub fn head(&self, task: usize) -> (&Param, &Param) {
        let own = self.head_params(task);
        (&own[0], &own[1])
    }

    /// All parameters of task t's head.
    pub fn head_params(&self, task: usize) -> &[Param] {
        &self.heads[self.head_bounds[task]..self.head_bounds[task + 1]]
    }

    /// Elements of task t's head in the heads' space.
    pub fn head_range(&self, task: usize) -> std::ops::Range<usize> {
        let own = self.head_params(task);
        own[0].offset..own[own.len() - 1].range().end
    }
}

fn push_linear(params: &mut Vec<Param>, name: &str, block: &str, [outputs, inputs]: [usize; 2], init: Init) {
    let offset = params.last().map_or(0, |param| param.range().end);
    let weight =
        Param { name: format!("{name}.weight"), shape: vec![outputs, inputs], block: block.into(), offset, init, decay: true };
    let bias = Param {
        name: format!("{name}.bias"),
        shape: vec![outputs],
        block: block.into(),
        offset: weight.range().end,
        init: Init::Zero,
        decay: false,
    };
    params.extend([weight, bias]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_lie_end_to_end() {
        let head = |task: &str, outputs| HeadSpec { task: task.into(), kind: HeadKind::Classification, outputs };
        let encoder =
            EncoderSpec { input: Input::Features(10), hidden: 8, activation: Activation::None, residual: false, dropout: 0.0 };
        let table = ParamTable::new(&ModelSpec { encoder, heads: vec![head("a", 2), head("b", 3)] });
        assert_eq!(table.shared_len(), 88);
        assert_eq!(table.heads_len(), 18 + 27);
        assert_eq!(table.head(1).0.range(), 18..42);
        assert_eq!(table.head(1).1.name, "heads.b.bias");
        assert!(table.heads.windows(2).all(|pair| pair[0].range().end == pair[1].offset));
    }
}
