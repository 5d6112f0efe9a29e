//! Rows picked out of a packed matrix, and added back.

use multiversion::multiversion;
use rayon::prelude::*;

use super::simd::add_scaled;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// Values added by one parallel job.
const CHUNK: usize = 1 << 14;

/// out (m x width) = the rows `index` (m) of x.
pub fn gather_rows(out: &mut [f32], x: &[f32], index: &[u32], width: usize) {
    out.par_chunks_mut(width).zip(index).with_min_len(8).for_each(|(out, &row)| {
        out.copy_from_slice(&x[row as usize * width..][..width]);
    });
}

/// out += x, elementwise.
pub fn add(out: &mut [f32], x: &[f32]) {
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| add_slice(out, x));
}

/// The rows `index` (m) of out gain the rows of x (m x width), in order.
pub fn scatter_add_rows(out: &mut [f32], x: &[f32], index: &[u32], width: usize) {
    for (x, &row) in x.chunks_exact(width).zip(index) {
        add_slice(&mut out[row as usize * width..][..width], x);
    }
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn add_slice(out: &mut [f32], x: &[f32]) {
    add_scaled(out, 1.0, x);
}

/// As [`gather_rows`].
pub struct GatherRows<'a> {
    pub out: Tensor,
    pub x: Tensor,
    pub index: &'a [u32],
}

impl Op for GatherRows<'_> {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.x], [self.out])
    }

    fn work(&self) -> Work {
        // A row read for each that is written.
        Work { bytes: 2 * Operands::new([], [self.out]).bytes(), operations: 0 }
    }

    fn host(&self, memory: &HostMemory) {
        gather_rows(memory.write(self.out), memory.read(self.x), self.index, self.x.columns);
    }

    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(self.index)]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let launch = Launch::warps("gather_rows", self.out).addresses([self.out.at, self.x.at, tables[0]]);
        vec![launch.int(self.out.rows).int(self.out.columns).into()]
    }
}

/// As [`scatter_add_rows`].
pub struct ScatterAddRows<'a> {
    pub out: Tensor,
    pub x: Tensor,
    pub index: &'a [u32],
}

impl Op for ScatterAddRows<'_> {
    fn name(&self) -> &'static str {
        "scatter_add_rows"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.x], [self.out])
    }

    fn work(&self) -> Work {
        // Both are read, and one is written.
        Work { bytes: 3 * Operands::new([self.x], []).bytes(), operations: 0 }
    }

    fn host(&self, memory: &HostMemory) {
        scatter_add_rows(memory.write(self.out), memory.read(self.x), self.index, self.x.columns);
    }

    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(self.index)]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        assert!(self.index.is_sorted_by(|a, b| a < b), "rows are added to all at once, so each comes once, in order");
        let launch = Launch::warps("add_rows", self.x).addresses([self.out.at, self.x.at, tables[0]]);
        vec![launch.int(self.x.rows).int(self.x.columns).into()]
    }
}

/// out = values that lie elsewhere on the host, end to end.
pub struct Load<'a> {
    pub out: Tensor,
    pub values: Vec<&'a [f32]>,
}

impl Op for Load<'_> {
    fn name(&self) -> &'static str {
        "load"
    }

    fn operands(&self) -> Operands {
        Operands::new([], [self.out])
    }

    fn host(&self, memory: &HostMemory) {
        let mut rest: &mut [f32] = memory.write(self.out);
        for values in &self.values {
            let (own, tail) = rest.split_at_mut(values.len());
            own.copy_from_slice(values);
            rest = tail;
        }
        assert!(rest.is_empty(), "values for every element");
    }
}

/// out = x, of one shape and layout.
pub struct Copy {
    pub out: Tensor,
    pub x: Tensor,
}

impl Op for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.x], [self.out])
    }

    fn host(&self, memory: &HostMemory) {
        memory.write::<f32>(self.out).copy_from_slice(memory.read(self.x));
    }

    fn device(&self, _: &Card, _: &[Address]) -> Vec<Command> {
        let bytes = self.x.bytes();
        vec![Command::Copy { to: self.out.at, from: self.x.at, bytes: (bytes.end - bytes.start) as usize }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_out_and_come_back() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut out = [0.0; 4];
        gather_rows(&mut out, &x, &[2, 0], 2);
        assert_eq!(out, [5.0, 6.0, 1.0, 2.0]);
        let mut back = x;
        scatter_add_rows(&mut back, &out, &[2, 0], 2);
        assert_eq!(back, [2.0, 4.0, 3.0, 4.0, 10.0, 12.0]);
        add(&mut back, &x);
        assert_eq!(back, [3.0, 6.0, 6.0, 8.0, 15.0, 18.0]);
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{On, Place, coarse_noise, on_devices};

    fn rows_are_picked_and_added(on: On) {
        let (rows, index) = (13, [0, 1, 5, 6, 9, 10, 11, 12]);
        for width in [8, 96, 768, 1032] {
            on.compare(|place: &mut Place| {
                let x = place.narrow(&coarse_noise(rows * width, 0), width);
                let picked = place.room(index.len(), width, DType::Bf16);
                let sums = place.narrow(&coarse_noise(rows * width, 1), width);
                place.run(&GatherRows { out: picked, x, index: &index });
                place.run(&ScatterAddRows { out: sums, x: picked, index: &index });
                vec![place.found("picked", picked), place.found("added to some", sums)]
            });
        }
    }

    on_devices! { rows_are_picked_and_added }
}
