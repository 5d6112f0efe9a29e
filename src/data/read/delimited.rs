//! TSV and CSV: a header line or given column names, quotes only where asked for.
//!
//! Blank lines are passed over. A line with fewer fields than columns is bad. With a header line so is one with more;
//! given `columns` name the leading fields, and further ones (STS-B has 7 or 9) are not looked at.
//!
//! The crate `csv` reads this too, but not as promised here: it takes text after a closing quote and a quote that is never closed
//! as they come (both are bad rows, named with their line), ends a record at a lone "\r" or else leaves "\r\n" in the last field,
//! passes over the empty line that is a row of a table with one column, and grows a record without limit.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, bail, ensure};

use super::bad_row::{BadKind, Fault};
use super::cell::{Cell, Row};
use super::lines::Lines;
use super::open::FileSpec;
use super::{Item, wanted_slots};
use crate::config::schema::Format;

/// More columns mean that the first line is no header.
const MOST_COLUMNS: usize = 100_000;

pub struct Delimited {
    lines: Lines,
    delimiter: char,
    quoted: bool,
    has_header: bool,
    columns: Vec<String>,
    /// By column: where its value goes in a row.
    slots: Vec<Option<usize>>,
    wanted: usize,
}

impl Delimited {
    pub fn open(file: &FileSpec, format: Format, bytes_read: Arc<AtomicU64>) -> Result<Delimited> {
        let lines = Lines::open(&file.path, bytes_read)?;
        let is_csv = format == Format::Csv;
        let mut reader = Delimited {
            lines,
            delimiter: if is_csv { ',' } else { '\t' },
            quoted: file.quoted.unwrap_or(is_csv),
            has_header: file.columns.is_empty(),
            columns: file.columns.clone(),
            slots: Vec::new(),
            wanted: 0,
        };
        if reader.has_header {
            reader.columns = reader.read_header()?;
        }
        reader.check_duplicates()?;
        Ok(reader)
    }

    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Chooses the columns that rows carry, in this order.
    pub fn select(&mut self, wanted: &[String]) -> Result<()> {
        self.slots = wanted_slots(self.lines.path(), &self.columns, wanted)?;
        self.wanted = wanted.len();
        Ok(())
    }

    pub fn next_item(&mut self) -> Result<Option<Item>> {
        loop {
            if !self.next_record()? {
                return Ok(None);
            }
            if !self.lines.record().is_empty() || self.columns.len() == 1 {
                break;
            }
        }
        let line = self.lines.line();
        Ok(Some(match self.cells() {
            Ok(cells) => Item::Row(Row { line, cells }),
            Err(fault) => Item::Bad(line, fault),
        }))
    }

    fn read_header(&mut self) -> Result<Vec<String>> {
        let path = self.lines.path().to_owned();
        ensure!(self.next_record()?, "{}: the file is empty", path.display());
        match split(self.lines.record(), self.delimiter, self.quoted) {
            Ok(fields) if fields.len() > MOST_COLUMNS => {
                let (path, count) = (path.display(), fields.len());
                bail!(
                    "{path}: the header line names {count} columns, more than {MOST_COLUMNS}; is it a table, and is this its delimiter?"
                )
            }
            Ok(fields) => Ok(fields.into_iter().map(Cow::into_owned).collect()),
            Err(fault) => bail!("{}:1: header line: {}", path.display(), fault.message),
        }
    }

    fn check_duplicates(&self) -> Result<()> {
        let mut seen = std::collections::HashMap::new();
        for (index, name) in self.columns.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            if let Some(before) = seen.insert(name, index + 1) {
                let place = if self.has_header { "header line" } else { "`columns`" };
                let path = self.lines.path().display();
                bail!("{path}: the {place} names `{name}` twice (fields {before} and {}); rename one", index + 1);
            }
        }
        Ok(())
    }

    /// One line, or as many as an open quote takes in.
    fn next_record(&mut self) -> Result<bool> {
        if !self.lines.advance()? {
            return Ok(false);
        }
        if !self.quoted {
            return Ok(true);
        }
        let mut scan = QuoteScan::FieldStart;
        let mut scanned = 0;
        loop {
            let record = self.lines.record();
            scan = scan.over(&record[scanned..], self.delimiter as u8);
            scanned = record.len();
            if scan != QuoteScan::Inside {
                return Ok(true);
            }
            if !self.lines.extend()? {
                let (path, line) = (self.lines.path().display(), self.lines.line());
                bail!("{path}:{line}: a quote opened in this record is never closed (quoted = false reads quotes as text)");
            }
        }
    }

    fn cells(&self) -> Result<Vec<Cell>, Fault> {
        let mut cells = vec![Cell::Missing; self.wanted];
        let mut count = 0;
        let mut take = |field: Cow<'_, str>| {
            if let Some(Some(slot)) = self.slots.get(count) {
                cells[*slot] = Cell::Text(field.into_owned());
            }
            count += 1;
        };
        if self.quoted {
            split(self.lines.record(), self.delimiter, true)?.into_iter().for_each(&mut take);
        } else {
            // The common case, without a vector of fields.
            utf8(self.lines.record())?.split(self.delimiter).map(Cow::Borrowed).for_each(&mut take);
        }
        let expected = self.columns.len();
        if count < expected || (count > expected && self.has_header) {
            let said_by = if self.has_header { "the header line" } else { "`columns`" };
            let message = format!("found {count} fields, expected the {expected} of {said_by}");
            return Err(Fault::new(BadKind::FieldCount, message));
        }
        Ok(cells)
    }
}

