//! Events that carry time.

use std::ptr::null_mut;
use std::time::Duration;

use cudarc::driver::sys;

use super::Cuda;
use super::library::check;
use crate::machine::driver::{DeviceError, Driver, Priority, Result};

/// The context has to be current.
pub fn create() -> Result<sys::CUevent> {
    let mut event = null_mut();
    // SAFETY: the context is current.
    check(unsafe { sys::cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32) })?;
    Ok(event)
}

/// Records a timer in a stream that captures, as a node of the graph: by `cuEventRecord` it would only be a dependency, and never
/// have a time.
pub fn capture(event: sys::CUevent, stream: sys::CUstream) -> Result<()> {
    let external = sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32;
    // SAFETY: both are of the current context and alive.
    check(unsafe { sys::cuEventRecordWithFlags(event, stream, external) })
}

/// Between two timers that are done.
pub fn elapsed(from: sys::CUevent, to: sys::CUevent) -> Result<Duration> {
    type ElapsedTime = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
    // SAFETY: the symbol has this type in every version of the driver; the one that the bindings know begins with 12.8.
    let found = unsafe { sys::culib().get::<ElapsedTime>(b"cuEventElapsedTime") };
    let elapsed_time = found.map_err(|_| DeviceError::Invalid("the NVIDIA driver has no cuEventElapsedTime".to_owned()))?;
    let mut millis = 0.0;
    // SAFETY: both are of the current context and alive; the driver refuses those without a time.
    check(unsafe { elapsed_time(&mut millis, from, to) })?;
    Ok(Duration::try_from_secs_f64(f64::from(millis) / 1e3).unwrap_or(Duration::ZERO))
}

impl Cuda {
    /// Tries whether a captured timer has a time after a replay: not every driver keeps such nodes.
    pub(super) fn try_captured_timer(&mut self) -> Result<bool> {
        let (stream, handle) = (self.stream(Priority::Normal)?, create()?);
        let timer = self.keep(handle, true);
        self.begin_capture(stream)?;
        let recorded = self.record(timer, stream);
        let graph = self.end_capture(stream);
        let tried = recorded.and(graph).and_then(|graph| {
            self.replay(graph, stream)?;
            self.synchronize(stream)?;
            self.elapsed(timer, timer)
        });
        match tried {
            Ok(_) => Ok(true),
            Err(DeviceError::Invalid(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
