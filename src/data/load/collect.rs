//! One task's examples while they arrive, and their final form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::hold_out::HoldOut;
use crate::config::schema::{OnBadRow, Task};
use crate::data::labels::{self, Classes, LabelForm, RawLabel, SortedClasses};
use crate::data::read::{BadKind, Fault};
use crate::data::split::{Inputs, LoadReport, Split, SplitName, Targets, TaskData};
use crate::data::store::{Elements, FeatureStore, RowRef, TokenStore};

pub(super) struct TaskBuilder {
    name: String,
    settings: Task,
    form: LabelForm,
    classes: Classes,
    splits: BTreeMap<SplitName, SplitBuilder>,
    report: LoadReport,
    /// Fed with the inputs of train and dev as they arrive.
    hasher: blake3::Hasher,
    /// Features per example, set by the first.
    dim: Option<usize>,
    /// What becomes of the training rows, and by row where each stands: its file's number and its line.
    hold_out: Option<HoldOut>,
    places: Vec<u64>,
    /// The file of the last training row, and its number among the task's.
    file: Option<(PathBuf, u64)>,
}

#[derive(Default)]
struct SplitBuilder {
    rows: Vec<RowRef>,
    labels: Labels,
    /// By slice, then by example.
    slices: Vec<Vec<bool>>,
}

/// Labels before class names have numbers; which fields are used follows from the label form.
#[derive(Clone, Default)]
struct Labels {
    /// Class ids of all examples, end to end.
    ids: Vec<u32>,
    /// Name lists: where each example's ids end.
    ends: Vec<usize>,
    /// Flags and numbers. // (len, outputs)
    values: Vec<f32>,
}

/// An example on its way into a task.
pub(super) struct Example<'a> {
    pub split: SplitName,
    pub label: RawLabel,
    pub elements: &'a [u32],
    pub row: RowRef,
    pub slices: &'a [bool],
}

impl TaskBuilder {
    pub(super) fn new(name: &str, settings: &Task, seed: u64) -> TaskBuilder {
        TaskBuilder {
            hold_out: settings.shares().map(|[dev, test]| HoldOut { dev, test, seed }),
            places: Vec::new(),
            file: None,
            name: name.to_owned(),
            settings: settings.clone(),
            form: LabelForm::of(settings),
            classes: Classes::new(&settings.classes),
            splits: BTreeMap::new(),
            report: LoadReport::default(),
            hasher: blake3::Hasher::new(),
            dim: None,
        }
    }

    pub(super) fn count_missing_label(&mut self, split: SplitName) {
        *self.report.missing_labels.entry(split).or_default() += 1;
    }

    pub(super) fn count_bad(&mut self, fault: Fault, path: &Path, line: u64) {
        self.report.bad.add(fault, path, line);
    }

    /// Says whether the task takes an input of this length, before it is stored.
    pub(super) fn check_width(&mut self, len: usize) -> Result<(), Fault> {
        if !self.settings.text.is_empty() {
            return Ok(());
        }
        let dim = *self.dim.get_or_insert(len);
        if dim == len {
            return Ok(());
        }
        Err(Fault::new(BadKind::FeatureCount, format!("found {len} features, the rows before have {dim}")))
    }

    pub(super) fn add(&mut self, example: Example<'_>, path: &Path, line: u64) -> Result<(), Fault> {
        let split = self.splits.entry(example.split).or_default();
        let outside = (example.split != SplitName::Train).then_some((path, line));
        let start = split.labels.ids.len();
        match example.label {
            RawLabel::Missing => return Ok(()),
            RawLabel::Own => {}
            RawLabel::Name(name) => split.labels.ids.push(self.classes.id(&name, outside)?),
            RawLabel::Values(values) => split.labels.values.extend(values),
            RawLabel::Names(names) => {
                for name in names {
                    let id = self.classes.id(&name, outside).inspect_err(|_| split.labels.ids.truncate(start))?;
                    split.labels.ids.push(id);
                }
                split.labels.ends.push(split.labels.ids.len());
            }
        }
        if example.split == SplitName::Train && self.hold_out.is_some() {
            let number = match &self.file {
                Some((last, number)) if last == path => *number,
                last => last.as_ref().map_or(0, |(_, number)| number + 1),
            };
            self.file = Some((path.to_owned(), number));
            self.places.push(number << 48 | line);
        }
        split.rows.push(example.row);
        split.slices.resize_with(example.slices.len(), Vec::new);
        for (flags, flag) in split.slices.iter_mut().zip(example.slices) {
            flags.push(*flag);
        }
        if example.split != SplitName::Test {
            let header = [example.split as u32, example.row.len, example.row.first];
            self.hasher.update(bytemuck::cast_slice(&header)).update(bytemuck::cast_slice(example.elements));
        }
        Ok(())
    }

