//! The tensors of a checkpoint, to safetensors files and back, without a second copy in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};

use super::{EVALUATED, MODEL, OPTIMIZER, State};
use crate::machine::memory::{Buffer, Memory};
use crate::model::Model;
use crate::model::network::Network;
use crate::model::spec::Param;
use crate::train::round::Trainer;

pub(super) type Tensors<'a> = BTreeMap<String, TensorView<'a>>;

pub(super) fn model_tensors(model: &Model) -> Result<Tensors<'_>> {
    let Model { network, parameters } = model;
    let mut tensors = Tensors::new();
    dense(&mut tensors, "", &network.table.shared, &parameters.shared.values)?;
    dense(&mut tensors, "", &network.table.frozen, &parameters.frozen)?;
    dense(&mut tensors, "", &network.table.heads, &parameters.heads.values)?;
    if let Some(table) = &parameters.rows {
        let touched = table.touched();
        let rows = TensorView::new(Dtype::U32, vec![touched.len()], bytemuck::cast_slice(touched))?;
        tensors.insert(EMBEDDING_ROWS.into(), rows);
        let values = TensorView::new(Dtype::F32, vec![touched.len(), table.dim()], bytemuck::cast_slice(table.stored()[0]))?;
        tensors.insert("embeddings.values".into(), values);
    }
    Ok(tensors)
}

pub(super) fn optimizer_tensors(trainer: &Trainer) -> Result<Tensors<'_>> {
    let mut tensors = Tensors::new();
    let parameters = &trainer.model.parameters;
    let table = &trainer.model.network.table;
    for (params, group) in [(&table.shared, &parameters.shared), (&table.heads, &parameters.heads)] {
        dense(&mut tensors, "first.", params, &group.first)?;
        if !group.second.is_empty() {
            dense(&mut tensors, "second.", params, &group.second)?;
        }
    }
    if let Some(table) = &parameters.rows {
        let [_, first, second] = table.stored();
        for (name, moments) in [("first.embeddings.values", first), ("second.embeddings.values", second)] {
            let width = if moments.is_empty() { 0 } else { moments.len() / table.touched().len() };
            let view = TensorView::new(Dtype::F32, vec![table.touched().len(), width], bytemuck::cast_slice(moments))?;
            tensors.insert(name.into(), view);
        }
    }
    if let Some(buffers) = &trainer.solver.buffers {
        let view = TensorView::new(Dtype::F32, vec![buffers.dense.len()], bytemuck::cast_slice(&buffers.dense))?;
        tensors.insert(BUFFERS.into(), view);
        for (task, buffer) in buffers.rows.iter().enumerate() {
            let (rows, values) = buffer.stored();
            let [rows_name, values_name] = row_buffer_names(task);
            tensors.insert(rows_name, TensorView::new(Dtype::U32, vec![rows.len()], bytemuck::cast_slice(rows))?);
            let shape = vec![rows.len(), buffer.dim()];
            tensors.insert(values_name, TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values))?);
        }
    }
    Ok(tensors)
}

/// The rows of the embedding table that have been touched.
const EMBEDDING_ROWS: &str = "embeddings.rows";

/// The buffers of a surgery method with row state: (tasks x P), and those of the embedding rows each task has touched.
const BUFFERS: &str = "surgery.buffers";

fn row_buffer_names(task: usize) -> [String; 2] {
    [format!("{BUFFERS}.{task}.rows"), format!("{BUFFERS}.{task}.values")]
}

fn dense<'a>(tensors: &mut Tensors<'a>, prefix: &str, params: &[Param], values: &'a [f32]) -> Result<()> {
    for param in params {
        let view = TensorView::new(Dtype::F32, param.shape.clone(), bytemuck::cast_slice(&values[param.range()]))?;
        tensors.insert(format!("{prefix}{}", param.name), view);
    }
    Ok(())
}

fn metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}

/// Memory of copies that were written: what is new to a process costs as much as what is copied into it.
#[derive(Default)]
pub struct SpareBuffers(Vec<Buffer<u8>>);

impl SpareBuffers {
    /// The smallest that has room; else a new one in the place of the largest, with room to grow, which takes no memory until it is used.
    fn take(&mut self, bytes: usize) -> Result<Buffer<u8>> {
        self.0.sort_by_key(|buffer| buffer.len());
        let fit = self.0.partition_point(|buffer| buffer.len() < bytes);
        if fit < self.0.len() {
            return Ok(self.0.remove(fit));
        }
        self.0.pop();
        Memory::mapped().buffer_of("a checkpoint's copy", bytes.next_power_of_two())
    }

    pub(super) fn give(&mut self, copies: TensorCopies) {
        self.0.push(copies.bytes);
    }
}

/// Bytes that one thread copies at a time.
const PIECE: usize = 4 << 20;

