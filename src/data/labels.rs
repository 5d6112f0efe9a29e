//! Labels: from the cells of a row to classes, flags or values.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::read::{BadKind, Cell, Fault, Row};
use super::suggest::{closest, list, shorten};
use crate::config::schema::{HeadKind, Task};

/// More distinct labels than this in the training rows mean that the column is no label; `classes` lifts the limit.
const MOST_DISCOVERED: usize = 65_536;

/// How the label columns of a task are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LabelForm {
    /// One column naming the class.
    Class,
    /// Multilabel: one column listing names, see [`name_list`].
    NameList,
    /// Multilabel: one 0/1 column per label.
    Flags,
    /// Regression: one number per column.
    Numbers,
    /// The text is its own label: masked language modelling.
    Words,
    /// So are two texts that belong together.
    Pair,
}

impl LabelForm {
    pub(super) fn of(settings: &Task) -> LabelForm {
        match settings.head {
            HeadKind::Classification => LabelForm::Class,
            HeadKind::Multilabel if settings.label.len() == 1 => LabelForm::NameList,
            HeadKind::Multilabel => LabelForm::Flags,
            HeadKind::Regression => LabelForm::Numbers,
            HeadKind::Mlm => LabelForm::Words,
            HeadKind::Similarity => LabelForm::Pair,
        }
    }
}

/// A row's label before class names have numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RawLabel {
    Missing,
    Name(String),
    Names(Vec<String>),
    Values(Vec<f32>),
    /// What is read of the row.
    Own,
}

/// Reads the label of `row` from `columns` (places in the row), called `names` in messages.
pub(super) fn parse(form: LabelForm, row: &Row, columns: &[usize], names: &[String]) -> Result<RawLabel, Fault> {
    if matches!(form, LabelForm::Words | LabelForm::Pair) {
        return Ok(RawLabel::Own);
    }
    let cells = || columns.iter().map(|&column| &row.cells[column]);
    if cells().all(Cell::is_missing) {
        return Ok(RawLabel::Missing);
    }
    let bad = |name: &str, cell: &Cell, expected: &str| {
        let found = cell.plain().map_or_else(|| cell.kind().to_owned(), |text| format!("`{}`", shorten(&text)));
        Fault::new(BadKind::BadLabel, format!("label column `{name}` holds {found}, expected {expected}"))
    };
    let mut named = cells().zip(names);
    match (form, named.next()) {
        (LabelForm::Words | LabelForm::Pair, _) => Ok(RawLabel::Own),
        (_, None) => Ok(RawLabel::Missing),
        (LabelForm::Class, Some((cell, name))) => match cell.plain() {
            Some(text) => Ok(RawLabel::Name(text.trim().to_owned())),
            None => Err(bad(name, cell, "one class")),
        },
        (LabelForm::NameList, Some((cell, name))) => name_list(cell)
            .map(RawLabel::Names)
            .ok_or_else(|| bad(name, cell, "a list of names, or names with commas or semicolons between them")),
        (LabelForm::Flags, Some(_)) => {
            let values = cells().zip(names).map(|(cell, name)| flag(cell).ok_or_else(|| bad(name, cell, "0 or 1")));
            values.collect::<Result<_, _>>().map(RawLabel::Values)
        }
        (LabelForm::Numbers, Some(_)) => {
            let values = cells().zip(names).map(|(cell, name)| number(cell).ok_or_else(|| bad(name, cell, "a finite number")));
            values.collect::<Result<_, _>>().map(RawLabel::Values)
        }
    }
}

/// `a, b;c`, or a list. An empty list, as a text `[]`, is a row to which no label applies; one without a label has nothing here.
fn name_list(cell: &Cell) -> Option<Vec<String>> {
    let clean = |name: &str| (!name.trim().is_empty()).then(|| name.trim().to_owned());
    match cell {
        Cell::Names(names) => Some(names.iter().filter_map(|name| clean(name)).collect()),
        Cell::Numbers(numbers) => Some(numbers.iter().map(f64::to_string).collect()),
        _ => match cell.plain()?.trim() {
            "[]" => Some(Vec::new()),
            text => Some(text.split([',', ';']).filter_map(clean).collect()),
        },
    }
}

fn flag(cell: &Cell) -> Option<f32> {
    if cell.is_missing() {
        return Some(f32::NAN);
    }
    match cell.plain()?.trim() {
        "0" => Some(0.0),
        "1" => Some(1.0),
        text if text.eq_ignore_ascii_case("false") => Some(0.0),
        text if text.eq_ignore_ascii_case("true") => Some(1.0),
        _ => None,
    }
}