    /// Features per example; none for text, or without examples.
    pub(super) fn dim(&self) -> Option<usize> {
        self.dim
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Numbers the classes and takes the examples apart from the shared `elements`.
    pub(super) fn finish(
        mut self,
        elements: &Arc<Elements>,
        slice_names: &[String],
        on_bad: OnBadRow,
        what: &str,
        unused: &str,
    ) -> Result<TaskData> {
        let trained = self.splits.get(&SplitName::Train).is_some_and(|split| !split.rows.is_empty());
        if !trained {
            let why = if self.report.is_clean() { unused.to_owned() } else { self.report.to_string() };
            bail!("task `{}`: no {what}{}{why}", self.name, if why.is_empty() { "" } else { ": " });
        }
        let sorted = std::mem::replace(&mut self.classes, Classes::new(&[])).sort();
        for split in [SplitName::Dev, SplitName::Test] {
            self.drop_unknown(split, &sorted, on_bad)?;
        }
        let (outputs, classes) = self.outputs(&sorted)?;
        self.hold_out(&sorted)?;
        let mut splits = BTreeMap::new();
        for (name, split) in std::mem::take(&mut self.splits) {
            if split.rows.is_empty() {
                continue;
            }
            let targets = targets(self.form, split.labels, &sorted, outputs);
            if name != SplitName::Test {
                hash_targets(&mut self.hasher, name, &targets);
            }
            let inputs = match self.dim {
                None if self.form == LabelForm::Pair => Inputs::Tokens(TokenStore::apart(Arc::clone(elements), &split.rows)),
                Some(dim) => Inputs::Features(FeatureStore::new(Arc::clone(elements), dim, &split.rows)),
                None => Inputs::Tokens(TokenStore::new(Arc::clone(elements), split.rows)),
            };
            let slices = slice_names.iter().cloned().zip(split.slices).collect();
            splits.insert(name, Split { inputs, targets, unscaled: None, slices });
        }
        for class in &classes {
            self.hasher.update(class.as_bytes()).update(b"\0");
        }
        let Some(train) = splits.remove(&SplitName::Train) else { bail!("task `{}`: no {what}", self.name) };
        let mut task = TaskData {
            name: self.name,
            settings: self.settings,
            outputs,
            classes,
            train,
            dev: splits.remove(&SplitName::Dev),
            test: splits.remove(&SplitName::Test),
            report: self.report,
            fingerprint: *self.hasher.finalize().as_bytes(),
            feature_scale: None,
            label_scale: None,
            class_weights: None,
        };
        task.weigh_classes()?;
        Ok(task)
    }

    /// Moves the rows that are held out from train to dev and test: of each class its share.
    fn hold_out(&mut self, sorted: &SortedClasses) -> Result<()> {
        let Some(hold_out) = self.hold_out else { return Ok(()) };
        let train = self.splits.remove(&SplitName::Train).unwrap_or_default();
        let rows = train.rows.len();
        let mut groups = vec![Vec::new(); if self.form == LabelForm::Class { sorted.names.len() } else { 1 }];
        for row in 0..rows {
            let class = (self.form == LabelForm::Class).then(|| sorted.index[train.labels.ids[row] as usize]).flatten();
            groups[class.unwrap_or(0) as usize].push(row);
        }
        let splits = hold_out.splits(&groups, &self.places);
        for (name, share) in [(SplitName::Train, 1.0), (SplitName::Dev, hold_out.dev), (SplitName::Test, hold_out.test)] {
            if share == 0.0 {
                continue;
            }
            let keep: Vec<bool> = splits.iter().map(|split| *split == name).collect();
            let (task, split) = (&self.name, name.as_str());
            ensure!(
                keep.contains(&true),
                "task `{task}`: {split} = {share} of {rows} labelled training rows is no row: raise the share, or give files"
            );
            let mut part = SplitBuilder { rows: train.rows.clone(), labels: train.labels.clone(), slices: train.slices.clone() };
            part.retain(self.form, &keep);
            if name == SplitName::Train {
                part.slices.clear();
            }
            self.splits.insert(name, part);
        }
        Ok(())
    }

    /// Dev and test rows with a label that no training row has are bad rows; it is known only now.
    fn drop_unknown(&mut self, name: SplitName, sorted: &SortedClasses, on_bad: OnBadRow) -> Result<()> {
        let Some(split) = self.splits.get_mut(&name) else { return Ok(()) };
        if sorted.unknown.is_empty() {
            return Ok(());
        }
        let mut keep = Vec::with_capacity(split.rows.len());
        for example in 0..split.rows.len() {
            let ids = split.labels.ids_of(self.form, example);
            let outside = ids.iter().find_map(|id| sorted.unknown.get(id));
            keep.push(outside.is_none());
            if let Some((label, place)) = outside {
                let fault = labels::unknown(label, &sorted.names);
                match on_bad {
                    OnBadRow::Error => return Err(fault.into_error(&place.path, place.line)),
                    OnBadRow::Skip => self.report.bad.add(fault, &place.path, place.line),
                }
            }
        }
        split.retain(self.form, &keep);
        Ok(())
    }

    fn outputs(&self, sorted: &SortedClasses) -> Result<(usize, Vec<String>)> {
        let name = &self.name;
        match self.form {
            // The vocabulary, or the width of a text's vector, which the loader knows.
            LabelForm::Words | LabelForm::Pair => Ok((0, Vec::new())),
            LabelForm::Numbers => Ok((self.settings.label.len(), Vec::new())),
            LabelForm::Flags if self.settings.classes.is_empty() => Ok((self.settings.label.len(), self.settings.label.clone())),
            LabelForm::Flags => Ok((self.settings.label.len(), self.settings.classes.clone())),
            LabelForm::Class | LabelForm::NameList => {
                let classes = sorted.names.clone();
                ensure!(!classes.is_empty(), "task `{name}`: no training row has any label; set `classes`");
                ensure!(
                    self.form == LabelForm::NameList || classes.len() > 1,
                    "task `{name}`: all training rows have the label `{}`; there is nothing to learn (set `classes` if others are expected)",
                    classes[0]
                );
                Ok((classes.len(), classes))
            }
        }
    }
}

impl Labels {
    fn ids_of(&self, form: LabelForm, example: usize) -> &[u32] {
        match form {
            LabelForm::Class => &self.ids[example..=example],
            LabelForm::NameList => {
                let start = if example == 0 { 0 } else { self.ends[example - 1] };
                &self.ids[start..self.ends[example]]
            }
            LabelForm::Flags | LabelForm::Numbers | LabelForm::Words | LabelForm::Pair => &[],
        }
    }
}

impl SplitBuilder {
    /// Keeps the flagged examples.
    fn retain(&mut self, form: LabelForm, keep: &[bool]) {
        let mut labels = Labels::default();
        let outputs = self.labels.values.len() / self.rows.len().max(1);
        for example in (0..self.rows.len()).filter(|&example| keep[example]) {
            labels.ids.extend_from_slice(self.labels.ids_of(form, example));
            labels.ends.push(labels.ids.len());
            labels.values.extend_from_slice(&self.labels.values[example * outputs..(example + 1) * outputs]);
        }
        self.labels = labels;
        let mut flags = keep.iter();
        self.rows.retain(|_| flags.next().copied().unwrap_or(true));
        for slice in &mut self.slices {
            let mut flags = keep.iter();
            slice.retain(|_| flags.next().copied().unwrap_or(true));
        }
    }
}

fn targets(form: LabelForm, labels: Labels, sorted: &SortedClasses, outputs: usize) -> Targets {
    let class = |id: &u32| sorted.index[*id as usize];
    match form {
        LabelForm::Words => Targets::Words,
        LabelForm::Pair => Targets::Pairs,
        LabelForm::Class => Targets::Class(labels.ids.iter().filter_map(class).collect()),
        LabelForm::Flags | LabelForm::Numbers => Targets::Values { dim: outputs, values: labels.values },
        LabelForm::NameList => {
            let mut values = vec![0.0; labels.ends.len() * outputs];
            for (example, row) in values.chunks_exact_mut(outputs).enumerate() {
                for class in labels.ids_of(form, example).iter().filter_map(class) {
                    row[class as usize] = 1.0;
                }
            }
            Targets::Values { dim: outputs, values }
        }
    }
}

fn hash_targets(hasher: &mut blake3::Hasher, split: SplitName, targets: &Targets) {
    hasher.update(split.as_str().as_bytes());
    match targets {
        Targets::Class(classes) => hasher.update(bytemuck::cast_slice(classes)),
        Targets::Values { values, .. } => hasher.update(bytemuck::cast_slice(values)),
        Targets::Words => hasher.update(b"words"),
        Targets::Pairs => hasher.update(b"pairs"),
    };
}
