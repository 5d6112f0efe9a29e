//! Hugging Face folders of BERT encoders, in and out: config.json and model.safetensors (or shards with an index).

mod classifier;
mod config;
mod export;
mod load;

pub use classifier::Classifier;
pub use config::HfConfig;
pub use export::{HeadFile, HfTokenizer, SpecialToken, export};
pub use load::{check, load};

/// Hugging Face's name of the word table, which is kept by row here.
const WORDS: &str = "embeddings.word_embeddings.weight";
