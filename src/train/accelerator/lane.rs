//! Room for the activations of one fused group.

use crate::machine::driver::{DeviceError, Driver};
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::encoders::dense::Activations;
use crate::model::network::{Limits, Network};
use crate::ops::activation::Activation;

pub struct Lane {
    /// bf16, rows [`pitch`] apart; logits f32.
    pub at: Activations,
}

impl Lane {
    pub fn new(device: &mut dyn Driver, number: usize, network: &Network, limits: &Limits) -> Result<Self, DeviceError> {
        let encoder = &network.spec.encoder;
        let rows = limits.group_rows.max(1);
        let bag = encoder.bag().is_some();
        let mut allocate = |name: &str, bytes: usize| device.allocate(&format!("lane {number}: {name}"), bytes);
        let mut matrix = |name: &str, columns: usize, wanted: bool| {
            let at = if wanted { allocate(name, 2 * rows * pitch(columns))? } else { return Ok(Tensor::NONE) };
            Ok(Tensor::padded(at, rows, columns, DType::Bf16))
        };
        let input = matrix("encoder input", encoder.inputs(), bag)?;
        let pre = matrix("pre-activations", encoder.hidden, encoder.activation != Activation::None)?;
        let hidden = matrix("hidden states", encoder.hidden, true)?;
        let dhidden = matrix("gradient of hidden states", encoder.hidden, true)?;
        let shortcut = matrix("gradient of the shortcut", encoder.hidden, bag && encoder.residual)?;
        let count = limits.group_logits.max(1);
        let logits = Tensor::dense(allocate("logits", 4 * count)?, 1, count, DType::F32);
        let dlogits = Tensor { at: allocate("gradient of logits", 4 * count)?, ..logits };
        let row_losses = Tensor::dense(allocate("losses by row", 8 * rows)?, 1, rows, DType::F64);
        Ok(Self { at: Activations { input, pre, hidden, dhidden, shortcut, logits, dlogits, staging: Tensor::NONE, row_losses } })
    }
}
