//! The stages of this crate: factorization, low-rank corrections, parts of the columns with stages of their own, and rotations.

use tersor_core::stages::{
    Field, Fields, HasFields, Named, Part, Segment, Slot, StageSpec, Stages, Target, ValuesOf, assemble, set, value_of,
};
use tersor_core::{Check, Method, ParamError, Result, Value};

use crate::rotate::RotateStage;
use crate::{Corrected, LowRank, Norm, Rank, Subspaces};

/// Adds the kinds of stages (the steps of a recipe) of this crate to the registry `stages`: `svd`, which stores a matrix as a product of
/// two of low rank; `lqer`, `l2qer` and `gram`, which add a low-rank correction of the error of the stages before, in the norms
/// [`Norm::Plain`], [`Norm::Magnitude`] and [`Norm::Gram`]; `split`, which compresses ranges of columns by stages of their own; and the
/// change of the network `rotate`. Kinds of these names that `stages` has already are replaced.
pub fn register_stages(stages: &mut Stages) {
    stages.register(Factors::new(None));
    stages.register(Factors::new(Some(Norm::Plain)));
    stages.register(Factors::new(Some(Norm::Magnitude)));
    stages.register(Factors::new(Some(Norm::Gram)));
    stages.register(Split::default());
    stages.register(RotateStage::default());
}

/// The stored form of low-rank factors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    Mxint8,
    F16,
    Bf16,
    F32,
}

/// A product of two factors: of the matrix itself, or of the error of the stages before, in the norm `correction`.
#[derive(Clone, Copy)]
struct Factors {
    correction: Option<Norm>,
    rank: Option<usize>,
    rank_bits: Option<f64>,
    storage: Storage,
}

impl Factors {
    fn new(correction: Option<Norm>) -> Self {
        Self { correction, rank: None, rank_bits: None, storage: Storage::Mxint8 }
    }

    /// Returns how the rank is chosen. Errors if both fields are given.
    fn rank(&self) -> Result<Rank> {
        match (self.rank, self.rank_bits) {
            (Some(_), Some(_)) => {
                Err(ParamError::new("rank", "given with rank_bits", "only one of them may be given").into())
            }
            (Some(rank), None) => Ok(Rank::Fixed(rank)),
            (None, Some(bits)) => Ok(Rank::Bits(bits)),
            (None, None) => Ok(Rank::Fixed(32)),
        }
    }

    /// Returns the method that stores the factors.
    fn storage(&self, at: &Target<'_>) -> Result<Box<dyn Method>> {
        match self.storage {
            Storage::Mxint8 => at.method("mxint", &[("bits", Value::Int(8))]),
            Storage::F16 => at.method("f16", &[]),
            Storage::Bf16 => at.method("bf16", &[]),
            Storage::F32 => at.method("f32", &[]),
        }
    }
}

impl StageSpec for Factors {
    fn kind(&self) -> &'static str {
        match self.correction {
            None => "svd",
            Some(Norm::Plain) => "lqer",
            Some(Norm::Magnitude) => "l2qer",
            Some(Norm::Gram) => "gram",
        }
    }
    fn help(&self) -> &'static str {
        match self.correction {
            None => "Stores the matrix as a product of two of low rank.",
            Some(Norm::Plain) => "Adds a low-rank correction of the error of the weights (arXiv 2402.02446).",
            Some(Norm::Magnitude) => {
                "Adds a low-rank correction of the error weighted by the inputs' magnitudes (arXiv 2402.02446)."
            }
            Some(Norm::Gram) => "Adds a low-rank correction of the error of the outputs.",
        }
    }
    fn slot(&self) -> Slot {
        if self.correction.is_some() { Slot::Repair } else { Slot::Quantize }
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.optional_int(
            "rank",
            "Rank of the product; 32 unless this or `rank_bits` is given.",
            1..=i64::MAX,
            &mut self.rank,
        )?;
        let help = "Maximum bits per weight of the product, instead of a rank.";
        f.optional_float("rank_bits", help, f64::MIN_POSITIVE..=f64::MAX, &mut self.rank_bits)?;
        let words =
            [("mxint8", Storage::Mxint8), ("f16", Storage::F16), ("bf16", Storage::Bf16), ("f32", Storage::F32)];
        f.choice("factors", "Stored form of the factors.", &words, &mut self.storage)
    }
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>> {
        let (rank, factors) = (self.rank()?, self.storage(at)?);
        Ok(vec![match self.correction {
            None => Part::Base(Box::new(LowRank::new(rank).factors(factors).check()?)),
            Some(norm) => Part::Wrap(Box::new(move |base| {
                Ok(Box::new(Corrected::lqer(base).norm(norm).rank(rank).factors(factors).check()?))
            })),
        }])
    }
    fn segments(&self) -> Vec<Segment> {
        vec![Segment::number("r", "rank")]
    }
    fn add_to(&self, recipe: &mut Named<'_>, _: &str) -> Result<()> {
        // If its name has no other word and no group, a correction is that of its paper, over MXINT.
        let alone = self.correction.is_some() && recipe.words.len() == 1;
        let plain = recipe.stage(Slot::Quantize).filter(|_| alone);
        let bits = plain.filter(|s| value_of(*s, "group") == Some(Value::Text("channel".into())));
        if let Some(bits) = bits.and_then(|s| value_of(s, "bits")) {
            let mut mxint = recipe.kinds.make("mxint")?;
            set(&mut *mxint, "bits", bits)?;
            recipe.replace(mxint);
        }
        recipe.push(Box::new(*self));
        Ok(())
    }
}

