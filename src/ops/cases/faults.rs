//! Faults planted in the real kernels: the emulated device must catch each, whatever order the seed chose.

use super::super::activation::Activation;
use super::super::launch::gemm::{self, Forward, Input};
use super::super::launch::surgery::{self, Chunks, Columns, Jacobian};
use super::super::launch::{Launch, elementwise, pitch};
use super::surgery::on_device;
use super::{Device, On, coarse_noise, noise, operand};

/// What the emulated device says of `launch` under three orders; empty where there is no such device.
fn faults(launch: impl Fn(&mut Device) -> Launch) -> Vec<String> {
    if !On::Emulated.is_there() {
        return Vec::new();
    }
    let fault = |seed| {
        let mut device = On::Emulated.device(seed);
        let at = device.upload(&[0u32]);
        let launch = launch(&mut device);
        device.run(&launch);
        device.try_download::<u32>(at, 1).expect_err("a planted fault is caught").to_string()
    };
    (0..3).map(fault).collect()
}

fn product(device: &mut Device) -> Launch {
    let (m, n, k) = (65, 70, 160);
    gemm::forward(Forward {
        out: device.room::<u16>(m * pitch(n)),
        pre: 0,
        x: device.upload(&operand(&coarse_noise(m * k, 0), k)),
        weight: device.upload(&operand(&coarse_noise(n * k, 1), k)),
        bias: 0,
        residual: 0,
        residual_columns: 0,
        m,
        n,
        k,
        activation: Activation::None,
    })
}

#[test]
fn a_removed_barrier() {
    for fault in faults(|device| Launch { kernel: "gemm_forward_small_without_barriers", ..product(device) }) {
        assert!(fault.contains("race") || fault.contains("async copy"), "{fault}");
    }
    let gram = |device: &mut Device| {
        let (tasks, width) = (3, 1000);
        let chunks = Chunks::new(&[Columns { columns: 0..width as u64, block: 0, group: 0 }], 8192);
        let jacobian = Jacobian { at: device.upload(&noise(tasks * width, 0)), stride: width as u64, tasks };
        let (partials, chunks) = (device.room::<f64>(tasks * tasks), on_device(device, &chunks));
        Launch { kernel: "gram_4_without_barriers", ..surgery::gram(partials, jacobian, chunks) }
    };
    for fault in faults(gram) {
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
        Launch { kernel: "convert_to_bf16_off_by_one", ..elementwise::to_bf16(out, x, 2, 40) }
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
        elementwise::to_bf16(out, x, 1, 81)
    };
    for fault in faults(launch) {
        assert!(fault.contains("past the end of \"buffer\""), "{fault}");
    }
}

/// A row of f32 pairs that begins at an odd place: a card stops there.
#[test]
fn a_misaligned_pair() {
    let launch = |device: &mut Device| {
        let (m, n, k) = (3, 13, 16);
        gemm::input(Input {
            out: 0,
            out_wide: device.room::<f32>(m * pitch(n) + 1) + 4,
            dout: device.upload(&operand(&coarse_noise(m * k, 0), k)),
            weight: device.upload(&operand(&coarse_noise(k * n, 1), n)),
            pre: 0,
            residual: 0,
            residual_columns: 0,
            m,
            n,
            k,
            activation: Activation::None,
        })
    };
    for fault in faults(launch) {
        assert!(fault.contains("misaligned access of 8 bytes"), "{fault}");
    }
}
