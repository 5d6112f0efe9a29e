//! The driver's library: whether it is there and can start, and what its errors mean.

use std::ffi::c_int;

use cudarc::driver::DriverError;
use cudarc::driver::sys::{self, CUresult};

use crate::machine::OLDEST_DRIVER;
use crate::machine::driver::{DeviceError, Result};

/// Cards that `cuda:N` can name; the error says why there are none.
pub fn cards() -> Result<usize> {
    driver()?;
    let mut count = 0;
    // SAFETY: the driver is there and initialized.
    check(unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(count as usize)
}

/// Finds and initializes the driver. The library is asked for a symbol first, since a stub without any would panic later.
pub fn driver() -> Result<()> {
    type Init = unsafe extern "C" fn(u32) -> CUresult;
    type Version = unsafe extern "C" fn(*mut c_int) -> CUresult;
    // SAFETY: only opens the library and looks symbols up.
    if !unsafe { sys::is_culib_present() } {
        return unavailable("no NVIDIA driver was found on this machine (libcuda.so.1): install one");
    }
    // SAFETY: the library opened a moment ago; the symbols have these types in every version of the driver.
    let (init, version) = unsafe { (sys::culib().get::<Init>(b"cuInit"), sys::culib().get::<Version>(b"cuDriverGetVersion")) };
    let (Ok(init), Ok(version)) = (init, version) else {
        return unavailable(
            "the libcuda.so found first is a stub without the driver's functions: put the driver's own before it",
        );
    };
    let mut number = 0;
    // SAFETY: as their types say; the version may be asked before initialization.
    if unsafe { version(&mut number) } == CUresult::CUDA_SUCCESS && release(number) < OLDEST_DRIVER {
        let ((major, minor), (oldest, at_least)) = (release(number), OLDEST_DRIVER);
        return unavailable(&format!(
            "the NVIDIA driver is for CUDA {major}.{minor}, at least {oldest}.{at_least} is needed: update it"
        ));
    }
    // SAFETY: as above.
    match unsafe { init(0) } {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_NO_DEVICE => unavailable("the NVIDIA driver sees no card (is CUDA_VISIBLE_DEVICES set?)"),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            unavailable("the libcuda.so found first is the toolkit's stub: put the driver's own before it")
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            unavailable("the NVIDIA kernel module and libcuda.so differ in version: restart the machine or reinstall the driver")
        }
        other => unavailable(&format!("the NVIDIA driver cannot start ({})", error_name(other))),
    }
}

/// (major, minor) of a version as the driver writes it.
fn release(number: c_int) -> (u32, u32) {
    let number = number.unsigned_abs();
    (number / 1000, number % 1000 / 10)
}

pub fn unavailable<T>(why: &str) -> Result<T> {
    Err(DeviceError::Unavailable(why.to_owned()))
}

pub fn error_name(error: CUresult) -> String {
    format!("{error:?}")
}

/// Errors after which every call of the process fails: the card, the link to it, or the context is broken.
pub const STICKY: [CUresult; 20] = [
    CUresult::CUDA_ERROR_DEINITIALIZED,
    CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
    CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE,
    CUresult::CUDA_ERROR_CONTAINED,
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
    CUresult::CUDA_ERROR_ASSERT,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
    CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK,
    CUresult::CUDA_ERROR_MPS_RPC_FAILURE,
    CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED,
    CUresult::CUDA_ERROR_EXTERNAL_DEVICE,
    CUresult::CUDA_ERROR_UNKNOWN,
];

/// What a failed call says about the device.
pub fn check(result: CUresult) -> Result<()> {
    check_of("the NVIDIA driver", result)
}

/// As [`check`]; `what` was refused, or broke the device.
pub fn check_of(what: &str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        sticky if STICKY.contains(&sticky) => Err(DeviceError::Lost(format!("{what}: {}", error_name(sticky)))),
        other => Err(DeviceError::Invalid(format!("{what}: a call was refused ({})", error_name(other)))),
    }
}

pub fn of(DriverError(result): DriverError) -> DeviceError {
    check(result).err().unwrap_or_else(|| DeviceError::Invalid("the NVIDIA driver refused a call".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_device_is_told_from_a_wrong_call() {
        for sticky in [CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, CUresult::CUDA_ERROR_ASSERT, CUresult::CUDA_ERROR_INVALID_PC] {
            assert!(matches!(check(sticky), Err(DeviceError::Lost(_))), "{sticky:?}");
        }
        assert!(matches!(check(CUresult::CUDA_ERROR_INVALID_VALUE), Err(DeviceError::Invalid(_))));
    }
}
