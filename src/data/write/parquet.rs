//! Parquet, a group of rows at a time: no more than a group is held in memory.

use std::error::Error;
use std::fs::File;
use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;

use super::column::{Column, Kind};
use crate::data::read::Cell;

/// Cells of a group of rows, roughly.
const GROUP_BYTES: usize = 16 << 20;

/// A file that is written; without [`ParquetWriter::finish`] it is none.
pub struct ParquetWriter {
    file: SerializedFileWriter<File>,
    columns: Vec<Column>,
    /// (columns x rows of the group).
    cells: Vec<Vec<Cell>>,
    bytes: usize,
}

impl ParquetWriter {
    pub fn new(file: File, columns: Vec<Column>) -> io::Result<Self> {
        let fields: Result<Vec<_>, ParquetError> = columns.iter().map(|column| field(column).map(Arc::new)).collect();
        let schema = fields.and_then(|fields| Type::group_type_builder("schema").with_fields(fields).build()).map_err(reason)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("taskloom ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let file = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(reason)?;
        let cells = vec![Vec::new(); columns.len()];
        Ok(Self { file, columns, cells, bytes: 0 })
    }

    /// One row, a cell of its kind or a missing one for each column.
    pub fn write(&mut self, row: Vec<Cell>) -> io::Result<()> {
        assert_eq!(row.len(), self.columns.len(), "a cell for each column");
        self.bytes += row.iter().map(Cell::bytes).sum::<usize>();
        self.cells.iter_mut().zip(row).for_each(|(column, cell)| column.push(cell));
        if self.bytes >= GROUP_BYTES { self.write_group() } else { Ok(()) }
    }

    /// The rest and the footer, on disk.
    pub fn finish(mut self) -> io::Result<()> {
        if self.bytes > 0 {
            self.write_group()?;
        }
        self.file.into_inner().map_err(reason)?.sync_all()
    }

    fn write_group(&mut self) -> io::Result<()> {
        let mut group = self.file.next_row_group().map_err(reason)?;
        for (column, cells) in self.columns.iter().zip(&mut self.cells) {
            let mut writer = group.next_column().map_err(reason)?.expect("the schema has as many columns");
            write_cells(&mut writer, column, cells)?;
            writer.close().map_err(reason)?;
            cells.clear();
        }
        self.bytes = 0;
        group.close().map(drop).map_err(reason)
    }
}

/// What the disk said, where it was the disk.
fn reason(error: ParquetError) -> io::Error {
    let disk = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match disk.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error),
    }
}

/// Every cell may be missing; elements of a list are there.
fn field(Column { name, kind }: &Column) -> Result<Type, ParquetError> {
    let plain = |name: &str, physical, repetition| {
        let field = Type::primitive_type_builder(name, physical).with_repetition(repetition);
        let is_text = physical == Physical::BYTE_ARRAY;
        if is_text { field.with_logical_type(Some(LogicalType::String)) } else { field }.build()
    };
    match kind {
        Kind::Bool => plain(name, Physical::BOOLEAN, Repetition::OPTIONAL),
        Kind::Integer => plain(name, Physical::INT64, Repetition::OPTIONAL),
        Kind::Float => plain(name, Physical::FLOAT, Repetition::OPTIONAL),
        Kind::Double => plain(name, Physical::DOUBLE, Repetition::OPTIONAL),
        Kind::Text => plain(name, Physical::BYTE_ARRAY, Repetition::OPTIONAL),
        Kind::Floats => list(name, plain("element", Physical::FLOAT, Repetition::REQUIRED)?),
        Kind::Doubles => list(name, plain("element", Physical::DOUBLE, Repetition::REQUIRED)?),
        Kind::Names => list(name, plain("element", Physical::BYTE_ARRAY, Repetition::REQUIRED)?),
    }
}

