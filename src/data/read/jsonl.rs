//! JSON lines: one object a line, of which only the wanted keys are kept.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Result;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Item;
use super::bad_row::{BadKind, Fault};
use super::cell::{Cell, Row};
use super::lines::Lines;
use super::open::FileSpec;

/// Lines looked at to tell which columns a file has: a key may be absent from some rows.
const SAMPLE_LINES: usize = 1_000;

pub struct JsonLines {
    lines: Lines,
    slots: HashMap<String, usize>,
    /// By wanted column: some row had it.
    seen: Vec<bool>,
}

impl JsonLines {
    pub fn open(file: &FileSpec, bytes_read: Arc<AtomicU64>) -> Result<JsonLines> {
        Ok(JsonLines { lines: Lines::open(&file.path, bytes_read)?, slots: HashMap::new(), seen: Vec::new() })
    }

    pub fn select(&mut self, wanted: &[String]) {
        self.slots = wanted.iter().enumerate().map(|(slot, name)| (name.clone(), slot)).collect();
        self.seen = vec![false; wanted.len()];
    }

    /// Wanted columns that no row so far had.
    pub fn unseen(&self) -> Vec<&str> {
        self.slots.iter().filter(|(_, slot)| !self.seen[**slot]).map(|(name, _)| name.as_str()).collect()
    }

    pub fn next_item(&mut self) -> Result<Option<Item>> {
        if !advance(&mut self.lines)? {
            return Ok(None);
        }
        let line = self.lines.line();
        Ok(Some(match self.cells() {
            Ok(cells) => Item::Row(Row { line, cells }),
            Err(fault) => Item::Bad(line, fault),
        }))
    }

    fn cells(&mut self) -> Result<Vec<Cell>, Fault> {
        let text = super::utf8(self.lines.record()).map_err(|message| Fault::new(BadKind::InvalidUtf8, message))?;
        let mut cells: Vec<Option<Cell>> = vec![None; self.slots.len()];
        parse(text, Columns { slots: &self.slots, cells: &mut cells })?;
        for (seen, cell) in self.seen.iter_mut().zip(&cells) {
            *seen |= cell.is_some();
        }
        Ok(cells.into_iter().map(|cell| cell.unwrap_or(Cell::Missing)).collect())
    }
}

/// Goes to the next line that is not blank; false at the end of the file.
fn advance(lines: &mut Lines) -> Result<bool> {
    while lines.advance()? {
        if !lines.record().trim_ascii().is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The keys of the first lines, in order of appearance. Bad lines are left to the reader proper.
pub fn columns(file: &FileSpec) -> Result<Vec<String>> {
    let mut lines = Lines::open(&file.path, Arc::default())?;
    let mut names: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    let mut left = SAMPLE_LINES;
    while left > 0 && advance(&mut lines)? {
        let Ok(text) = super::utf8(lines.record()) else { continue };
        let Ok(Keys(keys)) = serde_json::from_str::<Keys>(text) else { continue };
        for key in keys {
            if seen.insert(key.clone()) {
                names.push(key);
            }
        }
        left -= 1;
    }
    Ok(names)
}

/// Whether any line has `key`; reads on until one does.
pub fn has_key(file: &FileSpec, key: &str) -> Result<bool> {
    let slots = HashMap::from([(key.to_owned(), 0)]);
    let mut lines = Lines::open(&file.path, Arc::default())?;
    while advance(&mut lines)? {
        let mut cells = [None];
        if let Ok(text) = super::utf8(lines.record()) {
            // Bad lines are left to the reader proper here, too.
            let _ = parse(text, Columns { slots: &slots, cells: &mut cells });
        }
        if cells[0].is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn parse(text: &str, columns: Columns<'_>) -> Result<(), Fault> {
    let mut json = serde_json::Deserializer::from_str(text);
    columns.deserialize(&mut json).and_then(|()| json.end()).map_err(|error| {
        // The parser saw one line only: its "line 1" would mislead.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        Fault::new(BadKind::BadJson, format!("bad JSON at column {}: {message}", error.column()))
    })
}

/// Fills `cells` from an object.
struct Columns<'a> {
    slots: &'a HashMap<String, usize>,
    cells: &'a mut [Option<Cell>],
}

impl<'de> DeserializeSeed<'de> for Columns<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Columns<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one JSON object a line")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.slots.get(key.as_ref()) {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(&slot) => {
                    if self.cells[slot].is_some() {
                        return Err(de::Error::custom(format_args!("key `{key}` stands there twice")));
                    }
                    self.cells[slot] = Some(map.next_value()?);
                }
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cell, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Cell, E> {
        Ok(Cell::Missing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Cell, E> {
        Ok(Cell::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Cell, E> {
        Ok(Cell::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Cell, E> {
        Ok(Cell::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Cell, E> {
        Ok(Cell::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Cell, E> {
        Ok(Cell::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Cell, A::Error> {
        let (mut numbers, mut names, mut nested) = (Vec::new(), Vec::new(), false);
        while let Some(element) = list.next_element::<Cell>()? {
            match element {
                Cell::Integer(value) => numbers.push(value as f64),
                Cell::Float(value) => numbers.push(value),
                Cell::Text(text) => names.push(text),
                _ => nested = true,
            }
        }
        Ok(match (nested, numbers.is_empty(), names.is_empty()) {
            (false, _, true) => Cell::Numbers(numbers),
            (false, true, false) => Cell::Names(names),
            _ => Cell::Nested,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cell, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Cell::Nested)
    }
}

/// Only the keys of an object.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
        struct KeysVisitor;
        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(KeysVisitor)
    }
}
