//! Orders and times of streams, and calls that no card takes.

use super::*;

/// A device with `streams` streams, `x` filled with `values` by way of pinned memory, and as much room for results.
struct Bench {
    device: Emulated,
    streams: Vec<StreamId>,
    staging: StagingId,
    x: Address,
    out: Address,
    len: usize,
}

impl Bench {
    fn new(seed: u64, streams: usize, values: &[f32]) -> Self {
        let mut device = Emulated::new(seed);
        let streams = (0..streams).map(|_| device.stream(Priority::Normal).unwrap()).collect();
        let len = 4 * values.len();
        let staging = device.staging(len).unwrap();
        device.staging_bytes(staging).unwrap().copy_from_slice(bytemuck::cast_slice(values));
        let (x, out) = (device.allocate("x", len).unwrap(), device.allocate("out", len).unwrap());
        Self { device, streams, staging, x, out, len }
    }

    fn copy_in(&mut self, stream: usize) {
        self.device.copy_in(self.streams[stream], self.x, self.staging, 0..self.len).unwrap();
    }

    fn add_one(&mut self, stream: usize, out: Address, x: Address) -> Result<()> {
        let count = (self.len / 4) as u64;
        let blocks = count.div_ceil(32) as usize;
        let call = launch::Launch::line("probe_add_one", blocks, 32).addresses([out, x]).long(count).long(0);
        self.device.launch(self.streams[stream], &call)
    }

    fn result(&mut self, stream: usize, from: Address) -> Result<Vec<f32>> {
        let to = self.device.staging(self.len)?;
        self.device.copy_out(self.streams[stream], to, from, self.len)?;
        self.device.synchronize(self.streams[stream])?;
        Ok(bytemuck::pod_collect_to_vec(self.device.staging_bytes(to)?))
    }
}

#[test]
fn events_order_two_streams_under_every_seed() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed, 2, &[1.0; 70]);
        let copied = bench.device.event().unwrap();
        bench.copy_in(0);
        bench.device.record(copied, bench.streams[0]).unwrap();
        bench.device.wait(bench.streams[1], copied).unwrap();
        bench.add_one(1, bench.out, bench.x).unwrap();
        assert_eq!(bench.result(1, bench.out).unwrap(), [2.0; 70]);
    }
}

#[test]
fn a_removed_event_is_caught_under_every_seed() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed, 2, &[1.0; 70]);
        bench.device.fill(bench.streams[1], bench.x, 0, bench.len).unwrap();
        bench.device.synchronize(bench.streams[1]).unwrap();
        bench.copy_in(0);
        bench.add_one(1, bench.out, bench.x).unwrap();
        // Whichever of the two comes second is the one that is told.
        let (first, second) = (bench.device.synchronize(bench.streams[1]), bench.device.synchronize(bench.streams[0]));
        let error = first.and(second).unwrap_err().to_string();
        assert!(
            error.contains("at \"x\" + ") && error.contains(": race: ") && error.contains("no event puts that before this one"),
            "{error}"
        );
    }
}

#[test]
fn a_fault_stays() {
    let mut bench = Bench::new(1, 1, &[1.0; 4]);
    bench.add_one(0, bench.out, bench.x).unwrap();
    let error = bench.device.synchronize(bench.streams[0]).unwrap_err();
    assert!(error.to_string().contains("nothing has been written there yet"), "{error}");
    assert_eq!(bench.device.synchronize(bench.streams[0]), Err(error));
}

#[test]
fn pinned_memory_is_left_alone_while_it_is_copied() {
    let mut bench = Bench::new(1, 1, &[1.0; 4]);
    bench.copy_in(0);
    assert!(bench.device.staging_bytes(bench.staging).unwrap_err().to_string().contains("synchronize its stream first"));
    bench.device.synchronize(bench.streams[0]).unwrap();
    assert!(bench.device.staging_bytes(bench.staging).is_ok());
}

#[test]
fn a_graph_repeats_what_was_captured_on_two_streams() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed, 2, &[1.0; 40]);
        let (fork, join) = (bench.device.event().unwrap(), bench.device.event().unwrap());
        let other = bench.device.allocate("other", bench.len).unwrap();
        bench.copy_in(0);
        bench.device.begin_capture(bench.streams[0]).unwrap();
        bench.add_one(0, bench.out, bench.x).unwrap();
        bench.device.record(fork, bench.streams[0]).unwrap();
        bench.device.wait(bench.streams[1], fork).unwrap();
        bench.add_one(1, other, bench.out).unwrap();
        bench.device.record(join, bench.streams[1]).unwrap();
        bench.device.wait(bench.streams[0], join).unwrap();
        bench.add_one(0, bench.x, other).unwrap();
        let graph = bench.device.end_capture(bench.streams[0]).unwrap();
        for _ in 0..3 {
            bench.device.replay(graph, bench.streams[0]).unwrap();
        }
        assert_eq!(bench.result(0, bench.x).unwrap(), [10.0; 40]);
    }
}

