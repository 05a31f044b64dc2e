//! [`Forward`]: a network of one stage, made of a function.

use std::sync::Arc;

use super::{Batch, Network, Part, Scores, Stage, Stream, Tap};
use crate::{Error, Exec, Input, MatViewMut, Result, Site, Weights};

/// A [`Network`] of one stage that takes floats and returns logits, made of a function that computes its output. It serves small networks whose other
/// weights (norms, biases) the function holds itself. These weights are out of reach of rewrites such as smoothing. A network that loads one layer at
/// a time implements [`Network`] itself.
///
/// ```
/// use tersor_core::network::{Forward, Network};
/// use tersor_core::Site;
/// let sites = vec![Site::linear("first.weight", [16, 4]), Site::linear("second.weight", [3, 16])];
/// let mlp = Forward::new(sites, |x, products| {
///     let mut hidden = products.linear(0, &x)?;
///     hidden.values.iter_mut().for_each(|v| *v = v.max(0.0));
///     products.linear(1, &hidden)
/// });
/// assert_eq!((mlp.stages(), mlp.sites()[1].features), (1, 16));
/// ```
pub struct Forward<F> {
    sites: Vec<Site>,
    forward: F,
}

impl<F> Forward<F>
where
    F: Fn(Part, &Products<'_>) -> Result<Part> + Send + Sync,
{
    /// Returns the network with the sites `sites` in the order of execution; a site is one input and the weight matrices that read it. `forward` gets
    /// the values of a [`Batch`] in their shape, and returns the logits, whose first axis counts the rows that have labels, usually windows. Each
    /// product with a matrix of a site goes through its second argument, once in each call. It cannot fail; [`check_network`](super::check_network)
    /// checks the sites.
    pub fn new(sites: Vec<Site>, forward: F) -> Self {
        Self { sites, forward }
    }
}

/// The products with the matrices of the sites of a [`Forward`] network, which its function gets. A site is one input and the weight matrices that
/// read it.
pub struct Products<'a> {
    sites: &'a [Site],
    tap: &'a Arc<dyn Tap>,
    exec: &'a Exec,
}

impl Products<'_> {
    /// Returns `x Wᵀ`, `[rows, out_features]`, for the only matrix of the site of index `site`, counted from 0. The first axis of `x` counts rows;
    /// all other axes together are the features. Biases are not added.
    ///
    /// Errors with [`Error::Range`] if there is no such site, and with [`Error::Shape`] if it has several matrices. Errors if `x` has another number
    /// of features than the site or a value that is not finite, or if the product was asked for before. Errors with [`Error::Stopped`], which the
    /// function must return, if nothing further needs to be computed.
    pub fn linear(&self, site: usize, x: &Part) -> Result<Part> {
        let mut all = self.all(site, x)?;
        let one = all.pop().filter(|_| all.is_empty());
        one.ok_or_else(|| Error::shape("matrices of a site", 1, self.sites.get(site).map_or(0, |s| s.consumers.len())))
    }

    /// Returns `x Wᵀ`, `[rows, out_features]`, for each matrix of the site of index `site`, counted from 0, in the order of [`Site::consumers`].
    /// Errors as [`Products::linear`] does, but takes sites of several matrices.
    pub fn all(&self, site: usize, x: &Part) -> Result<Vec<Part>> {
        let found = self.sites.get(site).ok_or_else(|| Error::range("site", 0..self.sites.len(), site))?;
        let [rows, features] = x.rows();
        let input = Input::new(&x.values, [rows, features])?;
        let shapes: Vec<[usize; 2]> = found.consumers.iter().map(|c| [rows, c.shape[0]]).collect();
        let mut values = Vec::new();
        for shape in &shapes {
            values.push(vec![0f32; crate::view::elements(*shape)?]);
        }
        let views = values.iter_mut().zip(&shapes).map(|(y, shape)| MatViewMut::new(y, *shape));
        self.tap.apply(site, 0, &input, &mut views.collect::<Result<Vec<_>>>()?, self.exec)?;
        Ok(values.into_iter().zip(shapes).map(|(values, shape)| Part { shape: shape.to_vec(), values }).collect())
    }
}

/// Name of the only tensor of the stream.
const X: &str = "x";

impl<F> Network for Forward<F>
where
    F: Fn(Part, &Products<'_>) -> Result<Part> + Send + Sync,
{
    fn sites(&self) -> &[Site] {
        &self.sites
    }
    fn stages(&self) -> usize {
        1
    }
    fn waves(&self, stage: usize) -> Vec<Vec<usize>> {
        if stage == 0 { (0..self.sites.len()).map(|site| vec![site]).collect() } else { Vec::new() }
    }
    fn enter(&self, batch: &Batch, _: &dyn Weights, _: &Exec) -> Result<Stream> {
        if batch.shape.is_empty() {
            return Err(Error::missing("values", "the batch; this network takes floats"));
        }
        crate::check_finite(&batch.values, batch.values.len() / batch.shape[0].max(1), 0)?;
        Stream::of(X, batch.shape.clone(), batch.values.clone())
    }
    fn stage<'n>(&'n self, index: usize, _: &dyn Weights) -> Result<Box<dyn Stage + 'n>> {
        if index > 0 {
            return Err(Error::range("stage", 0..1, index));
        }
        Ok(Box::new(Whole(self)))
    }
    fn score(&self, out: &Stream, reference: Option<&Stream>, batch: &Batch, _: &dyn Weights) -> Result<Scores> {
        Scores::of_logits(out.part(X)?, reference.map(|r| r.part(X)).transpose()?, &batch.labels)
    }
}

struct Whole<'n, F>(&'n Forward<F>);

impl<F> Stage for Whole<'_, F>
where
    F: Fn(Part, &Products<'_>) -> Result<Part> + Send + Sync,
{
    fn run(&self, mut stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Stream> {
        let products = Products { sites: &self.0.sites, tap, exec };
        let out = (self.0.forward)(stream.take(X)?, &products)?;
        stream.set(X, out.shape, out.values)?;
        Ok(stream)
    }
}
