//! Faults planted in the real kernels: the emulated device must catch each, whatever order the seed chose.

use super::{Device, On, coarse_noise, noise, operand};
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::Op;
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::ops::activation::{Activation, convert_to_bf16};
use crate::ops::attention::{AttentionBackward, AttentionForward, Sequences};
use crate::ops::gram::GramMatrices;
use crate::ops::linear::{LinearForward, LinearInputBackward};

/// What the emulated device says of `launch` under three orders; empty where there is no such device.
fn faults(launch: impl Fn(&mut Device) -> Launch) -> Vec<String> {
    if !On::Emulated.is_there() {
        return Vec::new();
    }
    let fault = |seed| {
        let mut device = On::Emulated.device(seed);
        let at = device.upload(&[0u32]);
        let launch = launch(&mut device);
        device.launch(&launch);
        device.try_download::<u32>(at, 1).expect_err("a planted fault is caught").to_string()
    };
    (0..3).map(fault).collect()
}

/// The first launch of an operation.
fn first(device: &mut Device, op: &dyn Op) -> Launch {
    match device.commands(op).swap_remove(0) {
        Command::Launch(launch) => launch,
        Command::Copy { .. } => panic!("{} begins with a copy", op.name()),
    }
}

fn narrow(device: &mut Device, rows: usize, columns: usize, id: u32) -> Tensor {
    let at = device.upload(&operand(&coarse_noise(rows * columns, id), columns));
    Tensor::padded(at, rows, columns, DType::Bf16)
}

fn product(device: &mut Device) -> Launch {
    let (m, n, k) = (65, 70, 160);
    let out = Tensor::padded(device.room::<u16>(m * pitch(n)), m, n, DType::Bf16);
    let (x, weight, none) = (narrow(device, m, k, 0), narrow(device, n, k, 1), Tensor::NONE);
    first(device, &LinearForward { out, pre: none, x, weight, bias: none, activation: Activation::None, residual: none })
}

#[test]
fn a_removed_barrier() {
    for fault in faults(|device| Launch { kernel: "gemm_forward_small_without_barriers", ..product(device) }) {
        assert!(fault.contains("race") || fault.contains("async copy"), "{fault}");
    }
    let gram = |device: &mut Device| {
        let (tasks, width) = (3, 1000);
        let all = device.upload(&noise(tasks * width, 0));
        let jacobian = Tensor::dense(all, tasks, width, DType::F32);
        let partials = Tensor::dense(device.room::<f64>(tasks * tasks), 1, tasks * tasks, DType::F64);
        let blocks = [0..width; 1];
        let jacobian = (0..tasks).map(|task| jacobian.rows(task..task + 1)).collect();
        let gram = GramMatrices { jacobian, blocks: &blocks, table: None, rows: None, gram: Tensor::NONE, partials };
        Launch { kernel: "gram_4_without_barriers", ..first(device, &gram) }
    };
    for fault in faults(gram) {
        assert!(
            fault.contains("shared memory") && (fault.contains("race") || fault.contains("nothing has been written")),
            "{fault}"
        );
    }
}

#[test]
fn a_removed_barrier_of_attention() {
    let (rows, width, ends) = (70, 32, [0, 70]);
    let shape = Sequences { queries: &ends, keys: &ends, heads: 1, dim: width, dropout: None };
    let room = |device: &mut Device, columns| Tensor::padded(device.room::<u16>(rows * columns), rows, columns, DType::Bf16);
    let forward = |device: &mut Device| {
        let (out, log_sums) = (room(device, width), Tensor::dense(device.room::<f32>(rows), rows, 1, DType::F32));
        let (q, kv) = (narrow(device, rows, width, 0), narrow(device, rows, 2 * width, 1));
        let launch = first(device, &AttentionForward { out, log_sums, q, kv, shape });
        Launch { kernel: "attention_forward_32_without_barriers", ..launch }
    };
    for fault in faults(forward) {
        assert!(fault.contains("race") || fault.contains("async copy"), "{fault}");
    }
    let backward = |device: &mut Device| {
        let (dq, dkv) = (room(device, width), room(device, 2 * width));
        let [q, dout, out] = [0, 1, 2].map(|id| narrow(device, rows, width, id));
        let (kv, sums) = (narrow(device, rows, 2 * width, 3), device.upload(&noise(rows, 4)));
        let log_sums = Tensor::dense(sums, rows, 1, DType::F32);
        let launch = first(device, &AttentionBackward { dq, dkv, dout, out, log_sums, q, kv, shape });
        Launch { kernel: "attention_backward_32_without_one_barrier", ..launch }
    };
    for fault in faults(backward) {
        assert!(
            fault.contains("shared memory") && (fault.contains("race") || fault.contains("nothing has been written")),
            "{fault}"
        );
    }
}

#[test]
fn an_async_copy_that_nobody_waits_for() {
    for fault in faults(|device| Launch { kernel: "gemm_forward_small_without_waits", ..product(device) }) {
        assert!(fault.contains("an async copy into these bytes has not been waited for"), "{fault}");
    }
}

/// A bound that lets one more pass: a row of an operand, a value of a vector.
#[test]
fn an_off_by_one_in_a_kernel() {
    for fault in faults(|device| Launch { kernel: "gemm_forward_small_off_by_one", ..product(device) }) {
        assert!(fault.contains("past the end of \"buffer\""), "{fault}");
    }
    let convert = |device: &mut Device| {
        let (x, out) = (device.upload(&noise(80, 5)), device.room::<u16>(80));
        Launch { kernel: "convert_to_bf16_off_by_one", ..convert_to_bf16(out, x, 2, 40) }
    };
    for fault in faults(convert) {
        assert!(fault.contains("past the end of \"buffer\""), "{fault}");
    }
}

/// One value too many, read behind the end of an allocation.
#[test]
fn one_too_many() {
    let launch = |device: &mut Device| {
        let (x, out) = (device.upload(&noise(80, 5)), device.room::<u16>(88));
        convert_to_bf16(out, x, 1, 81)
    };
    for fault in faults(launch) {
        assert!(fault.contains("past the end of \"buffer\""), "{fault}");
    }
}

/// A row of f32 that begins at an odd place: a card stops there.
#[test]
fn a_misaligned_vector() {
    let launch = |device: &mut Device| {
        let (m, n, k) = (3, 13, 16);
        let out = Tensor::padded(device.room::<f32>(m * pitch(n) + 1) + 4, m, n, DType::F32);
        let (dout, weight) = (narrow(device, m, k, 0), narrow(device, k, n, 1));
        first(device, &LinearInputBackward::new(out, dout, weight))
    };
    for fault in faults(launch) {
        assert!(fault.contains("misaligned access of 16 bytes"), "{fault}");
    }
}