/// Where a scan over quoted text stands; the text may go on in the next line.
#[derive(Clone, Copy, PartialEq)]
enum QuoteScan {
    FieldStart,
    Outside,
    Inside,
    /// After a quote inside quotes: the end of the field, or the first half of "".
    Closing,
}

impl QuoteScan {
    fn over(self, bytes: &[u8], delimiter: u8) -> QuoteScan {
        bytes.iter().fold(self, |scan, &byte| match (scan, byte) {
            (QuoteScan::Inside, b'"') => QuoteScan::Closing,
            (QuoteScan::Inside, _) => QuoteScan::Inside,
            (QuoteScan::FieldStart | QuoteScan::Closing, b'"') => QuoteScan::Inside,
            (_, byte) if byte == delimiter => QuoteScan::FieldStart,
            _ => QuoteScan::Outside,
        })
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    super::utf8(bytes).map_err(|message| Fault::new(BadKind::InvalidUtf8, message))
}

fn split(record: &[u8], delimiter: char, quoted: bool) -> Result<Vec<Cow<'_, str>>, Fault> {
    let mut rest = utf8(record)?;
    if !quoted {
        return Ok(rest.split(delimiter).map(Cow::Borrowed).collect());
    }
    let mut fields = Vec::new();
    loop {
        let (field, after) = quoted_field(rest, delimiter, fields.len() + 1)?;
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

/// The first field of `text`, and what follows its delimiter if there is one.
fn quoted_field(text: &str, delimiter: char, number: usize) -> Result<(Cow<'_, str>, Option<&str>), Fault> {
    let Some(mut rest) = text.strip_prefix('"') else {
        return Ok(match text.split_once(delimiter) {
            Some((field, after)) => (Cow::Borrowed(field), Some(after)),
            None => (Cow::Borrowed(text), None),
        });
    };
    let mut value = Cow::Borrowed("");
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            return Err(Fault::new(BadKind::BadQuotes, format!("field {number}: the quote is never closed")));
        };
        value += part;
        rest = after;
        if let Some(after) = rest.strip_prefix('"') {
            value += "\"";
            rest = after;
        } else if rest.is_empty() {
            return Ok((value, None));
        } else if let Some(after) = rest.strip_prefix(delimiter) {
            return Ok((value, Some(after)));
        } else {
            let message = format!("field {number}: text after a closing quote (a quote inside quotes is written \"\")");
            return Err(Fault::new(BadKind::BadQuotes, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<String> {
        let fields = split(text.as_bytes(), ',', true).unwrap_or_default();
        fields.into_iter().map(Cow::into_owned).collect()
    }

    #[test]
    fn quotes_guard_delimiters_and_double_quotes() {
        assert_eq!(fields(r#""a,b",c"#), ["a,b", "c"]);
        assert_eq!(fields(r#""say ""hi""",x"#), ["say \"hi\"", "x"]);
        assert_eq!(fields(r#"plain "bare" quotes,x"#), ["plain \"bare\" quotes", "x"]);
        assert_eq!(fields("a,,"), ["a", "", ""]);
        assert_eq!(fields("\"two\nlines\",x"), ["two\nlines", "x"]);
    }

    #[test]
    fn text_after_a_closing_quote_is_bad() {
        let fault = split(br#""a"b,c"#, ',', true).expect_err("bad quotes");
        assert_eq!(fault.kind, BadKind::BadQuotes);
        assert!(fault.message.contains("field 1"), "{}", fault.message);
    }

    #[test]
    fn the_scan_knows_an_open_quote_across_lines() {
        let open = QuoteScan::FieldStart.over(br#"a,"b ""c"" "#, b',');
        assert!(open == QuoteScan::Inside);
        assert!(open.over(b"\nend\"", b',') == QuoteScan::Closing);
        assert!(QuoteScan::FieldStart.over(br#"a "b,c"#, b',') != QuoteScan::Inside);
    }
}
