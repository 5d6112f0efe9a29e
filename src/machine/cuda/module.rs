//! The build's kernels as the driver has loaded them.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};

use super::library::{check, check_of, unavailable};
use crate::machine::CUDA_BUILD;
use crate::machine::driver::{DeviceError, PLAIN_SHARED, Result};
use crate::machine::launch::{Launch, TensorMap};
use crate::machine::tensor::DType;

/// Machine code and PTX of every kernel; empty in a build without nvcc.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// A kernel, and how much dynamic shared memory it has been permitted: at first what its own leaves of the plain limit.
struct Function {
    handle: sys::CUfunction,
    permitted: u32,
}

pub struct Module {
    handle: sys::CUmodule,
    functions: HashMap<String, Function>,
}

impl Module {
    /// An error in a build without kernels.
    pub fn check_there() -> Result<()> {
        if KERNELS.is_empty() {
            return unavailable(&format!(
                "this build has no CUDA kernels ({}): build again where nvcc is (scripts/cuda-toolkit.sh fetches one)",
                CUDA_BUILD
            ));
        }
        Ok(())
    }

    /// Into the context that is current.
    pub fn load() -> Result<Self> {
        let mut handle = null_mut();
        // The driver reads headers in place: the copy is aligned.
        let image: Vec<u64> = KERNELS.chunks(8).map(padded).collect();
        // SAFETY: the context is current, the image is a whole fatbin and outlives the call.
        match unsafe { sys::cuModuleLoadData(&mut handle, image.as_ptr().cast()) } {
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                return unavailable("this card is older than the kernels: compute capability 8.0 (Ampere) is the least");
            }
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_INVALID_IMAGE => {
                return unavailable(&format!(
                    "the NVIDIA driver is too old for this build's kernels ({}): update it",
                    CUDA_BUILD
                ));
            }
            result => check(result)?,
        }
        Ok(Self { handle, functions: HashMap::new() })
    }

    /// The launch's kernel, permitted to use as much shared memory as this launch wants.
    pub fn function(&mut self, call: &Launch) -> Result<sys::CUfunction> {
        let kernel = call.kernel;
        if !self.functions.contains_key(call.kernel) {
            let name = CString::new(call.kernel).map_err(|_| DeviceError::Invalid("a kernel's name has no zero".to_owned()))?;
            let mut handle = null_mut();
            // SAFETY: the module is loaded; the name ends in zero.
            if unsafe { sys::cuModuleGetFunction(&mut handle, self.handle, name.as_ptr()) } != CUresult::CUDA_SUCCESS {
                return Err(DeviceError::Invalid(format!("there is no kernel {} in this build", call.kernel)));
            }
            let (attribute, mut own) = (sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, 0);
            // SAFETY: the function belongs to the loaded module.
            check(unsafe { sys::cuFuncGetAttribute(&mut own, attribute, handle) })?;
            let permitted = (PLAIN_SHARED as u32).saturating_sub(own.unsigned_abs());
            self.functions.insert(call.kernel.to_owned(), Function { handle, permitted });
        }
        let function = self.functions.get_mut(call.kernel).expect("inserted above");
        if call.shared > function.permitted {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to the loaded module.
            let set = unsafe { sys::cuFuncSetAttribute(function.handle, attribute, call.shared as c_int) };
            check_of(&format!("kernel {kernel} with {} bytes of dynamic shared memory", call.shared), set)?;
            function.permitted = call.shared;
        }
        Ok(function.handle)
    }

    /// # Safety
    /// Its context is current, and nothing of it is used again.
    pub unsafe fn unload(&mut self) {
        // SAFETY: as the caller says.
        unsafe { sys::cuModuleUnload(self.handle) };
    }
}

/// Eight bytes of the image, the last ones filled up with zeros.
fn padded(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

/// As the copy engine reads it.
pub fn encoded(TensorMap { tensor, rows }: &TensorMap) -> Result<sys::CUtensorMap> {
    let bytes = tensor.dtype.bytes();
    let element = match tensor.dtype {
        DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F64 | DType::U32 => return Err(DeviceError::Invalid("only products' operands are copied by boxes".to_owned())),
    };
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let (shape, pitch) = ([tensor.columns as u64, tensor.rows as u64], (tensor.ld * bytes) as u64);
    // SAFETY: arrays of two dimensions, one stride between them; the driver checks the rest and reads no memory of the device.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            element,
            2,
            tensor.at as *mut c_void,
            shape.as_ptr(),
            &pitch,
            [(128 / bytes) as u32, *rows].as_ptr(),
            [1, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check_of(&format!("a map of {tensor:?} in boxes of {rows} rows"), encoded)?;
    Ok(map)
}