/// A copy of a file's tensors, to be written while training goes on.
pub(super) struct TensorCopies {
    bytes: Buffer<u8>,
    /// By name; where each lies.
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Range<usize>)>,
}

impl TensorCopies {
    pub fn of(tensors: &Tensors, spare: &mut SpareBuffers) -> Result<Self> {
        let all = tensors.values().map(|tensor| tensor.data().len()).sum();
        let mut bytes = spare.take(all)?;
        let (mut rest, mut start): (&mut [u8], usize) = (&mut bytes, 0);
        let mut pieces = Vec::new();
        let mut copies = BTreeMap::new();
        for (name, tensor) in tensors {
            let (own, tail) = rest.split_at_mut(tensor.data().len());
            rest = tail;
            let end = start + own.len();
            copies.insert(name.clone(), (tensor.dtype(), tensor.shape().to_vec(), start..end));
            pieces.extend(own.chunks_mut(PIECE).zip(tensor.data().chunks(PIECE)));
            start = end;
        }
        pieces.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from));
        Ok(Self { bytes, tensors: copies })
    }

    pub fn tensors(&self) -> Result<Tensors<'_>> {
        let view = |(name, (dtype, shape, range)): (&String, &(Dtype, Vec<usize>, Range<usize>))| {
            Ok((name.clone(), TensorView::new(*dtype, shape.clone(), &self.bytes[range.clone()])?))
        };
        self.tensors.iter().map(view).collect()
    }
}

pub(super) fn write_tensors(path: &Path, tensors: &Tensors) -> Result<()> {
    let file = path.display();
    // The library makes files only their owner can read; results are as readable as any other file of the user.
    let usual = File::create(path).and_then(|file| file.metadata()).with_context(|| format!("cannot create {file}"))?;
    safetensors::serialize_to_file(tensors, Some(metadata()), path).with_context(|| format!("cannot write {file}"))?;
    let sync = || {
        std::fs::set_permissions(path, usual.permissions())?;
        File::open(path)?.sync_all()
    };
    sync().with_context(|| format!("cannot write {file} to disk"))
}

/// Fills the trainer with a checkpoint's parameters, moments and method state.
pub fn read_tensors(path: &Path, trainer: &mut Trainer, state: &State) -> Result<()> {
    read_model(path, &mut trainer.model)?;
    if state.evaluation.is_some() {
        trainer.with_snapshot(|trainer| read_parameters(path.join(EVALUATED), &mut trainer.model))?;
    }
    let table = trainer.model.network.table.clone();
    let file = path.join(OPTIMIZER);
    ensure!(
        file.exists(),
        "it holds the parameters alone, not the optimizer's state (checkpoint.final = \"model\"): the run has ended, and can be \
         evaluated and exported, but not trained on"
    );
    let optimizer = TensorFile::open(file)?;
    for (params, group) in
        [(&table.shared, &mut trainer.model.parameters.shared), (&table.heads, &mut trainer.model.parameters.heads)]
    {
        optimizer.read_dense("first.", params, &mut group.first)?;
        if !group.second.is_empty() {
            optimizer.read_dense("second.", params, &mut group.second)?;
        }
    }
    if let Some(rows) = &mut trainer.model.parameters.rows {
        let [_, first, second] = rows.stored_mut();
        optimizer.read("first.embeddings.values", Dtype::F32, bytemuck::cast_slice_mut(first))?;
        optimizer.read("second.embeddings.values", Dtype::F32, bytemuck::cast_slice_mut(second))?;
    }
    if let Some(buffers) = &mut trainer.solver.buffers {
        optimizer.read(BUFFERS, Dtype::F32, bytemuck::cast_slice_mut(&mut buffers.dense))?;
        for (task, buffer) in buffers.rows.iter_mut().enumerate() {
            let [rows_name, values_name] = row_buffer_names(task);
            let touched = optimizer.rows(&rows_name)?;
            optimizer.read(&values_name, Dtype::F32, bytemuck::cast_slice_mut(buffer.restore(&touched)?))?;
        }
    }
    ensure!(
        state.method == trainer.method().name(),
        "the checkpoint's surgery is {}, not {}",
        state.method,
        trainer.method().name()
    );
    let (theirs, ours) = (&state.balancer, trainer.solver.balancer.name());
    ensure!(theirs == ours, "the checkpoint's balancer is {theirs}, not {ours}");
    trainer.restore_method(&state.method_state).map_err(anyhow::Error::msg)?;
    trainer.solver.balancer.restore(&state.balancer_state).map_err(anyhow::Error::msg)?;
    trainer.solver.ledger.restore(&state.conflicts).map_err(anyhow::Error::msg)
}

/// Fills a model with a checkpoint's parameters.
pub fn read_model(path: &Path, model: &mut Model) -> Result<()> {
    read_parameters(path.join(MODEL), model)
}

