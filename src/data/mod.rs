//! Data: from files to examples that training can draw.
//!
//! [`expand`] makes the tasks of `tasks_from`, [`load`] reads every task's rows into compact stores, [`check_sources`]
//! finds problems without reading whole files. [`Tokenizer`] turns text into ids and [`bag`] ids into table rows.

mod check;
mod class_weights;
mod contained;
pub mod cursor;
mod expand;
mod feature_columns;
mod labels;
mod load;
mod ngrams;
mod read;
mod scale;
mod split;
mod states;
mod store;
mod suggest;
pub mod synthetic;
#[cfg(test)]
mod tests;
mod tokenizer;
mod widths;
mod write;

pub use self::check::check_sources;
pub use self::expand::expand;
pub use self::load::{
    AnswerChunk, OwnRow, RowsToAnswer, columns_of, encode_apart, encode_together, format_for, load, load_labelled,
    missing_columns, values_of,
};
pub use self::ngrams::ngram_rows;
pub use self::read::{BadCount, BadKind, BadRows, Cell, FileSpec, Item, Reader, Row, columns};
pub use self::scale::Scale;
pub use self::split::{Corpus, FileReport, Inputs, LoadReport, Progress, Split, SplitName, Targets, TaskData};
pub use self::states::TokenStates;
pub use self::store::{FeatureStore, TokenStore};
pub use self::tokenizer::{SpecialIds, Tokenizer, encode_texts};
pub use self::write::{Column, Kind, ParquetWriter, number_in};