fn number(cell: &Cell) -> Option<f32> {
    if cell.is_missing() {
        return Some(f32::NAN);
    }
    let value: f32 = cell.plain()?.trim().parse().ok()?;
    value.is_finite().then_some(value)
}

/// Class names while they are being found: ids in order of appearance, sorted at the end.
pub(super) struct Classes {
    names: Vec<String>,
    ids: HashMap<String, u32>,
    given: bool,
    /// By id: a training row has it.
    in_train: Vec<bool>,
    /// By id: the first dev or test row that has it.
    first_outside: Vec<Option<Place>>,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub path: PathBuf,
    pub line: u64,
}

/// Class names in index order, and what became of the ids.
pub(super) struct SortedClasses {
    pub names: Vec<String>,
    /// By id; none for a name that no training row has.
    pub index: Vec<Option<u32>>,
    /// By id, for such a name: the name, and the first row that has it.
    pub unknown: HashMap<u32, (String, Place)>,
}

impl Classes {
    /// From `classes` of the task, or to be discovered when that is empty.
    pub(super) fn new(given: &[String]) -> Classes {
        let mut classes = Classes {
            names: Vec::new(),
            ids: HashMap::new(),
            given: !given.is_empty(),
            in_train: Vec::new(),
            first_outside: Vec::new(),
        };
        for name in given {
            classes.add(name);
        }
        classes
    }

    /// The id of a label of a training row, or of the dev or test row at `outside`.
    pub(super) fn id(&mut self, name: &str, outside: Option<(&Path, u64)>) -> Result<u32, Fault> {
        let id = match self.ids.get(name) {
            Some(&id) => id,
            None if self.given => return Err(unknown(name, &self.names)),
            None => self.add(name),
        };
        let slot = id as usize;
        match outside {
            None => self.in_train[slot] = true,
            Some((path, line)) => {
                self.first_outside[slot].get_or_insert_with(|| Place { path: path.to_owned(), line });
            }
        }
        if !self.given && self.names.len() > MOST_DISCOVERED {
            let message = format!("more than {MOST_DISCOVERED} distinct labels; wrong column? (`classes` lifts the limit)");
            return Err(Fault::new(BadKind::BadLabel, message));
        }
        Ok(id)
    }

    fn add(&mut self, name: &str) -> u32 {
        let id = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.ids.insert(name.to_owned(), id);
        self.in_train.push(false);
        self.first_outside.push(None);
        id
    }

    /// Given names keep their order; discovered ones are sorted, as numbers if all are integers.
    pub(super) fn sort(self) -> SortedClasses {
        let mut order: Vec<usize> = (0..self.names.len()).filter(|&id| self.given || self.in_train[id]).collect();
        if !self.given {
            let number = |id: usize| self.names[id].parse::<i128>();
            if order.iter().all(|&id| number(id).is_ok()) {
                order.sort_by_key(|&id| (number(id).unwrap_or_default(), &self.names[id]));
            } else {
                order.sort_by_key(|&id| &self.names[id]);
            }
        }
        let mut index = vec![None; self.names.len()];
        for (class, &id) in order.iter().enumerate() {
            index[id] = Some(class as u32);
        }
        let unknown = (0..self.names.len()).filter(|&id| index[id].is_none()).filter_map(|id| {
            let place = self.first_outside[id].clone()?;
            Some((id as u32, (self.names[id].clone(), place)))
        });
        let unknown = unknown.collect();
        SortedClasses { names: order.iter().map(|&id| self.names[id].clone()).collect(), index, unknown }
    }
}

