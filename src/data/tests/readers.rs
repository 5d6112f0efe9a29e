//! Rows of every format, and the oddities of real files.

use std::sync::Arc;

use anyhow::{Context, Result};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::support::{Files, assert_contains, load_one, message};
use crate::data::{Cell, FileSpec, Inputs, Item, Reader, Targets, columns};

fn spec(path: std::path::PathBuf) -> FileSpec {
    FileSpec { path, format: None, columns: Vec::new(), quoted: None }
}

fn rows(file: &FileSpec, wanted: &[&str]) -> Result<Vec<(u64, Vec<Cell>)>> {
    let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
    Reader::open(file, &wanted, Arc::default())?
        .map(|item| match item? {
            Item::Row(row) => Ok((row.line, row.cells)),
            Item::Bad(line, fault) => anyhow::bail!("{line}: {}", fault.message),
        })
        .collect()
}

fn text(text: &str) -> Cell {
    Cell::Text(text.to_owned())
}

#[test]
fn every_text_format_and_packing_gives_the_same_rows() -> Result<()> {
    let files = Files::new()?;
    let contents = [
        ("tsv", "text\tlabel\none\ta\ntwo\tb\n"),
        ("csv", "text,label\n\"one\",a\ntwo,\"b\"\n"),
        ("jsonl", "{\"text\":\"one\",\"label\":\"a\"}\n{\"label\":\"b\",\"text\":\"two\"}\n"),
    ];
    for (extension, content) in contents {
        for packing in ["", ".gz", ".zst"] {
            let file = spec(files.write(&format!("x.{extension}{packing}"), content)?);
            let found: Vec<_> = rows(&file, &["label", "text"])?.into_iter().map(|(_, cells)| cells).collect();
            assert_eq!(found, [[text("a"), text("one")], [text("b"), text("two")]], "{extension}{packing}");
            assert_eq!(columns(&file)?, ["text", "label"]);
        }
    }
    Ok(())
}

#[test]
fn bom_crlf_and_a_missing_last_line_end_are_tolerated() -> Result<()> {
    let files = Files::new()?;
    for name in ["x.tsv", "x.csv"] {
        let content = "\u{feff}text,label\r\none,a\r\ntwo,b".replace(',', if name == "x.tsv" { "\t" } else { "," });
        let found = rows(&spec(files.write(name, content)?), &["text", "label"])?;
        assert_eq!(found, [(2, vec![text("one"), text("a")]), (3, vec![text("two"), text("b")])]);
    }
    let json = files.write("x.jsonl", "\u{feff}{\"text\":\"one\"}\r\n\r\n{\"text\":\"two\"}")?;
    assert_eq!(rows(&spec(json), &["text"])?, [(1, vec![text("one")]), (3, vec![text("two")])]);
    Ok(())
}

#[test]
fn next_line_and_lone_carriage_returns_stay_in_the_text() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv", "text\tlabel\na\u{85}b\rc\u{2028}d\t1\n")?;
    assert_eq!(rows(&spec(path), &["text"])?, [(2, vec![text("a\u{85}b\rc\u{2028}d")])]);
    Ok(())
}

#[test]
fn tsv_reads_quotes_as_text_unless_told() -> Result<()> {
    let files = Files::new()?;
    let mut file = spec(files.write("x.tsv", "text\tlabel\n\"a \"b\"\t1\n\"open\t0\n")?);
    assert_eq!(rows(&file, &["text"])?, [(2, vec![text("\"a \"b\"")]), (3, vec![text("\"open")])]);
    file = spec(files.write("y.tsv", "text\tlabel\n\"a\tb\"\t1\n")?);
    file.quoted = Some(true);
    assert_eq!(rows(&file, &["text"])?, [(2, vec![text("a\tb")])]);
    Ok(())
}

#[test]
fn quoted_records_span_lines_and_keep_their_first_number() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.csv", "text,label\n\"a\r\nb\n\",1\nc,2\n")?;
    let found = rows(&spec(path), &["text", "label"])?;
    assert_eq!(found, [(2, vec![text("a\nb\n"), text("1")]), (5, vec![text("c"), text("2")])]);
    let open = files.write("y.csv", "text,label\nok,1\n\"a,1\nb,2\n")?;
    assert_contains(&message(rows(&spec(open), &["text"])), &["y.csv:3:", "never closed"]);
    Ok(())
}

#[test]
fn given_columns_mean_no_header_and_leading_fields() -> Result<()> {
    let files = Files::new()?;
    let mut file = spec(files.write("x.tsv", "a\tb\tc\nd\te\tf\tg\n")?);
    file.columns = ["x", "y", "z"].map(str::to_owned).to_vec();
    assert_eq!(rows(&file, &["z"])?, [(1, vec![text("c")]), (2, vec![text("f")])]);
    Ok(())
}

#[test]
fn json_keeps_types_and_ignores_other_keys() -> Result<()> {
    let files = Files::new()?;
    let path = files.write(
        "x.jsonl",
        r#"{"a": 7, "b": 0.5, "c": true, "d": null, "e": [1, 2.5], "f": ["x"], "g": {"h": 1}, "z": [[{}]], "i": "\u00e9"}"#,
    )?;
    let found = rows(&spec(path), &["a", "b", "c", "d", "e", "f", "g", "i"])?;
    let expected = vec![
        Cell::Integer(7),
        Cell::Float(0.5),
        Cell::Bool(true),
        Cell::Missing,
        Cell::Numbers(vec![1.0, 2.5]),
        Cell::Names(vec!["x".into()]),
        Cell::Nested,
        text("é"),
    ];
    assert_eq!(found, [(1, expected)]);
    Ok(())
}

