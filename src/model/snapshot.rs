//! A copy of all trained values as they once were, so that they can be read while training goes on.

use anyhow::Result;

use super::Parameters;
use super::rows::TableCopy;
use crate::machine::memory::{Buffer, Memory};

/// Values of one moment, without optimizer state. They are read by taking the parameters' place for a while.
pub struct Snapshot {
    shared: Buffer,
    heads: Buffer,
    rows: Option<TableCopy>,
}

impl Snapshot {
    /// Room for a copy of `parameters`.
    pub fn new(memory: &mut Memory, parameters: &Parameters) -> Result<Self> {
        memory.within("evaluation's copy of ".into());
        let rows = parameters.rows.as_ref().map(|table| TableCopy::new(memory, table)).transpose()?;
        let shared = memory.buffer("encoder: parameters", parameters.shared.values.len())?;
        let heads = memory.buffer("heads: parameters", parameters.heads.values.len())?;
        memory.within(String::new());
        Ok(Self { shared, heads, rows })
    }

    /// Copies the parameters as they are now.
    pub fn take(&mut self, parameters: &Parameters) {
        self.shared.copy_from_slice(&parameters.shared.values);
        self.heads.copy_from_slice(&parameters.heads.values);
        if let (Some(copy), Some(table)) = (&mut self.rows, &parameters.rows) {
            table.copy_to(copy);
        }
    }

    /// Puts the copy in the parameters' place and the parameters in the copy's; no value moves. Optimizer state stays, so that
    /// until it is called again the parameters are only to be read.
    pub fn exchange(&mut self, parameters: &mut Parameters) {
        std::mem::swap(&mut self.shared, &mut parameters.shared.values);
        std::mem::swap(&mut self.heads, &mut parameters.heads.values);
        if let (Some(copy), Some(table)) = (&mut self.rows, &mut parameters.rows) {
            table.exchange(copy);
        }
    }
}
