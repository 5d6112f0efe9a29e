//! The whole surface of a device that runs kernels: allocations, streams, events, copies by way of pinned memory, launches
//! by name, graphs. [`open`] finds the device that `run.device` names.
//!
//! Nothing waits except [`Driver::synchronize`], which waits for one stream. Operations of one stream run in order, those of
//! two streams in any order that events leave open. Times are the device's own, between two events that were made as timers.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use super::launch::Launch;

/// A place in device memory; 0 is null.
pub type Address = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(pub usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub usize);

/// Host memory that copies go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StagingId(pub usize);

/// Which streams a device serves first where several have work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// What others wait for: copies.
    Urgent,
    Normal,
    /// What nobody waits for: an evaluation beside training.
    Background,
}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    pub free: u64,
    pub total: u64,
}

/// What of a device decides which kernels compute an operation, and how they share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    pub multiprocessors: usize,
    /// It has the warpgroup products and the copy engine of compute capability 9.0.
    pub hopper: bool,
}

impl Card {
    /// A device that only says what a round would take.
    pub const PLAIN: Self = Self { multiprocessors: 132, hopper: false };

    /// Blocks of 256 threads that take at most `items` in turn: no more than there is room for at once.
    pub fn blocks(&self, items: usize) -> usize {
        items.min(8 * self.multiprocessors)
    }
}

/// Bytes of shared memory, static and dynamic, that a block has without asking for more.
pub const PLAIN_SHARED: usize = 48 << 10;

/// Most blocks in each dimension of a grid.
pub const MOST_BLOCKS: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// Most threads of a block.
pub const MOST_THREADS: u32 = 1024;

/// Why a device cannot serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// There is no such device here, and this says why and what to do.
    Unavailable(String),
    TooLittleMemory {
        name: String,
        bytes: u64,
        free: u64,
    },
    /// The device stopped answering, or a kernel broke it: nothing on it can be trusted.
    Lost(String),
    /// A call that no device can carry out.
    Invalid(String),
    /// The emulated device caught a kernel or the order of operations at fault.
    Fault(String),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unavailable(why) => f.write_str(why),
            Self::TooLittleMemory { name, bytes, free } => {
                let (bytes, free) = (super::memory::human_bytes(*bytes), super::memory::human_bytes(*free));
                write!(
                    f,
                    "\"{name}\" needs {bytes} of device memory, {free} are free: lower train.micro_batch, or use a larger card"
                )
            }
            Self::Lost(what) => write!(
                f,
                "the device was lost ({what}); the last checkpoint is intact, continue with `taskloom resume` once it is back"
            ),
            Self::Invalid(what) => f.write_str(what),
            Self::Fault(what) => write!(f, "emulated device: {what}"),
        }
    }
}

impl std::error::Error for DeviceError {}

pub type Result<T> = std::result::Result<T, DeviceError>;

/// A device that runs kernels. Handles are its own and live as long as it does.
pub trait Driver {
    /// What the device is called.
    fn name(&self) -> String;

    fn card(&self) -> Card;

    fn memory(&self) -> Result<MemoryInfo>;

    /// `bytes` (at least one) of fresh memory, aligned to 256.
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<Address>;

    /// Gives an allocation back. Nothing that uses it is under way.
    fn free(&mut self, address: Address);

    fn stream(&mut self, priority: Priority) -> Result<StreamId>;

    fn event(&mut self) -> Result<EventId>;

    /// An event that carries the time at which it was reached. It is recorded as any other, in a capture too (see
    /// [`Driver::captures_timers`]), but no stream waits for it in a capture.
    fn timer(&mut self) -> Result<EventId>;

    /// Whether everything that `event` was last recorded for is done, without waiting for it; so it is where it never was
    /// recorded. An error: it was recorded in a capture, and is no timer.
    fn event_done(&mut self, event: EventId) -> Result<bool>;

    /// Time on the device between two timers, nothing where `to` was reached first; a card resolves about half a microsecond.
    /// An error unless both were recorded and are done.
    fn elapsed(&mut self, from: EventId, to: EventId) -> Result<Duration>;

    /// The event stands for everything in `stream` so far.
    fn record(&mut self, event: EventId, stream: StreamId) -> Result<()>;

