//! The transformer's dense parameters: names (Hugging Face's), shapes, and where each lies in its block.

use std::ops::Range;

use super::{Pooling, TransformerSpec};
use crate::machine::tensor::Tensor;
use crate::model::encoders::{Values, Weights};
use crate::model::spec::{Init, Param};

/// A linear layer (weight, bias) or a normalization (gain, shift) within its block, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    start: usize,
    weight: usize,
    bias: usize,
}

impl Piece {
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.weight + self.bias
    }

    /// Weight and bias of a block's values in f32, each a row.
    pub fn of(&self, block: Values) -> (Tensor, Tensor) {
        let Range { start, end } = self.range();
        (block.wide.range(start..start + self.weight), block.wide.range(start + self.weight..end))
    }

    /// A linear layer's weight (outputs x inputs), as products read it.
    pub fn matrix(&self, block: Values, outputs: usize, inputs: usize) -> Tensor {
        block.matrix(self.start, outputs, inputs)
    }

    /// Values of the weight.
    pub fn weight(&self) -> usize {
        self.weight
    }
}

/// Pieces of one layer. Keys and values are one linear layer of twice the width.
#[derive(Clone, Copy, Debug)]
pub struct LayerPieces {
    pub query: Piece,
    pub key_value: Piece,
    pub attention_output: Piece,
    pub attention_norm: Piece,
    pub intermediate: Piece,
    pub output: Piece,
    pub output_norm: Piece,
}

/// Pieces of the embeddings' dense part: positions and types as one piece, then the normalization.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingPieces {
    pub rows: Piece,
    pub norm: Piece,
}

/// A block in the shared space (a stretch of every row of J) or among the frozen parameters.
#[derive(Clone, Debug)]
pub struct Place {
    pub frozen: bool,
    pub range: Range<usize>,
}

impl Place {
    pub fn of(&self, weights: &Weights) -> Values {
        (if self.frozen { weights.frozen } else { weights.shared }).range(self.range.clone())
    }

    /// The stretch of a row of J that belongs to a piece.
    pub fn piece(&self, piece: &Piece) -> Range<usize> {
        let range = piece.range();
        self.range.start + range.start..self.range.start + range.end
    }
}

#[derive(Clone, Debug)]
pub struct Layout {
    pub embedding: EmbeddingPieces,
    pub layer: LayerPieces,
    pub pooler: Piece,
    pub embeddings: Place,
    pub layers: Vec<Place>,
    pub pooler_place: Option<Place>,
}

impl Layout {
    pub fn new(spec: &TransformerSpec, hidden: usize) -> Self {
        let (h, f) = (hidden, spec.intermediate);
        let mut end = 0;
        let mut piece = |weight: usize, bias: usize| {
            let start = end;
            end += weight + bias;
            Piece { start, weight, bias }
        };
        let layer = LayerPieces {
            query: piece(h * h, h),
            key_value: piece(2 * h * h, 2 * h),
            attention_output: piece(h * h, h),
            attention_norm: piece(h, h),
            intermediate: piece(h * f, f),
            output: piece(h * f, h),
            output_norm: piece(h, h),
        };
        let layer_len = end;
        let rows = Piece { start: 0, weight: spec.positions * h, bias: spec.types * h };
        let norm = Piece { start: rows.range().end, weight: h, bias: h };
        let mut ends = [0, 0];
        let mut place = |block: usize, len: usize| {
            let frozen = block < spec.frozen;
            let start = ends[usize::from(frozen)];
            ends[usize::from(frozen)] += len;
            Place { frozen, range: start..start + len }
        };
        let embeddings = place(0, norm.range().end);
        let layers: Vec<Place> = (0..spec.layers).map(|layer| place(1 + layer, layer_len)).collect();
        let pooler_place = (spec.pooling == Pooling::Pooler).then(|| place(usize::MAX, h * h + h));
        let pooler = Piece { start: 0, weight: h * h, bias: h };
        Self { embedding: EmbeddingPieces { rows, norm }, layer, pooler, embeddings, layers, pooler_place }
    }

    /// Values of the largest piece.
    pub fn largest_piece(&self) -> usize {
        let LayerPieces { query, key_value, attention_output, attention_norm, intermediate, output, output_norm } = self.layer;
        let layer = [query, key_value, attention_output, attention_norm, intermediate, output, output_norm];
        let embedding = [self.embedding.rows, self.embedding.norm, self.pooler];
        layer.iter().chain(&embedding).map(|piece| piece.range().len()).max().unwrap_or(0)
    }
}

