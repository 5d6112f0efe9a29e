//! What a run takes on its device, and whether it fits there.

use anyhow::{Result, ensure};

use super::plan::Plan;
use crate::config::Config;
use crate::machine::Device;
use crate::machine::memory::{Memory, human_bytes};
use crate::machine::planned::Planned;

impl Plan {
    /// Buffers on the run's device and their bytes; none where it computes on the CPU.
    pub fn device_buffers(&self, config: &Config) -> Result<Option<Vec<(String, u64)>>> {
        if Device::parse(&config.run.device)? == Device::Cpu {
            return Ok(None);
        }
        let trainer = self.trainer(config, &mut Memory::plan(0))?;
        let (driver, buffers) = Planned::driver();
        drop(trainer.plan_accelerator(driver, &self.limits, &self.start)?);
        Ok(Some(buffers.take()))
    }

    /// An error where these buffers exceed `memory.device`, or what is free on the device, if it is there.
    pub fn check_device_memory(&self, config: &Config, buffers: &[(String, u64)]) -> Result<()> {
        let needed: u64 = buffers.iter().map(|(_, bytes)| bytes).sum();
        let largest = buffers.iter().max_by_key(|(_, bytes)| *bytes);
        let needs = largest.map_or_else(String::new, |(name, bytes)| {
            format!("the run needs {}, of which \"{name}\" takes {}", human_bytes(needed), human_bytes(*bytes))
        });
        let advice = "lower train.micro_batch, train.fuse or encoder.hidden";
        let budget = config.memory.device;
        ensure!(
            budget == 0 || needed <= budget,
            "memory.device allows {}, {needs}: {advice}, or raise the budget",
            human_bytes(budget)
        );
        let Ok(Some(driver)) = Device::parse(&config.run.device)?.open() else { return Ok(()) };
        let free = driver.memory()?.free;
        ensure!(needed <= free, "{} has {} of memory free, {needs}: {advice}", driver.name(), human_bytes(free));
        Ok(())
    }
}
