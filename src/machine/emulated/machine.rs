//! One launch: its blocks one after another in a seeded order, the threads of a block as fibers.
//!
//! A thread runs until it waits for others or ends, so everything happens on one thread of the host, and the same seed gives
//! the same interleaving. A fault leaves the fibers where they are; their stacks are simply used again.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ops::Range;

use super::fiber::{Fiber, Pause, Stacks};
use super::happens_before::HappensBefore;
use super::kernels::Kernel;
use super::memory::Heap;
use super::shadow::Shadow;
use crate::random::Random;

pub const WARP: usize = 32;

/// Bytes that a lane can give in an exchange, as in kernels/emulation/emulated.h.
pub const SLOT: usize = 128;

/// Most shared memory of a block, as on sm_90.
pub const MAX_SHARED: usize = 227 << 10;

const MAX_THREADS: usize = 1024;

/// In which order the threads of a block get their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadOrder {
    Ascending,
    Descending,
    Shuffled,
}

/// A launch as the device saw it.
pub struct Launch<'a> {
    pub kernel: &'static Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// One pointer per argument of the kernel.
    pub arguments: &'a [*const c_void],
    pub seed: u64,
    pub order: ThreadOrder,
    pub moment: Moment,
}

/// Where an operation stands among those of all streams.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Stream in the upper 8 bits, place in the stream below.
    pub operation: u32,
    /// The newest operation of each stream that is known to be over.
    pub clock: Vec<u32>,
}

impl Moment {
    pub const PLACES: u32 = 1 << 24;

