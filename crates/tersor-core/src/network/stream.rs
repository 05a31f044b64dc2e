//! [`Stream`]: the tensors that flow from one stage of a network to the next.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::tensors::{join, read_expected, read_floats, write_floats};
use crate::{DType, Error, Result, TensorInfo, TensorSink, TensorSource};

/// A tensor of a [`Stream`]: its shape and its values in f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// The lengths of the axes. The first axis counts rows: tokens, positions or images.
    pub shape: Vec<usize>,
    /// The values, row-major. Their number is the product of the shape.
    pub values: Vec<f32>,
}

impl Part {
    /// Returns the shape of the values as a matrix, `[rows, features]`: the first axis, and the product of all others.
    pub fn rows(&self) -> [usize; 2] {
        let rows = self.shape.first().copied().unwrap_or(0);
        [rows, self.values.len() / rows.max(1)]
    }
}

/// The tensors that flow from one stage of a [`Network`](super::Network) to the next, for one batch: tensors by name, the division of their rows into
/// windows (a window is a text or an image, which is computed on its own), and a tag. [`save`](Self::save) stores it and [`load`](Self::load) reads
/// it again. The default has no tensors.
///
/// ```
/// use tersor_core::network::Stream;
/// let mut stream = Stream::of("x", vec![2, 3], vec![0.0; 6]).unwrap();
/// assert_eq!(stream.part("x").unwrap().rows(), [2, 3]);
/// stream.set("y", vec![1], vec![1.0]).unwrap();
/// assert_eq!(stream.take("y").unwrap().values, [1.0]);
/// assert!(stream.take("y").is_err() && Stream::of("x", vec![2, 3], vec![0.0; 5]).is_err());
/// let mut stored = tersor_core::MemTensors::new();
/// stream.save("s", &mut stored).unwrap();
/// assert_eq!(Stream::load("s", &stored).unwrap(), stream);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stream {
    parts: BTreeMap<String, Part>,
    /// The rows of each window (a text or an image, which is computed on its own). Empty if every row is a window.
    pub windows: Vec<Range<usize>>,
    /// The tag of the [`Batch`](super::Batch), such as the step of a diffusion.
    pub tag: u32,
}

impl Stream {
    /// Returns a stream of the single tensor `name` with the shape `shape` and the row-major values `values`, without windows and with tag 0. Errors
    /// with [`Error::Tensor`], with the name, if the number of values is not the product of the shape, and with [`Error::Overflow`] if the product
    /// exceeds the address space.
    pub fn of(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Result<Self> {
        let mut stream = Self::default();
        stream.set(name, shape, values)?;
        Ok(stream)
    }

    /// Returns the tensor `name`. Errors with [`Error::Missing`] if there is none.
    pub fn part(&self, name: &str) -> Result<&Part> {
        self.parts.get(name).ok_or_else(|| missing(name))
    }

    /// Removes the tensor `name` from the stream and returns it. Errors with [`Error::Missing`] if there is none.
    pub fn take(&mut self, name: &str) -> Result<Part> {
        self.parts.remove(name).ok_or_else(|| missing(name))
    }

    /// Adds the tensor `name` with the shape `shape` and the row-major values `values`, in place of an earlier one of this name. Errors with
    /// [`Error::Tensor`], with the name, if the number of values is not the product of the shape, and with [`Error::Overflow`] if the product exceeds
    /// the address space; the stream is unchanged then.
    pub fn set(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>) -> Result<()> {
        let n = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let n = n.ok_or_else(|| Error::Overflow { what: format!("stream `{name}`") })?;
        if n != values.len() {
            return Err(Error::shape("values of a tensor in a stream", n, values.len()).in_tensor(name));
        }
        self.parts.insert(name.into(), Part { shape, values });
        Ok(())
    }

    /// Returns the name and the tensor of each part, sorted by name.
    pub fn parts(&self) -> impl Iterator<Item = (&str, &Part)> {
        self.parts.iter().map(|(name, part)| (name.as_str(), part))
    }

    /// Writes tensors, windows and tag to `sink`, as tensors whose names begin with `prefix.`; [`Stream::load`] reads them. Errors if the sink
    /// errors.
    pub fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        for (name, part) in &self.parts {
            write_floats(sink, &join(&join(prefix, PART), name), &part.shape, &part.values)?;
        }
        let ends = self.windows.iter().flat_map(|w| [w.start as u64, w.end as u64]);
        let about: Vec<u8> = ends.chain([u64::from(self.tag)]).flat_map(|v| v.to_le_bytes()).collect();
        sink.write_shared(&join(prefix, ABOUT), &TensorInfo { dtype: DType::U8, shape: vec![about.len()] }, &about)
    }

    /// Reads the stream that [`Stream::save`] wrote with the same `prefix` to `source`. Errors if the description of the stream (the tensor
    /// `prefix.about`) is missing or invalid, or if a tensor has another type or cannot be read.
    pub fn load(prefix: &str, source: &dyn TensorSource) -> Result<Self> {
        let about = join(prefix, ABOUT);
        let info = source.info(&about)?;
        let bytes = read_expected(source, &about, DType::U8, &info.shape)?;
        let (words, rest) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let known = words.split_last().and_then(|(tag, ends)| Some((u32::try_from(*tag).ok()?, ends.as_chunks::<2>())));
        let Some((tag, (ends, []))) = known.filter(|_| rest.is_empty()) else {
            return Err(Error::format(about, "it is not a list of windows and a tag"));
        };
        let windows = ends.iter().map(|[a, b]| *a as usize..*b as usize).collect();
        let mut stream = Self { parts: BTreeMap::new(), windows, tag };
        let start = format!("{prefix}.{PART}.");
        for name in source.names().iter().filter_map(|n| n.strip_prefix(&start)) {
            let stored = format!("{start}{name}");
            let shape = source.info(&stored)?.shape;
            let values = read_floats(source, &stored, &shape)?;
            stream.set(name, shape, values)?;
        }
        Ok(stream)
    }
}

const PART: &str = "part";
const ABOUT: &str = "about";

fn missing(name: &str) -> Error {
    Error::missing(name, "the stream between two stages")
}
