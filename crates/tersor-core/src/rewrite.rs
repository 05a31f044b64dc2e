//! Changes of a site before it is compressed.

use crate::compose::{Permuted, Rotated, ScaledInputs};
use crate::{
    Context, DType, Error, Fold, Layout, LinearOp, Method, Producer, Result, RowSource, Side, Site, StatNeeds, StatSet,
    TensorInfo, Transform,
};

/// What the module behind a site makes of inputs, `[tokens, features]`, with these operators in the place of its matrices; `true`: through the
/// matrix that comes next in the network (of attention the output projection, of gate and up the down projection), as it was.
pub type Output<'a> = dyn Fn(&[f32], &[&dyn LinearOp], bool) -> Result<Vec<f32>> + Sync + 'a;

/// A site as a rewrite sees it.
pub struct Module<'a> {
    /// The site.
    pub site: &'a Site,
    /// What flowed into it.
    pub stats: &'a StatSet,
    /// The matrices that read it, in order.
    pub weights: &'a [&'a dyn RowSource],
    /// Inputs of whole windows, `[tokens, features]`.
    pub sample: &'a [f32],
    /// The module's function on the sample.
    pub output: &'a Output<'a>,
}

/// Moves magnitude between the inputs of a site and the matrices that read them: inputs are divided by a factor for each feature, columns
/// multiplied by it, so that nothing changes until something is rounded.
pub trait Smoothing: Send + Sync {
    /// A short name for reports: `awq`.
    fn name(&self) -> String;
    /// What it must know about the inputs; `sample` tokens are those of whole windows, the first ones.
    fn needs(&self) -> StatNeeds;
    /// Whether it changes such a site.
    fn covers(&self, site: &Site) -> bool;
    /// The factors, finite and positive, one for each feature; none where the site is better left as it is.
    fn factors(&self, module: &Module<'_>, cx: &Context) -> Result<Option<Vec<f32>>>;
}

/// Where factors go that inputs are divided by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Folding {
    /// Into what produces the inputs: nothing is left to do when the network runs.
    Producer,
    /// In front of the matrices, at run time ([`ScaledInputs`]).
    Online,
    /// Nowhere: what produces the inputs uses each of its features several times, and they would have to share factors.
    Shared,
}

impl Site {
    /// Where factors of the inputs would go.
    pub fn folding(&self) -> Folding {
        match self.producer {
            Producer::Norm { .. } | Producer::Linear { repeat: 1, .. } => Folding::Producer,
            Producer::Linear { .. } => Folding::Shared,
            Producer::Opaque => Folding::Online,
        }
    }

    /// What dividing the inputs by `factors` asks of the matrices: of those that read the site, and of what produces it, where that takes
    /// them.
    pub fn smoothed(&self, factors: &[f32]) -> Vec<Fold> {
        let fold =
            |weight: String, side, factors: Vec<f32>| Fold { weight, side, transform: Transform::Scale(factors) };
        let inverse: Vec<f32> = factors.iter().map(|s| s.recip()).collect();
        let read = |c: &crate::Consumer| fold(c.weight.clone(), Side::Input, factors.to_vec());
        let mut folds: Vec<Fold> = self.consumers.iter().map(read).collect();
        match &self.producer {
            // A vector is one row.
            Producer::Norm { weight } => folds.push(fold(weight.clone(), Side::Input, inverse)),
            Producer::Linear { weight, .. } => {
                let bias = weight.strip_suffix(".weight").map(|w| format!("{w}.bias"));
                folds.extend(bias.map(|b| fold(b, Side::Input, inverse.clone())));
                folds.push(fold(weight.clone(), Side::Output, inverse));
            }
            Producer::Opaque => {}
        }
        folds
    }
}

/// What a method's result takes with a change of its inputs in front of it; of [`Transform::Scale`] the values do not matter. Error when the change
/// is none that inputs have.
pub fn online_layout(method: &dyn Method, shape: [usize; 2], change: &Transform) -> Result<Layout> {
    let mut layout = method.layout(shape)?.nested("op");
    let vector = |name: &str, dtype| (name.to_string(), TensorInfo { dtype, shape: vec![shape[1]] });
    match change {
        Transform::Scale(_) => layout.tensors.push(vector("input_scales", DType::F32)),
        Transform::Permute(_) => layout.tensors.push(vector("order", DType::U32)),
        Transform::Rotate(all) => layout.tensors.extend(single(all)?.layout()),
        Transform::Set(_) => return Err(not_of_inputs()),
    }
    Ok(layout)
}

/// An operator made for inputs that were changed (divided by the factors of [`Transform::Scale`], which its columns were multiplied by), for
/// inputs as they are. Error when the lengths differ, a factor's inverse is not finite, or the change is none that inputs have.
pub fn online(op: Box<dyn LinearOp>, change: &Transform) -> Result<Box<dyn LinearOp>> {
    Ok(match change {
        Transform::Scale(factors) => Box::new(ScaledInputs::new(factors.iter().map(|s| s.recip()).collect(), op)?),
        Transform::Permute(order) => Box::new(Permuted::new(order.clone(), op)?),
        Transform::Rotate(all) => Box::new(Rotated::new(single(all)?.clone(), op)?),
        Transform::Set(_) => return Err(not_of_inputs()),
    })
}

fn single(all: &[crate::Rotation]) -> Result<&crate::Rotation> {
    match all {
        [one] => Ok(one),
        _ => Err(Error::shape("rotations in front of an operator", 1, all.len())),
    }
}

fn not_of_inputs() -> Error {
    Error::Unsupported { what: "change of inputs", value: "values put in the place of others".into() }
}
