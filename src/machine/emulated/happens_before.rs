//! Which accesses are ordered: operations of streams by their clocks, blocks by fences and atomics, threads by barriers.

use super::check::Kind;
use super::machine::{Moment, WARP, split, volume};
use super::shadow::{ATOMIC, Cell, MANY, Stamp, WARPS};

/// What the check knows of the running operation, and when memory was last ordered within it.
#[derive(Default)]
pub struct HappensBefore {
    pub moment: Moment,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub block_index: u32,
    /// Counts what orders memory during a launch.
    pub time: u32,
    pub barrier_time: u32,
    /// (warps of the block) when memory was last ordered among the lanes of each.
    pub warp_times: Vec<u32>,
    /// (blocks) when each last published its writes, and when each last looked for those of others.
    pub released: Vec<u32>,
    pub acquired: Vec<u32>,
    pub fence: Vec<u32>,
}

impl HappensBefore {
    /// Forgets the operation before this one.
    pub fn begin(&mut self, moment: &Moment, grid: [u32; 3], block: [u32; 3]) {
        self.moment.operation = moment.operation;
        self.moment.clock.clone_from(&moment.clock);
        (self.grid, self.block, self.block_index) = (grid, block, 0);
        (self.time, self.barrier_time) = (1, 0);
        let blocks = volume(grid);
        for times in [&mut self.released, &mut self.acquired, &mut self.fence] {
            times.clear();
            times.resize(blocks, 0);
        }
    }

    pub fn begin_block(&mut self, block: u32) {
        self.block_index = block;
        self.time += 1;
        self.barrier_time = 0;
        self.warp_times.clear();
        self.warp_times.resize(volume(self.block).div_ceil(WARP), 0);
    }

    /// The stamp of an access of this thread, whose bytes are yet to be said.
    pub fn stamp(&self, kind: Kind, operation: u32, thread: usize) -> Stamp {
        let flags = if kind == Kind::Atomic { ATOMIC } else { 0 };
        Stamp { operation, block: self.block_index, time: self.time, thread: thread as u16, mask: 0, flags }
    }

    /// One access to one cell.
    #[inline]
    pub fn step(&self, cell: &mut Cell, now: Stamp, kind: Kind) -> Result<(), String> {
        let mask = now.mask;
        if cell.in_flight & mask != 0 && kind != Kind::CopyEnds {
            return Err("an async copy into these bytes has not been waited for".to_owned());
        }
        if matches!(kind, Kind::Read | Kind::Atomic) && cell.written & mask != mask {
            return Err("nothing has been written there yet".to_owned());
        }
        if kind != Kind::CopyEnds {
            self.ordered(cell.write, now, "written")?;
            if kind != Kind::Read {
                self.ordered(cell.read, now, "read")?;
            }
        }
        match kind {
            Kind::Read => self.note_read(&mut cell.read, now),
            _ => cell.write = now,
        }
        match kind {
            Kind::Read => {}
            Kind::Write | Kind::Atomic => cell.written |= mask,
            Kind::CopyStarts => cell.in_flight |= mask,
            Kind::CopyEnds => {
                cell.in_flight &= !mask;
                cell.written |= mask;
            }
        }
        Ok(())
    }

    /// A fault unless `before` is known to be over when `now` happens.
    #[inline]
    fn ordered(&self, before: Stamp, now: Stamp, verb: &str) -> Result<(), String> {
        if before.mask & now.mask == 0 || before.flags & now.flags & ATOMIC != 0 || self.follows(before, now) {
            return Ok(());
        }
        Err(self.race(before, now, verb))
    }

    #[cold]
    fn race(&self, before: Stamp, now: Stamp, verb: &str) -> String {
        if before.operation != now.operation {
            let stream = before.operation / Moment::PLACES;
            format!("race: it was {verb} by an operation of stream {stream}, and no event puts that before this one")
        } else if before.block != now.block {
            format!("race: block {:?} has {verb} it in the same launch", split(before.block, self.grid))
        } else {
            let other = split(u32::from(before.thread), self.block);
            format!("race: thread {other:?} has {verb} it and there is no barrier between")
        }
    }

    #[inline]
    fn follows(&self, before: Stamp, now: Stamp) -> bool {
        if before.operation != now.operation {
            return self.moment.follows(before.operation);
        }
        if before.block != now.block {
            let released = self.released[before.block as usize];
            return before.time < released && released <= self.acquired[now.block as usize];
        }
        let warp = usize::from(now.thread) / WARP;
        let same_thread = before.flags & MANY == 0 && before.thread == now.thread;
        let same_warp = before.flags & WARPS == 0 && usize::from(before.thread) / WARP == warp;
        same_thread || before.time < self.barrier_time || (same_warp && before.time < self.warp_times[warp])
    }

    /// Notes a reader. One that does not follow the reader before it stands for both.
    fn note_read(&self, read: &mut Stamp, now: Stamp) {
        let together = read.mask != 0 && read.operation == now.operation && read.block == now.block && !self.follows(*read, now);
        let before = *read;
        *read = now;
        if together {
            let other_warp = usize::from(before.thread) / WARP != usize::from(now.thread) / WARP;
            read.mask |= before.mask;
            read.flags |= before.flags & (MANY | WARPS) | MANY | if other_warp { WARPS } else { 0 };
        }
    }
}