/// A contiguous part of the columns with stages of its own.
#[derive(Clone, Default)]
struct SplitPart {
    share: f64,
    stages: Vec<Box<dyn StageSpec>>,
}

impl HasFields for SplitPart {
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.float(
            "share",
            "Share of the columns; the shares of all parts add to 1.",
            f64::MIN_POSITIVE..=f64::MAX,
            &mut self.share,
        )?;
        let help = "Stages of this part.";
        f.stages("stages", help, &[Slot::Quantize, Slot::Repair, Slot::Activations], &mut self.stages)
    }
}

/// Parts of the columns, in order, each with stages of its own.
#[derive(Clone, Default)]
pub(crate) struct Split {
    damping: Option<f64>,
    parts: Vec<SplitPart>,
}

impl Split {
    /// Returns parts with these shares and stages.
    pub(crate) fn new(parts: impl IntoIterator<Item = (f64, Vec<Box<dyn StageSpec>>)>) -> Self {
        Self { damping: None, parts: parts.into_iter().map(|(share, stages)| SplitPart { share, stages }).collect() }
    }

    /// Errors unless a rotation of the network that puts features in the order of parts has the shares of these.
    fn check_order(&self, at: &Target<'_>) -> Result<()> {
        /// Finds the parts of a rotation.
        struct Shares(Vec<f64>);
        impl Fields for Shares {
            fn value(&mut self, _: &Field, _: &mut Option<Value>) -> Result<()> {
                Ok(())
            }
            fn numbers(&mut self, _: &Field, value: &mut Vec<f64>) -> Result<()> {
                self.0.clone_from(value);
                Ok(())
            }
        }
        for stage in at.network.iter().filter(|s| s.kind() == RotateStage::KIND) {
            let mut shares = Shares(Vec::new());
            stage.clone_stage().fields(&mut shares)?;
            if !shares.0.iter().eq(self.parts.iter().map(|p| &p.share)) {
                let own: Vec<f64> = self.parts.iter().map(|p| p.share).collect();
                let rule = format!("the rotation of the network must have the same parts; it has {:?}", shares.0);
                return Err(ParamError::new("parts", format!("{own:?}"), rule).into());
            }
        }
        Ok(())
    }
}

/// Returns a stage of the kind and parameters of `stage`, but of `bits` bits. Errors if it does not take them.
pub(crate) fn with_bits(stage: &dyn StageSpec, bits: i64, kinds: &Stages) -> Result<Box<dyn StageSpec>> {
    /// Copies the parameters of a stage, but the bits.
    struct But<'s>(ValuesOf<'s>, i64);
    impl Fields for But<'_> {
        fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
            if field.name == "bits" {
                *value = Some(Value::Int(self.1));
                return Ok(());
            }
            self.0.value(field, value)
        }
    }
    let mut other = kinds.make(stage.kind())?;
    other.fields(&mut But(ValuesOf(stage), bits))?;
    Ok(other)
}

impl StageSpec for Split {
    fn kind(&self) -> &'static str {
        "split"
    }
    fn help(&self) -> &'static str {
        "Compresses parts of the columns by stages of their own; each makes up for the errors of those before (arXiv 2412.14363)."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        let help = "Damping of the Hessian between the parts, as a share of its mean diagonal; 0.01 unless given.";
        f.optional_float("damping", help, f64::MIN_POSITIVE..=f64::MAX, &mut self.damping)?;
        f.list("parts", "The parts, in the order of the columns.", &mut self.parts)
    }
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>> {
        self.check_order(at)?;
        let mut all = Subspaces::new().heads(at.heads);
        if let Some(damping) = self.damping {
            all = all.damping(damping);
        }
        for part in &self.parts {
            let own = assemble(&at.with_stages(&[&part.stages]))?;
            if !own.rewrites.is_empty() || !own.pruners.is_empty() {
                let rule = "stages that change the site belong in the rule, before `split`";
                return Err(ParamError::new("stages", "of a part", rule).into());
            }
            all = all.part(part.share, own.method);
        }
        Ok(vec![Part::Base(Box::new(all.check()?))])
    }
    fn words(&self) -> Vec<&'static str> {
        Vec::new()
    }
}
