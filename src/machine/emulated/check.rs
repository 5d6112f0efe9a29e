//! The check of every access of a kernel: inside an allocation, aligned, written before it is read, and ordered against what
//! other threads, blocks and streams did to the same bytes.

use super::machine::{Machine, Moment, WARP, fault, split};
use super::shadow::{ATOMIC, Cell, HALVES, MANY, Stamp, WARPS, cells};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Read,
    Write,
    Atomic,
    /// The start of an async copy into these bytes.
    CopyStarts,
    /// Its end, at the wait.
    CopyEnds,
}

impl Kind {
    fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic access",
            Self::CopyStarts | Self::CopyEnds => "async copy",
        }
    }
}

unsafe extern "C" {
    static __executable_start: u8;
    static data_start: u8;
    static _end: u8;
}

/// Where an address lies.
enum Space {
    /// Offset in the region of the heap that holds it.
    Global,
    Shared,
    /// A thread's own stack, or a constant of the program.
    Unchecked,
}

/// Checks one access of the running thread and notes it; a fault ends the launch.
///
/// # Safety
/// Called on a fiber of the launch of `machine`, with no reference into it alive.
pub unsafe fn access(machine: *mut Machine, address: usize, len: usize, kind: Kind) {
    // SAFETY: this fiber is the only one that runs; the reference ends before `fault` leaves the fiber.
    let found = unsafe { (*machine).check(address, len, kind) };
    if let Err(what) = found {
        // SAFETY: as above.
        unsafe { fault(machine, what) }
    }
}

impl Machine {
    /// Checks and notes an access from outside of kernels (a copy or a fill) at this moment.
    pub fn host_access(&mut self, address: usize, len: usize, kind: Kind, moment: &Moment) -> Result<(), String> {
        self.moment = moment.clone();
        (self.current, self.block_index, self.time, self.barrier_time) = (0, 0, 0, 0);
        if len == 0 { Ok(()) } else { self.check(address, len, kind) }
    }