/// A label that is none of the classes.
pub(super) fn unknown(name: &str, classes: &[String]) -> Fault {
    let hint = match closest(name, classes.iter().map(String::as_str)) {
        Some(close) => format!("; did you mean `{close}`?"),
        None => String::new(),
    };
    let message = format!("label `{}` is none of the classes {}{hint}", shorten(name), list(classes));
    Fault::new(BadKind::UnknownLabel, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(form: LabelForm, cells: Vec<Cell>) -> Result<RawLabel, Fault> {
        let columns: Vec<usize> = (0..cells.len()).collect();
        let names: Vec<String> = columns.iter().map(|i| format!("y{i}")).collect();
        parse(form, &Row { line: 1, cells }, &columns, &names)
    }

    fn text(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }

    #[test]
    fn a_class_is_text_a_number_or_a_boolean() {
        for (cell, name) in [(text(" pos "), "pos"), (Cell::Integer(3), "3"), (Cell::Bool(false), "false")] {
            assert_eq!(read(LabelForm::Class, vec![cell]), Ok(RawLabel::Name(name.into())));
        }
        assert_eq!(read(LabelForm::Class, vec![text("  ")]), Ok(RawLabel::Missing));
        assert_eq!(read(LabelForm::Class, vec![Cell::Missing]), Ok(RawLabel::Missing));
        assert!(read(LabelForm::Class, vec![Cell::Nested]).is_err());
    }

    #[test]
    fn flags_may_be_missing_one_by_one() {
        let cells = vec![text("1"), Cell::Missing, Cell::Bool(false), text("TRUE")];
        let Ok(RawLabel::Values(values)) = read(LabelForm::Flags, cells) else { panic!("good flags") };
        assert_eq!((values[0], values[2], values[3]), (1.0, 0.0, 1.0));
        assert!(values[1].is_nan());
        let fault = read(LabelForm::Flags, vec![text("0"), text("2")]).expect_err("2 is no flag");
        assert_eq!(fault.message, "label column `y1` holds `2`, expected 0 or 1");
        assert_eq!(read(LabelForm::Flags, vec![Cell::Missing, text("")]), Ok(RawLabel::Missing));
    }

    #[test]
    fn name_lists_are_split_or_given_as_lists() {
        let names = |names: &[&str]| Ok(RawLabel::Names(names.iter().map(|name| (*name).to_owned()).collect()));
        assert_eq!(read(LabelForm::NameList, vec![text("a, b;c,")]), names(&["a", "b", "c"]));
        assert_eq!(read(LabelForm::NameList, vec![Cell::Names(vec!["x y".into()])]), names(&["x y"]));
    }

    /// The same whether a file has lists or text only.
    #[test]
    fn no_label_applies_where_the_list_is_empty_and_none_is_known_where_there_is_none() {
        for none in [Cell::Numbers(vec![]), text("[]"), text(" [] "), text(";")] {
            assert_eq!(read(LabelForm::NameList, vec![none]), Ok(RawLabel::Names(Vec::new())));
        }
        for unlabelled in [Cell::Missing, text(""), text("  ")] {
            assert_eq!(read(LabelForm::NameList, vec![unlabelled]), Ok(RawLabel::Missing));
        }
    }

    #[test]
    fn regression_takes_finite_numbers_only() {
        assert_eq!(read(LabelForm::Numbers, vec![text("-2.5e3")]), Ok(RawLabel::Values(vec![-2500.0])));
        for bad in ["good", "nan", "inf", "1e300"] {
            assert_eq!(read(LabelForm::Numbers, vec![text(bad)]).map_err(|fault| fault.kind), Err(BadKind::BadLabel));
        }
    }

    #[test]
    fn discovered_classes_are_sorted_as_numbers_or_as_text() -> Result<(), Fault> {
        for (labels, sorted) in [(["10", "9", "-1"], ["-1", "9", "10"]), (["b", "10", "9"], ["10", "9", "b"])] {
            let mut classes = Classes::new(&[]);
            for label in labels {
                classes.id(label, None)?;
            }
            assert_eq!(classes.sort().names, sorted);
        }
        Ok(())
    }

    #[test]
    fn labels_outside_the_training_rows_are_remembered() -> Result<(), Fault> {
        let mut classes = Classes::new(&[]);
        let dev = Path::new("dev.tsv");
        let odd = classes.id("odd", Some((dev, 3)))?;
        classes.id("late", Some((dev, 4)))?;
        classes.id("late", None)?;
        classes.id("odd", Some((dev, 9)))?;
        let sorted = classes.sort();
        assert_eq!(sorted.names, ["late"]);
        assert_eq!(sorted.unknown[&odd], ("odd".to_owned(), Place { path: dev.to_owned(), line: 3 }));
        Ok(())
    }

    #[test]
    fn given_classes_keep_their_order_and_refuse_others() {
        let mut classes = Classes::new(&["yes".to_owned(), "no".to_owned()]);
        assert_eq!(classes.id("no", None), Ok(1));
        let fault = classes.id("yess", None).expect_err("not given");
        assert_eq!(fault.message, "label `yess` is none of the classes `yes`, `no`; did you mean `yes`?");
    }
}
