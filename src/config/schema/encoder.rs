//! The encoder.

use super::{BAG, ONE_LAYER, TEXT, TRANSFORMER, WIDTH};
use crate::choices::choices;
use crate::config::keys::{Bounds, Kind, PathFrom};
use crate::config::table::table;
use crate::ops::activation::Activation;
use crate::ops::pooling::Pooling;

table! {
    /// The trunk all tasks share.
    pub struct Encoder = ENCODER {
        /// `linear`: one layer over dense features. `bag`: the mean of hashed n-gram embeddings of a text. `transformer`:
        /// BERT's encoder over a text's tokens.
        kind: EncoderKind = required;
        /// Width of what the heads see.
        hidden: usize = 768 in 1..=WIDTH;
        /// Applied to the encoder's layer.
        activation: Activation = "gelu", only("encoder.kind", ONE_LAYER);
        /// Adds the layer's input to the first columns of its output; the input may not be wider than `hidden`.
        residual: bool = false, only("encoder.kind", ONE_LAYER);
        /// Probability of zeroing an element of the encoder's output while training; in a transformer also of the embeddings
        /// and of each layer's two parts (BERT: 0.1).
        dropout: f64 = 0.0 in Bounds::UNIT_OPEN;
        /// `words`, or a `vocab.txt` (WordPiece) or `tokenizer.json` (Hugging Face), relative to `data.root`. Text needs one; a
        /// transformer a vocabulary, by default that of `from`.
        tokenizer: Option<String> = none in Kind::Tokenizer, only("encoder.kind", TEXT);
        /// Fold case and strip accents, as BERT's uncased vocabularies want; a `tokenizer.json` says so itself.
        lowercase: bool = true, only("encoder.kind", TEXT);
        /// Tokens kept of one example, special tokens not counted.
        max_len: usize = 512 in 1..=1 << 20, only("encoder.kind", TEXT);
        /// Longest n-gram.
        ngrams: usize = 2 in 1..=3, only("encoder.kind", BAG);
        /// Rows of the hashed part of the table.
        buckets: usize = 524288 in 1..=1 << 30, only("encoder.kind", BAG);
        /// Width of an embedding row; 0 means `hidden`.
        embedding_dim: usize = 0 in 0..=WIDTH, only("encoder.kind", BAG);
        /// Standard deviation of the initial rows; 0 starts at zero and leaves untouched rows out of memory.
        embedding_init: f64 = 0.0 in Bounds::NON_NEGATIVE, only("encoder.kind", BAG);
        /// Probability of dropping an n-gram while training.
        word_dropout: f64 = 0.0 in Bounds::UNIT_OPEN, only("encoder.kind", BAG);
        /// Hugging Face folder of a BERT, RoBERTa or DistilBERT to start from (config.json, model.safetensors), or the name of one
        /// on Hugging Face's hub, as in `bert-base-uncased`: found in the cache (`HF_HUB_CACHE`, `HF_HOME`,
        /// `~/.cache/huggingface/hub`), or fetched into it unless `HF_HUB_OFFLINE` is set. Sizes are then its own.
        from: Option<String> = none in Kind::Path(PathFrom::DataRootOrModels), only("encoder.kind", TRANSFORMER);
        /// Rows of the word table; 0 means the tokenizer's size.
        vocabulary: usize = 0 in 0..=1 << 24, only("encoder.kind", TRANSFORMER);
        /// Transformer layers.
        layers: usize = 12 in 1..=1 << 10, only("encoder.kind", TRANSFORMER);
        /// Attention heads; 0 means `hidden / 64`.
        heads: usize = 0 in 0..=WIDTH, only("encoder.kind", TRANSFORMER);
        /// Width of the feed-forward part; 0 means `4 * hidden`.
        intermediate: usize = 0 in 0..=1 << 18, only("encoder.kind", TRANSFORMER);
        /// Longest sequence, special tokens counted; longer texts are cut.
        positions: usize = 512 in 4..=1 << 20, only("encoder.kind", TRANSFORMER);
        /// What heads see: the first token, the mean of all, or BERT's pooler (tanh of a layer over the first token).
        pooling: Pooling = "cls", only("encoder.kind", TRANSFORMER);
        /// Dropout of attention weights (BERT: 0.1).
        attention_dropout: f64 = 0.0 in Bounds::UNIT_OPEN, only("encoder.kind", TRANSFORMER);
        /// Added to the variance in layer normalization.
        norm_eps: f64 = 1e-12 in Bounds::POSITIVE, only("encoder.kind", TRANSFORMER);
        /// Standard deviation of initial weights.
        init: f64 = 0.02 in Bounds::POSITIVE, only("encoder.kind", TRANSFORMER);
        /// `embeddings`, `layer.N`, `layer.N-M`: the encoder's first blocks, which then are not trained and run without
        /// dropout.
        freeze: Vec<String> = [], only("encoder.kind", TRANSFORMER);
        /// Keep only each layer's input and compute the rest again in the backward pass: less memory, about a third more time.
        recompute: bool = false, only("encoder.kind", TRANSFORMER);
        /// Compute what the blocks of `freeze` make of each text once, and keep it: the same bytes as without, less time. On the
        /// CPU it is kept on disk, in the folder that TASKLOOM_CACHE names, or in the user's cache folder, whose files may be
        /// removed between runs; on a device in its memory (`plan` says how much).
        cache_frozen: bool = false, only("encoder.kind", TRANSFORMER);
    }
}

choices! {
    pub enum EncoderKind { Linear = "linear", Bag = "bag", Transformer = "transformer" }
}

impl EncoderKind {
    pub fn reads_text(self) -> bool {
        TEXT.contains(&self.name())
    }
}

impl Encoder {
    /// Tokens kept of an example of so many texts: special ones stand before and after each in what a transformer reads.
    pub fn tokens_kept(&self, texts: usize) -> usize {
        let positions = if self.kind == EncoderKind::Transformer { self.positions } else { usize::MAX };
        self.max_len.min(positions.saturating_sub(1 + texts))
    }
}
