//! Statistics as tensors of a file.

use std::sync::Arc;

use super::gram;
use super::little_endian::{from_bytes, to_bytes};
use super::sample::Sample;
use super::windows::Windows;
use super::{ChannelStats, StatNeeds, StatSet, WindowStats};
use crate::tensors::{join, read_expected, read_floats};
use crate::{DType, Error, Result, TensorInfo, TensorSink, TensorSource};

/// The sizes that, together with the number of features and the [`StatNeeds`] (which statistics are held), determine the tensors that
/// [`StatSet::save`] writes, and their shapes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StatExtent {
    /// The number of observed tokens of weight above 0, which determines the size of the saved sample: this many tokens, or as many as were
    /// requested if that is fewer. The number of sampled tokens leads to the same size. If no sample was requested, the value has no
    /// effect. [`StatSet::extent`] sets the number of sampled tokens if a sample was requested, otherwise the number of all observed
    /// tokens, those of weight 0 included.
    pub tokens: u64,
    /// The number of observed windows (whole sequences); 0 if statistics of windows were not requested.
    pub windows: usize,
    /// Whether an observed token had a weight other than 1. If so, the sum of weights is saved too, as the tensor `weight`.
    pub weighted: bool,
}

impl StatSet {
    /// Returns name suffix, type and shape of each tensor that [`StatSet::save`] writes for statistics with `features` features that hold
    /// what `needs` requests, after `tokens` tokens, all of weight 1, and no windows. The full name is the prefix, a dot and the suffix.
    /// For windows and other weights see [`StatSet::layout_of`].
    pub fn layout(features: usize, needs: StatNeeds, tokens: u64) -> Vec<(String, TensorInfo)> {
        Self::layout_of(features, needs, StatExtent { tokens, ..StatExtent::default() })
    }

    /// Returns name suffix, type and shape of each tensor that [`StatSet::save`] writes for statistics with `features` features that hold
    /// what `needs` requests, with the numbers of tokens and windows in `extent`. The full name is the prefix, a dot and the suffix.
    pub fn layout_of(features: usize, needs: StatNeeds, extent: StatExtent) -> Vec<(String, TensorInfo)> {
        let k = features;
        let info = |dtype, shape: &[usize]| TensorInfo { dtype, shape: shape.to_vec() };
        let mut out = vec![("head", info(DType::U64, &[5]))];
        if needs.squares {
            out.push(("squares", info(DType::F64, &[k])));
        }
        if needs.channel {
            out.extend(["min", "max"].map(|n| (n, info(DType::F32, &[k]))));
            out.extend(["sum", "sum_abs", "sum_sq", "max_mean_abs"].map(|n| (n, info(DType::F64, &[k]))));
        }
        if needs.gram {
            out.push(("gram", info(DType::F64, &[k, k])));
        }
        if needs.sample > 0 {
            let n = usize::try_from(extent.tokens).unwrap_or(usize::MAX).min(needs.sample);
            out.extend([("sample_tokens", info(DType::U64, &[n])), ("sample", info(DType::F32, &[n, k]))]);
        }
        if needs.windows {
            let n = extent.windows;
            out.push(("window_first", info(DType::U64, &[1])));
            out.extend(["window_numbers", "window_tokens"].map(|name| (name, info(DType::U64, &[n]))));
            out.extend(["window_mean", "window_variance"].map(|name| (name, info(DType::F32, &[n, k]))));
        }
        if extent.weighted {
            out.push(("weight", info(DType::F64, &[1])));
        }
        out.into_iter().map(|(name, info)| (name.to_string(), info)).collect()
    }

    /// Returns the number of sampled tokens (of all observed tokens if no sample was requested), the number of observed windows (whole
    /// sequences; 0 if statistics of windows were not requested), and whether a token had a weight other than 1. With
    /// [`StatSet::features`] and [`StatSet::needs`] they are the arguments of [`StatSet::layout_of`] for these statistics.
    pub fn extent(&self) -> StatExtent {
        StatExtent {
            // A sample that is not full holds every token of weight above 0.
            tokens: self.sample.as_ref().map_or(self.tokens, |s| s.keys.len() as u64),
            windows: self.windows.as_ref().map_or(0, |w| w.stats.len()),
            weighted: self.weight.is_some(),
        }
    }

