//! What flowed into a site, as values that add.

use std::ops::Range;
use std::sync::Arc;

use crate::tensors::{join, read_expected, read_floats};
use crate::{DType, Error, IntoMat, Result, TensorInfo, TensorSink, TensorSource};

/// What a method asks to know about the inputs of a matrix.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StatNeeds {
    /// Per-channel sums of squares, of which an importance matrix consists; part of `channel`, and the diagonal of `gram`.
    pub squares: bool,
    /// Per-channel sums and extremes.
    pub channel: bool,
    /// The Gram matrix `XᵀX`.
    pub gram: bool,
    /// So many whole tokens.
    pub sample: usize,
    /// All rows of the weight at once, rather than blocks of them.
    pub whole_matrix: bool,
}

impl StatNeeds {
    /// What either of two methods needs.
    pub fn union(self, other: Self) -> Self {
        Self {
            squares: self.squares || other.squares,
            channel: self.channel || other.channel,
            gram: self.gram || other.gram,
            sample: self.sample.max(other.sample),
            whole_matrix: self.whole_matrix || other.whole_matrix,
        }
    }

    /// Whether calibration data is needed at all.
    pub fn any_data(self) -> bool {
        self.squares || self.channel || self.gram || self.sample > 0
    }
}

/// Per-channel figures, each `[features]`.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelStats {
    /// Smallest value.
    pub min: Vec<f32>,
    /// Largest value.
    pub max: Vec<f32>,
    /// Sum.
    pub sum: Vec<f64>,
    /// Sum of magnitudes.
    pub sum_abs: Vec<f64>,
    /// Sum of squares.
    pub sum_sq: Vec<f64>,
    /// The largest mean magnitude that one batch had.
    pub max_mean_abs: Vec<f64>,
}

impl ChannelStats {
    fn new(k: usize) -> Self {
        Self {
            min: vec![f32::INFINITY; k],
            max: vec![f32::NEG_INFINITY; k],
            sum: vec![0.0; k],
            sum_abs: vec![0.0; k],
            sum_sq: vec![0.0; k],
            max_mean_abs: vec![0.0; k],
        }
    }

    fn observe(&mut self, x: &[f32], k: usize) {
        let mut abs = vec![0f64; k];
        for row in x.chunks_exact(k) {
            for (i, &v) in row.iter().enumerate() {
                self.min[i] = self.min[i].min(v);
                self.max[i] = self.max[i].max(v);
                let v = f64::from(v);
                self.sum[i] += v;
                abs[i] += v.abs();
                self.sum_sq[i] += v * v;
            }
        }
        let tokens = (x.len() / k) as f64;
        for (i, a) in abs.into_iter().enumerate() {
            self.sum_abs[i] += a;
            self.max_mean_abs[i] = self.max_mean_abs[i].max(a / tokens);
        }
    }

    fn merge(&mut self, other: &Self) {
        fn zip<T: Copy>(a: &mut [T], b: &[T], f: impl Fn(T, T) -> T) {
            a.iter_mut().zip(b).for_each(|(a, &b)| *a = f(*a, b));
        }
        zip(&mut self.min, &other.min, f32::min);
        zip(&mut self.max, &other.max, f32::max);
        zip(&mut self.sum, &other.sum, |a, b| a + b);
        zip(&mut self.sum_abs, &other.sum_abs, |a, b| a + b);
        zip(&mut self.sum_sq, &other.sum_sq, |a, b| a + b);
        zip(&mut self.max_mean_abs, &other.max_mean_abs, f64::max);
    }
}

/// Whole tokens, chosen by a hash of their number: the choice does not depend on how the stream was cut.
#[derive(Clone, PartialEq, Debug)]
struct Sample {
    want: usize,
    seed: u64,
    /// Key and number of each kept token, ascending by key.
    keys: Vec<(u64, u64)>,
    rows: Vec<Vec<f32>>,
}

