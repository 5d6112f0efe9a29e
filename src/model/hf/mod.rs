//! Hugging Face folders of BERT encoders and some others, in and out: config.json and model.safetensors (or shards with an index).

mod classifier;
mod config;
mod export;
mod family;
mod load;

pub use classifier::Classifier;
pub use config::HfConfig;
pub use export::{HeadFile, HfTokenizer, SpecialToken, export};
pub use load::{check, load};

/// Hugging Face's name of the word table, which is kept by row here.
const WORDS: &str = "embeddings.word_embeddings.weight";

/// And of the tables of positions and token types.
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";
