//! Importance matrices of llama.cpp (`imatrix`): for each weight matrix, the sum of the squares of its input activations, in the older binary
//! format or in GGUF.

use std::collections::BTreeMap;
use std::path::Path;

use crate::gguf::{self, hf_name};
use crate::{FileAt, ReadAt};
use tersor_core::{Error, Limits, Result, RowSource};

/// The importance data of one weight matrix: for each input feature, the sum of its squared activations over the calibration inputs `x`,
/// that is the diagonal of `Σ x xᵀ`, and the divisor that turns these sums into means.
#[derive(Clone, PartialEq, Debug)]
pub struct Importance {
    /// Sum of the squared activations of each input feature, `[in_features]`, as the file states it; finite and not negative. For a mixture
    /// of experts, the sum runs over all experts.
    pub squares: Vec<f64>,
    /// Divisor that turns the sums of squared activations into means, as the file states it: the number of calibration tokens in
    /// llama.cpp's GGUF format (of all experts together), the number of batches of tokens in its older binary format.
    pub count: u64,
}

/// Reads an importance-matrix file of llama.cpp, in GGUF or in the older binary format, and returns the data of each weight matrix by its
/// name. Names that [`hf_name`] knows are translated to Hugging Face's (`model.layers.0.self_attn.q_proj.weight`); others stay as in the
/// file. Errors if the file cannot be read, has neither format, is truncated, or exceeds `limits`. Errors if the file has no weight matrix,
/// names a matrix twice, or has a matrix without a count. Errors if a sum or a count is negative or not finite.
///
/// ```
/// use tersor_core::Limits;
/// // The older binary format: entries; then name length, name, count, values, data of each.
/// let mut bytes = 1i32.to_le_bytes().to_vec();
/// let name = "blk.0.attn_output.weight";
/// bytes.extend((name.len() as i32).to_le_bytes());
/// bytes.extend(name.as_bytes());
/// bytes.extend([7i32, 2].map(i32::to_le_bytes).concat());
/// bytes.extend([1.5f32, 2.0].map(f32::to_le_bytes).concat());
/// let file = tempfile::NamedTempFile::new().unwrap();
/// std::fs::write(&file, bytes).unwrap();
/// let found = tersor_formats::imatrix::read(file.path(), &Limits::default()).unwrap();
/// let o_proj = &found["model.layers.0.self_attn.o_proj.weight"];
/// assert_eq!((o_proj.count, &o_proj.squares[..]), (7, &[1.5, 2.0][..]));
/// ```
pub fn read(path: &Path, limits: &Limits) -> Result<BTreeMap<String, Importance>> {
    let file = FileAt::open(path)?;
    let mut magic = [0u8; 4];
    if file.len() >= 4 {
        file.read_at(0, &mut magic)?;
    }
    let found =
        if &magic == b"GGUF" { from_gguf(&gguf::File::open(path, limits)?) } else { from_binary(&file, limits) };
    let found = found.map_err(|e| match e {
        Error::Format { .. } => Error::format(path.display().to_string(), e.to_string()),
        other => other,
    })?;
    for (name, i) in &found {
        if let Some(at) = i.squares.iter().position(|v| !v.is_finite() || *v < 0.0) {
            return Err(Error::NonFinite { row: 0, col: at, value: i.squares[at] as f32 }.in_tensor(name));
        }
    }
    let known = |name: String| hf_name(&name).map_or(name, |h| h.name);
    let mut all = BTreeMap::new();
    for (name, importance) in found {
        let weight = known(name);
        if all.insert(weight.clone(), importance).is_some() {
            return Err(Error::format(path.display().to_string(), format!("it has `{weight}` under two names")));
        }
    }
    Ok(all)
}

fn bad(what: String) -> Error {
    Error::format("importance matrix", what)
}

/// Reads the tensors `in_sum2` and `counts` of each matrix. For a mixture of experts, the sums run over all experts.
fn from_gguf(file: &gguf::File) -> Result<BTreeMap<String, Importance>> {
    let mut out = BTreeMap::new();
    for name in file.tensors().keys() {
        let Some(weight) = name.strip_suffix(".in_sum2") else { continue };
        let rows = |name: &str| -> Result<(usize, Vec<f32>)> {
            let rows = file.rows(name)?;
            let [n, cols] = rows.shape();
            let mut values = vec![0f32; tersor_core::view::elements([n, cols])?];
            rows.read_rows(0..n, &mut values)?;
            Ok((cols, values))
        };
        let (cols, sums) = rows(name)?;
        let (_, counts) = rows(&format!("{weight}.counts"))?;
        let mut squares = vec![0f64; cols];
        for row in sums.chunks_exact(cols.max(1)) {
            squares.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
        }
        let count = counts.iter().map(|c| f64::from(*c)).sum::<f64>();
        if !(count.is_finite() && count >= 0.0) {
            return Err(bad(format!("the count of `{weight}` is {count}; it must be finite and not negative")));
        }
        out.insert(weight.to_string(), Importance { squares, count: count as u64 });
    }
    if out.is_empty() {
        return Err(bad("it has no tensor whose name ends in `.in_sum2`, so it is not an importance matrix".into()));
    }
    Ok(out)
}

/// Reads the older binary format: the number of entries, then for each a name, a count, a length and that many f32 values. A trailing name of
/// the data set is ignored.
fn from_binary(file: &dyn ReadAt, limits: &Limits) -> Result<BTreeMap<String, Importance>> {
    let mut cursor = Cursor { file, at: 0 };
    let entries = cursor.number("entries")?;
    Limits::check("entries of an importance matrix", entries, limits.tensors)?;
    if entries == 0 {
        return Err(bad("it has no entries".into()));
    }
    let mut out = BTreeMap::new();
    for _ in 0..entries {
        let length = cursor.number("bytes of a name")?;
        let name = String::from_utf8(cursor.take(length)?).map_err(|e| bad(format!("a name is not UTF-8: {e}")))?;
        let (count, n) = (cursor.number("batches")?, cursor.number("values")?);
        let values = cursor.take(n * 4)?;
        let squares = values.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
        if out.insert(name.clone(), Importance { squares, count }).is_some() {
            return Err(bad(format!("`{name}` appears twice")));
        }
    }
    Ok(out)
}

/// Reads forward through a file.
struct Cursor<'f> {
    file: &'f dyn ReadAt,
    at: u64,
}

impl Cursor<'_> {
    /// Returns the next `n` bytes. Errors, before anything is allocated, if the file has fewer.
    fn take(&mut self, n: u64) -> Result<Vec<u8>> {
        let end = self.at.checked_add(n).filter(|e| *e <= self.file.len());
        let end = end.ok_or_else(|| bad(format!("it ends at byte {}, in the middle of an entry", self.file.len())))?;
        let mut bytes = vec![0u8; n as usize];
        self.file.read_at(self.at, &mut bytes)?;
        self.at = end;
        Ok(bytes)
    }

    /// Reads an i32 that must not be negative; `what` names it in the error.
    fn number(&mut self, what: &str) -> Result<u64> {
        let bytes = self.take(4)?;
        let value = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        u64::try_from(value).map_err(|_| bad(format!("the number of {what} is {value}, which is negative")))
    }
}
