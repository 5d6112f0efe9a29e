//! Room for the activations of one fused group.

use crate::device::driver::{Address, DeviceError, Driver};
use crate::model::network::{Limits, Network};
use crate::ops::activation::Activation;
use crate::ops::launch::pitch;

pub struct Lane {
    /// (rows x inputs) bf16, as all matrices here with rows [`pitch`] apart; null where features come with the batch.
    pub input: Address,
    /// (rows x width) bf16 each; `pre` is null where the activation is none.
    pub pre: Address,
    pub hidden: Address,
    pub dhidden: Address,
    /// (rows x width) bf16: the gradient that the shortcut passes on; null where nothing wants it.
    pub shortcut: Address,
    /// f32, part after part.
    pub logits: Address,
    pub dlogits: Address,
    /// (rows) f64
    pub row_losses: Address,
}

impl Lane {
    pub fn new(device: &mut dyn Driver, number: usize, network: &Network, limits: &Limits) -> Result<Self, DeviceError> {
        let encoder = &network.spec.encoder;
        let rows = limits.group_rows.max(1);
        let (wide, logits) = (2 * rows * pitch(encoder.hidden), 4 * limits.group_logits.max(1));
        let bag = encoder.bag().is_some();
        let mut buffer = |name: &str, bytes: usize, wanted: bool| {
            if wanted { device.allocate(&format!("lane {number}: {name}"), bytes) } else { Ok(0) }
        };
        Ok(Self {
            input: buffer("encoder input", 2 * rows * pitch(encoder.inputs()), bag)?,
            pre: buffer("pre-activations", wide, encoder.activation != Activation::None)?,
            hidden: buffer("hidden states", wide, true)?,
            dhidden: buffer("gradient of hidden states", wide, true)?,
            shortcut: buffer("gradient of the shortcut", wide, bag && encoder.residual)?,
            logits: buffer("logits", logits, true)?,
            dlogits: buffer("gradient of logits", logits, true)?,
            row_losses: buffer("losses by row", 8 * rows, true)?,
        })
    }
}
