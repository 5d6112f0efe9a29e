//! The kernels that the build compiled as C++, by name.

use std::ffi::{CStr, c_char, c_void};

/// As in kernels/emulation/registry.h.
#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    pub call: unsafe extern "C" fn(*const *const c_void),
    count: u32,
    sizes: *const u32,
}

#[repr(C)]
struct List {
    kernels: *const Kernel,
    count: u64,
}

unsafe extern "C" {
    static taskloom_kernel_lists: [List; 0];
    static taskloom_kernel_list_count: u64;
}

impl Kernel {
    pub fn name(&self) -> &'static str {
        // SAFETY: a string literal of the registry.
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or_default()
    }

    /// Bytes of each argument.
    pub fn sizes(&self) -> &'static [u32] {
        // SAFETY: the registry's array of `count` sizes.
        unsafe { std::slice::from_raw_parts(self.sizes, self.count as usize) }
    }
}

/// All kernels, file by file.
pub fn all() -> impl Iterator<Item = &'static Kernel> {
    // SAFETY: constants of the registry: `list_count` lists of `count` kernels each.
    let lists = unsafe {
        std::slice::from_raw_parts((&raw const taskloom_kernel_lists).cast::<List>(), taskloom_kernel_list_count as usize)
    };
    // SAFETY: as above.
    lists.iter().flat_map(|list| unsafe { std::slice::from_raw_parts(list.kernels, list.count as usize) })
}

pub fn find(name: &str) -> Option<&'static Kernel> {
    all().find(|kernel| kernel.name() == name)
}