    /// Whether `operation` is over when this one starts.
    pub fn follows(&self, operation: u32) -> bool {
        operation % Self::PLACES <= self.clock.get((operation / Self::PLACES) as usize).copied().unwrap_or(0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    Barrier { line: i32 },
    Warp { mask: u32, line: i32 },
    Done,
}

pub struct AsyncCopy {
    pub to: usize,
    pub from: usize,
    pub len: usize,
    /// Bytes taken from the source; the rest becomes zero.
    pub source_len: usize,
}

pub struct Thread {
    pub index: (u32, u32, u32),
    /// Absent while it runs.
    fiber: Option<Fiber>,
    /// Null before it has run.
    pause: *const Pause,
    pub state: State,
    pub mine: [u8; SLOT],
    /// The exchange whose values this thread may still read; null if none.
    pub holding: *mut Exchange,
    pub issued: Vec<AsyncCopy>,
    pub groups: VecDeque<Vec<AsyncCopy>>,
}

/// Values of the lanes of one finished exchange.
pub struct Exchange {
    pub slots: [[u8; SLOT]; WARP],
    pub readers: usize,
}

#[derive(Default)]
#[allow(clippy::vec_box, reason = "threads keep pointers to exchanges while more are made")]
pub struct Warp {
    pub exchanges: Vec<Box<Exchange>>,
}

#[derive(Default)]
pub struct Machine {
    pub heap: Heap,
    pub dynamic_shadow: Shadow,
    pub static_shadow: Shadow,
    /// Dynamic shared memory, of which the running launch has so many bytes.
    pub dynamic: Vec<u128>,
    pub dynamic_len: usize,
    /// Where static shared arrays lie: the thread-local variables of the thread that launches.
    pub statics: Range<usize>,
    pub stacks: Option<Stacks>,
    /// Tells the blocks of this machine apart.
    pub serial: u32,
    pub past: HappensBefore,
    pub votes: i32,
    pub votes_of_last_barrier: i32,
    /// Threads of the block that wait at a block barrier.
    pub at_barrier: usize,
    pub warps: Vec<Warp>,
    pub threads: Vec<Thread>,
    pub current: usize,
    call: Option<(&'static Kernel, *const *const c_void)>,
    fault: Option<String>,
}

// SAFETY: the pointers lead into boxes that the machine owns, and a launch is over before the machine changes hands.
unsafe impl Send for Machine {}

thread_local! {
    static RUNNING: Cell<*mut Machine> = const { Cell::new(std::ptr::null_mut()) };
}

/// The machine of the launch that runs on this thread; null outside of one.
pub fn running() -> *mut Machine {
    RUNNING.get()
}

impl Machine {
    /// Runs a whole grid; the error is a fault's description.
    pub fn launch(&mut self, launch: &Launch) -> Result<(), String> {
        let threads = volume(launch.block);
        check_shape(launch)?;
        if self.stacks.as_ref().is_none_or(|stacks| stacks.count() < threads) {
            self.stacks = Some(Stacks::new(threads.next_multiple_of(64)).map_err(|error| format!("{error:#}"))?);
        }
        if self.dynamic.is_empty() {
            self.dynamic = vec![0; MAX_SHARED / 16];
        }
        self.past.begin(&launch.moment, launch.grid, launch.block);
        self.dynamic_len = launch.shared;
        self.statics = thread_local_variables();
        self.call = Some((launch.kernel, launch.arguments.as_ptr()));
        let mut random = Random(launch.seed);
        let order = random.order(volume(launch.grid));
        RUNNING.set(self);
        for block in order {
            self.run_block(block, launch.order, &mut random);
            if self.fault.is_some() {
                break;
            }
        }
        RUNNING.set(std::ptr::null_mut());
        // Where that thread's variables are, other memory may be when it is gone.
        self.statics = 0..0;
        self.call = None;
        match self.fault.take() {
            Some(fault) => Err(format!("kernel {}: {fault}", launch.kernel.name())),
            None => Ok(()),
        }
    }

    fn run_block(&mut self, block: usize, order: ThreadOrder, random: &mut Random) {
        let count = volume(self.past.block);
        self.serial += 1;
        self.past.begin_block(block as u32);
        (self.votes, self.at_barrier) = (0, 0);
        self.warps.clear();
        self.warps.resize_with(count.div_ceil(WARP), Warp::default);
        self.threads.clear();
        let stacks = self.stacks.as_mut().expect("made for this launch");
        for index in 0..count {
            self.threads.push(Thread {
                index: split(index as u32, self.past.block),
                // SAFETY: the machine's stacks are replaced between launches only; the fibers of the last block are gone.
                fiber: Some(unsafe { stacks.start(index, thread_main) }),
                pause: std::ptr::null(),
                state: State::Ready,
                mine: [0; SLOT],
                holding: std::ptr::null_mut(),
                issued: Vec::new(),
                groups: VecDeque::new(),
            });
        }
        let turns = match order {
            ThreadOrder::Ascending => (0..count).collect(),
            ThreadOrder::Descending => (0..count).rev().collect(),
            ThreadOrder::Shuffled => random.order(count),
        };
        loop {
            let mut progress = false;
            for &index in &turns {
                if self.threads[index].state == State::Ready {
                    progress = true;
                    self.resume(index);
                    if self.fault.is_some() {
                        return;
                    }
                }
            }
            if !progress {
                break;
            }
        }
        self.fault = self.stuck();
    }

    fn resume(&mut self, index: usize) {
        self.current = index;
        // Taken out: the thread may not be borrowed while its fiber looks at it.
        let mut fiber = self.threads[index].fiber.take().expect("no thread resumes another");
        fiber.resume();
        self.threads[index].fiber = Some(fiber);
    }

    /// Why a block whose threads all wait cannot go on; none if all are done.
    fn stuck(&self) -> Option<String> {
        let waiting = self.threads.iter().position(|thread| thread.state != State::Done)?;
        let what = match self.threads[waiting].state {
            State::Warp { mask, line } => {
                let lane = |index: usize| index / WARP == waiting / WARP && mask >> (index % WARP) & 1 == 1;
                let other = (0..self.threads.len())
                    .find(|&index| lane(index) && self.threads[index].state != self.threads[waiting].state);
                format!("waits at a warp operation (line {line}, mask {mask:#010x}){}", self.other(other))
            }
            State::Barrier { line } => {
                let other = self.threads.iter().position(|thread| thread.state != self.threads[waiting].state);
                format!("waits at __syncthreads (line {line}){}", self.other(other))
            }
            State::Ready | State::Done => unreachable!("a waiting thread"),
        };
        Some(format!("{}: deadlock or divergent barrier: {what}", self.place(waiting)))
    }

    fn other(&self, index: Option<usize>) -> String {
        let Some(index) = index else { return " that lacks threads the block does not have".to_owned() };
        let state = match self.threads[index].state {
            State::Done => "has ended".to_owned(),
            State::Barrier { line } => format!("waits at __syncthreads (line {line})"),
            State::Warp { mask, line } => format!("waits at a warp operation (line {line}, mask {mask:#010x})"),
            State::Ready => "runs".to_owned(),
        };
        format!(", while thread {:?} {state}", split(index as u32, self.past.block))
    }

    /// `block (1, 0, 0), thread (5, 0, 0)`
    pub fn place(&self, thread: usize) -> String {
        format!("block {:?}, thread {:?}", split(self.past.block_index, self.past.grid), split(thread as u32, self.past.block))
    }
}

/// Leaves the running thread until the scheduler takes it up again. No reference into the machine may be held.
///
/// # Safety
/// Called on a fiber of the running launch, whose machine `machine` is.
pub unsafe fn pause(machine: *mut Machine) {
    // SAFETY: the scheduler waits in `resume`; the thread's `pause` lies on its own stack.
    unsafe {
        let pause = (&(*machine).threads)[(*machine).current].pause;
        (*pause).suspend(());
    }
}

/// Ends the launch with a fault of the running thread.
///
/// # Safety
/// As [`pause`].
pub unsafe fn fault(machine: *mut Machine, what: String) -> ! {
    // SAFETY: as the caller promises; the fiber is never resumed.
    unsafe {
        let place = (*machine).place((*machine).current);
        (*machine).fault = Some(format!("{place}: {what}"));
        drop(what);
        drop(place);
        pause(machine);
    }
    unreachable!("a faulted fiber is not resumed")
}

fn thread_main(pause: &Pause) {
    let machine = running();
    // SAFETY: runs on a fiber of the launch; the arguments outlive it.
    unsafe {
        let current = (*machine).current;
        (&mut (*machine).threads)[current].pause = pause;
        let (kernel, arguments) = (*machine).call.expect("a launch has a kernel");
        (kernel.call)(arguments);
        (&mut (*machine).threads)[current].state = State::Done;
    }
}

/// Addresses of this thread's copies of the program's thread-local variables; empty where it has none.
fn thread_local_variables() -> Range<usize> {
    unsafe extern "C" fn of_program(object: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
        // SAFETY: the linker gives an object with its headers, and `found` is the range below.
        unsafe {
            let headers = std::slice::from_raw_parts((*object).dlpi_phdr, usize::from((*object).dlpi_phnum));
            if let Some(storage) = headers.iter().find(|header| header.p_type == libc::PT_TLS) {
                let start = (*object).dlpi_tls_data as usize;
                *found.cast::<Range<usize>>() = start..start + storage.p_memsz as usize;
            }
        }
        // The program comes first, and what is loaded beside it has no kernels.
        1
    }
    let mut found: Range<usize> = 0..0;
    // SAFETY: the callback gets the range for as long as the call lasts.
    unsafe { libc::dl_iterate_phdr(Some(of_program), (&raw mut found).cast()) };
    found
}

fn check_shape(launch: &Launch) -> Result<(), String> {
    let (threads, name) = (volume(launch.block), launch.kernel.name());
    let grid_fits = launch.grid[1].max(launch.grid[2]) <= 65_535 && launch.grid[0] < 1 << 31 && volume(launch.grid) > 0;
    if threads == 0 || threads > MAX_THREADS || !grid_fits {
        return Err(format!("kernel {name}: no card runs a grid of {:?} blocks of {:?} threads", launch.grid, launch.block));
    }
    if launch.shared > MAX_SHARED {
        return Err(format!("kernel {name}: {} bytes of shared memory, a block has {MAX_SHARED}", launch.shared));
    }
    Ok(())
}

pub fn volume(size: [u32; 3]) -> usize {
    size.iter().map(|&n| n as usize).product()
}

/// Coordinates of element `index` of a box of this size, x fastest.
pub fn split(index: u32, size: [u32; 3]) -> (u32, u32, u32) {
    (index % size[0], index / size[0] % size[1], index / size[0] / size[1])
}
