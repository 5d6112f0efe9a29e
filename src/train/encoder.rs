//! From the keys of `[encoder]` to the encoder that they ask for.

use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};

use crate::config;
use crate::config::schema::{self, Config, EncoderKind};
use crate::data::Tokenizer;
use crate::model::encoders::Encoder;
use crate::model::encoders::bag::Bag;
use crate::model::encoders::linear::Linear;
use crate::model::transformer::{Transformer, TransformerSpec};

/// The encoder over texts of this tokenizer, or over so many dense features.
pub fn encoder(
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    features: impl FnOnce() -> Result<usize>,
) -> Result<Arc<dyn Encoder>> {
    let keys = &config.encoder;
    let &schema::Encoder { hidden, activation, residual, dropout, buckets, .. } = keys;
    let layer = |columns: usize| Linear { columns, hidden, activation, residual, dropout };
    let vocabulary = tokenizer.and_then(Tokenizer::vocab_size);
    let encoder: Arc<dyn Encoder> = match keys.kind {
        EncoderKind::Linear => Arc::new(layer(features()?)),
        EncoderKind::Bag => Arc::new(Bag {
            rows: vocabulary.unwrap_or(0) + buckets,
            init: keys.embedding_init,
            word_dropout: keys.word_dropout,
            vocabulary,
            buckets,
            ngrams: keys.ngrams,
            layer: layer(if keys.embedding_dim == 0 { hidden } else { keys.embedding_dim }),
        }),
        EncoderKind::Transformer => Arc::new(transformer(config, tokenizer)?),
    };
    ensure!(
        !residual || encoder.inputs() <= hidden,
        "encoder.residual adds the layer's input to its output, but the input has {} columns and encoder.hidden is {hidden}",
        encoder.inputs()
    );
    Ok(encoder)
}

/// The transformer that a configuration and its tokenizer ask for.
pub fn transformer(config: &Config, tokenizer: Option<&Tokenizer>) -> Result<Transformer> {
    let encoder = &config.encoder;
    let special = tokenizer.map(Tokenizer::special_ids).unwrap_or_default();
    let words = tokenizer.and_then(Tokenizer::vocab_size).unwrap_or(0);
    let vocabulary = if encoder.vocabulary == 0 { words } else { encoder.vocabulary };
    ensure!(
        words <= vocabulary,
        "the tokenizer has {words} words, the encoder's table {vocabulary} rows (encoder.vocabulary, or vocab_size of \
         encoder.from's config.json): use the tokenizer that belongs to it"
    );
    let missing = |name| anyhow!("the tokenizer's vocabulary has no {name}, which stands around every text");
    let (cls, sep) = (special.cls.ok_or_else(|| missing("[CLS]"))?, special.sep.ok_or_else(|| missing("[SEP]"))?);
    let spec = TransformerSpec {
        vocabulary,
        cls,
        sep,
        mask: special.mask,
        layers: encoder.layers,
        heads: if encoder.heads == 0 { encoder.hidden / 64 } else { encoder.heads },
        intermediate: if encoder.intermediate == 0 { 4 * encoder.hidden } else { encoder.intermediate },
        positions: encoder.positions,
        types: 2,
        norm_eps: encoder.norm_eps,
        init: encoder.init,
        attention_dropout: encoder.attention_dropout,
        pooling: encoder.pooling,
        recompute: encoder.recompute,
        frozen: config::frozen_blocks(&encoder.freeze, Some(encoder.layers))
            .map_err(|fault| anyhow!("encoder.freeze {fault}"))?,
        dense_steps: config.optimizer.embedding == schema::EmbeddingSteps::Dense,
    };
    Ok(Transformer::new(spec, encoder.hidden, encoder.dropout))
}