impl Sample {
    fn offer(&mut self, number: u64, row: impl FnOnce() -> Vec<f32>) {
        let key = (mix(self.seed ^ mix(number)), number);
        let at = match self.keys.binary_search(&key) {
            Ok(_) => return,
            Err(at) => at,
        };
        if at >= self.want {
            return;
        }
        self.keys.insert(at, key);
        self.rows.insert(at, row());
        self.keys.truncate(self.want);
        self.rows.truncate(self.want);
    }
}

/// The finalizer of splitmix64.
fn mix(v: u64) -> u64 {
    let v = v.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let v = (v ^ (v >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let v = (v ^ (v >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    v ^ (v >> 31)
}

/// Statistics of the inputs of one site: a value that grows by batches, adds to others, and is saved and loaded.
#[derive(Clone, PartialEq, Debug)]
pub struct StatSet {
    features: usize,
    first_token: u64,
    tokens: u64,
    squares: Option<Vec<f64>>,
    channel: Option<ChannelStats>,
    /// Shared with methods that were prepared with it.
    gram: Option<Arc<Vec<f64>>>,
    sample: Option<Sample>,
}

impl StatSet {
    /// Those of some of the features. Error when the run leaves the features.
    pub fn columns(&self, columns: Range<usize>) -> Result<Self> {
        let k = self.features;
        if columns.start > columns.end || columns.end > k {
            return Err(Error::shape("columns of statistics", format!("within 0..{k}"), format!("{columns:?}")));
        }
        let run = columns.clone();
        let gram = self.gram.as_ref().map(|gram| {
            let rows = gram.chunks_exact(k.max(1)).skip(run.start).take(run.len());
            Arc::new(rows.flat_map(|row| &row[run.clone()]).copied().collect())
        });
        let channel = self.channel.as_ref().map(|c| ChannelStats {
            min: c.min[run.clone()].to_vec(),
            max: c.max[run.clone()].to_vec(),
            sum: c.sum[run.clone()].to_vec(),
            sum_abs: c.sum_abs[run.clone()].to_vec(),
            sum_sq: c.sum_sq[run.clone()].to_vec(),
            max_mean_abs: c.max_mean_abs[run.clone()].to_vec(),
        });
        let sample = self.sample.as_ref().map(|s| {
            let rows = s.rows.iter().map(|row| row[run.clone()].to_vec()).collect();
            Sample { want: s.want, seed: s.seed, keys: s.keys.clone(), rows }
        });
        let squares = self.squares.as_ref().map(|v| v[run.clone()].to_vec());
        Ok(Self { features: run.len(), gram, channel, sample, squares, ..*self })
    }

    /// With another Gram matrix, `[features, features]`, symmetric. Error on another length, or a value that is not finite.
    pub fn with_gram(self, gram: Vec<f64>) -> Result<Self> {
        let k = self.features;
        if Some(gram.len()) != k.checked_mul(k) {
            return Err(Error::shape("Gram matrix", [k, k], gram.len()));
        }
        match gram.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(Error::NonFinite { row: i / k, col: i % k, value: gram[i] as f32 }),
            None => Ok(Self { gram: Some(Arc::new(gram)), ..self }),
        }
    }

    /// Nothing seen yet. `first_token` is the number of the first token of this shard in the whole stream, and
    /// `seed` chooses the sample. Error when the Gram matrix would not fit the address space.
    pub fn new(features: usize, needs: StatNeeds, seed: u64, first_token: u64) -> Result<Self> {
        let gram =
            if needs.gram { Some(Arc::new(vec![0.0; crate::view::elements([features, features])?])) } else { None };
        let sample =
            (needs.sample > 0).then(|| Sample { want: needs.sample, seed, keys: Vec::new(), rows: Vec::new() });
        let channel = needs.channel.then(|| ChannelStats::new(features));
        let squares = needs.squares.then(|| vec![0.0; features]);
        Ok(Self { features, first_token, tokens: 0, squares, channel, gram, sample })
    }

    /// From sums of squares over so many tokens, `[features]`: all that an importance matrix knows. Error when one is negative or not
    /// finite.
    pub fn from_squares(squares: Vec<f64>, tokens: u64) -> Result<Self> {
        if let Some(i) = squares.iter().position(|v| !v.is_finite() || *v < 0.0) {
            return Err(Error::Numerical(format!("a sum of squares is {} at feature {i}", squares[i])));
        }
        let features = squares.len();
        Ok(Self { features, first_token: 0, tokens, squares: Some(squares), channel: None, gram: None, sample: None })
    }

    /// Adds a batch `[tokens, features]`. All or nothing: on an error (another width, a value that is not
    /// finite) the statistics are what they were.
    pub fn observe(&mut self, batch: &impl IntoMat<f32>) -> Result<()> {
        batch.with_mat(|m| {
            let [tokens, k] = m.shape();
            if k != self.features {
                return Err(Error::shape("features of a batch", self.features, k));
            }
            let x = m.to_f32();
            crate::rows::check_finite(&x, k, 0)?;
            if tokens == 0 || k == 0 {
                return Ok(());
            }
            if let Some(gram) = self.gram.as_mut().map(Arc::make_mut)
                && !tersor_kernels::dense::add_gram(&x, [tokens, k], gram, cfg!(feature = "rayon"))
            {
                return Err(Error::shape("Gram matrix", [k, k], gram.len()));
            }
            if let Some(squares) = &mut self.squares {
                for row in x.chunks_exact(k) {
                    squares.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v).powi(2));
                }
            }
            if let Some(channel) = &mut self.channel {
                channel.observe(&x, k);
            }
            if let Some(sample) = &mut self.sample {
                for (i, row) in x.chunks_exact(k).enumerate() {
                    sample.offer(self.first_token + self.tokens + i as u64, || row.to_vec());
                }
            }
            self.tokens += tokens as u64;
            Ok(())
        })
    }

    /// Adds another shard. Sums in floating point depend on the order of the shards: keep it. Error, with `self`
    /// unchanged, when the two were made for different inputs or needs.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let alike = self.features == other.features
            && self.squares.is_some() == other.squares.is_some()
            && self.channel.is_some() == other.channel.is_some()
            && self.gram.is_some() == other.gram.is_some()
            && self.sample.as_ref().map(|s| (s.want, s.seed)) == other.sample.as_ref().map(|s| (s.want, s.seed));
        if !alike {
            return Err(Error::shape("statistics to merge", self.summary(), other.summary()));
        }
        if let (Some(a), Some(b)) = (&mut self.squares, &other.squares) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
        if let (Some(a), Some(b)) = (&mut self.channel, &other.channel) {
            a.merge(b);
        }
        if let (Some(a), Some(b)) = (self.gram.as_mut().map(Arc::make_mut), &other.gram) {
            a.iter_mut().zip(b.iter()).for_each(|(a, b)| *a += b);
        }
        if let (Some(a), Some(b)) = (&mut self.sample, &other.sample) {
            for (key, row) in b.keys.iter().zip(&b.rows) {
                a.offer(key.1, || row.clone());
            }
        }
        self.tokens += other.tokens;
        Ok(())
    }

    /// Without what is not needed. A sample keeps its size.
    pub fn only(self, needs: StatNeeds) -> Self {
        Self {
            squares: self.squares.filter(|_| needs.squares),
            channel: self.channel.filter(|_| needs.channel),
            gram: self.gram.filter(|_| needs.gram),
            sample: self.sample.filter(|_| needs.sample > 0),
            ..self
        }
    }

    fn summary(&self) -> String {
        let sample = self.sample.as_ref().map_or(0, |s| s.want);
        let [squares, channel, gram] = [self.squares.is_some(), self.channel.is_some(), self.gram.is_some()];
        format!("{} features, squares {squares}, channel {channel}, gram {gram}, sample {sample}", self.features)
    }

    /// Input features of the site.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Sums of squares of each channel, `[features]`, from whichever of the statistics has them.
    pub fn squares(&self) -> Option<Vec<f64>> {
        let diagonal = |g: &Arc<Vec<f64>>| (0..self.features).map(|i| g[i * self.features + i]).collect();
        self.squares
            .clone()
            .or_else(|| self.channel.as_ref().map(|c| c.sum_sq.clone()))
            .or_else(|| self.gram.as_ref().map(diagonal))
    }

    /// Per-channel figures, if they were asked for.
    pub fn channel(&self) -> Option<&ChannelStats> {
        self.channel.as_ref()
    }

    /// `XᵀX`, `[features, features]`, symmetric to the last bit, if it was asked for.
    pub fn gram(&self) -> Option<&[f64]> {
        self.gram.as_deref().map(Vec::as_slice)
    }

    /// [`StatSet::gram`], to keep beyond these statistics.
    pub fn shared_gram(&self) -> Option<Arc<Vec<f64>>> {
        self.gram.clone()
    }

    /// The sampled tokens in the order of the stream, `[n, features]` row-major, if they were asked for.
    pub fn sample(&self) -> Option<Vec<f32>> {
        let sample = self.sample.as_ref()?;
        let mut order: Vec<usize> = (0..sample.keys.len()).collect();
        order.sort_by_key(|&i| sample.keys[i].1);
        Some(order.into_iter().flat_map(|i| sample.rows[i].iter().copied()).collect())
    }

    /// The tensors that [`StatSet::save`] writes for statistics of so many tokens.
    pub fn layout(features: usize, needs: StatNeeds, tokens: u64) -> Vec<(String, TensorInfo)> {
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
            let n = usize::try_from(tokens).unwrap_or(usize::MAX).min(needs.sample);
            out.extend([("sample_tokens", info(DType::U64, &[n])), ("sample", info(DType::F32, &[n, k]))]);
        }
        out.into_iter().map(|(name, info)| (name.to_string(), info)).collect()
    }

    /// Writes everything under `prefix`.
    pub fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let k = self.features;
        let mut put = |suffix: &str, dtype: DType, shape: Vec<usize>, bytes: &[u8]| {
            sink.write_shared(&join(prefix, suffix), &TensorInfo { dtype, shape }, bytes)
        };
        let want = self.sample.as_ref().map_or((0, 0), |s| (s.want as u64, s.seed));
        let head = [k as u64, self.first_token, self.tokens, want.0, want.1];
        put("head", DType::U64, vec![5], bytemuck::cast_slice(&head.map(u64::to_le)))?;
        if let Some(s) = &self.squares {
            put("squares", DType::F64, vec![k], bytemuck::cast_slice(s))?;
        }
        if let Some(c) = &self.channel {
            put("min", DType::F32, vec![k], bytemuck::cast_slice(&c.min))?;
            put("max", DType::F32, vec![k], bytemuck::cast_slice(&c.max))?;
            put("sum", DType::F64, vec![k], bytemuck::cast_slice(&c.sum))?;
            put("sum_abs", DType::F64, vec![k], bytemuck::cast_slice(&c.sum_abs))?;
            put("sum_sq", DType::F64, vec![k], bytemuck::cast_slice(&c.sum_sq))?;
            put("max_mean_abs", DType::F64, vec![k], bytemuck::cast_slice(&c.max_mean_abs))?;
        }
        if let Some(g) = &self.gram {
            put("gram", DType::F64, vec![k, k], bytemuck::cast_slice(&g[..]))?;
        }
        if let Some(s) = &self.sample {
            let numbers: Vec<u64> = s.keys.iter().map(|k| k.1.to_le()).collect();
            put("sample_tokens", DType::U64, vec![numbers.len()], bytemuck::cast_slice(&numbers))?;
            put("sample", DType::F32, vec![numbers.len(), k], bytemuck::cast_slice(&s.rows.concat()))?;
        }
        Ok(())
    }

    /// Reads back what [`StatSet::save`] wrote. Error when a tensor is missing, misshapen or not finite where it must be.
    pub fn load(prefix: &str, source: &dyn TensorSource) -> Result<Self> {
        let head = read_expected(source, &join(prefix, "head"), DType::U64, &[5])?;
        let head: Vec<u64> = head.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let [features, first_token, tokens, want, seed] = head[..] else {
            return Err(Error::format(prefix, "statistics head has another length"));
        };
        let k = usize::try_from(features).map_err(|_| Error::Overflow { what: format!("{features} features") })?;
        let f32s = |suffix: &str| read_floats(source, &join(prefix, suffix), &[k]);
        let f64s = |suffix: &str, shape: &[usize]| -> Result<Vec<f64>> {
            let name = join(prefix, suffix);
            let bytes = read_expected(source, &name, DType::F64, shape)?;
            let values: Vec<f64> = bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
            match values.iter().position(|v| !v.is_finite()) {
                Some(i) => {
                    let (row, col, value) = (i / k.max(1), i % k.max(1), values[i] as f32);
                    Err(Error::NonFinite { row, col, value }.in_tensor(&name))
                }
                None => Ok(values),
            }
        };
        let has = |suffix: &str| source.info(&join(prefix, suffix)).is_ok();
        let squares = if has("squares") { Some(f64s("squares", &[k])?) } else { None };
        let channel = if has("min") {
            let vector = [k];
            Some(ChannelStats {
                min: f32s("min")?,
                max: f32s("max")?,
                sum: f64s("sum", &vector)?,
                sum_abs: f64s("sum_abs", &vector)?,
                sum_sq: f64s("sum_sq", &vector)?,
                max_mean_abs: f64s("max_mean_abs", &vector)?,
            })
        } else {
            None
        };
        let gram = if has("gram") { Some(Arc::new(f64s("gram", &[k, k])?)) } else { None };
        let sample = if want > 0 { Some(load_sample(prefix, source, k, want, seed)?) } else { None };
        Ok(Self { features: k, first_token, tokens, squares, channel, gram, sample })
    }
}

