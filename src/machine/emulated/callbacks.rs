//! What kernels compiled as C++ call: CUDA's built-ins (declared in kernels/emulation/emulated.h) and the checks that the
//! compiler put around every load and store (the interface of -fsanitize=thread).
//!
//! Everything here runs on a fiber of the running launch, so [`running`] is its machine and no reference into it is held
//! across [`pause`] or a fault.

use std::ffi::c_void;

use super::check::{Kind, access};
use super::machine::{AsyncCopy, Exchange, Machine, SLOT, State, WARP, fault, pause, running};

#[repr(C)]
pub struct Index {
    x: u32,
    y: u32,
    z: u32,
}

impl From<(u32, u32, u32)> for Index {
    fn from((x, y, z): (u32, u32, u32)) -> Self {
        Self { x, y, z }
    }
}

/// The machine of the launch whose fiber calls.
fn machine() -> &'static mut Machine {
    // SAFETY: callbacks are only reached from kernels, and those only run in a launch; each use of the reference ends before
    // the fiber is left.
    unsafe { &mut *running() }
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_thread_index() -> Index {
    let machine = machine();
    machine.threads[machine.current].index.into()
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_block_index() -> Index {
    super::machine::split(machine().past.block_index, machine().past.grid).into()
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_block_size() -> Index {
    let [x, y, z] = machine().past.block;
    Index { x, y, z }
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_grid_size() -> Index {
    let [x, y, z] = machine().past.grid;
    Index { x, y, z }
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_dynamic_shared() -> *mut c_void {
    machine().dynamic.as_mut_ptr().cast()
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_block_barrier(vote: i32, line: i32) -> i32 {
    let m = machine();
    m.votes += vote;
    let current = m.current;
    m.threads[current].state = State::Barrier { line };
    m.at_barrier += 1;
    if m.at_barrier == m.threads.len() {
        let elsewhere = m.threads.iter().position(|thread| thread.state != State::Barrier { line });
        if let Some(other) = elsewhere {
            let what = format!("divergent barrier: waits at line {line}, {} waits at another one", m.place(other));
            // SAFETY: on a fiber of the launch, `m` is not used any more.
            unsafe { fault(running(), what) }
        }
        m.past.time += 1;
        m.past.barrier_time = m.past.time;
        (m.votes_of_last_barrier, m.votes, m.at_barrier) = (m.votes, 0, 0);
        m.threads.iter_mut().for_each(|thread| thread.state = State::Ready);
    } else {
        // SAFETY: on a fiber of the launch, `m` is not used any more.
        unsafe { pause(running()) }
    }
    machine().votes_of_last_barrier
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_warp_barrier(mask: u32, line: i32) {
    meet(mask, line, |machine, warp| {
        machine.past.time += 1;
        machine.past.warp_times[warp] = machine.past.time;
    });
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_exchange(mine: *const u8, bytes: i32, mask: u32, line: i32) -> *const u8 {
    let m = machine();
    let thread = &mut m.threads[m.current];
    // SAFETY: the kernel gives `bytes` of its own, at most SLOT as the header asserts.
    unsafe { std::ptr::copy_nonoverlapping(mine, thread.mine.as_mut_ptr(), bytes as usize) };
    let held = std::mem::replace(&mut thread.holding, std::ptr::null_mut());
    if !held.is_null() {
        // SAFETY: exchanges live as long as the block, and no other reference to this one exists now.
        unsafe { (*held).readers -= 1 };
    }
    meet(mask, line, |machine, warp| hand_out(machine, warp, mask));
    let m = machine();
    // SAFETY: `hand_out` gave this thread an exchange.
    unsafe { (*m.threads[m.current].holding).slots.as_ptr().cast() }
}

/// Gathers what the lanes of `mask` gave.
fn hand_out(machine: &mut Machine, warp: usize, mask: u32) {
    let free = machine.warps[warp].exchanges.iter().position(|exchange| exchange.readers == 0);
    let free = free.unwrap_or_else(|| {
        machine.warps[warp].exchanges.push(Box::new(Exchange { slots: [[0; SLOT]; WARP], readers: 0 }));
        machine.warps[warp].exchanges.len() - 1
    });
    let exchange: *mut Exchange = &mut *machine.warps[warp].exchanges[free];
    // SAFETY: the box lives as long as the block, and nobody reads it: it was free.
    let slots = unsafe { &mut (*exchange).slots };
    for lane in lanes(mask) {
        let thread = &mut machine.threads[warp * WARP + lane];
        slots[lane] = thread.mine;
        thread.holding = exchange;
    }
    // SAFETY: as above.
    unsafe { (*exchange).readers = mask.count_ones() as usize };
}

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..WARP).filter(move |lane| mask >> lane & 1 == 1)
}

/// Waits until all lanes of `mask` are at the same operation; the last of them completes it.
fn meet(mask: u32, line: i32, complete: impl FnOnce(&mut Machine, usize)) {
    let m = machine();
    let (current, warp) = (m.current, m.current / WARP);
    if mask >> (current % WARP) & 1 == 0 {
        // SAFETY: on a fiber of the launch, `m` is not used any more.
        unsafe { fault(running(), format!("warp operation at line {line} with a mask ({mask:#010x}) that leaves this lane out")) }
    }
    let waiting = State::Warp { mask, line };
    m.threads[current].state = waiting;
    let there = |lane: usize| m.threads.get(warp * WARP + lane).is_some_and(|thread| thread.state == waiting);
    if lanes(mask).all(there) {
        complete(m, warp);
        lanes(mask).for_each(|lane| m.threads[warp * WARP + lane].state = State::Ready);
    } else {
        // SAFETY: on a fiber of the launch, `m` is not used any more.
        unsafe { pause(running()) }
    }
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_undefined_lane(lane: i32, line: i32) {
    // SAFETY: on a fiber of the launch.
    unsafe { fault(running(), format!("shuffle at line {line} reads lane {lane}, which its mask leaves out")) }
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_atomic(address: usize, bytes: i32) {
    // SAFETY: on a fiber of the launch.
    unsafe { access(running(), address, bytes as usize, Kind::Atomic) };
    let m = machine();
    if m.heap.region(address).is_some() {
        let past = &mut m.past;
        let block = past.block_index as usize;
        past.time += 1;
        past.released[block] = past.fence[block];
        past.acquired[block] = past.time;
    }
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_fence() {
    let past = &mut machine().past;
    past.time += 1;
    past.fence[past.block_index as usize] = past.time;
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_copy_async(to: usize, from: usize, bytes: i32, source_bytes: i32) {
    let (len, source_len) = (bytes as usize, source_bytes as usize);
    let shape = [4, 8, 16].contains(&len) && source_len <= len;
    if !shape || !to.is_multiple_of(len) || (source_len > 0 && !from.is_multiple_of(len)) {
        let what = format!(
            "async copy of {len} bytes ({source_len} from the source) from 0x{from:x} to 0x{to:x}: sizes are 4, 8 or 16, addresses multiples of them"
        );
        // SAFETY: on a fiber of the launch.
        unsafe { fault(running(), what) }
    }
    // SAFETY: on a fiber of the launch.
    unsafe {
        if source_len > 0 {
            access(running(), from, source_len, Kind::Read);
        }
        access(running(), to, len, Kind::CopyStarts);
    }
    let m = machine();
    m.threads[m.current].issued.push(AsyncCopy { to, from, len, source_len });
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_copy_async_commit() {
    let m = machine();
    let thread = &mut m.threads[m.current];
    thread.groups.push_back(std::mem::take(&mut thread.issued));
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_copy_async_wait(groups_left: i32) {
    loop {
        let m = machine();
        let thread = &mut m.threads[m.current];
        if thread.groups.len() <= groups_left as usize {
            return;
        }
        let Some(group) = thread.groups.pop_front() else { return };
        for copy in group {
            // SAFETY: both ends were checked when the copy was issued; on a fiber of the launch.
            unsafe {
                std::ptr::copy_nonoverlapping(copy.from as *const u8, copy.to as *mut u8, copy.source_len);
                ((copy.to + copy.source_len) as *mut u8).write_bytes(0, copy.len - copy.source_len);
                access(running(), copy.to, copy.len, Kind::CopyEnds);
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn taskloom_aligned(address: usize, len: i32) {
    check_alignment(running(), address, len as usize);
}

#[inline(always)]
fn check_alignment(machine: *mut Machine, address: usize, len: usize) {
    if !machine.is_null() && !address.is_multiple_of(len) {
        // SAFETY: on a fiber of the launch.
        unsafe { fault(machine, format!("misaligned access of {len} bytes at 0x{address:x}")) }
    }
}

/// A load or store that the compiler announced.
#[inline(always)]
fn touch(address: usize, len: usize, kind: Kind, aligned: bool) {
    let machine = running();
    if machine.is_null() {
        return;
    }
    if aligned {
        check_alignment(machine, address, len);
    }
    // SAFETY: on a fiber of the launch.
    unsafe { access(machine, address, len, kind) }
}

macro_rules! instrumentation {
    ($($name:ident $len:literal $kind:ident $aligned:literal;)*) => {
        $(#[unsafe(no_mangle)]
        extern "C" fn $name(address: usize) {
            touch(address, $len, Kind::$kind, $aligned);
        })*
    };
}

instrumentation! {
    __tsan_read1 1 Read true;
    __tsan_read2 2 Read true;
    __tsan_read4 4 Read true;
    __tsan_read8 8 Read true;
    __tsan_read16 16 Read true;
    __tsan_write1 1 Write true;
    __tsan_write2 2 Write true;
    __tsan_write4 4 Write true;
    __tsan_write8 8 Write true;
    __tsan_write16 16 Write true;
    __tsan_unaligned_read2 2 Read false;
    __tsan_unaligned_read4 4 Read false;
    __tsan_unaligned_read8 8 Read false;
    __tsan_unaligned_read16 16 Read false;
    __tsan_unaligned_write2 2 Write false;
    __tsan_unaligned_write4 4 Write false;
    __tsan_unaligned_write8 8 Write false;
    __tsan_unaligned_write16 16 Write false;
}

#[unsafe(no_mangle)]
extern "C" fn __tsan_read_range(address: usize, len: usize) {
    touch(address, len, Kind::Read, false);
}

#[unsafe(no_mangle)]
extern "C" fn __tsan_write_range(address: usize, len: usize) {
    touch(address, len, Kind::Write, false);
}

#[unsafe(no_mangle)]
extern "C" fn __tsan_init() {}

#[unsafe(no_mangle)]
extern "C" fn __tsan_func_entry(_: usize) {}

#[unsafe(no_mangle)]
extern "C" fn __tsan_func_exit() {}

/// clang's name for a copy.
///
/// # Safety
/// As memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn __tsan_memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    touch(from as usize, len, Kind::Read, false);
    touch(to as usize, len, Kind::Write, false);
    // SAFETY: as the caller promises.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
    to
}

/// clang's name for a fill.
///
/// # Safety
/// As memset.
#[unsafe(no_mangle)]
unsafe extern "C" fn __tsan_memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    touch(to as usize, len, Kind::Write, false);
    // SAFETY: as the caller promises.
    unsafe { to.write_bytes(value as u8, len) };
    to
}
