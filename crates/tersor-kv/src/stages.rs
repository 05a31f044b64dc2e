//! The kinds of caches of this crate in recipes.

use tersor_core::cache::{CacheLayout, CacheNeeds, CacheSample};
use tersor_core::stages::{Fields, Named, Part, Segment, Slot, StageSpec, Stages, Target};
use tersor_core::{CacheMethod, CacheSet, Check, Context, Error, Heads, Result, Rotation, Value};

use crate::{CheckedIntegers, IntegerCaches, Integers};

/// Adds the kind of caches `int` to the registry `stages`, from which recipes take how keys and values are stored: as integers
/// ([`Integers`]), with a scale and a minimum per token and head. It replaces a kind of caches of this name.
pub fn register_stages(stages: &mut Stages) {
    stages.register(IntStage::default());
}

/// The rotation of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Keys {
    #[default]
    Plain,
    Hadamard,
    Stored,
}

/// How many dimensions of each head are stored in 8 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum High {
    Count(usize),
    Eighth,
}

/// Caches of integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct IntStage {
    bits: u32,
    value_bits: Option<u32>,
    keys: Keys,
    high: High,
}

impl Default for IntStage {
    fn default() -> Self {
        Self { bits: 4, value_bits: None, keys: Keys::Plain, high: High::Count(0) }
    }
}

impl StageSpec for IntStage {
    fn kind(&self) -> &'static str {
        "int"
    }
    fn help(&self) -> &'static str {
        "Stores keys and values as integers, with a scale and a minimum per token and head (arXiv 2412.14363)."
    }
    fn slot(&self) -> Slot {
        Slot::Cache
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.int("bits", "Bits of a code.", 2..=8, &mut self.bits)?;
        f.optional_int("value_bits", "Bits of the codes of values, if they differ.", 2..=8, &mut self.value_bits)?;
        let keys = [("plain", Keys::Plain), ("hadamard", Keys::Hadamard), ("stored", Keys::Stored)];
        let help = "Rotation of keys after the rotary embedding: none, a random Hadamard matrix, or the one stored with the model.";
        f.choice("keys", help, &keys, &mut self.keys)?;
        f.int_or_word(
            ("high", "Number of dimensions at the end of each head that have 8 bits, or an eighth of them."),
            0..=i64::from(u32::MAX),
            &[("eighth", High::Eighth)],
            (
                |n| usize::try_from(n).ok().map(High::Count),
                |high| if let High::Count(n) = high { i64::try_from(n).ok() } else { None },
            ),
            &mut self.high,
        )
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Cache(Box::new(*self))])
    }
    fn segments(&self) -> Vec<Segment> {
        let word =
            |word: &'static str, field, value: &str| Segment::word(word, vec![(field, Value::Text(value.into()))]);
        vec![
            Segment::number("kv", "bits"),
            word("hadamard", "keys", "hadamard"),
            word("pca", "keys", "stored"),
            Segment::number("high", "high"),
            word("eighth", "high", "eighth"),
        ]
    }
    fn is_default(&self) -> bool {
        true
    }
    fn add_to(&self, recipe: &mut Named<'_>, _: &str) -> Result<()> {
        recipe.push(Box::new(*self));
        Ok(())
    }
}

impl IntStage {
    /// Returns the parameters of a layer whose keys have the rotation `rotation`.
    fn layer(&self, heads: &Heads, rotation: Option<Rotation>) -> Result<CheckedIntegers> {
        let high = match self.high {
            High::Count(n) => n,
            // As in ResQ, 7/8 of the dimensions are rounded to a whole number, and the others have 8 bits.
            High::Eighth => heads.key_dim() - (0.875 * heads.key_dim() as f64).round() as usize,
        };
        let params = Integers::new(self.bits).value_bits(self.value_bits.unwrap_or(self.bits)).high(high);
        Ok(rotation.into_iter().fold(params, Integers::key_rotation).check()?)
    }

    /// Returns the rotation of the keys of a layer; none for plain keys. Errors if a stored rotation is needed and `stored` has none.
    fn rotation(&self, layer: usize, heads: &Heads, stored: &[Option<Rotation>]) -> Result<Option<Rotation>> {
        match self.keys {
            Keys::Plain => Ok(None),
            Keys::Hadamard => {
                // Random rotations come from a fixed seed, so that they need not be stored.
                let mut rng = Context::new().stream(&format!("keys of layer {layer}"));
                tersor_linalg::rotation(heads.key_dim(), &mut rng).map(Some)
            }
            Keys::Stored => {
                let name = format!("rotation of the keys of layer {layer}");
                let place = "the model; compress it with a rotation of the network by principal directions";
                stored.get(layer).cloned().flatten().ok_or_else(|| Error::missing(&name, place)).map(Some)
            }
        }
    }
}

impl CacheMethod for IntStage {
    fn needs(&self) -> CacheNeeds {
        CacheNeeds::default()
    }
    fn fit(&self, sample: &CacheSample<'_>, _: &Context) -> Result<Box<dyn CacheSet>> {
        let layers = sample.heads.iter().enumerate();
        let layers = layers.map(|(i, heads)| self.layer(heads, self.rotation(i, heads, sample.key_rotations)?));
        Ok(Box::new(IntegerCaches::by_layer(layers.collect::<Result<_>>()?)?))
    }
    fn layout(&self, layers: &[Heads]) -> Result<CacheLayout> {
        // A stored rotation has the layout of any dense one.
        let identity = |heads: &Heads| -> Result<Option<Rotation>> {
            let dim = heads.key_dim();
            let values: Vec<f32> = (0..dim * dim).map(|i| if i % (dim + 1) == 0 { 1.0 } else { 0.0 }).collect();
            Rotation::dense(&values).map(Some)
        };
        let stored = match self.keys {
            Keys::Stored => layers.iter().map(identity).collect::<Result<Vec<_>>>()?,
            _ => Vec::new(),
        };
        let all = layers.iter().enumerate();
        let all = all.map(|(i, heads)| self.layer(heads, self.rotation(i, heads, &stored)?));
        let caches = IntegerCaches::by_layer(all.collect::<Result<_>>()?)?;
        Ok(CacheLayout { bytes_per_token: caches.bytes_per_token(layers)?, tensors: caches.layout() })
    }
}
