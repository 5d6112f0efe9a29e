//! The emulated machine on its probes: sound kernels give their results under every order, planted faults are named.

use std::ffi::c_void;

use super::check::Kind;
use super::kernels;
use super::machine::{Launch, Machine, Moment, ThreadOrder};

const ORDERS: [ThreadOrder; 3] = [ThreadOrder::Ascending, ThreadOrder::Descending, ThreadOrder::Shuffled];

/// Device memory that the host has filled.
fn filled(machine: &mut Machine, name: &str, values: &[f32]) -> usize {
    let at = machine.heap.allocate(name, 4 * values.len()).unwrap();
    machine.host_write(at, bytemuck::cast_slice(values), &Moment::default()).unwrap();
    at
}

fn values(at: usize, count: usize) -> Vec<f32> {
    // SAFETY: the tests ask for what they allocated.
    unsafe { std::slice::from_raw_parts(at as *const f32, count) }.to_vec()
}

struct Shape {
    grid: u32,
    block: u32,
    shared: usize,
}

fn launch(
    machine: &mut Machine,
    name: &str,
    shape: Shape,
    arguments: &[u64],
    order: ThreadOrder,
    seed: u64,
) -> Result<(), String> {
    let pointers: Vec<*const c_void> = arguments.iter().map(|argument| std::ptr::from_ref(argument).cast()).collect();
    let Shape { grid, block, shared } = shape;
    machine.launch(&Launch {
        kernel: kernels::find(name).unwrap(),
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        shared,
        arguments: &pointers,
        seed,
        order,
        moment: Moment { operation: 1, clock: vec![0] },
    })
}

fn run(machine: &mut Machine, name: &str, shape: Shape, arguments: &[u64]) -> Result<(), String> {
    launch(machine, name, shape, arguments, ThreadOrder::Ascending, 1)
}

