//! An NVIDIA card through its driver, by way of cudarc's bindings, which load the driver's library at run time.
//!
//! One implementation of `Driver` fills this file. Only raw driver calls are used: allocations, streams and events are ours, so
//! nothing is tracked, allocated or ordered behind our back. With `TASKLOOM_SYNC_LAUNCHES=1` every launch is waited for and nothing
//! is captured, so that an error names its kernel.

use std::ffi::{CStr, c_int, c_void};
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUresult};

use super::driver::{Address, Card, DeviceError, Driver, EventId, GraphId, MemoryInfo, Priority, Result, StagingId, StreamId};
use super::launch::Launch;
use library::{STICKY, cards, check, check_of, driver, of, unavailable};
use module::{Module, encoded};

/// Environment variable: 1 waits for every launch.
const SYNC_LAUNCHES: &str = "TASKLOOM_SYNC_LAUNCHES";

mod library;
mod module;
mod timers;

struct Staging {
    start: *mut u8,
    len: usize,
    /// The stream of the copy that used it last, and an event after that copy.
    used: Option<sys::CUevent>,
    event: sys::CUevent,
}

struct Event {
    handle: sys::CUevent,
    /// It carries time.
    timed: bool,
}

pub struct Cuda {
    context: Arc<CudaContext>,
    ordinal: usize,
    card: Card,
    module: Module,
    /// Lowest and highest, as numbers of the driver.
    priorities: [c_int; 2],
    streams: Vec<sys::CUstream>,
    events: Vec<Event>,
    /// Whether timers have times in replays; unknown before there is one.
    captures_timers: Option<bool>,
    staging: Vec<Staging>,
    graphs: Vec<sys::CUgraphExec>,
    allocations: Vec<Address>,
    capturing: bool,
    sync_launches: bool,
}

const MULTIPROCESSORS: sys::CUdevice_attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;

fn attribute(context: &CudaContext, which: sys::CUdevice_attribute) -> Result<usize> {
    let mut value = 0;
    // SAFETY: the device exists.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, context.cu_device()) })?;
    Ok(value.unsigned_abs() as usize)
}

/// Code for 9.0a runs on 9.0 only.
fn is_hopper(context: &CudaContext) -> Result<bool> {
    use sys::CUdevice_attribute::{CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR};
    let major = attribute(context, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, attribute(context, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?) == (9, 0))
}

impl Cuda {
    pub fn open(ordinal: usize) -> Result<Self> {
        driver()?;
        let count = cards()?;
        if ordinal >= count {
            return unavailable(&format!("there is no card {ordinal}: this machine has {count}, numbered from 0"));
        }
        Module::check_there()?;
        let context = CudaContext::new(ordinal).map_err(of)?;
        let card = Card { multiprocessors: attribute(&context, MULTIPROCESSORS)?, hopper: is_hopper(&context)? };
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: the context is current.
        check(unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest) })?;
        Ok(Self {
            context,
            ordinal,
            card,
            module: Module::load()?,
            priorities: [least, greatest],
            streams: Vec::new(),
            events: Vec::new(),
            captures_timers: None,
            staging: Vec::new(),
            graphs: Vec::new(),
            allocations: Vec::new(),
            capturing: false,
            sync_launches: std::env::var_os(SYNC_LAUNCHES).is_some_and(|value| value == "1"),
        })
    }

    /// Makes the context current, which every call needs.
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(of)
    }

    /// Notes that a copy in `stream` uses this pinned memory.
    fn mark(&mut self, staging: StagingId, stream: StreamId) -> Result<()> {
        if self.capturing {
            return Ok(());
        }
        let stream = self.streams[stream.0];
        let staging = &mut self.staging[staging.0];
        // SAFETY: both are of this context and alive.
        check(unsafe { sys::cuEventRecord(staging.event, stream) })?;
        staging.used = Some(staging.event);
        Ok(())
    }

    fn new_event(&self) -> Result<sys::CUevent> {
        let mut event = null_mut();
        // SAFETY: the context is current.
        check(unsafe { sys::cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32) })?;
        Ok(event)
    }

    fn keep(&mut self, handle: sys::CUevent, timed: bool) -> EventId {
        self.events.push(Event { handle, timed });
        EventId(self.events.len() - 1)
    }
}

impl Driver for Cuda {
    fn name(&self) -> String {
        let mut text = [0; 128];
        // SAFETY: room for 128 characters; the result ends in zero.
        let known = self.bind().is_ok()
            && unsafe { sys::cuDeviceGetName(text.as_mut_ptr(), 128, self.context.cu_device()) } == CUresult::CUDA_SUCCESS;
        // SAFETY: as above; without a name the text is empty.
        let name = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
        if known { format!("cuda:{} ({name})", self.ordinal) } else { format!("cuda:{}", self.ordinal) }
    }

