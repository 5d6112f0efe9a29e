//! One file per subcommand, each with the options it is typed with.

pub mod bench;
pub mod check;
pub mod completions;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod methods;
pub mod plan;
pub mod predict;
pub mod report;
pub mod schema;
pub mod simulate;
pub mod surgery;
pub mod sweep;
pub mod train;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::machine::Device;
use crate::machine::driver::Driver;
use crate::model::Model;
use crate::model::network::{Limits, Scratch};
use crate::train::predictor::{DevicePredictor, Embedder, HostPredictor};

/// The configuration of a run that is not there yet.
#[derive(clap::Args)]
pub struct ConfigArgs {
    /// Configuration file
    pub config: PathBuf,
    /// Set a key, e.g. --set train.epochs=2; wins over the file and its bases
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// Where a trained model computes, whatever it was trained on.
#[derive(clap::Args)]
struct DeviceArgs {
    /// Where to compute: auto (the CPU), cpu, cuda, cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
}

impl DeviceArgs {
    /// The device's driver, none for the CPU; an error says why the device cannot serve.
    fn open(&self) -> Result<Option<Box<dyn Driver>>> {
        Device::option(&self.device)
    }

    /// `model` on the device that was opened, for batches within `limits`; in `scratch` on the CPU.
    fn predictor<'a>(
        &self,
        driver: Option<Box<dyn Driver>>,
        model: &'a Model,
        scratch: &'a mut Scratch,
        limits: &Limits,
    ) -> Result<Box<dyn Embedder + 'a>> {
        let Some(driver) = driver else { return Ok(Box::new(HostPredictor { model, scratch })) };
        let on_device = DevicePredictor::new(driver, model, limits);
        Ok(Box::new(on_device.with_context(|| format!("--device {} cannot take this model", self.device))?))
    }
}
