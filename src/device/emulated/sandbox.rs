//! Memory and launches of the emulated machine for tests of single kernels: every launch follows the one before.

use std::ffi::c_void;

use super::check::Kind;
use super::kernels;
use super::machine::{Launch, Machine, Moment, ThreadOrder, with_machine};

/// Device memory that is freed with it.
pub struct Sandbox {
    allocations: Vec<usize>,
    seed: u64,
    /// Launches and reads so far.
    operations: u32,
}

impl Sandbox {
    /// `seed` chooses the order of blocks and of the threads in them.
    pub fn new(seed: u64) -> Self {
        Self { allocations: Vec::new(), seed, operations: 0 }
    }

    /// Bytes that nobody has written.
    pub fn allocate(&mut self, len: usize) -> u64 {
        let name = format!("buffer {}", self.allocations.len());
        let at = with_machine(|machine| machine.heap.allocate(&name, len)).expect("tests need little memory");
        self.allocations.push(at);
        at as u64
    }

    /// The place of an operation that follows all before it.
    fn next(&mut self) -> Moment {
        self.operations += 1;
        Moment { operation: self.operations, clock: vec![self.operations - 1] }
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let moment = self.next();
        with_machine(|machine| machine.host_write(at as usize, bytes, &moment)).unwrap_or_else(|fault| panic!("{fault}"));
    }

    /// Panics where nobody has written.
    pub fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        let moment = self.next();
        with_machine(|machine| {
            machine.host_access(at as usize, len, Kind::Read, &moment).unwrap_or_else(|fault| panic!("{fault}"));
            // SAFETY: the access lies inside an allocation, as just checked.
            unsafe { std::slice::from_raw_parts(at as *const u8, len) }.to_vec()
        })
    }

    /// Runs a kernel; `arguments` hold one argument each in their first bytes. Panics on any fault.
    pub fn launch(&mut self, kernel: &str, grid: [u32; 3], threads: u32, shared: usize, arguments: &[u64]) {
        let found = kernels::find(kernel).unwrap_or_else(|| panic!("no kernel {kernel}"));
        assert_eq!(found.sizes().len(), arguments.len(), "arguments of {kernel}");
        let pointers: Vec<*const c_void> = arguments.iter().map(|argument| std::ptr::from_ref(argument).cast()).collect();
        let order = [ThreadOrder::Ascending, ThreadOrder::Descending, ThreadOrder::Shuffled][self.seed as usize % 3];
        let moment = self.next();
        let run = |machine: &mut Machine| {
            machine.launch(&Launch {
                kernel: found,
                grid,
                block: [threads, 1, 1],
                shared,
                arguments: &pointers,
                seed: self.seed,
                order,
                moment: moment.clone(),
            })
        };
        with_machine(run).unwrap_or_else(|fault| panic!("{kernel}: {fault}"));
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        with_machine(|machine| self.allocations.iter().for_each(|&at| machine.heap.free(at)));
    }
}
