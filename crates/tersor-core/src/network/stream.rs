//! [`Stream`]: what flows from one stage of a network to the next.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::tensors::{join, read_expected, read_floats, write_floats};
use crate::{DType, Error, Result, TensorInfo, TensorSink, TensorSource};

/// A tensor of a [`Stream`]: shape and values, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// The lengths of the axes. The first counts rows: tokens, positions or images.
    pub shape: Vec<usize>,
    /// The values, row-major; as many as the product of the shape.
    pub values: Vec<f32>,
}

impl Part {
    /// Returns the values as a matrix `[rows, features]`: the first axis, and the product of all others.
    pub fn rows(&self) -> [usize; 2] {
        let rows = self.shape.first().copied().unwrap_or(0);
        [rows, self.values.len() / rows.max(1)]
    }
}

/// What flows from one stage of a [`Network`](super::Network) to the next, for one batch: named tensors, the division of their rows into
/// windows (texts or images, each of which is computed on its own), and a tag. It is plain data, so that it can be stored and read again.
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
    /// The rows of each window (a text or an image, which is computed on its own); empty if every row is a window of its own.
    pub windows: Vec<Range<usize>>,
    /// The tag of the [`Batch`](super::Batch), such as the step of a diffusion.
    pub tag: u32,
}

impl Stream {
    /// Returns a stream of one tensor, without windows and with tag 0. Errors if the number of values is not the product of the shape.
    pub fn of(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Result<Self> {
        let mut stream = Self::default();
        stream.set(name, shape, values)?;
        Ok(stream)
    }

    /// Returns the tensor `name`. Errors if there is none.
    pub fn part(&self, name: &str) -> Result<&Part> {
        self.parts.get(name).ok_or_else(|| missing(name))
    }

    /// Removes the tensor `name` and returns it. Errors if there is none.
    pub fn take(&mut self, name: &str) -> Result<Part> {
        self.parts.remove(name).ok_or_else(|| missing(name))
    }

    /// Sets the tensor `name`, in place of an earlier one. Errors if the number of values is not the product of the shape.
    pub fn set(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>) -> Result<()> {
        let n = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let n = n.ok_or_else(|| Error::Overflow { what: format!("stream `{name}`") })?;
        if n != values.len() {
            return Err(Error::shape("values of a tensor in a stream", n, values.len()).in_tensor(name));
        }
        self.parts.insert(name.into(), Part { shape, values });
        Ok(())
    }

    /// Returns names and tensors, sorted by name.
    pub fn parts(&self) -> impl Iterator<Item = (&str, &Part)> {
        self.parts.iter().map(|(name, part)| (name.as_str(), part))
    }

    /// Writes the stream to `sink`, as tensors whose names begin with `prefix.`, for [`Stream::load`]. Errors if the sink does.
    pub fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        for (name, part) in &self.parts {
            write_floats(sink, &join(&join(prefix, PART), name), &part.shape, &part.values)?;
        }
        let ends = self.windows.iter().flat_map(|w| [w.start as u64, w.end as u64]);
        let about: Vec<u8> = ends.chain([u64::from(self.tag)]).flat_map(|v| v.to_le_bytes()).collect();
        sink.write_shared(&join(prefix, ABOUT), &TensorInfo { dtype: DType::U8, shape: vec![about.len()] }, &about)
    }

    /// Reads the stream that [`Stream::save`] wrote with the same `prefix`. Errors if tensors are missing or have other types.
    pub fn load(prefix: &str, source: &dyn TensorSource) -> Result<Self> {
        let about = join(prefix, ABOUT);
        let info = source.info(&about)?;
        let bytes = read_expected(source, &about, DType::U8, &info.shape)?;
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let Some((tag, ends)) = words.split_last() else {
            return Err(Error::format(about, "it has no tag"));
        };
        let windows = ends.as_chunks::<2>().0.iter().map(|[a, b]| *a as usize..*b as usize).collect();
        let mut stream = Self { parts: BTreeMap::new(), windows, tag: *tag as u32 };
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
