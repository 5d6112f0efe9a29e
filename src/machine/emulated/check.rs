//! The check of every access of a kernel: inside an allocation, written before it is read, and ordered against what other
//! threads, blocks and streams did to the same bytes ([`happens_before`](super::happens_before)).

use super::machine::{Machine, Moment, fault};
use super::shadow::{Cell, Stamp};

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
}

/// Where an address lies.
enum Space {
    Global,
    /// Dynamic shared memory, from its start.
    Dynamic(usize),
    /// A static shared array, from the start of this thread's storage.
    Static(usize),
    /// A thread's own stack, or a constant of the program.
    Unchecked,
}

/// Checks one access of the running thread and notes it; a fault ends the launch.
///
/// # Safety
/// Called on a fiber of the launch of `machine`, with no reference into it alive.
#[inline]
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
        self.past.begin(moment, [0; 3], [0; 3]);
        self.current = 0;
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
        let Self { heap, dynamic_shadow, static_shadow, past, serial, current, .. } = self;
        let (offset, shadow) = match space {
            Space::Unchecked => return Ok(()),
            Space::Dynamic(offset) => (offset, dynamic_shadow),
            Space::Static(offset) => (offset, static_shadow),
            Space::Global => {
                let region = heap.region(address).expect("found above");
                let now = past.stamp(kind, past.moment.operation, *current);
                let offset = address - region.start;
                let outcome = region.shadow.visit(offset, len, |cell, mask| past.step(cell, Stamp { mask, ..now }, kind));
                return outcome
                    .map_err(|what| format!("{} of {len} bytes at \"{}\" + {offset}: {what}", kind.verb(), region.name));
            }
        };
        let now = past.stamp(kind, *serial, *current);
        let outcome = shadow.visit(offset, len, |cell, mask| {
            if cell.write.operation != now.operation && cell.read.operation != now.operation {
                *cell = Cell::default();
            }
            past.step(cell, Stamp { mask, ..now }, kind)
        });
        outcome.map_err(|what| {
            let place = match space {
                Space::Dynamic(offset) => format!(" at byte {offset} of the dynamic part"),
                _ => " (a static array)".to_owned(),
            };
            format!("{} of {len} bytes in shared memory{place}: {what}", kind.verb())
        })
    }

    /// What is met most often stands first.
    fn space(&mut self, address: usize, len: usize, kind: Kind) -> Result<Space, String> {
        if self.stacks.as_ref().is_some_and(|stacks| stacks.range().contains(&address)) {
            return Ok(Space::Unchecked);
        }
        let dynamic = self.dynamic.as_ptr() as usize;
        if (dynamic..dynamic + self.dynamic.len() * 16).contains(&address) {
            let (offset, room) = (address - dynamic, self.dynamic_len);
            if offset + len > room {
                return Err(format!("{} of {len} bytes at {offset} of {room} bytes of dynamic shared memory", kind.verb()));
            }
            return Ok(Space::Dynamic(offset));
        }
        if self.statics.contains(&address) {
            return Ok(Space::Static(address - self.statics.start));
        }
        let (image, data) = (&raw const __executable_start as usize, &raw const data_start as usize);
        if (image..data).contains(&address) && kind == Kind::Read {
            return Ok(Space::Unchecked);
        }
        if let Some(region) = self.heap.region(address) {
            let end = region.start + region.len;
            if address + len > end {
                return Err(format!("{} of {len} bytes: {}", kind.verb(), self.heap.describe(end + (address + len - end - 1))));
            }
            return Ok(Space::Global);
        }
        Err(format!("{} of {len} bytes: {}", kind.verb(), self.heap.describe(address)))
    }
}
