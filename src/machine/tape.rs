//! The operations of one quantum in order: emitted once by the code of a model, run by any machine.

use bytemuck::NoUninit;

use super::driver::{Address, Card};
use super::host::HostMemory;
use super::launch::{Command, Origin, Work};
use super::tensor::Tensor;

/// One operation on tensors: the same on every machine, within rounding.
pub trait Op: Send + Sync {
    fn name(&self) -> &'static str;

    /// Tensors it reads, and tensors it writes (or reads and writes). Those it writes overlap with no other.
    fn operands(&self) -> Operands;

    /// What it asks of a device: by default that each operand is moved once.
    fn work(&self) -> Work {
        Work { bytes: self.operands().bytes(), operations: 0 }
    }

    /// Computes on the host, with what it declared.
    fn host(&self, memory: &HostMemory);

    /// What its kernels read beside its operands, such as one entry a segment: laid into the device's memory before it runs.
    fn tables(&self) -> Vec<Bytes> {
        Vec::new()
    }

    /// What computes it on a device, in order; `tables` is where each of its [`Op::tables`] lies. An operation without kernels
    /// is of an encoder that no device is given.
    fn device(&self, _: &Card, _tables: &[Address]) -> Vec<Command> {
        unreachable!("{} has no kernel, and its encoder was not refused", self.name())
    }
}

/// A small array for kernels.
pub type Bytes = Vec<u8>;

/// The bytes of numbers, or of structs of them.
pub fn bytes_of<T: NoUninit>(values: &[T]) -> Bytes {
    bytemuck::cast_slice(values).to_vec()
}

/// What an operation touches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Operands {
    pub reads: Vec<Tensor>,
    pub writes: Vec<Tensor>,
}

impl Operands {
    pub fn new<const R: usize, const W: usize>(reads: [Tensor; R], writes: [Tensor; W]) -> Self {
        let there = |tensors: &[Tensor]| tensors.iter().filter(|tensor| !tensor.is_none()).copied().collect();
        Self { reads: there(&reads), writes: there(&writes) }
    }

    /// Of all tensors.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| tensor.bytes().end - tensor.bytes().start;
        self.reads.iter().chain(&self.writes).map(bytes).sum()
    }

    /// Two tensors of which one is written and that share bytes, if there are such.
    pub fn overlap(&self) -> Option<(Tensor, Tensor)> {
        let meet = |a: &Tensor, b: &Tensor| {
            let (a, b) = (a.bytes(), b.bytes());
            a.start < b.end && b.start < a.end
        };
        self.writes.iter().enumerate().find_map(|(number, written)| {
            let others = self.reads.iter().chain(&self.writes[number + 1..]);
            others.into_iter().find(|other| meet(written, other)).map(|other| (*written, *other))
        })
    }
}

/// Operations in order.
#[derive(Default)]
pub struct Tape<'a> {
    ops: Vec<Box<dyn Op + 'a>>,
}

impl<'a> Tape<'a> {
    pub fn push(&mut self, op: impl Op + 'a) {
        self.ops.push(Box::new(op));
    }

    /// What computes it on a device like this, where `place` lays a table.
    pub fn commands(&self, card: &Card, mut place: impl FnMut(Bytes) -> Address) -> Vec<Command> {
        let mut commands = Vec::new();
        for op in &self.ops {
            let tables: Vec<Address> = op.tables().into_iter().map(&mut place).collect();
            let mut work = op.work();
            commands.extend(op.device(card, &tables).into_iter().map(|mut command| {
                if let Command::Launch(launch) = &mut command {
                    launch.origin = Origin { op: op.name(), work: std::mem::take(&mut work) };
                }
                command
            }));
        }
        commands
    }

    /// Computes everything on the host, in memory that holds every tensor of the tape. An operation that would write nothing is left
    /// out, as an empty launch is on a device: there may be no room for what it reads.
    pub fn run(&self, memory: &HostMemory) {
        for op in self.ops.iter().filter(|op| op.operands().writes.iter().any(|tensor| !tensor.bytes().is_empty())) {
            op.host(&memory.of(&**op));
        }
    }
}
