//! A device that computes nothing and adds up what a run would allocate on it.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::driver::{Address, Card, Driver, EventId, GraphId, MemoryInfo, Priority, Result, StagingId, StreamId};
use super::launch::Launch;

/// (name, bytes) in the order of allocation.
pub type Buffers = Rc<RefCell<Vec<(String, u64)>>>;

#[derive(Default)]
pub struct Planned {
    buffers: Buffers,
    streams: usize,
    events: usize,
    /// Room that nothing reads; the system hands out its pages when they are written.
    staging: Vec<Vec<u8>>,
}

impl Planned {
    /// The device, and the list that it writes.
    pub fn driver() -> (Box<dyn Driver>, Buffers) {
        let planned = Self::default();
        let buffers = Rc::clone(&planned.buffers);
        (Box::new(planned), buffers)
    }
}

impl Driver for Planned {
    fn name(&self) -> String {
        "planned".to_owned()
    }

    fn card(&self) -> Card {
        Card::PLAIN
    }

    fn memory(&self) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: u64::MAX, total: u64::MAX })
    }

    fn allocate(&mut self, name: &str, bytes: usize) -> Result<Address> {
        let mut buffers = self.buffers.borrow_mut();
        buffers.push((name.to_owned(), bytes as u64));
        Ok((buffers.len() as Address) << 40)
    }

    fn free(&mut self, _: Address) {}

    fn stream(&mut self, _: Priority) -> Result<StreamId> {
        self.streams += 1;
        Ok(StreamId(self.streams - 1))
    }

    fn event(&mut self) -> Result<EventId> {
        self.events += 1;
        Ok(EventId(self.events - 1))
    }

    fn timer(&mut self) -> Result<EventId> {
        self.event()
    }

    fn event_done(&mut self, _: EventId) -> Result<bool> {
        Ok(true)
    }

    fn elapsed(&mut self, _: EventId, _: EventId) -> Result<Duration> {
        Ok(Duration::ZERO)
    }

    fn record(&mut self, _: EventId, _: StreamId) -> Result<()> {
        Ok(())
    }

    fn wait(&mut self, _: StreamId, _: EventId) -> Result<()> {
        Ok(())
    }

    fn staging(&mut self, bytes: usize) -> Result<StagingId> {
        self.staging.push(vec![0; bytes]);
        Ok(StagingId(self.staging.len() - 1))
    }

    fn staging_bytes(&mut self, staging: StagingId) -> Result<&mut [u8]> {
        Ok(&mut self.staging[staging.0])
    }

    fn copy_in(&mut self, _: StreamId, _: Address, _: StagingId, _: Range<usize>) -> Result<()> {
        Ok(())
    }

    fn copy_out(&mut self, _: StreamId, _: StagingId, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    fn copy(&mut self, _: StreamId, _: Address, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    fn fill(&mut self, _: StreamId, _: Address, _: u8, _: usize) -> Result<()> {
        Ok(())
    }

    fn launch(&mut self, _: StreamId, call: &Launch) -> Result<()> {
        call.check()
    }

    fn begin_capture(&mut self, _: StreamId) -> Result<()> {
        Ok(())
    }

    fn end_capture(&mut self, _: StreamId) -> Result<GraphId> {
        Ok(GraphId(0))
    }

    fn replay(&mut self, _: GraphId, _: StreamId) -> Result<()> {
        Ok(())
    }

    fn synchronize(&mut self, _: StreamId) -> Result<()> {
        Ok(())
    }
}
