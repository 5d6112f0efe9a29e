//! Where a run computes, and the one place that owns its memory.

mod cuda;
pub mod driver;
#[cfg(emulated)]
pub mod emulated;
pub mod memory;

use anyhow::{Result, bail};

/// A device this build can compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
}

/// Whether the build found nvcc and holds CUDA kernels, for `--version` and messages.
pub const CUDA_BUILD: &str = env!("TASKLOOM_CUDA");

impl Device {
    /// Resolves `run.device`. `auto` takes the best there is and never fails.
    pub fn select(name: &str) -> Result<Self> {
        match name {
            "auto" | "cpu" => Ok(Self::Cpu),
            _ => match driver::open(name) {
                Err(why) => bail!("run.device = \"{name}\": {why}; use \"cpu\" or \"auto\""),
                Ok(device) => {
                    let found = device.name();
                    bail!(
                        "run.device = \"{name}\": {found} is there, but this version trains on the CPU only; use \"cpu\" or \"auto\""
                    )
                }
            },
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_always_possible_and_cuda_says_why_not() {
        assert_eq!(Device::select("auto").unwrap(), Device::Cpu);
        for name in ["cuda", "cuda:1", "emulated"] {
            let error = Device::select(name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("run.device = \"{name}\": ")) && error.contains("use \"cpu\""), "{error}");
        }
    }
}