    /// Checks, by the names, types and last axes of the tensors under `prefix` in `source`, that statistics of `features` input features
    /// are saved there and include what `needs` requests. A request for squares (sums of squares of the inputs) is also met by channel
    /// statistics or a Gram matrix. Values are not read, and the number of sampled tokens is not checked. Errors with [`Error::Missing`],
    /// naming the tensor, if one is missing. Errors with [`Error::Shape`] inside of an [`Error::Tensor`], which names the tensor, if one
    /// has another type or last axis.
    pub fn check_saved(prefix: &str, source: &dyn TensorSource, features: usize, needs: StatNeeds) -> Result<()> {
        for (suffix, want) in Self::layout(features, needs, 0) {
            let implied = ["squares", "sum_sq", "gram"].map(|n| join(prefix, n));
            let name = match suffix.as_str() {
                "squares" => implied.into_iter().find(|n| source.info(n).is_ok()),
                _ => None,
            };
            let name = name.unwrap_or_else(|| join(prefix, &suffix));
            let found = source.info(&name).map_err(|e| match e {
                Error::Missing { .. } => Error::Missing {
                    name: name.clone(),
                    place: "the saved statistics; calibrate with a method or a recipe that needs it".into(),
                },
                other => other,
            })?;
            // The last axis is that of features, except for lists of integers.
            let wide = want.dtype != DType::U64;
            if found.dtype != want.dtype || wide && found.shape.last() != Some(&features) {
                return Err(Error::shape("saved statistics", want, found).in_tensor(&name));
            }
        }
        Ok(())
    }