fn read_parameters(path: PathBuf, model: &mut Model) -> Result<()> {
    let Model { network, parameters } = model;
    let file = TensorFile::open(path)?;
    let table = &network.table;
    file.read_dense("", &table.shared, &mut parameters.shared.values)?;
    file.read_dense("", &table.frozen, &mut parameters.frozen)?;
    file.read_dense("", &table.heads, &mut parameters.heads.values)?;
    if let Some(rows) = &mut parameters.rows {
        let touched = file.rows(EMBEDDING_ROWS)?;
        let is_whole = touched.iter().copied().eq(0..rows.rows() as u32);
        ensure!(
            is_whole || !network.spec.reads_whole_table(),
            "{}: {EMBEDDING_ROWS} are not all {} rows in their order, and the model reads the table whole",
            file.path.display(),
            rows.rows()
        );
        rows.restore_touched(&touched)?;
        file.read("embeddings.values", Dtype::F32, bytemuck::cast_slice_mut(rows.stored_mut()[0]))?;
    }
    Ok(())
}

/// Number of embedding rows a checkpoint holds; 0 without a table.
pub fn embedding_rows(path: &Path) -> Result<usize> {
    let file = TensorFile::open(path.join(MODEL))?;
    if file.metadata.info(EMBEDDING_ROWS).is_none() { Ok(0) } else { Ok(file.rows(EMBEDDING_ROWS)?.len()) }
}

/// Columns of the encoder's input in a checkpoint.
pub fn input_columns(path: &Path) -> Result<usize> {
    let file = TensorFile::open(path.join(MODEL))?;
    match file.shape("encoder.dense.weight")? {
        [rows, columns] if *rows > 0 => Ok(*columns),
        shape => bail!("{}: encoder.dense.weight is {shape:?}, expected hidden x inputs", file.path.display()),
    }
}

/// Whether a checkpoint's parameters are the network's: what is then allocated for them is no larger than the file.
pub fn check_shapes(path: &Path, network: &Network) -> Result<()> {
    let file = TensorFile::open(path.join(MODEL))?;
    let table = &network.table;
    table.shared.iter().chain(&table.frozen).chain(&table.heads).try_for_each(|param| file.check_shape(&param.name, param))
}

/// A safetensors file whose tensors are read straight to where they belong.
struct TensorFile {
    file: File,
    path: PathBuf,
    metadata: Metadata,
    /// First byte of the tensors.
    start: u64,
}

impl TensorFile {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: checkpoints are written once under another name and never changed in place; only the header is read here.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?;
        let header = SafeTensors::read_metadata(&map);
        let (len, metadata) = header.with_context(|| format!("{} is not a safetensors file", path.display()))?;
        Ok(Self { file, path, metadata, start: 8 + len as u64 })
    }

    fn shape(&self, name: &str) -> Result<&[usize]> {
        let info = self.metadata.info(name);
        Ok(&info.with_context(|| format!("{} has no tensor {name}", self.path.display()))?.shape)
    }

    /// A list of the table rows that another tensor is of. One dimension: then its bytes are there, while [N, 0] has none.
    fn rows(&self, name: &str) -> Result<Vec<u32>> {
        let shape = self.shape(name)?;
        let [len] = shape else { bail!("{}: tensor {name} is {shape:?}, expected a list of rows", self.path.display()) };
        let mut rows = vec![0u32; *len];
        self.read(name, Dtype::U32, bytemuck::cast_slice_mut(&mut rows))?;
        Ok(rows)
    }

    fn check_shape(&self, name: &str, param: &Param) -> Result<()> {
        let shape = self.shape(name)?;
        ensure!(shape == param.shape, "tensor {name} is {shape:?} in the checkpoint, the model wants {:?}", param.shape);
        Ok(())
    }

    fn read(&self, name: &str, dtype: Dtype, out: &mut [u8]) -> Result<()> {
        let info = self.metadata.info(name).with_context(|| format!("{} has no tensor {name}", self.path.display()))?;
        let (start, end) = info.data_offsets;
        if info.dtype != dtype || end - start != out.len() {
            let file = self.path.display();
            bail!("{file}: tensor {name} is {:?} {:?}, the model wants {} bytes of {dtype:?}", info.dtype, info.shape, out.len());
        }
        let read = self.file.read_exact_at(out, self.start + start as u64);
        read.with_context(|| format!("cannot read tensor {name} of {}", self.path.display()))
    }

    fn read_dense(&self, prefix: &str, params: &[Param], values: &mut [f32]) -> Result<()> {
        for param in params {
            let name = format!("{prefix}{}", param.name);
            self.check_shape(&name, param)?;
            self.read(&name, Dtype::F32, bytemuck::cast_slice_mut(&mut values[param.range()]))?;
        }
        Ok(())
    }
}