#[test]
fn a_sound_reduction_is_the_same_under_every_order() {
    let x: Vec<f32> = (0..500).map(|i| i as f32 * 0.37).collect();
    let mut results = Vec::new();
    for seed in 0..7 {
        let order = ORDERS[seed as usize % 3];
        let m = &mut Machine::default();
        let from = filled(m, "x", &x);
        let out = m.heap.allocate("out", 8).unwrap();
        let shape = Shape { grid: 2, block: 256, shared: 0 };
        launch(m, "probe_block_sum", shape, &[out as u64, from as u64, 500, 0], order, seed).unwrap();
        results.push(values(out, 2));
        m.heap.free(out);
        m.heap.free(from);
    }
    assert!((results[0][0] - 0.37 * 255.0 * 128.0).abs() < 0.1, "{results:?}");
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn a_removed_barrier_is_a_race() {
    for order in ORDERS {
        let m = &mut Machine::default();
        let from = filled(m, "x", &[1.0; 256]);
        let out = m.heap.allocate("out", 4).unwrap();
        let shape = Shape { grid: 1, block: 256, shared: 0 };
        let error = launch(m, "probe_block_sum", shape, &[out as u64, from as u64, 256, 1], order, 3).unwrap_err();
        assert!(error.contains("shared memory"), "{error}");
        assert!(error.contains("no barrier between") || error.contains("nothing has been written"), "{error}");
    }
}

#[test]
fn one_element_too_many_is_named() {
    let m = &mut Machine::default();
    let (from, out) = (filled(m, "source", &[1.0; 40]), m.heap.allocate("target", 160).unwrap());
    let shape = || Shape { grid: 2, block: 32, shared: 0 };
    run(m, "probe_add_one", shape(), &[out as u64, from as u64, 40, 0]).unwrap();
    assert_eq!(values(out, 40), [2.0; 40]);
    let error = run(m, "probe_add_one", shape(), &[out as u64, from as u64, 40, 1]).unwrap_err();
    assert!(error.starts_with("kernel probe_add_one: block (1, 0, 0), thread (8, 0, 0): read of 4 bytes"), "{error}");
    assert!(error.contains("\"source\" (160 bytes)"), "{error}");
}

#[test]
fn what_nobody_wrote_cannot_be_read() {
    let m = &mut Machine::default();
    let (from, out) = (m.heap.allocate("fresh", 128).unwrap(), m.heap.allocate("out", 128).unwrap());
    let error = run(m, "probe_add_one", Shape { grid: 1, block: 32, shared: 0 }, &[out as u64, from as u64, 32, 0]).unwrap_err();
    assert!(error.contains("\"fresh\" + 0: nothing has been written there yet"), "{error}");
}

#[test]
fn warps_exchange_and_vote() {
    let x: Vec<f32> = (0..32).map(|i| i as f32 - 3.0).collect();
    let m = &mut Machine::default();
    let from = filled(m, "x", &x);
    let (out, votes) = (m.heap.allocate("out", 128).unwrap(), m.heap.allocate("votes", 4).unwrap());
    for order in ORDERS {
        let shape = Shape { grid: 1, block: 32, shared: 0 };
        m.host_write(votes, &[0; 4], &Moment { operation: 1, clock: vec![9] }).unwrap();
        launch(m, "probe_warp", shape, &[out as u64, votes as u64, from as u64, 0], order, 5).unwrap();
        assert_eq!(values(out, 32), [400.0; 32]);
        assert_eq!(values(votes, 1)[0].to_bits(), 0xffff_fff0);
    }
    let shape = Shape { grid: 1, block: 32, shared: 0 };
    let arguments = [out as u64, votes as u64, from as u64, 1];
    let error = launch(m, "probe_warp", shape, &arguments, ThreadOrder::Ascending, 5).unwrap_err();
    assert!(error.contains("deadlock") && error.contains("warp operation") && error.contains("has ended"), "{error}");
}

#[test]
fn an_async_copy_lands_at_the_wait() {
    let x: Vec<f32> = (0..128).map(|i| i as f32).collect();
    let m = &mut Machine::default();
    let (from, out) = (filled(m, "x", &x), m.heap.allocate("out", 512).unwrap());
    let shape = || Shape { grid: 1, block: 32, shared: 512 };
    run(m, "probe_copy_async", shape(), &[out as u64, from as u64, 0]).unwrap();
    assert!(values(out, 128).iter().rev().eq(&x));
    let error = run(m, "probe_copy_async", shape(), &[out as u64, from as u64, 1]).unwrap_err();
    assert!(error.contains("an async copy into these bytes has not been waited for"), "{error}");
    let small = Shape { grid: 1, block: 32, shared: 500 };
    let error = run(m, "probe_copy_async", small, &[out as u64, from as u64, 0]).unwrap_err();
    assert!(error.contains("at 496 of 500 bytes of dynamic shared memory"), "{error}");
}

#[test]
fn blocks_publish_by_fence_and_atomic() {
    let m = &mut Machine::default();
    let (out, parts) = (m.heap.allocate("out", 4).unwrap(), m.heap.allocate("parts", 64).unwrap());
    let done = filled(m, "done", &[0.0]);
    let shape = || Shape { grid: 16, block: 1, shared: 0 };
    launch(m, "probe_last_block", shape(), &[out as u64, parts as u64, done as u64, 0], ThreadOrder::Ascending, 2).unwrap();
    assert_eq!(values(out, 1), [120.0]);
    let done = filled(m, "done", &[0.0]);
    let arguments = [out as u64, parts as u64, done as u64, 1];
    let error = launch(m, "probe_last_block", shape(), &arguments, ThreadOrder::Ascending, 2).unwrap_err();
    assert!(error.contains("\"parts\"") && error.contains("in the same launch"), "{error}");
}

#[test]
fn a_barrier_that_threads_reach_in_different_places_is_divergent() {
    let m = &mut Machine::default();
    let out = m.heap.allocate("out", 256).unwrap();
    let error = run(m, "probe_divergent", Shape { grid: 1, block: 64, shared: 0 }, &[out as u64]).unwrap_err();
    assert!(error.contains("divergent barrier"), "{error}");
}

#[test]
fn alignment_and_stray_pointers_are_checked() {
    let m = &mut Machine::default();
    let (from, out) = (filled(m, "x", &[1.0; 8]), m.heap.allocate("out", 16).unwrap());
    let shape = || Shape { grid: 1, block: 1, shared: 0 };
    run(m, "probe_misaligned", shape(), &[out as u64, from as u64, 16]).unwrap();
    let error = run(m, "probe_misaligned", shape(), &[out as u64, from as u64, 8]).unwrap_err();
    assert!(error.contains("misaligned access of 16 bytes"), "{error}");
    let error = run(m, "probe_store", shape(), &[64]).unwrap_err();
    assert!(error.contains("which is not device memory"), "{error}");
}

#[test]
fn an_operation_must_know_that_the_one_before_is_over() {
    let m = &mut Machine::default();
    let at = filled(m, "x", &[0.0; 4]);
    let first = Moment { operation: Moment::PLACES + 7, clock: vec![0, 6] };
    m.host_write(at, &[1; 16], &first).unwrap();
    let knows = Moment { operation: 3, clock: vec![2, 7] };
    m.host_access(at, 16, Kind::Read, &knows).unwrap();
    let does_not = Moment { operation: 3, clock: vec![2, 6] };
    let error = m.host_access(at, 16, Kind::Read, &does_not).unwrap_err();
    assert!(error.contains("stream 1, and no event"), "{error}");
}

/// Two streams at the halves of a cell are no race, and neither hides the other.
#[test]
fn halves_of_a_cell_are_told_apart() {
    let m = &mut Machine::default();
    let at = filled(m, "x", &[0.0; 4]);
    let by = |stream: u32| Moment { operation: stream * Moment::PLACES + 1, clock: vec![9, 0, 0] };
    let knows_the_second = Moment { operation: 3, clock: vec![2, 0, 1] };
    for (cell, kind) in [(at, Kind::Write), (at + 4, Kind::Read)] {
        m.host_access(cell, 2, kind, &by(1)).unwrap();
        m.host_access(cell + 2, 2, kind, &by(2)).unwrap();
        m.host_access(cell + 2, 2, Kind::Write, &knows_the_second).unwrap();
        let error = m.host_access(cell, 2, Kind::Write, &knows_the_second).unwrap_err();
        assert!(error.contains("stream 1, and no event"), "{error}");
    }
}
