//! Where a run computes, and the one place that owns its memory.

mod cuda;
pub mod driver;
#[cfg(emulated)]
pub mod emulated;
pub mod host;
pub mod launch;
pub mod memory;
pub mod planned;
pub mod tape;
pub mod tensor;

use anyhow::{Result, anyhow};

use driver::{DeviceError, Driver, cuda_ordinal};

/// Where a run computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// An NVIDIA card, by its number.
    Cuda(usize),
    /// The kernels as C++, every access checked: for tests.
    Emulated,
}

/// Whether the build found nvcc and holds CUDA kernels, for `--version` and messages.
pub const CUDA_BUILD: &str = env!("TASKLOOM_CUDA");

/// Release (major, minor) of CUDA that the NVIDIA driver must be for at least.
pub const OLDEST_DRIVER: (u32, u32) =
    (number(env!("TASKLOOM_OLDEST_DRIVER_MAJOR")), number(env!("TASKLOOM_OLDEST_DRIVER_MINOR")));

const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => panic!("the build script writes numbers"),
    }
}

impl Device {
    /// What `run.device` names, there or not. `auto` is the CPU until the kernels have trained on a card.
    pub fn parse(name: &str) -> Result<Self> {
        Self::named(name).map_err(|why| refused(&key(name), why))
    }

    fn named(name: &str) -> driver::Result<Self> {
        Ok(match name {
            "auto" | "cpu" => Self::Cpu,
            "emulated" => Self::Emulated,
            _ => Self::Cuda(cuda_ordinal(name)?),
        })
    }

    /// As [`Device::parse`]; an error says why this device cannot serve here. `auto` never fails.
    pub fn select(name: &str) -> Result<Self> {
        let device = Self::parse(name)?;
        device.open().map_err(|why| refused(&key(name), why))?;
        Ok(device)
    }

    /// The driver of the device that `--device` names, as [`Device::open`].
    pub fn option(name: &str) -> Result<Option<Box<dyn Driver>>> {
        Self::named(name).and_then(Self::open).map_err(|why| refused(&format!("--device {name}"), why))
    }

    /// The device's driver; none for the CPU.
    pub fn open(self) -> driver::Result<Option<Box<dyn Driver>>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => Ok(Some(driver::open(&format!("cuda:{ordinal}"))?)),
            Self::Emulated => Ok(Some(driver::open("emulated")?)),
        }
    }
}

fn key(name: &str) -> String {
    format!("run.device = \"{name}\"")
}

/// `asked` is what named the device.
fn refused(asked: &str, why: DeviceError) -> anyhow::Error {
    anyhow!("{asked}: {why}; use \"cpu\" or \"auto\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_always_possible_and_cuda_says_why_not() {
        assert_eq!(Device::select("auto").unwrap(), Device::Cpu);
        assert!(Device::Cpu.open().unwrap().is_none());
        for name in ["cuda", "cuda:900", "emulated"] {
            let Err(error) = Device::select(name) else { continue };
            let error = error.to_string();
            assert!(error.starts_with(&format!("run.device = \"{name}\": ")) && error.contains("use \"cpu\""), "{error}");
        }
    }
}
