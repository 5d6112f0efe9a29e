//! Rounds in flight: where the device solves a round by itself and the next one is certain, that one is given to the device before the
//! host has read the first, so that the device goes from one to the other without waiting for anybody.
//!
//! If the first turns out not to be finite, its halt holds for the second too, which then has moved nothing; what it did besides is
//! undone here.

use std::time::Instant;

use super::Accelerator;
use super::program::Step as Given;
use super::timers::RoundTimers;
use super::update_step::means;
use crate::machine::driver::DeviceError;
use crate::model::Parameters;
use crate::surgery::update::Rates;
use crate::train::backend::{DeviceSolve, Forward, Products, Work};
use crate::train::solve::Step;

/// A round that the device was given whole.
pub(super) struct Flight {
    round: u64,
    /// Which of the buffers holds its batch, and will hold its results.
    buffer: usize,
    /// Rows of the table of which the host knew that they had slots before.
    known: usize,
    timers: Option<RoundTimers>,
    given: Instant,
}

impl Accelerator {
    /// Gradients, surgery and step; waits for all of it, while the next round is given to the device or laid out.
    pub(super) fn solve_and_step(
        &mut self,
        work: &mut Work,
        solve: &DeviceSolve,
        rates: &Rates,
    ) -> Result<(Forward, Products, Step), DeviceError> {
        let count = work.tasks.len();
        let ahead = self.flight.take();
        let given = ahead.as_ref().map(|flight| flight.given);
        let flight = match ahead {
            Some(flight) => {
                assert_eq!(flight.round, work.round, "a round that the device was given is the next one");
                self.prepared = None;
                flight
            }
            None => self.give(work, solve, rates)?,
        };
        self.lay_out_next(work)?;
        self.go_ahead(work, solve)?;
        let values = self.finish(flight.buffer, count)?;
        flight.timers.iter().try_for_each(|timers| self.measure(timers, given))?;
        if values[self.results.summary() + 2] == 0.0 {
            self.call_back(work.parameters, flight.buffer)?;
        }
        let losses = means(work, &values[..count]);
        Ok((Forward { losses, balanced: None }, self.products_of(&values, work), self.solved(&values, work, solve)))
    }

    /// Whether the next round has been given to the device.
    pub fn is_ahead(&self) -> bool {
        self.flight.is_some()
    }

    fn give(&mut self, work: &mut Work, solve: &DeviceSolve, rates: &Rates) -> Result<Flight, DeviceError> {
        let (mut program, packed) = self.whole_program(work, solve, rates)?;
        let (buffer, stream) = (self.buffer, self.streams.lanes[0]);
        if let Some(lists) = self.found() {
            let from = lists.touched_count().at;
            program.push(Given::CopyOut { stream, to: self.results.slots[buffer], from, bytes: 4 });
        }
        self.start(program, work.tasks.len())?;
        Ok(Flight { round: work.round, buffer, known: packed.known(), timers: packed.timers, given: Instant::now() })
    }

    /// Gives the next round to the device, if it is certain and there.
    fn go_ahead(&mut self, work: &mut Work, solve: &DeviceSolve) -> Result<(), DeviceError> {
        let Some(rates) = self.certain.take() else { return Ok(()) };
        let Some(mut next) = self.next.take_if(|next| !next.present.is_empty()) else { return Ok(()) };
        self.prepared = Some(std::mem::take(&mut next.prepared));
        let mut own = work.of_round(next.round, &next.batch, &next.present);
        self.flight = Some(self.give(&mut own, solve, &rates)?);
        self.next = Some(next);
        Ok(())
    }

    /// After a round that was not finite, with the batch of this buffer: lets the device move parameters again, and takes back what the
    /// round after it has done.
    fn call_back(&mut self, parameters: &mut Parameters, buffer: usize) -> Result<(), DeviceError> {
        self.clear_halt()?;
        let Some(flight) = self.flight.take() else { return Ok(()) };
        self.wait(self.streams.lanes[0])?;
        // Its batch is packed again, if it comes.
        (self.next, self.prepared) = (None, None);
        let Some(host) = &mut parameters.rows else { return Ok(()) };
        let Some(data) = self.data.as_ref().filter(|data| data.lists().is_some()) else {
            host.untouch(flight.known);
            return Ok(());
        };
        let mut count = [0u32];
        bytemuck::cast_slice_mut(&mut count).copy_from_slice(&self.driver.staging_bytes(self.results.slots[buffer])?[..4]);
        data.forget_slots(&mut *self.driver, &self.pieces, host, count[0])
    }
}
