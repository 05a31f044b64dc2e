//! Changes of a site before it is compressed.

use crate::compose::ScaledInputs;
use crate::{
    Context, Fold, Layout, LinearOp, Method, Producer, Result, RowSource, Side, Site, StatNeeds, StatSet, Transform,
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

/// What a method's result takes with factors in front of its inputs.
pub fn scaled_layout(method: &dyn Method, shape: [usize; 2]) -> Result<Layout> {
    let mut layout = method.layout(shape)?.nested("op");
    let info = crate::TensorInfo { dtype: crate::DType::F32, shape: vec![shape[1]] };
    layout.tensors.push(("input_scales".into(), info));
    Ok(layout)
}

/// What a method's result takes with a rotation in front of its inputs.
pub fn rotated_layout(method: &dyn Method, shape: [usize; 2], rotation: &crate::Rotation) -> Result<Layout> {
    let mut layout = method.layout(shape)?.nested("op");
    layout.tensors.extend(rotation.layout());
    Ok(layout)
}

/// An operator made for inputs that were divided by `factors`, for inputs as they are. Error when the lengths differ, or a factor's inverse is not
/// finite.
pub fn scale_inputs(op: Box<dyn LinearOp>, factors: &[f32]) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(ScaledInputs::new(factors.iter().map(|s| s.recip()).collect(), op)?))
}
