//! [`Batch`]: inputs of a network; [`Scores`]: figures of its outputs.

use super::Part;
use crate::{Error, Result, metrics};

/// Inputs of a [`Network`](super::Network) that pass through it together: token sequences, or tensors of floats such as images, with the labels
/// that its outputs are scored against.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token sequences, each a window of its own. Empty for a network that takes floats.
    pub tokens: Vec<Vec<u32>>,
    /// Floats, row-major. The first axis counts windows, such as images. Empty for a network that takes tokens.
    pub values: Vec<f32>,
    /// The shape of `values`, such as `[images, channels, height, width]`; empty if there are none.
    pub shape: Vec<usize>,
    /// The right class of each window, for networks that classify; empty if it is not known.
    pub labels: Vec<u32>,
    /// A number that the network may read, such as the step of a diffusion; 0 if it has no meaning.
    pub tag: u32,
}

impl Batch {
    /// Returns a batch of token sequences.
    pub fn of_tokens(tokens: Vec<Vec<u32>>) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// Returns a batch of floats, such as images, with labels or with an empty list. The first axis of `shape` counts windows. Errors if the
    /// number of values is not the product of the shape, a value is not finite, or there are labels but not one for each window.
    pub fn of_values(values: Vec<f32>, shape: Vec<usize>, labels: Vec<u32>) -> Result<Self> {
        let n = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let n = n.ok_or_else(|| Error::Overflow { what: "shape of a batch".into() })?;
        if shape.is_empty() || n != values.len() {
            return Err(Error::shape("values of a batch", n, values.len()));
        }
        if !labels.is_empty() && labels.len() != shape[0] {
            return Err(Error::shape("labels of a batch", shape[0], labels.len()));
        }
        crate::check_finite(&values, n / shape[0].max(1), 0)?;
        Ok(Self { values, shape, labels, ..Self::default() })
    }
}

/// Figures of the outputs of a [`Network`](super::Network), as sums over the rows that were scored, so that those of several batches add up.
/// The methods return means.
///
/// ```
/// use tersor_core::network::{Part, Scores};
/// let logits = |values: Vec<f32>| Part { shape: vec![2, 2], values };
/// let (out, original) = (logits(vec![2.0, 0.0, 0.0, 1.0]), logits(vec![2.0, 0.0, 3.0, 1.0]));
/// let scores = Scores::of_logits(&out, Some(&original), &[0, 1]).unwrap();
/// assert_eq!((scores.accuracy(), scores.agreement()), (Some(1.0), Some(0.5)));
/// assert!(scores.kl().unwrap() > 0.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// Number of rows with a label.
    pub labelled: u64,
    /// Sum of the cross entropies with the labels, in nats.
    pub loss: f64,
    /// Number of rows whose largest logit is that of the label.
    pub right: u64,
    /// Number of rows that were compared with the original.
    pub compared: u64,
    /// Sum of the divergences `KL(original ‖ this network)`, in nats.
    pub divergence: f64,
    /// Number of rows whose largest logit is that of the original.
    pub equal: u64,
    /// Sum of the cosines of rows with those of the original.
    pub cosines: f64,
}

impl Scores {
    /// Returns the scores of logits `[rows, classes]`: against `labels`, one for each row, or an empty list; and against the logits of the
    /// original for the same rows, if they are given. Errors if the shapes or the number of labels differ, a label is not below the number of
    /// classes, or a logit is not finite.
    pub fn of_logits(out: &Part, original: Option<&Part>, labels: &[u32]) -> Result<Self> {
        let [rows, classes] = out.rows();
        if !labels.is_empty() && labels.len() != rows {
            return Err(Error::shape("labels of logits", rows, labels.len()));
        }
        crate::check_finite(&out.values, classes, 0)?;
        let mut all = Self::default();
        for (row, label) in out.values.chunks_exact(classes.max(1)).zip(labels) {
            let right = row.get(*label as usize);
            let right = right.ok_or_else(|| Error::range("label", 0..classes, label))?;
            all.labelled += 1;
            all.loss += metrics::log_sum_exp(row) - f64::from(*right);
            all.right += u64::from(metrics::argmax(row) == *label as usize);
        }
        let Some(original) = original else { return Ok(all) };
        if original.rows() != [rows, classes] {
            return Err(Error::shape("logits of the original", [rows, classes], original.rows()));
        }
        let width = classes.max(1);
        for (q, p) in out.values.chunks_exact(width).zip(original.values.chunks_exact(width)) {
            all.compared += 1;
            all.divergence += metrics::kl_checked(p, q)?;
            all.equal += u64::from(metrics::argmax(p) == metrics::argmax(q));
            all.cosines += metrics::cosine(p, q);
        }
        Ok(all)
    }

    /// Returns the sums of these scores and of `other`.
    pub fn plus(self, other: Self) -> Self {
        Self {
            labelled: self.labelled + other.labelled,
            loss: self.loss + other.loss,
            right: self.right + other.right,
            compared: self.compared + other.compared,
            divergence: self.divergence + other.divergence,
            equal: self.equal + other.equal,
            cosines: self.cosines + other.cosines,
        }
    }

    /// Returns the share of rows whose largest logit is that of the label, 0 to 1; None if no row has a label.
    pub fn accuracy(&self) -> Option<f64> {
        mean(self.right as f64, self.labelled)
    }

    /// Returns the mean cross entropy with the labels in nats; None if no row has a label.
    pub fn mean_loss(&self) -> Option<f64> {
        mean(self.loss, self.labelled)
    }

    /// Returns the mean divergence `KL(original ‖ this network)` in nats; None if nothing was compared.
    pub fn kl(&self) -> Option<f64> {
        mean(self.divergence, self.compared)
    }

    /// Returns the share of rows whose largest logit is that of the original, 0 to 1; None if nothing was compared.
    pub fn agreement(&self) -> Option<f64> {
        mean(self.equal as f64, self.compared)
    }

    /// Returns the mean cosine of rows with those of the original; None if nothing was compared.
    pub fn cosine(&self) -> Option<f64> {
        mean(self.cosines, self.compared)
    }
}

fn mean(sum: f64, n: u64) -> Option<f64> {
    (n > 0).then(|| sum / n as f64)
}
