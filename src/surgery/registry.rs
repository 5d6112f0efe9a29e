//! Methods by name.

use anyhow::{Result, bail};

use super::methods::{Mean, Method, Order, PcGrad, Sum};

/// Names that [`build`] knows.
pub const METHODS: [&str; 3] = ["mean", "sum", "pcgrad"];

/// Parameters of all methods; each takes its own.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub order: Order,
}

impl Default for Options {
    fn default() -> Self {
        Self { order: Order::Random }
    }
}

pub fn build(name: &str, options: &Options) -> Result<Box<dyn Method>> {
    Ok(match name {
        "mean" => Box::new(Mean),
        "sum" => Box::new(Sum),
        "pcgrad" => Box::new(PcGrad { order: options.order }),
        _ => bail!("unknown surgery method \"{name}\"; there are {}", METHODS.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_method_is_built_under_its_name() {
        for name in METHODS {
            assert_eq!(build(name, &Options::default()).unwrap().name(), name);
        }
        assert!(build("pcgard", &Options::default()).is_err());
    }
}