#[test]
fn calls_that_cannot_be_are_refused() {
    let mut bench = Bench::new(1, 1, &[1.0; 4]);
    let stream = bench.streams[0];
    let mut refused = |kernel, arguments: &[u64]| {
        let call = launch::Launch { arguments: arguments.to_vec(), ..launch::Launch::line(kernel, 1, 32) };
        bench.device.launch(stream, &call).unwrap_err().to_string()
    };
    assert_eq!(refused("probe_nothing", &[]), "there is no kernel probe_nothing");
    assert_eq!(refused("probe_add_one", &[1]), "kernel probe_add_one takes 4 arguments, got 1");
    assert!(refused("probe_add_one", &[1, 2, 1 << 40, 0]).contains("argument 2 has 4 bytes and cannot hold 0x10000000000"));
    let error = bench.device.allocate("huge", 5 << 30).unwrap_err().to_string();
    assert!(error.contains("\"huge\" needs 5.00 GiB of device memory"), "{error}");
}

#[test]
fn what_waits_for_nothing_is_told() {
    let mut bench = Bench::new(1, 1, &[1.0; 4]);
    let event = bench.device.event().unwrap();
    assert!(bench.device.wait(bench.streams[0], event).unwrap_err().to_string().contains("never recorded"));
}

/// (first, second) begin and end of a launch on each of two streams, of which the second may wait for the first.
fn times(seed: u64, waits: bool) -> [[Duration; 2]; 2] {
    let mut bench = Bench::new(seed, 2, &[1.0; 70]);
    let [start, from, to, other_from, other_to] = [(); 5].map(|()| bench.device.timer().unwrap());
    let other = bench.device.allocate("other", bench.len).unwrap();
    let (copied, done) = (bench.device.event().unwrap(), bench.device.event().unwrap());
    bench.device.record(start, bench.streams[0]).unwrap();
    bench.copy_in(0);
    bench.device.record(copied, bench.streams[0]).unwrap();
    bench.device.wait(bench.streams[1], copied).unwrap();
    bench.device.record(from, bench.streams[0]).unwrap();
    bench.add_one(0, bench.out, bench.x).unwrap();
    bench.device.record(to, bench.streams[0]).unwrap();
    if waits {
        bench.device.record(done, bench.streams[0]).unwrap();
        bench.device.wait(bench.streams[1], done).unwrap();
    }
    bench.device.record(other_from, bench.streams[1]).unwrap();
    bench.add_one(1, other, bench.x).unwrap();
    bench.device.record(other_to, bench.streams[1]).unwrap();
    bench.streams.clone().into_iter().for_each(|stream| bench.device.synchronize(stream).unwrap());
    [[from, to], [other_from, other_to]].map(|pair| pair.map(|timer| bench.device.elapsed(start, timer).unwrap()))
}

#[test]
fn streams_overlap_where_they_do_not_wait_under_every_seed() {
    let nanos = Duration::from_nanos;
    // 280 bytes, then 3 blocks of 32 threads.
    let launch = [nanos(18), nanos(18 + 96)];
    for seed in 0..20 {
        assert_eq!(times(seed, false), [launch, launch], "seed {seed}");
        assert_eq!(times(seed, true), [launch, launch.map(|time| time + nanos(96))], "seed {seed}");
    }
}

#[test]
fn a_fresh_timer_and_a_captured_event_tell_no_time() {
    let mut bench = Bench::new(1, 1, &[1.0; 4]);
    let (event, timer) = (bench.device.event().unwrap(), bench.device.timer().unwrap());
    assert!(bench.device.event_done(timer).unwrap());
    assert!(bench.device.elapsed(timer, timer).unwrap_err().to_string().contains("was never recorded"));
    bench.copy_in(0);
    bench.device.record(timer, bench.streams[0]).unwrap();
    assert!(bench.device.elapsed(timer, timer).unwrap_err().to_string().contains("is not done"));
    assert!(bench.device.elapsed(event, timer).unwrap_err().to_string().contains("is no timer"));
    bench.device.begin_capture(bench.streams[0]).unwrap();
    bench.device.record(event, bench.streams[0]).unwrap();
    assert!(bench.device.event_done(timer).is_err());
    bench.device.end_capture(bench.streams[0]).unwrap();
    assert!(bench.device.event_done(event).unwrap_err().to_string().contains("recorded in one"));
    while !bench.device.event_done(timer).unwrap() {}
    assert_eq!(bench.device.elapsed(timer, timer), Ok(Duration::ZERO));
    assert!(bench.device.staging_bytes(bench.staging).is_ok(), "the copy before it is over");
}
