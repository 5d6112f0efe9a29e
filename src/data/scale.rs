//! Standard scaling: columns moved to mean 0 and divided by their standard deviation, both of the training rows.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::split::{Corpus, Inputs, Split, Targets, TaskData};
use crate::config::schema::Scaling;

/// By column. In f32, which JSON gives back as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    pub mean: Vec<f32>,
    /// 1 where all rows are the same.
    pub deviation: Vec<f32>,
}

impl Scale {
    /// Of rows of so many columns; values that are no number are left out.
    fn of<'a>(columns: usize, rows: impl Iterator<Item = &'a [f32]>) -> Scale {
        let mut counts = vec![0.0f64; columns];
        let (mut means, mut squares) = (counts.clone(), counts.clone());
        for row in rows {
            for (column, value) in row.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
                counts[column] += 1.0;
                let before = f64::from(*value) - means[column];
                means[column] += before / counts[column];
                squares[column] += before * (f64::from(*value) - means[column]);
            }
        }
        let deviation = |(squares, count): (&f64, &f64)| (squares / count.max(1.0)).sqrt() as f32;
        let deviations = squares.iter().zip(&counts).map(deviation);
        let deviation = deviations.map(|deviation| if deviation > 0.0 && deviation.is_finite() { deviation } else { 1.0 });
        Scale { mean: means.iter().map(|&mean| mean as f32).collect(), deviation: deviation.collect() }
    }

    /// A row, scaled in place.
    pub fn apply(&self, row: &mut [f32]) {
        for (value, (mean, deviation)) in row.iter_mut().zip(self.mean.iter().zip(&self.deviation)) {
            *value = ((f64::from(*value) - f64::from(*mean)) / f64::from(*deviation)) as f32;
        }
    }

    /// The row that [`Scale::apply`] makes this of.
    pub fn undo(&self, row: &mut [f32]) {
        for (value, (mean, deviation)) in row.iter_mut().zip(self.mean.iter().zip(&self.deviation)) {
            *value = (f64::from(*value) * f64::from(*deviation) + f64::from(*mean)) as f32;
        }
    }

    /// One that a checkpoint brings has to be of so many columns, and scale.
    pub fn check(&self, what: &str, columns: usize) -> Result<()> {
        let found = self.mean.len();
        ensure!(
            found == columns && self.deviation.len() == columns,
            "its state scales {found} columns of {what}, there are {columns}"
        );
        let sound = self.mean.iter().all(|mean| mean.is_finite());
        let sound = sound && self.deviation.iter().all(|deviation| deviation.is_finite() && *deviation > 0.0);
        ensure!(sound, "its state scales {what} by what is no positive number");
        Ok(())
    }
}

impl Corpus {
    /// Fits to the training rows what the tasks' settings ask for, and scales all splits by it.
    pub fn fit_scales(&mut self) -> Result<()> {
        self.tasks.iter_mut().try_for_each(TaskData::fit_scales)
    }
}

impl TaskData {
    /// Whether its settings ask for features to be scaled; made-up ones are by themselves.
    pub fn scales_features(&self) -> bool {
        let asks = self.settings.feature_scale == Scaling::Standard && self.settings.synthetic.is_none();
        asks && matches!(self.train.inputs, Inputs::Features(_))
    }

    fn fit_scales(&mut self) -> Result<()> {
        let features = match &self.train.inputs {
            Inputs::Features(store) if self.scales_features() => {
                let rows = (0..store.len()).map(|example| store.stored(example));
                Some(Scale::of(store.dim(), rows))
            }
            _ => None,
        };
        let labels = match &self.train.targets {
            Targets::Values { dim, values } if self.settings.label_scale == Scaling::Standard => {
                Some(Scale::of(*dim, values.chunks_exact(*dim)))
            }
            _ => None,
        };
        self.scale(features, labels)
    }

    /// Scales all splits, which have not been scaled before: as a checkpoint says, or not at all.
    pub fn scale(&mut self, features: Option<Scale>, labels: Option<Scale>) -> Result<()> {
        let features = features.map(Arc::new);
        for split in [Some(&mut self.train), self.dev.as_mut(), self.test.as_mut()].into_iter().flatten() {
            split.scale_inputs(features.as_ref())?;
            split.scale_targets(labels.as_ref())?;
        }
        (self.feature_scale, self.label_scale) = (features, labels);
        Ok(())
    }
}

impl Split {
    /// Scales its features, which have not been scaled before.
    pub fn scale_features(&mut self, scale: Option<&Scale>) -> Result<()> {
        self.scale_inputs(scale.cloned().map(Arc::new).as_ref())
    }

    fn scale_inputs(&mut self, scale: Option<&Arc<Scale>>) -> Result<()> {
        match (&mut self.inputs, scale) {
            (Inputs::Features(store), Some(scale)) => {
                scale.check("features", store.dim())?;
                store.scale(Arc::clone(scale));
                Ok(())
            }
            (_, scale) => {
                ensure!(scale.is_none(), "its state scales the features of a task that has none");
                Ok(())
            }
        }
    }

    fn scale_targets(&mut self, scale: Option<&Scale>) -> Result<()> {
        let Some(scale) = scale else { return Ok(()) };
        let whole = self.targets.clone();
        let Targets::Values { dim, values } = &mut self.targets else {
            anyhow::bail!("its state scales the labels of a task that has no numbers");
        };
        scale.check("labels", *dim)?;
        values.chunks_exact_mut(*dim).for_each(|row| scale.apply(row));
        self.unscaled = Some(whole);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_mean_0_and_deviation_1() {
        let rows = [[1.0f32, 5.0, f32::NAN], [3.0, 5.0, 2.0], [5.0, 5.0, 4.0]];
        let scale = Scale::of(3, rows.iter().map(|row| &row[..]));
        assert_eq!(scale.mean, [3.0, 5.0, 3.0]);
        assert_eq!(scale.deviation, [(8.0f64 / 3.0).sqrt() as f32, 1.0, 1.0]);
        let mut row = rows[2];
        scale.apply(&mut row);
        assert_eq!(row[1..], [0.0, 1.0]);
        scale.undo(&mut row);
        assert_eq!(row, rows[2]);
    }

    #[test]
    fn a_checkpoint_gives_back_every_bit() {
        let scale = Scale { mean: vec![0.1, -1e30], deviation: vec![1.0 / 3.0, 1e-38] };
        let text = serde_json::to_string(&scale).unwrap();
        assert_eq!(serde_json::from_str::<Scale>(&text).unwrap(), scale);
    }

    #[test]
    fn what_does_not_scale_is_refused() {
        let scale = |mean: f32, deviation: f32| Scale { mean: vec![mean], deviation: vec![deviation] };
        assert!(scale(0.0, 1.0).check("labels", 1).is_ok());
        for (mean, deviation) in [(0.0, 0.0), (0.0, -1.0), (f32::NAN, 1.0), (0.0, f32::INFINITY)] {
            assert!(scale(mean, deviation).check("labels", 1).is_err());
        }
        assert_eq!(
            scale(0.0, 1.0).check("labels", 2).unwrap_err().to_string(),
            "its state scales 1 columns of labels, there are 2"
        );
    }
}