    /// Writes the statistics as tensors named `prefix.suffix`: those of [`StatSet::layout_of`] for [`StatSet::extent`], all little-endian.
    /// The tensor `head` has five u64 values: the number of features, the index of the first token in the whole calibration stream (0
    /// unless these statistics are those of a later shard), the number of observed tokens, the requested size of the sample (0 for none),
    /// and the seed that determines which tokens are sampled (0 without a sample). Errors if the sink errors.
    pub fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let k = self.features;
        let mut put = |suffix: &str, dtype: DType, shape: &[usize], bytes: &[u8]| {
            sink.write_shared(&join(prefix, suffix), &TensorInfo { dtype, shape: shape.to_vec() }, bytes)
        };
        let want = self.sample.as_ref().map_or((0, 0), |s| (s.want as u64, s.seed));
        let head = [k as u64, self.first_token, self.tokens, want.0, want.1];
        put("head", DType::U64, &[5], &to_bytes(&head))?;
        if let Some(s) = &self.squares {
            put("squares", DType::F64, &[k], &to_bytes(s))?;
        }
        if let Some(c) = &self.channel {
            put("min", DType::F32, &[k], &to_bytes(&c.min))?;
            put("max", DType::F32, &[k], &to_bytes(&c.max))?;
            put("sum", DType::F64, &[k], &to_bytes(&c.sum))?;
            put("sum_abs", DType::F64, &[k], &to_bytes(&c.sum_abs))?;
            put("sum_sq", DType::F64, &[k], &to_bytes(&c.sum_sq))?;
            put("max_mean_abs", DType::F64, &[k], &to_bytes(&c.max_mean_abs))?;
        }
        if let Some(g) = &self.gram {
            put("gram", DType::F64, &[k, k], &to_bytes(g))?;
        }
        if let Some(s) = &self.sample {
            let numbers: Vec<u64> = s.keys.iter().map(|k| k.1).collect();
            put("sample_tokens", DType::U64, &[numbers.len()], &to_bytes(&numbers))?;
            put("sample", DType::F32, &[numbers.len(), k], &to_bytes(&s.rows.concat()))?;
        }
        if let Some(w) = &self.windows {
            let n = w.stats.len();
            let tokens: Vec<u64> = w.stats.iter().map(|s| s.tokens).collect();
            let all = |f: fn(&WindowStats) -> &[f32]| w.stats.iter().map(f).collect::<Vec<_>>().concat();
            put("window_first", DType::U64, &[1], &to_bytes(&[w.first]))?;
            put("window_numbers", DType::U64, &[n], &to_bytes(&w.numbers))?;
            put("window_tokens", DType::U64, &[n], &to_bytes(&tokens))?;
            put("window_mean", DType::F32, &[n, k], &to_bytes(&all(|s| &s.mean)))?;
            put("window_variance", DType::F32, &[n, k], &to_bytes(&all(|s| &s.variance)))?;
        }
        match self.weight {
            Some(weight) => put("weight", DType::F64, &[1], &to_bytes(&[weight])),
            None => Ok(()),
        }
    }

    /// Reads the statistics that [`StatSet::save`] wrote under `prefix`. Errors if a tensor is missing, has a wrong type or shape, or has
    /// values that no statistics can have, such as NaN, a negative sum of squares or a Gram matrix that is not symmetric.
    pub fn load(prefix: &str, source: &dyn TensorSource) -> Result<Self> {
        let file = Saved { prefix, source };
        let head = file.u64s("head", 5)?;
        let [features, first_token, tokens, want, seed] = head[..] else {
            return Err(Error::format(prefix, "the head of the statistics must have 5 numbers"));
        };
        let k = usize::try_from(features).map_err(|_| Error::Overflow { what: format!("{features} features") })?;
        let vector = [k];
        let squares = if file.has("squares") { Some(file.sums("squares", k)?) } else { None };
        let channel = if file.has("min") {
            Some(ChannelStats {
                min: file.extremes("min", k, tokens)?,
                max: file.extremes("max", k, tokens)?,
                sum: file.f64s("sum", &vector)?,
                sum_abs: file.sums("sum_abs", k)?,
                sum_sq: file.sums("sum_sq", k)?,
                max_mean_abs: file.sums("max_mean_abs", k)?,
            })
        } else {
            None
        };
        if let Some(c) = &channel
            && let Some(i) = c.min.iter().zip(&c.max).position(|(min, max)| tokens > 0 && min > max)
        {
            return Err(Error::format(file.name("min"), format!("the minimum of feature {i} is above its maximum")));
        }
        let gram = if file.has("gram") {
            let values = file.f64s("gram", &[k, k])?;
            gram::check(&values, k).map_err(|e| e.in_tensor(&file.name("gram")))?;
            Some(Arc::new(values))
        } else {
            None
        };
        let sample = if want > 0 { Some(file.sample(k, want, seed)?) } else { None };
        let windows = if file.has("window_first") { Some(file.windows(k, tokens)?) } else { None };
        let weight = if file.has("weight") { Some(file.weight()?) } else { None };
        Ok(Self { features: k, first_token, tokens, weight, squares, channel, gram, sample, windows })
    }
}

/// The saved tensors under a prefix.
struct Saved<'a> {
    prefix: &'a str,
    source: &'a dyn TensorSource,
}