#[test]
fn a_line_may_have_very_many_keys() -> Result<()> {
    let files = Files::new()?;
    let names: Vec<String> = (0..60_000).map(|key| format!("a rather long name of a column {key}")).collect();
    let object: serde_json::Map<_, _> = names.iter().map(|name| (name.clone(), 1.into())).collect();
    let line = serde_json::Value::Object(object).to_string();
    assert_eq!(columns(&spec(files.write("x.jsonl", format!("{line}\n{line}\n"))?))?.len(), names.len());
    Ok(())
}

#[test]
fn a_ten_megabyte_line_works() -> Result<()> {
    let files = Files::new()?;
    let long = "word ".repeat(2 << 20);
    for (name, content) in [
        ("x.tsv", format!("text\tlabel\n{long}\t1\n")),
        ("x.csv.gz", format!("text,label\n\"{long}\",1\n")),
        ("x.jsonl", format!("{{\"text\":\"{long}\",\"label\":1}}\n")),
    ] {
        let found = rows(&spec(files.write(name, content)?), &["text"])?;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1[0].plain().map(|text| text.len()), Some(long.len()), "{name}");
    }
    Ok(())
}

/// Two rows: text, score, flag, number, and a list of floats.
fn write_parquet(path: &std::path::Path) -> Result<()> {
    let schema = "message m {
        REQUIRED BYTE_ARRAY text (UTF8); OPTIONAL INT64 label; REQUIRED BOOLEAN flag; REQUIRED DOUBLE score;
        REQUIRED GROUP features (LIST) { REPEATED GROUP list { REQUIRED FLOAT element; } } }";
    let schema = Arc::new(parse_message_type(schema)?);
    let mut writer = SerializedFileWriter::new(std::fs::File::create(path)?, schema, Arc::default())?;
    let mut group = writer.next_row_group()?;
    let missing = || "the schema has more columns";
    let mut column = group.next_column()?.with_context(missing)?;
    let texts = [ByteArray::from("one"), ByteArray::from("two")];
    column.typed::<ByteArrayType>().write_batch(&texts, None, None)?;
    column.close()?;
    let mut column = group.next_column()?.with_context(missing)?;
    column.typed::<Int64Type>().write_batch(&[7], Some(&[1, 0]), None)?;
    column.close()?;
    let mut column = group.next_column()?.with_context(missing)?;
    column.typed::<BoolType>().write_batch(&[true, false], None, None)?;
    column.close()?;
    let mut column = group.next_column()?.with_context(missing)?;
    column.typed::<DoubleType>().write_batch(&[1.0, 0.25], None, None)?;
    column.close()?;
    let mut column = group.next_column()?.with_context(missing)?;
    column.typed::<FloatType>().write_batch(&[0.1, 2.0, 3.0, 4.0], Some(&[1; 4]), Some(&[0, 1, 0, 1]))?;
    column.close()?;
    group.close()?;
    writer.close()?;
    Ok(())
}

/// Wherever a byte is wrong: rows or an error. The library that decodes the format panics at some of these files.
#[test]
fn no_byte_of_a_parquet_file_is_trusted() -> Result<()> {
    let files = Files::new()?;
    let path = files.path("x.parquet");
    write_parquet(&path)?;
    let whole = std::fs::read(&path)?;
    let mut refused = 0;
    for place in 4..whole.len() - 4 {
        for wrong in [0, 0x1f, 0xff, whole[place] ^ 1] {
            let mut bytes = whole.clone();
            bytes[place] = wrong;
            std::fs::write(&path, bytes)?;
            refused += u32::from(rows(&spec(path.clone()), &["features", "text", "label", "flag", "score"]).is_err());
            drop(columns(&spec(path.clone())));
        }
    }
    assert!(refused > 100, "{refused} of {} damaged files are refused", 4 * whole.len());
    Ok(())
}

#[test]
fn parquet_columns_keep_their_types() -> Result<()> {
    let files = Files::new()?;
    let path = files.path("x.parquet");
    write_parquet(&path)?;
    let found = rows(&spec(path.clone()), &["features", "text", "label", "flag", "score"])?;
    let first =
        vec![Cell::Numbers(vec![f64::from(0.1_f32), 2.0]), text("one"), Cell::Integer(7), Cell::Bool(true), Cell::Float(1.0)];
    let second = vec![Cell::Numbers(vec![3.0, 4.0]), text("two"), Cell::Missing, Cell::Bool(false), Cell::Float(0.25)];
    assert_eq!(found, [(1, first), (2, second)]);
    assert_eq!(columns(&spec(path.clone()))?, ["text", "label", "flag", "score", "features"]);
    assert_contains(&message(rows(&spec(path.clone()), &["lable"])), &["no column `lable`", "did you mean `label`?"]);
    let dense = serde_json::json!({"text": [], "features": ["features"], "label": ["flag"]});
    let task = &load_one(&path, dense)?.tasks[0];
    let Inputs::Features(store) = &task.train.inputs else { panic!("features") };
    assert_eq!((store.row(0), store.row(1)), (vec![0.1, 2.0], vec![3.0, 4.0]));
    assert_eq!(
        (&task.train.targets, task.classes.as_slice()),
        (&Targets::Class(vec![1, 0]), &["false", "true"].map(String::from)[..])
    );
    let mut bytes = std::fs::read(&path)?;
    bytes.truncate(bytes.len() - 20);
    std::fs::write(&path, bytes)?;
    assert_contains(&message(rows(&spec(path), &["text"])), &["x.parquet", "cut short"]);
    Ok(())
}