fn list(name: &str, element: Type) -> Result<Type, ParquetError> {
    let elements = Type::group_type_builder("list").with_repetition(Repetition::REPEATED).with_fields(vec![Arc::new(element)]);
    Type::group_type_builder(name)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(Some(LogicalType::List))
        .with_converted_type(ConvertedType::LIST)
        .with_fields(vec![Arc::new(elements.build()?)])
        .build()
}

fn write_cells(writer: &mut SerializedColumnWriter, column: &Column, cells: &[Cell]) -> io::Result<()> {
    match column.kind {
        Kind::Bool => values::<BoolType>(writer, column, cells, |cell| match cell {
            Cell::Bool(value) => Some(*value),
            _ => None,
        }),
        Kind::Integer => values::<Int64Type>(writer, column, cells, |cell| match cell {
            Cell::Integer(value) => i64::try_from(*value).ok(),
            _ => None,
        }),
        Kind::Float => values::<FloatType>(writer, column, cells, |cell| float(cell).map(|value| value as f32)),
        Kind::Double => values::<DoubleType>(writer, column, cells, float),
        Kind::Text => values::<ByteArrayType>(writer, column, cells, |cell| match cell {
            Cell::Text(text) => Some(ByteArray::from(text.as_str())),
            _ => None,
        }),
        Kind::Floats => {
            lists::<FloatType>(writer, column, cells, |cell| Some(numbers(cell)?.iter().map(|&value| value as f32).collect()))
        }
        Kind::Doubles => lists::<DoubleType>(writer, column, cells, |cell| Some(numbers(cell)?.to_vec())),
        Kind::Names => lists::<ByteArrayType>(writer, column, cells, |cell| match cell {
            Cell::Names(names) => Some(names.iter().map(|name| ByteArray::from(name.as_str())).collect()),
            _ => None,
        }),
    }
}

fn float(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Float(value) => Some(*value),
        _ => None,
    }
}

fn numbers(cell: &Cell) -> Option<&[f64]> {
    match cell {
        Cell::Numbers(values) => Some(values),
        _ => None,
    }
}

fn other_kind(column: &Column, cell: &Cell) -> io::Error {
    io::Error::other(format!(
        "column `{}`: found {} in a column of other values: did the file change while it was read?",
        column.name,
        cell.kind()
    ))
}

/// A level for each cell: 0 of a missing one, 1 of a value.
fn values<T: DataType>(
    writer: &mut SerializedColumnWriter,
    column: &Column,
    cells: &[Cell],
    value: impl Fn(&Cell) -> Option<T::T>,
) -> io::Result<()> {
    let (mut values, mut defined) = (Vec::new(), Vec::with_capacity(cells.len()));
    for cell in cells {
        let is_there = *cell != Cell::Missing;
        defined.push(i16::from(is_there));
        if is_there {
            values.push(value(cell).ok_or_else(|| other_kind(column, cell))?);
        }
    }
    writer.typed::<T>().write_batch(&values, Some(&defined), None).map(drop).map_err(reason)
}

/// A level for each element, 2, or for a list without any: 1, or 0 where it is missing. Elements behind the first one repeat.
fn lists<T: DataType>(
    writer: &mut SerializedColumnWriter,
    column: &Column,
    cells: &[Cell],
    elements: impl Fn(&Cell) -> Option<Vec<T::T>>,
) -> io::Result<()> {
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    for cell in cells {
        let list = match cell {
            Cell::Missing => None,
            cell => Some(elements(cell).ok_or_else(|| other_kind(column, cell))?),
        };
        let count = list.as_ref().map_or(0, Vec::len);
        let level = if count > 0 { 2 } else { i16::from(list.is_some()) };
        defined.extend(std::iter::repeat_n(level, count.max(1)));
        repeated.extend((0..count.max(1)).map(|element| i16::from(element > 0)));
        values.extend(list.into_iter().flatten());
    }
    writer.typed::<T>().write_batch(&values, Some(&defined), Some(&repeated)).map(drop).map_err(reason)
}