impl Saved<'_> {
    fn name(&self, suffix: &str) -> String {
        join(self.prefix, suffix)
    }

    fn has(&self, suffix: &str) -> bool {
        self.source.info(&self.name(suffix)).is_ok()
    }

    fn u64s(&self, suffix: &str, len: usize) -> Result<Vec<u64>> {
        from_bytes(&read_expected(self.source, &self.name(suffix), DType::U64, &[len])?)
    }

    fn f64s(&self, suffix: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let name = self.name(suffix);
        let values: Vec<f64> = from_bytes(&read_expected(self.source, &name, DType::F64, shape)?)?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => {
                let k = shape.last().map_or(1, |k| (*k).max(1));
                let (row, col, value) = (i / k, i % k, values[i] as f32);
                Err(Error::NonFinite { row, col, value }.in_tensor(&name))
            }
            None => Ok(values),
        }
    }

    /// Reads one sum of non-negative values for each feature.
    fn sums(&self, suffix: &str, k: usize) -> Result<Vec<f64>> {
        let values = self.f64s(suffix, &[k])?;
        match values.iter().position(|v| *v < 0.0) {
            Some(i) => Err(Error::format(self.name(suffix), format!("the value of feature {i} is negative"))),
            None => Ok(values),
        }
    }

    fn finite_f32s(&self, suffix: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        let name = self.name(suffix);
        let values = read_floats(self.source, &name, &shape)?;
        crate::rows::check_finite(&values, shape[1], 0).map_err(|e| e.in_tensor(&name))?;
        Ok(values)
    }

    /// Reads extremes, which must be finite if tokens were observed.
    fn extremes(&self, suffix: &str, k: usize, tokens: u64) -> Result<Vec<f32>> {
        let name = self.name(suffix);
        let values = read_floats(self.source, &name, &[k])?;
        match values.iter().position(|v| v.is_nan() || (tokens > 0 && v.is_infinite())) {
            Some(col) => Err(Error::NonFinite { row: 0, col, value: values[col] }.in_tensor(&name)),
            None => Ok(values),
        }
    }

    /// Returns the length of a list.
    fn count(&self, suffix: &str) -> Result<usize> {
        let name = self.name(suffix);
        let shape = self.source.info(&name)?.shape;
        match shape[..] {
            [n] => Ok(n),
            _ => Err(Error::shape("list of numbers", "one axis", shape).in_tensor(&name)),
        }
    }

    fn sample(&self, k: usize, want: u64, seed: u64) -> Result<Sample> {
        let n = self.count("sample_tokens")?;
        let numbers = self.u64s("sample_tokens", n)?;
        let values = self.finite_f32s("sample", [n, k])?;
        let want = usize::try_from(want).map_err(|_| Error::Overflow { what: format!("a sample of {want}") })?;
        let mut sample = Sample::new(want, seed);
        for (i, number) in numbers.iter().enumerate() {
            sample.offer(*number, || values[i * k..(i + 1) * k].to_vec());
        }
        if sample.keys.len() != n {
            let what = "a token is listed twice, or there are more tokens than the sample holds";
            return Err(Error::format(self.name("sample_tokens"), what));
        }
        Ok(sample)
    }

    /// Reads windows that have so many tokens together.
    fn windows(&self, k: usize, tokens: u64) -> Result<Windows> {
        let refuse = |suffix: &str, what: &str| Err(Error::format(self.name(suffix), what));
        let first = self.u64s("window_first", 1)?.first().copied().unwrap_or(0);
        let n = self.count("window_numbers")?;
        let numbers = self.u64s("window_numbers", n)?;
        if !numbers.is_sorted_by(|a, b| a < b) {
            return refuse("window_numbers", "numbers of windows are not ascending");
        }
        let each = self.u64s("window_tokens", n)?;
        let sum = each.iter().try_fold(0u64, |sum, t| sum.checked_add(*t));
        if each.contains(&0) || sum != Some(tokens) {
            return refuse(
                "window_tokens",
                "tokens of the windows do not sum to the tokens seen, or a window has none",
            );
        }
        let mean = self.finite_f32s("window_mean", [n, k])?;
        let variance = self.finite_f32s("window_variance", [n, k])?;
        if variance.iter().any(|v| *v < 0.0) {
            return refuse("window_variance", "a variance is negative");
        }
        let row = |all: &[f32], i: usize| all[i * k..(i + 1) * k].to_vec();
        let stats = each.iter().enumerate();
        let stats =
            stats.map(|(i, t)| WindowStats { mean: row(&mean, i), variance: row(&variance, i), tokens: *t }).collect();
        Ok(Windows { first, numbers, stats })
    }

    fn weight(&self) -> Result<f64> {
        match self.f64s("weight", &[1])?[..] {
            [weight] if weight > 0.0 => Ok(weight),
            _ => Err(Error::format(self.name("weight"), "the sum of token weights is not above 0")),
        }
    }
}
