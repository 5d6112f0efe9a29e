//! Every buffer of a run, allocated once before round 0 and counted against the budget.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use bytemuck::Pod;
use memmap2::MmapMut;

/// Buffers of this size and above ask for huge pages: a first touch then costs one fault per 2 MiB instead of 512.
#[cfg(target_os = "linux")]
const HUGE_FROM: usize = 8 << 20;

/// Values whose bytes start as zero; the system hands out pages when they are first written.
#[derive(Debug)]
pub struct Buffer<T = f32> {
    map: Option<MmapMut>,
    values: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub fn empty() -> Self {
        Self { map: None, values: PhantomData }
    }

    fn new(len: usize) -> Result<Self> {
        if len == 0 {
            return Ok(Self::empty());
        }
        let bytes = size_of::<T>() * len;
        let map = MmapMut::map_anon(bytes).with_context(|| format!("cannot map {}", human_bytes(bytes as u64)))?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_FROM {
            // Only a hint: kernels without huge pages refuse it and lose nothing.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map: Some(map), values: PhantomData })
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.map.as_ref().map_or(&[], |map| bytemuck::cast_slice(map))
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.map.as_mut().map_or(&mut [], |map| bytemuck::cast_slice_mut(map))
    }
}

/// Allocator of a run's buffers: names them, adds them up, refuses what exceeds the budget.
pub struct Memory {
    /// Only adds up: buffers stay empty.
    dry: bool,
    budget: u64,
    /// The buffers will be written: they may not exceed what this machine has.
    written: bool,
    used: u64,
    buffers: Vec<(String, u64)>,
    /// What the names of the next buffers begin with.
    place: String,
}

impl Memory {
    /// `budget` in bytes; 0 means no limit but that of the machine.
    pub fn new(budget: u64) -> Self {
        Self { dry: false, budget, written: true, used: 0, buffers: Vec::new(), place: String::new() }
    }

    /// For buffers that are mapped and hardly written: their sizes are limited by nothing.
    pub fn mapped() -> Self {
        Self { written: false, ..Self::new(0) }
    }

    /// Adds up what a run would allocate within `budget` (0: no limit) and allocates nothing.
    pub fn plan(budget: u64) -> Self {
        Self { dry: true, written: false, ..Self::new(budget) }
    }

    pub fn is_dry(&self) -> bool {
        self.dry
    }

    pub fn unlimited() -> Self {
        Self::new(0)
    }

    /// Begins the names of buffers from now on with `place`.
    pub fn within(&mut self, place: String) {
        self.place = place;
    }

    /// Zeros; a large buffer of which little is used costs little.
    pub fn buffer(&mut self, name: &str, len: usize) -> Result<Buffer> {
        self.buffer_of(name, len)
    }

    /// As [`Memory::buffer`], for values of another type.
    pub fn buffer_of<T: Pod>(&mut self, name: &str, len: usize) -> Result<Buffer<T>> {
        self.reserve(name, (size_of::<T>() as u64).saturating_mul(len as u64))?;
        Buffer::new(if self.dry { 0 } else { len }).with_context(|| name.to_owned())
    }

    /// An empty vector with room for `capacity` values.
    pub fn vec<T>(&mut self, name: &str, capacity: usize) -> Result<Vec<T>> {
        self.reserve(name, (size_of::<T>() as u64).saturating_mul(capacity as u64))?;
        Ok(Vec::with_capacity(if self.dry { 0 } else { capacity }))
    }

    /// Counts bytes that the caller allocates itself; neighbours of one name count as one.
    pub fn reserve(&mut self, name: &str, bytes: u64) -> Result<()> {
        let used = self.used.saturating_add(bytes);
        ensure!(used <= isize::MAX as u64, "\"{name}\" makes more bytes than can be addressed: {ADVICE}");
        if self.written {
            check_machine(name, used)?;
        }
        if self.budget > 0 && used > self.budget {
            bail!(
                "memory.device allows {}, {} are in use and \"{name}\" needs {} more: lower train.micro_batch or \
                 encoder.buckets, or raise the budget",
                human_bytes(self.budget),
                human_bytes(self.used),
                human_bytes(bytes)
            );
        }
        self.used = used;
        let name = format!("{}{name}", self.place);
        match self.buffers.last_mut() {
            Some((last, sum)) if *last == name => *sum += bytes,
            _ if bytes > 0 => self.buffers.push((name, bytes)),
            _ => {}
        }
        Ok(())
    }

    pub fn used(&self) -> u64 {
        self.used
    }

    /// (name, bytes) in the order of allocation.
    pub fn buffers(&self) -> &[(String, u64)] {
        &self.buffers
    }
}

/// Memory and swap of this machine in bytes; what can be addressed where the system does not say.
pub fn machine_memory() -> u64 {
    static FOUND: OnceLock<u64> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
        match (kib("MemTotal:"), kib("SwapTotal:")) {
            (Some(memory), swap) => 1024 * (memory + swap.unwrap_or(0)),
            (None, _) => isize::MAX as u64,
        }
    })
}

const ADVICE: &str = "make the sizes smaller, above all train.micro_batch, eval.batch and encoder.hidden";

/// Refuses more bytes than this machine has.
pub fn check_machine(what: &str, bytes: u64) -> Result<()> {
    let most = machine_memory();
    ensure!(
        bytes <= most,
        "{what}: {} are needed, this machine has {} of memory and swap: {ADVICE}",
        human_bytes(bytes),
        human_bytes(most)
    );
    Ok(())
}

/// `1.50 GiB`, `12.0 MiB`, `640 B`.
pub fn human_bytes(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", value / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

/// Most memory this process has had resident, in bytes; 0 where the system does not say.
pub fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_hard() {
        let mut memory = Memory::new(4096);
        assert_eq!(memory.buffer("a", 1000).unwrap().len(), 1000);
        let error = memory.buffer("b", 100).unwrap_err().to_string();
        assert!(error.contains("\"b\" needs 400 B more") && error.contains("4.0 KiB"), "{error}");
        assert_eq!(memory.used(), 4000);
    }

    #[test]
    fn more_than_the_machine_has_is_refused_before_it_is_mapped() {
        let error = Memory::new(0).buffer("j", 1 << 50).unwrap_err().to_string();
        assert!(error.starts_with("j: 4194304.00 GiB are needed, this machine has"), "{error}");
        // A plan may say it, up to what can be counted.
        assert!(Memory::plan(0).buffer("j", 1 << 50).is_ok());
        for len in [usize::MAX, usize::MAX / 4, 1 << 62] {
            assert!(Memory::plan(0).buffer("j", len).is_err());
            assert!(Memory::mapped().buffer("j", len).is_err());
        }
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(human_bytes(640), "640 B");
        assert_eq!(human_bytes(3 << 29), "1.50 GiB");
    }
}