    /// What `stream` is given from here on starts after what `event` was last recorded for.
    fn wait(&mut self, stream: StreamId, event: EventId) -> Result<()>;

    /// Pinned host memory, zeros.
    fn staging(&mut self, bytes: usize) -> Result<StagingId>;

    /// To be read or written between copies. An error while a copy that uses it may be under way.
    fn staging_bytes(&mut self, staging: StagingId) -> Result<&mut [u8]>;

    /// These bytes of `from`.
    fn copy_in(&mut self, stream: StreamId, to: Address, from: StagingId, bytes: Range<usize>) -> Result<()>;

    /// To the first `bytes` of `to`.
    fn copy_out(&mut self, stream: StreamId, to: StagingId, from: Address, bytes: usize) -> Result<()>;

    fn copy(&mut self, stream: StreamId, to: Address, from: Address, bytes: usize) -> Result<()>;

    fn fill(&mut self, stream: StreamId, address: Address, byte: u8, bytes: usize) -> Result<()>;

    fn launch(&mut self, stream: StreamId, launch: &Launch) -> Result<()>;

    /// Whether [`Driver::begin_capture`] serves; without, everything is launched one by one.
    fn captures(&self) -> bool {
        true
    }

    /// Whether a timer that is recorded in a capture has a time of its own at each replay; without, what has timers is launched
    /// one by one. Known once there is a timer.
    fn captures_timers(&self) -> bool {
        self.captures()
    }

    /// From here on what `stream` is given, and what other streams are given after waiting for its events, is noted instead
    /// of run. Those streams must be waited for in `stream` again before the end.
    fn begin_capture(&mut self, stream: StreamId) -> Result<()>;

    /// Ends the capture, also where it fails.
    fn end_capture(&mut self, stream: StreamId) -> Result<GraphId>;

    /// Runs what was noted, after everything in `stream` so far and before what it is given next.
    fn replay(&mut self, graph: GraphId, stream: StreamId) -> Result<()>;

    /// Returns once everything in `stream` is done.
    fn synchronize(&mut self, stream: StreamId) -> Result<()>;
}

/// The device that `name` asks for: `cuda`, `cuda:N` or `emulated`.
pub fn open(name: &str) -> Result<Box<dyn Driver>> {
    match name {
        "emulated" => open_emulated(0),
        _ => Ok(Box::new(super::cuda::Cuda::open(cuda_ordinal(name)?)?)),
    }
}

/// N of `cuda:N`, 0 for `cuda`.
pub fn cuda_ordinal(name: &str) -> Result<usize> {
    let invalid = || {
        let known = "known are \"auto\", \"cpu\", \"cuda\", \"cuda:N\" and \"emulated\"";
        DeviceError::Invalid(format!("\"{name}\" is no device: {known}"))
    };
    match name.strip_prefix("cuda").ok_or_else(invalid)? {
        "" => Ok(0),
        rest => rest.strip_prefix(':').and_then(|number| number.parse().ok()).ok_or_else(invalid),
    }
}

/// The emulated device; `seed` decides every order that its programs leave open.
#[cfg(emulated)]
pub fn open_emulated(seed: u64) -> Result<Box<dyn Driver>> {
    Ok(Box::new(super::emulated::Emulated::new(seed)))
}

/// The emulated device, which this build lacks.
#[cfg(not(emulated))]
pub fn open_emulated(_: u64) -> Result<Box<dyn Driver>> {
    Err(DeviceError::Unavailable(env!("TASKLOOM_NO_EMULATION").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        assert_eq!(cuda_ordinal("cuda"), Ok(0));
        assert_eq!(cuda_ordinal("cuda:3"), Ok(3));
        for name in ["cuda:", "cuda:x", "cudas", "gpu"] {
            assert!(cuda_ordinal(name).unwrap_err().to_string().contains("known are"), "{name}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = DeviceError::TooLittleMemory { name: "jacobian".into(), bytes: 3 << 30, free: 1 << 30 };
        assert!(error.to_string().contains("\"jacobian\" needs 3.00 GiB of device memory, 1.00 GiB are free"), "{error}");
        assert!(DeviceError::Lost("CUDA_ERROR_LAUNCH_FAILED".into()).to_string().contains("the last checkpoint is intact"));
    }
}
