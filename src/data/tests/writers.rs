//! What is written is read again as it was.

use anyhow::Result;

use super::support::Files;
use crate::data::read::{Cell, FileSpec, Item, Reader, columns};
use crate::data::write::{Column, Kind, ParquetWriter};

/// One column of each kind.
const KINDS: [(&str, Kind); 8] = [
    ("bool", Kind::Bool),
    ("integer", Kind::Integer),
    ("float", Kind::Float),
    ("double", Kind::Double),
    ("text", Kind::Text),
    ("floats", Kind::Floats),
    ("doubles", Kind::Doubles),
    ("names", Kind::Names),
];

fn table() -> Vec<Column> {
    KINDS.map(|(name, kind)| Column::new(name, kind)).to_vec()
}

fn row(number: usize) -> Vec<Cell> {
    let value = number as f64;
    let names = (0..number % 3).map(|name| format!("n{name}")).collect();
    let mut row = vec![
        Cell::Bool(number.is_multiple_of(2)),
        Cell::Integer(i128::from(i64::MAX) - number as i128),
        Cell::Float(value / 8.0),
        Cell::Float(0.1 + value),
        Cell::Text(format!("row {number}, \"ü\"")),
        Cell::Numbers((0..number % 4).map(|element| element as f64 / 4.0).collect()),
        Cell::Numbers((0..number % 2).map(|element| 0.1 + element as f64).collect()),
        Cell::Names(names),
    ];
    // Each column has cells that are missing.
    if let Some(cell) = row.get_mut(number % 11) {
        *cell = Cell::Missing;
    }
    row
}

fn read(path: std::path::PathBuf) -> Result<Vec<Vec<Cell>>> {
    let spec = FileSpec { path, format: None, columns: Vec::new(), quoted: None };
    let rows = Reader::open(&spec, &columns(&spec)?, Default::default())?;
    rows.map(|item| match item? {
        Item::Row(row) => Ok(row.cells),
        Item::Bad(line, _) => anyhow::bail!("row {line} is bad"),
    })
    .collect()
}

/// Lists without elements have no type of their own.
fn untyped(cell: Cell) -> Cell {
    if matches!(&cell, Cell::Names(names) if names.is_empty()) { Cell::Numbers(Vec::new()) } else { cell }
}

/// More rows than a group holds, so that there are several.
#[test]
fn tables_are_read_as_they_were_written() -> Result<()> {
    let files = Files::new()?;
    for rows in [0, 1, 100_000] {
        let path = files.path("x.parquet");
        let mut writer = ParquetWriter::new(std::fs::File::create(&path)?, table())?;
        (0..rows).try_for_each(|number| writer.write(row(number)))?;
        writer.finish()?;
        let found = read(path)?;
        assert_eq!(found.len(), rows);
        for (number, found) in found.into_iter().enumerate() {
            assert_eq!(found, row(number).into_iter().map(untyped).collect::<Vec<Cell>>(), "row {number}");
        }
    }
    Ok(())
}

#[test]
fn a_cell_of_another_kind_and_a_full_disk_are_errors() -> Result<()> {
    let files = Files::new()?;
    let columns = || vec![Column::new("x", Kind::Integer)];
    let mut writer = ParquetWriter::new(std::fs::File::create(files.path("x.parquet"))?, columns())?;
    let error = writer.write(vec![Cell::Text("a".into())]).and_then(|()| writer.finish()).unwrap_err().to_string();
    assert!(error.contains("column `x`: found text in a column of other values"), "{error}");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
    let finished = ParquetWriter::new(full, columns()).and_then(|mut writer| {
        writer.write(vec![Cell::Integer(1)])?;
        writer.finish()
    });
    assert_eq!(finished.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    Ok(())
}