    fn card(&self) -> Card {
        self.card
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    fn allocate(&mut self, name: &str, bytes: usize) -> Result<Address> {
        self.bind()?;
        let mut address = 0;
        // SAFETY: the context is current.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = self.memory()?.free;
                return Err(DeviceError::TooLittleMemory { name: name.to_owned(), bytes: bytes as u64, free });
            }
            result => check(result)?,
        }
        self.allocations.push(address);
        Ok(address)
    }

    fn free(&mut self, address: Address) {
        let at = self.allocations.iter().position(|&own| own == address).expect("freed what was allocated");
        self.allocations.swap_remove(at);
        // SAFETY: it was allocated here. A lost device frees everything by itself, so its error says nothing.
        let _ = self.bind().map(|()| unsafe { sys::cuMemFree_v2(address) });
    }

    fn stream(&mut self, priority: Priority) -> Result<StreamId> {
        self.bind()?;
        let [least, greatest] = self.priorities;
        // Numbers fall as priorities rise.
        let number = match priority {
            Priority::Urgent => greatest,
            Priority::Normal => (least + greatest).div_euclid(2),
            Priority::Background => least,
        };
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current.
        check(unsafe { sys::cuStreamCreateWithPriority(&mut stream, flags, number) })?;
        self.streams.push(stream);
        Ok(StreamId(self.streams.len() - 1))
    }

    fn event(&mut self) -> Result<EventId> {
        self.bind()?;
        let event = self.new_event()?;
        Ok(self.keep(event, false))
    }

    fn timer(&mut self) -> Result<EventId> {
        self.bind()?;
        if self.captures_timers.is_none() {
            self.captures_timers = Some(self.captures() && self.try_captured_timer()?);
        }
        let timer = timers::create()?;
        Ok(self.keep(timer, true))
    }

    fn event_done(&mut self, event: EventId) -> Result<bool> {
        self.bind()?;
        // SAFETY: the event is of this context and alive.
        match unsafe { sys::cuEventQuery(self.events[event.0].handle) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result).map(|()| true),
        }
    }

    fn elapsed(&mut self, from: EventId, to: EventId) -> Result<Duration> {
        self.bind()?;
        timers::elapsed(self.events[from.0].handle, self.events[to.0].handle)
    }

    fn record(&mut self, event: EventId, stream: StreamId) -> Result<()> {
        self.bind()?;
        let Event { handle, timed } = self.events[event.0];
        if timed && self.capturing {
            return timers::capture(handle, self.streams[stream.0]);
        }
        // SAFETY: both are of this context and alive.
        check(unsafe { sys::cuEventRecord(handle, self.streams[stream.0]) })
    }

    fn wait(&mut self, stream: StreamId, event: EventId) -> Result<()> {
        self.bind()?;
        // SAFETY: both are of this context and alive.
        check(unsafe { sys::cuStreamWaitEvent(self.streams[stream.0], self.events[event.0].handle, 0) })
    }

    fn staging(&mut self, bytes: usize) -> Result<StagingId> {
        self.bind()?;
        let mut start: *mut c_void = null_mut();
        // SAFETY: the context is current. Plain pinned memory, since write-combined memory is slow to read.
        check(unsafe { sys::cuMemHostAlloc(&mut start, bytes.max(1), 0) })?;
        let start: *mut u8 = start.cast();
        // SAFETY: just allocated with this size.
        unsafe { start.write_bytes(0, bytes) };
        let event = self.new_event()?;
        self.staging.push(Staging { start, len: bytes, used: None, event });
        Ok(StagingId(self.staging.len() - 1))
    }

    fn staging_bytes(&mut self, staging: StagingId) -> Result<&mut [u8]> {
        self.bind()?;
        let staging = &mut self.staging[staging.0];
        if let Some(event) = staging.used.take() {
            // Whoever comes here has waited for the stream of the copy, but an event may be a little behind its stream. SAFETY: the
            // event is alive.
            check(unsafe { sys::cuEventSynchronize(event) })?;
        }
        // SAFETY: allocated with this size; no copy is under way, and the borrow is of `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(staging.start, staging.len) })
    }

    fn copy_in(&mut self, stream: StreamId, to: Address, from: StagingId, bytes: Range<usize>) -> Result<()> {
        self.bind()?;
        assert!(bytes.start <= bytes.end && bytes.end <= self.staging[from.0].len, "a copy lies in its pinned memory");
        // SAFETY: the range was just checked.
        let start = unsafe { self.staging[from.0].start.add(bytes.start) };
        // SAFETY: pinned memory lives as long as the device, and is not touched before the copy is done (staging_bytes).
        check(unsafe { sys::cuMemcpyHtoDAsync_v2(to, start.cast(), bytes.len(), self.streams[stream.0]) })?;
        self.mark(from, stream)
    }

    fn copy_out(&mut self, stream: StreamId, to: StagingId, from: Address, bytes: usize) -> Result<()> {
        self.bind()?;
        assert!(bytes <= self.staging[to.0].len, "a copy fits its pinned memory");
        let start = self.staging[to.0].start;
        // SAFETY: as in `copy_in`.
        check(unsafe { sys::cuMemcpyDtoHAsync_v2(start.cast(), from, bytes, self.streams[stream.0]) })?;
        self.mark(to, stream)
    }

    fn copy(&mut self, stream: StreamId, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: device addresses are the caller's to know, and a wrong one is an error of the device, not of this process.
        check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.streams[stream.0]) })
    }

    fn fill(&mut self, stream: StreamId, address: Address, byte: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: as in `copy`.
        check(unsafe { sys::cuMemsetD8Async(address, byte, bytes, self.streams[stream.0]) })
    }

    fn launch(&mut self, stream: StreamId, call: &Launch) -> Result<()> {
        call.check()?;
        self.bind()?;
        let function = self.module.function(call)?;
        let maps = call.maps.iter().map(encoded).collect::<Result<Vec<_>>>()?;
        let words = call.arguments.iter().map(|argument| std::ptr::from_ref(argument).cast_mut().cast());
        let mut arguments: Vec<*mut c_void> =
            maps.iter().map(|map| std::ptr::from_ref(map).cast_mut().cast()).chain(words).collect();
        let [x, y, z] = call.grid;
        // SAFETY: one pointer per argument, to a whole map or to 8 bytes; the driver copies them before it returns. Their number and
        // widths are held against the kernel's on the emulated device.
        let launched = unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                call.threads,
                1,
                1,
                call.shared,
                self.streams[stream.0],
                arguments.as_mut_ptr(),
                null_mut(),
            )
        };
        let Launch { kernel, grid, threads, shared, .. } = call;
        let what = || format!("kernel {kernel}, grid {grid:?}, {threads} threads, {shared} bytes of shared memory");
        if STICKY.contains(&launched) {
            // A launch is over before its kernel begins, so that an earlier one broke the device.
            return check_of(&format!("a kernel before {kernel}, {SYNC_LAUNCHES}=1 says which"), launched);
        }
        if launched != CUresult::CUDA_SUCCESS {
            return check_of(&what(), launched);
        }
        if !self.sync_launches {
            return Ok(());
        }
        // SAFETY: the stream is alive, and captures nothing.
        check_of(&what(), unsafe { sys::cuStreamSynchronize(self.streams[stream.0]) })
    }

    fn captures(&self) -> bool {
        !self.sync_launches
    }

    fn captures_timers(&self) -> bool {
        self.captures_timers.unwrap_or(false)
    }

    fn begin_capture(&mut self, stream: StreamId) -> Result<()> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.streams[stream.0], mode) })?;
        self.capturing = true;
        Ok(())
    }

    fn end_capture(&mut self, stream: StreamId) -> Result<GraphId> {
        self.bind()?;
        self.capturing = false;
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: the stream captures, or the driver says that it does not.
        check(unsafe { sys::cuStreamEndCapture(self.streams[stream.0], &mut graph) })?;
        // SAFETY: the graph was just made, and is not needed once it can be launched.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            sys::cuGraphDestroy(graph);
            made
        };
        check(made)?;
        self.graphs.push(executable);
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId, stream: StreamId) -> Result<()> {
        self.bind()?;
        // SAFETY: both are alive.
        check(unsafe { sys::cuGraphLaunch(self.graphs[graph.0], self.streams[stream.0]) })
    }

    fn synchronize(&mut self, stream: StreamId) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is alive.
        check(unsafe { sys::cuStreamSynchronize(self.streams[stream.0]) })
    }
}

impl Drop for Cuda {
    /// Gives everything back. Errors say nothing here: a lost device has taken it back already.
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        // SAFETY: all of these are this device's own, and none is used again.
        unsafe {
            for &stream in &self.streams {
                sys::cuStreamSynchronize(stream);
            }
            for &graph in &self.graphs {
                sys::cuGraphExecDestroy(graph);
            }
            for staging in &self.staging {
                sys::cuEventDestroy_v2(staging.event);
                sys::cuMemFreeHost(staging.start.cast());
            }
            for event in &self.events {
                sys::cuEventDestroy_v2(event.handle);
            }
            for &stream in &self.streams {
                sys::cuStreamDestroy_v2(stream);
            }
            for &address in &self.allocations {
                sys::cuMemFree_v2(address);
            }
            self.module.unload();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_for_a_card_never_panics() {
        match Cuda::open(99) {
            Err(DeviceError::Unavailable(why)) => assert!(why.len() > 20, "{why}"),
            Err(other) => panic!("a missing card is not an error of a call: {other}"),
            Ok(_) => panic!("nobody has a hundred cards"),
        }
    }
}
