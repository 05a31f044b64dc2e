//! [`Batch`]: inputs of a network; [`Scores`]: figures of its outputs.

use super::Part;
use crate::{Error, Result, metrics};

/// Inputs of a [`Network`](super::Network) that pass through it together: either token sequences, or a tensor of floats such as images. Labels
/// against which the outputs are scored can be added. A *window* is a token sequence, or an element of the first axis of the floats such as an image;
/// the network computes each window on its own. The default is a batch without inputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The token sequences; each is a window. Empty for a network that takes floats.
    pub tokens: Vec<Vec<u32>>,
    /// The floats, row-major. Empty for a network that takes tokens.
    pub values: Vec<f32>,
    /// The shape of `values`, such as `[images, channels, height, width]`; the first axis counts windows. Empty if there are no values.
    pub shape: Vec<usize>,
    /// The index of the right class of each row of logits that the network returns, usually one for each window. Empty if the classes are unknown or
    /// the network does not classify.
    pub labels: Vec<u32>,
    /// A number that the network may read, such as the step of a diffusion. 0 if it has no meaning.
    pub tag: u32,
}

impl Batch {
    /// Returns a batch of the token sequences `tokens`, without labels and with tag 0. It cannot fail; the network checks the tokens.
    pub fn of_tokens(tokens: Vec<Vec<u32>>) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// Returns a batch of the floats `values`, row-major in `shape`, with tag 0. The first axis of `shape` counts windows, such as images. `labels`
    /// has the index of the right class of each window, or is empty.
    ///
    /// Errors with [`Error::Shape`] if `shape` is empty, if the number of values is not the product of the shape, or if there are labels but not one
    /// for each window. Errors with [`Error::NonFinite`] if a value is not finite (its row is the window), and with [`Error::Overflow`] if the
    /// product exceeds the address space.
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

/// Figures of the outputs of a [`Network`](super::Network), as sums over the scored rows, such as images, predicted tokens or texts. The scores of
/// several batches are added by [`plus`](Self::plus). The other methods return means. The default is the scores of no rows.
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
    /// The number of rows that were scored against a label.
    pub labelled: u64,
    /// The sum of the cross entropies of these rows with their labels, in nats.
    pub loss: f64,
    /// The number of these rows whose largest logit is that of the label.
    pub right: u64,
    /// The number of rows that were compared with the output of the original network.
    pub compared: u64,
    /// The number of compared rows that are logits. 0 for a network without logits.
    pub logits: u64,
    /// The sum over the compared rows of the divergence `KL(original ‖ this network)` of the softmax of the logits, in nats. 0 for a network without
    /// logits.
    pub divergence: f64,
    /// The number of compared rows whose largest logit has the index of the original's largest logit. 0 for a network without logits.
    pub equal: u64,
    /// The sum over the compared rows of the cosine of the angle between a row and the original's row.
    pub cosines: f64,
}

impl Scores {
    /// Returns the scores of the logits `out`, `[rows, classes]`. `labels` has the index of the right class of each row, or is empty. `original` has
    /// the logits of the original network for the same rows, if they are given; the rows are then compared with them. Of equal largest logits, the
    /// first one counts.
    ///
    /// Errors with [`Error::Shape`] if the shapes differ, or if there are labels but not one for each row. Errors with [`Error::Range`] if a label is
    /// not below `classes`, and with [`Error::NonFinite`] if a logit of `out` is not finite. Errors if a logit of `original` is NaN or infinity, or
    /// all of a row are minus infinity.
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
            all.logits += 1;
            all.divergence += metrics::kl_checked(p, q)?;
            all.equal += u64::from(metrics::argmax(p) == metrics::argmax(q));
            all.cosines += metrics::cosine(p, q);
        }
        Ok(all)
    }

    /// Returns the sum of each figure of these scores and of `other`: the scores of the rows of both. It cannot fail.
    pub fn plus(self, other: Self) -> Self {
        Self {
            labelled: self.labelled + other.labelled,
            loss: self.loss + other.loss,
            right: self.right + other.right,
            compared: self.compared + other.compared,
            logits: self.logits + other.logits,
            divergence: self.divergence + other.divergence,
            equal: self.equal + other.equal,
            cosines: self.cosines + other.cosines,
        }
    }

    /// Returns the share of the rows with a label whose largest logit is that of the label, 0 to 1. None if no row has a label.
    pub fn accuracy(&self) -> Option<f64> {
        mean(self.right as f64, self.labelled)
    }

    /// Returns the mean cross entropy with the labels, in nats. None if no row has a label.
    pub fn mean_loss(&self) -> Option<f64> {
        mean(self.loss, self.labelled)
    }

    /// Returns the mean divergence `KL(original ‖ this network)`, in nats. None if no row was compared with the original, or the network has
    /// no logits.
    pub fn kl(&self) -> Option<f64> {
        mean(self.divergence, self.logits)
    }

    /// Returns the share of the compared rows whose largest logit has the index of the original's, 0 to 1. None if no row was compared with the
    /// original, or the network has no logits.
    pub fn agreement(&self) -> Option<f64> {
        mean(self.equal as f64, self.logits)
    }

    /// Returns the mean cosine of the angles between rows and the original's rows, -1 to 1. None if no row was compared with the original.
    pub fn cosine(&self) -> Option<f64> {
        mean(self.cosines, self.compared)
    }
}

fn mean(sum: f64, n: u64) -> Option<f64> {
    (n > 0).then(|| sum / n as f64)
}
