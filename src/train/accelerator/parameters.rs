//! Parameters on a device, and the bf16 copies that products read.

use super::Readable;
use crate::machine::driver::{DeviceError, Driver};
use crate::machine::launch::Launch;
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::Start;
use crate::model::encoders::{Values, Weights};
use crate::model::network::Network;
use crate::model::spec::{HeadKind, HeadSpec};
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
    /// By `mlm` head, where its layer begins in the heads' space.
    mlm_layers: Vec<usize>,
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
        let spec = &network.spec;
        let of_words = |(task, head): (usize, &HeadSpec)| (head.kind == HeadKind::Mlm).then(|| table.head_range(task).start);
        let layers: Vec<usize> = spec.heads.iter().enumerate().filter_map(of_words).collect();
        let (mut mlm_layers, mut words) = (Tensor::NONE, Tensor::NONE);
        if let (Some(table), false) = (spec.encoder.table(), layers.is_empty()) {
            let (rows, dim) = (layers.len() * table.dim, table.dim);
            let mut copy = |name: &str, rows: usize| device.allocate(&format!("{name} in bf16"), 2 * rows * pitch(dim));
            mlm_layers = Tensor::padded(copy("heads: layers of mlm", rows)?, rows, dim, DType::Bf16);
            words = Tensor::dense(copy("embeddings: parameters", table.rows)?, 1, table.rows * pitch(dim), DType::Bf16);
        }
        let weights = Weights { shared: shared_values, frozen, heads: heads.values, mlm_layers, words };
        Ok(Self { shared, heads, weights, narrow, mlm_layers: layers })
    }

    /// Makes all copies of what training changes anew; of the table those of the `rows` that it has.
    pub fn narrow(&self, from: &Readable, rows: usize) -> Vec<Launch> {
        let Readable { weights, table, .. } = from;
        let mut launches = vec![self.narrow.launch(weights.shared)];
        launches.extend(self.narrow_layers(weights));
        if !weights.words.is_none() {
            launches.push(convert_to_bf16(weights.words.at, table.at, rows, table.columns));
        }
        launches
    }

    /// As [`ParametersOnDevice::narrow`], of what a step moved without its copy.
    pub fn narrow_after_step(&self) -> impl Iterator<Item = Launch> {
        let shared = self.shared.copy.is_none().then(|| self.narrow.launch(self.weights.shared));
        shared.into_iter().chain(self.narrow_layers(&self.weights))
    }

    /// The `mlm` heads' layers, which begin anywhere among the heads.
    fn narrow_layers(&self, weights: &Weights) -> impl Iterator<Item = Launch> {
        let Weights { heads, mlm_layers, .. } = *weights;
        let hidden = mlm_layers.columns;
        let layer = move |(number, &start): (usize, &usize)| {
            let to = mlm_layers.rows(number * hidden..(number + 1) * hidden);
            convert_to_bf16(to.at, heads.range(start..start + hidden * hidden).at, hidden, hidden)
        };
        self.mlm_layers.iter().enumerate().map(layer)
    }

    /// As [`ParametersOnDevice::narrow`], of those that do not change, if there are any.
    pub fn narrow_frozen(&self) -> Option<Launch> {
        let frozen = self.weights.frozen;
        (!frozen.wide.is_none()).then(|| Narrow::All.launch(frozen))
    }
}

/// (len) f32, at least room for one: no task of a run may have parameters of its own.
pub(super) fn row(device: &mut dyn Driver, name: &str, len: usize) -> Result<Tensor, DeviceError> {
    Ok(Tensor::dense(device.allocate(name, 4 * len.max(1))?, 1, len, DType::F32))
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