fn load_sample(prefix: &str, source: &dyn TensorSource, k: usize, want: u64, seed: u64) -> Result<Sample> {
    let name = join(prefix, "sample_tokens");
    let shape = source.info(&name)?.shape;
    let numbers = read_expected(source, &name, DType::U64, &shape)?;
    let name = join(prefix, "sample");
    let values = read_floats(source, &name, &[numbers.len() / 8, k])?;
    crate::rows::check_finite(&values, k, 0).map_err(|e| e.in_tensor(&name))?;
    let want = usize::try_from(want).map_err(|_| Error::Overflow { what: format!("a sample of {want}") })?;
    let mut sample = Sample { want, seed, keys: Vec::new(), rows: Vec::new() };
    for (i, number) in numbers.as_chunks::<8>().0.iter().enumerate() {
        sample.offer(u64::from_le_bytes(*number), || values[i * k..(i + 1) * k].to_vec());
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MatView, MemTensors};

    const NEEDS: StatNeeds = StatNeeds { squares: true, channel: true, gram: true, sample: 5, whole_matrix: false };

    fn batch(t: usize, k: usize, salt: usize) -> Vec<f32> {
        (0..t * k).map(|i| ((i * 13 + salt) % 29) as f32 - 14.0).collect()
    }

    #[test]
    fn shards_add_to_the_whole_and_files_come_back() {
        let k = 7;
        let all = batch(40, k, 3);
        let mut whole = StatSet::new(k, NEEDS, 9, 0).unwrap();
        let mut parts = StatSet::new(k, NEEDS, 9, 0).unwrap();
        for (i, rows) in all.chunks(10 * k).enumerate() {
            let m = MatView::new(rows, [rows.len() / k, k]).unwrap();
            whole.observe(&m).unwrap();
            let mut part = StatSet::new(k, NEEDS, 9, i as u64 * 10).unwrap();
            part.observe(&m).unwrap();
            let mut file = MemTensors::new();
            part.save("site", &mut file).unwrap();
            for (name, info) in StatSet::layout(k, NEEDS, part.tokens()) {
                assert_eq!(crate::TensorSource::info(&file, &join("site", &name)).unwrap(), info);
            }
            let loaded = StatSet::load("site", &file).unwrap();
            assert_eq!(loaded, part);
            parts.merge(&loaded).unwrap();
        }
        assert_eq!(whole, parts, "small integers add exactly, so the order of sums does not show");
        assert_eq!(whole.tokens(), 40);
        let gram = whole.gram().unwrap();
        let want: f64 = all.chunks(k).map(|r| f64::from(r[1]) * f64::from(r[4])).sum();
        assert_eq!((gram[k + 4], gram[4 * k + 1]), (want, want));
        let c = whole.channel().unwrap();
        assert_eq!(whole.squares().unwrap(), c.sum_sq);
        let diagonal = |needs| {
            let mut s = StatSet::new(k, needs, 9, 0).unwrap();
            s.observe(&MatView::new(&all, [40, k]).unwrap()).unwrap();
            s.squares()
        };
        assert_eq!(diagonal(StatNeeds { gram: true, ..StatNeeds::default() }).as_ref(), Some(&c.sum_sq));
        assert_eq!(diagonal(StatNeeds { channel: true, ..StatNeeds::default() }).as_ref(), Some(&c.sum_sq));
        assert_eq!(diagonal(StatNeeds { sample: 1, ..StatNeeds::default() }), None);
        assert!(StatSet::from_squares(vec![1.0, -1.0], 3).is_err());
        assert_eq!(c.sum_sq[2], all.chunks(k).map(|r| f64::from(r[2]).powi(2)).sum::<f64>());
        assert_eq!(whole.sample().unwrap().len(), 5 * k);
    }

    #[test]
    fn some_columns_are_statistics_of_some_features() {
        let (k, x) = (7, batch(20, 7, 5));
        let mut all = StatSet::new(k, NEEDS, 1, 0).unwrap();
        all.observe(&MatView::new(&x, [20, k]).unwrap()).unwrap();
        let some: Vec<f32> = x.chunks(k).flat_map(|row| row[2..5].to_vec()).collect();
        let mut want = StatSet::new(3, NEEDS, 1, 0).unwrap();
        want.observe(&MatView::new(&some, [20, 3]).unwrap()).unwrap();
        assert_eq!(all.columns(2..5).unwrap(), want);
        assert!(all.columns(5..8).is_err());
        assert!(want.clone().with_gram(vec![0.0; 8]).is_err() && want.clone().with_gram(vec![f64::NAN; 9]).is_err());
        assert_eq!(want.with_gram(vec![2.0; 9]).unwrap().gram(), Some(&[2.0; 9][..]));
    }

    #[test]
    fn a_bad_batch_leaves_everything_as_it_was() {
        let k = 4;
        let mut s = StatSet::new(k, NEEDS, 0, 0).unwrap();
        s.observe(&MatView::new(&batch(3, k, 1), [3, k]).unwrap()).unwrap();
        let before = s.clone();
        let mut bad = batch(3, k, 2);
        bad[k * 2 + 1] = f32::NAN;
        let e = s.observe(&MatView::new(&bad, [3, k]).unwrap()).unwrap_err();
        assert!(matches!(e, Error::NonFinite { row: 2, col: 1, .. }), "{e}");
        assert!(s.observe(&MatView::new(&batch(3, k + 1, 2), [3, k + 1]).unwrap()).is_err());
        assert!(s.merge(&StatSet::new(k, StatNeeds::default(), 0, 0).unwrap()).is_err());
        assert_eq!(s, before);
    }
}