    /// Copies from the host.
    pub fn host_write(&mut self, address: usize, bytes: &[u8], moment: &Moment) -> Result<(), String> {
        self.host_access(address, bytes.len(), Kind::Write, moment)?;
        // SAFETY: the access lies inside an allocation, as just checked.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    /// Copies to the host.
    pub fn host_read(&mut self, address: usize, bytes: &mut [u8], moment: &Moment) -> Result<(), String> {
        self.host_access(address, bytes.len(), Kind::Read, moment)?;
        // SAFETY: the access lies inside an allocation, as just checked.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn check(&mut self, address: usize, len: usize, kind: Kind) -> Result<(), String> {
        let space = self.space(address, len, kind)?;
        match space {
            Space::Unchecked => Ok(()),
            Space::Shared => {
                let now = self.stamp(kind, self.serial);
                for (cell, mask) in cells(address, len) {
                    let mut copy = *self.shared.cell(cell);
                    if copy.writes.iter().chain(&copy.reads).all(|stamp| stamp.operation != self.serial) {
                        copy = Cell::default();
                    }
                    self.step(&mut copy, Stamp { mask, ..now }, kind).map_err(|what| {
                        format!("{} of {len} bytes in shared memory{}: {what}", kind.verb(), self.shared_offset(address))
                    })?;
                    *self.shared.cell(cell) = copy;
                }
                Ok(())
            }
            Space::Global => {
                let now = self.stamp(kind, self.moment.operation);
                let start = self.heap.region(address).map_or(0, |region| region.start);
                for (cell, mask) in cells(address - start, len) {
                    let mut copy = *self.heap.region(address).expect("found above").shadow.cell(cell);
                    let outcome = self.step(&mut copy, Stamp { mask, ..now }, kind);
                    let region = self.heap.region(address).expect("found above");
                    outcome.map_err(|what| {
                        format!("{} of {len} bytes at \"{}\" + {}: {what}", kind.verb(), region.name, address - start)
                    })?;
                    *region.shadow.cell(cell) = copy;
                }
                Ok(())
            }
        }
    }

    fn space(&mut self, address: usize, len: usize, kind: Kind) -> Result<Space, String> {
        if let Some(region) = self.heap.region(address) {
            let end = region.start + region.len;
            if address + len > end {
                return Err(format!("{} of {len} bytes: {}", kind.verb(), self.heap.describe(end + (address + len - end - 1))));
            }
            return Ok(Space::Global);
        }
        let dynamic = self.dynamic.as_ptr() as usize;
        if (dynamic..dynamic + self.dynamic.len() * 16).contains(&address) {
            if address + len > dynamic + self.dynamic_len {
                let (offset, room) = (address - dynamic, self.dynamic_len);
                return Err(format!("{} of {len} bytes at {offset} of {room} bytes of dynamic shared memory", kind.verb()));
            }
            return Ok(Space::Shared);
        }
        if self.stacks.as_ref().is_some_and(|stacks| stacks.range().contains(&address)) {
            return Ok(Space::Unchecked);
        }
        let (image, data, end) =
            (&raw const __executable_start as usize, &raw const data_start as usize, &raw const _end as usize);
        match address {
            address if (data..end).contains(&address) => Ok(Space::Shared),
            address if (image..data).contains(&address) && kind == Kind::Read => Ok(Space::Unchecked),
            _ => Err(format!("{} of {len} bytes: {}", kind.verb(), self.heap.describe(address))),
        }
    }

    fn shared_offset(&self, address: usize) -> String {
        let dynamic = self.dynamic.as_ptr() as usize;
        let inside = (dynamic..dynamic + self.dynamic_len).contains(&address);
        if inside { format!(" at byte {} of the dynamic part", address - dynamic) } else { " (a static array)".to_owned() }
    }

    fn stamp(&self, kind: Kind, operation: u32) -> Stamp {
        let flags = if kind == Kind::Atomic { ATOMIC } else { 0 };
        Stamp { operation, block: self.block_index, time: self.time, thread: self.current as u16, mask: 0, flags }
    }

    /// One access to one cell.
    fn step(&self, cell: &mut Cell, now: Stamp, kind: Kind) -> Result<(), String> {
        let mask = now.mask;
        if cell.in_flight & mask != 0 && kind != Kind::CopyEnds {
            return Err("an async copy into these bytes has not been waited for".to_owned());
        }
        if matches!(kind, Kind::Read | Kind::Atomic) && cell.written & mask != mask {
            return Err("nothing has been written there yet".to_owned());
        }
        if kind != Kind::CopyEnds {
            cell.writes.iter().try_for_each(|&write| self.ordered(write, now, "written"))?;
            if kind != Kind::Read {
                cell.reads.iter().try_for_each(|&read| self.ordered(read, now, "read"))?;
            }
        }
        for (half, bytes) in HALVES.into_iter().enumerate().filter(|(_, bytes)| mask & bytes != 0) {
            let own = Stamp { mask: mask & bytes, ..now };
            match kind {
                Kind::Read => self.note_read(&mut cell.reads[half], own),
                _ => cell.writes[half] = own,
            }
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
    fn ordered(&self, before: Stamp, now: Stamp, verb: &str) -> Result<(), String> {
        if before.mask & now.mask == 0 || before.flags & now.flags & ATOMIC != 0 || self.follows(before, now) {
            return Ok(());
        }
        Err(if before.operation != now.operation {
            let stream = before.operation / Moment::PLACES;
            format!("race: it was {verb} by an operation of stream {stream}, and no event puts that before this one")
        } else if before.block != now.block {
            format!("race: block {:?} has {verb} it in the same launch", split(before.block, self.grid))
        } else {
            let other = split(u32::from(before.thread), self.block);
            format!("race: thread {other:?} has {verb} it and there is no barrier between")
        })
    }

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
        same_thread || before.time < self.barrier_time || (same_warp && before.time < self.warps[warp].ordered)
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
