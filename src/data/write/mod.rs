//! Tables that are written with a type for each column.

mod column;
mod parquet;

pub use self::column::{Column, Kind, Seen, number_in};
pub use self::parquet::ParquetWriter;
