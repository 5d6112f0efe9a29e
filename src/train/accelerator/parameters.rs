//! Parameters on a device, and the bf16 copies that products read.

use crate::machine::driver::{DeviceError, Driver};
use crate::machine::launch::Launch;
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::Start;
use crate::model::encoders::{Values, Weights};
use crate::model::network::Network;
use crate::ops::activation::convert_to_bf16;
use crate::ops::update::ParameterState;

/// Everything dense.
pub struct ParametersOnDevice {
    pub shared: ParameterState,
    pub heads: ParameterState,
    /// What a pass over a group reads of them.
    pub weights: Weights,
    /// Of the shared ones, what the copy is made of.
    narrow: Narrow,
}

/// What a bf16 copy is made of.
#[derive(Clone, Copy)]
enum Narrow {
    /// All parameters as they lie.
    All,
    /// A lone matrix, whose rows are not multiples of 16 bytes and are padded.
    Padded { rows: usize, columns: usize },
}

impl Narrow {
    fn of(network: &Network) -> Self {
        let encoder = &network.spec.encoder;
        let (rows, columns) = (encoder.hidden(), encoder.inputs());
        if columns == pitch(columns) { Self::All } else { Self::Padded { rows, columns } }
    }

    fn elements(self, all: usize) -> usize {
        match self {
            Self::All => pitch(all),
            Self::Padded { rows, columns } => rows * pitch(columns),
        }
    }

    fn launch(self, values: Values) -> Launch {
        let (rows, columns) = match self {
            Self::All => (1, values.wide.columns),
            Self::Padded { rows, columns } => (rows, columns),
        };
        convert_to_bf16(values.narrow.at, values.wide.at, rows, columns)
    }
}

impl ParametersOnDevice {
    pub fn new(device: &mut dyn Driver, network: &Network, start: &Start) -> Result<Self, DeviceError> {
        let moments = if start.second_moment { 2 } else { 1 };
        Self::with_moments(device, network, moments)
    }

    /// For passes without training.
    pub fn without_moments(device: &mut dyn Driver, network: &Network) -> Result<Self, DeviceError> {
        Self::with_moments(device, network, 0)
    }

    fn with_moments(device: &mut dyn Driver, network: &Network, moments: usize) -> Result<Self, DeviceError> {
        let (table, narrow) = (&network.table, Narrow::of(network));
        let mut shared = state(device, "encoder", table.shared_len(), moments)?;
        let shared_values = with_copy(device, "encoder", shared.values, narrow)?;
        if let Narrow::All = narrow {
            // The update writes the copy itself.
            shared.copy = Tensor { dtype: DType::Bf16, at: shared_values.narrow.at, ..shared.values };
        }
        let frozen = match table.frozen.last().map(|param| param.range().end) {
            Some(len) => {
                let wide = row(device, "frozen encoder: parameters", len)?;
                with_copy(device, "frozen encoder", wide, Narrow::All)?
            }
            None => Values::NONE,
        };
        let heads = state(device, "heads", table.heads_len(), moments)?;
        let weights = Weights { shared: shared_values, frozen, heads: heads.values, words: Tensor::NONE };
        Ok(Self { shared, heads, weights, narrow })
    }

    /// Makes the copy of the shared ones among `weights` anew.
    pub fn narrow(&self, weights: &Weights) -> Launch {
        self.narrow.launch(weights.shared)
    }

    /// As [`ParametersOnDevice::narrow`], of those that do not change, if there are any.
    pub fn narrow_frozen(&self) -> Option<Launch> {
        let frozen = self.weights.frozen;
        (!frozen.wide.is_none()).then(|| Narrow::All.launch(frozen))
    }
}

/// (len) f32
fn row(device: &mut dyn Driver, name: &str, len: usize) -> Result<Tensor, DeviceError> {
    Ok(Tensor::dense(device.allocate(name, 4 * len)?, 1, len, DType::F32))
}

/// Parameters of one space and so many moments.
fn state(device: &mut dyn Driver, name: &str, len: usize, moments: usize) -> Result<ParameterState, DeviceError> {
    let mut buffer = |what: &str| row(device, &format!("{name}: {what}"), len);
    Ok(ParameterState {
        values: buffer("parameters")?,
        first: if moments > 0 { buffer("first moment")? } else { Tensor::NONE },
        second: if moments > 1 { buffer("second moment")? } else { Tensor::NONE },
        copy: Tensor::NONE,
    })
}

fn with_copy(device: &mut dyn Driver, name: &str, wide: Tensor, narrow: Narrow) -> Result<Values, DeviceError> {
    let elements = narrow.elements(wide.columns);
    let at = device.allocate(&format!("{name}: parameters in bf16"), 2 * elements)?;
    Ok(Values { wide, narrow: Tensor::dense(at, 1, elements, DType::Bf16) })
}