/// The dense parameters: trained ones (the columns of J), then frozen ones. The word table is kept by row beside them.
pub fn params(spec: &TransformerSpec, hidden: usize) -> [Vec<Param>; 2] {
    let mut lists = [List::default(), List::default()];
    let normal = Init::Normal(spec.init);
    let embeddings = &mut lists[usize::from(spec.frozen > 0)];
    embeddings.push("embeddings", "embeddings.position_embeddings.weight".into(), vec![spec.positions, hidden], normal);
    embeddings.push("embeddings", "embeddings.token_type_embeddings.weight".into(), vec![spec.types, hidden], normal);
    embeddings.norm("embeddings", "embeddings.LayerNorm", hidden);
    for layer in 0..spec.layers {
        lists[usize::from(layer + 1 < spec.frozen)].layer(layer, spec, hidden);
    }
    if spec.pooling == Pooling::Pooler {
        lists[0].linear("pooler", "pooler.dense", [hidden, hidden], normal);
    }
    lists.map(|list| list.params)
}

#[derive(Default)]
struct List {
    params: Vec<Param>,
}

impl List {
    fn push(&mut self, block: &str, name: String, shape: Vec<usize>, init: Init) {
        let offset = self.params.last().map_or(0, |param| param.range().end);
        let decay = shape.len() > 1;
        self.params.push(Param { name, shape, block: block.into(), offset, init, decay });
    }

    fn linear(&mut self, block: &str, name: &str, [outputs, inputs]: [usize; 2], init: Init) {
        self.push(block, format!("{name}.weight"), vec![outputs, inputs], init);
        self.push(block, format!("{name}.bias"), vec![outputs], Init::Zero);
    }

    fn norm(&mut self, block: &str, name: &str, width: usize) {
        self.push(block, format!("{name}.weight"), vec![width], Init::One);
        self.push(block, format!("{name}.bias"), vec![width], Init::Zero);
    }

    /// In the order of [`LayerPieces`].
    fn layer(&mut self, layer: usize, spec: &TransformerSpec, h: usize) {
        let (block, base) = (format!("layer.{layer}"), format!("encoder.layer.{layer}"));
        let (block, normal, f) = (block.as_str(), Init::Normal(spec.init), spec.intermediate);
        self.linear(block, &format!("{base}.attention.self.query"), [h, h], normal);
        for part in ["key", "value"] {
            self.push(block, format!("{base}.attention.self.{part}.weight"), vec![h, h], normal);
        }
        for part in ["key", "value"] {
            self.push(block, format!("{base}.attention.self.{part}.bias"), vec![h], Init::Zero);
        }
        self.linear(block, &format!("{base}.attention.output.dense"), [h, h], normal);
        self.norm(block, &format!("{base}.attention.output.LayerNorm"), h);
        self.linear(block, &format!("{base}.intermediate.dense"), [f, h], normal);
        self.linear(block, &format!("{base}.output.dense"), [h, f], normal);
        self.norm(block, &format!("{base}.output.LayerNorm"), h);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_parameters_agree() {
        for frozen in 0..=3 {
            let (spec, h) = (TransformerSpec { pooling: Pooling::Pooler, frozen, ..TransformerSpec::small() }, 8);
            let layout = Layout::new(&spec, h);
            let [trained, held] = params(&spec, h);
            let list = |frozen: bool| if frozen { &held } else { &trained };
            let starts = |frozen: bool, at: usize, name: &str| {
                let param = list(frozen).iter().find(|param| param.offset == at).map(|param| param.name.as_str());
                assert_eq!(param, Some(name), "frozen {frozen}");
            };
            let embeddings = &layout.embeddings;
            starts(embeddings.frozen, embeddings.piece(&layout.embedding.norm).start, "embeddings.LayerNorm.weight");
            for (layer, place) in layout.layers.iter().enumerate() {
                let base = format!("encoder.layer.{layer}");
                let pieces = &layout.layer;
                for (piece, name) in [
                    (pieces.query, "attention.self.query.weight"),
                    (pieces.key_value, "attention.self.key.weight"),
                    (pieces.attention_output, "attention.output.dense.weight"),
                    (pieces.attention_norm, "attention.output.LayerNorm.weight"),
                    (pieces.intermediate, "intermediate.dense.weight"),
                    (pieces.output, "output.dense.weight"),
                    (pieces.output_norm, "output.LayerNorm.weight"),
                ] {
                    starts(place.frozen, place.piece(&piece).start, &format!("{base}.{name}"));
                }
                let block = format!("layer.{layer}");
                let own = list(place.frozen).iter().filter(|param| param.block == block);
                assert_eq!(own.map(Param::len).sum::<usize>(), place.range.len());
            }
            let last = layout.pooler_place.unwrap();
            assert_eq!(last.range.end, trained.last().unwrap().range().end);
        }
    }
}
