//! Where a run computes, and the one place that owns its memory.

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
            "emulated" => bail!("run.device = \"emulated\": this version has no emulated device; use \"cpu\" or \"auto\""),
            _ => {
                bail!("run.device = \"{name}\": this version has no CUDA kernels (build: {CUDA_BUILD}); use \"cpu\" or \"auto\"")
            }
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
            assert!(Device::select(name).unwrap_err().to_string().contains("this version has no"));
        }
    }
}
