//! [`Changes`]: the result of a rewrite, and its storage with work in progress.

use std::collections::BTreeMap;

use crate::tensors::{read_expected, read_floats, write_floats};
use crate::{
    DType, Error, FeatureMap, Fold, MemTensors, OpSpec, Result, Rotation, Side, TensorInfo, TensorSink, TensorSource,
    Transform, Value,
};

/// All that a [`Rewrite`](crate::Rewrite) (a change of a network before compression, such as smoothing or rotation) computed: changes of
/// stored weights, parameters for single matrices, new tensors, and entries of the configuration.
///
/// ```
/// use tersor_core::{Changes, Fold, Side, Transform};
/// # fn main() -> tersor_core::Result<()> {
/// let fold = Fold { weight: "w".into(), side: Side::Input, transform: Transform::Scale(vec![2.0, 0.5]) };
/// let changes = Changes { folds: vec![fold], ..Changes::default() };
/// // Changes are stored as tensors, and read back.
/// let again = Changes::from_tensors(&changes.to_tensors()?)?;
/// assert!(matches!(&again.folds[0].transform, Transform::Scale(s) if s == &[2.0, 0.5]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Changes of stored weights; each changes one weight along its rows or along its columns. They are applied in the order of the list
    /// when the weights are read.
    pub folds: Vec<Fold>,
    /// Changes of the columns of matrices that the running network makes up for by changing the matrices' inputs
    /// ([`Transform::input_change`]). They are applied after the changes of stored weights in `folds`. There is at most one for each
    /// matrix.
    pub online: Vec<Fold>,
    /// Parameters for the compression of single matrices, such as bits that an allocator chose, by weight name and parameter name. They are
    /// stored with the changes; the caller must apply them (the command `tersor` does not).
    pub settings: BTreeMap<(String, String), Value>,
    /// New tensors that are added to the model, by name.
    pub tensors: MemTensors,
    /// Entries of the model's configuration (`config.json`) that are added or replaced, by key.
    pub config: BTreeMap<String, Value>,
}

impl Changes {
    /// Adds the changes `other` of a later rewrite to these changes. The folds (changes of stored weights) of `other` are appended to
    /// `folds`, so that they apply after the present ones. Its online changes (changes of the columns of a matrix that the running network
    /// makes up for by changing the matrix's inputs) are appended to `online`. Three kinds of entries of `other` are added, and replace
    /// those of the same name: parameters for the compression of single matrices (`settings`, named by weight and parameter), new tensors,
    /// and entries of the model's configuration.
    ///
    /// Errors, and adds nothing, if a matrix has a change in `online` already and `other` changes the columns of this matrix, in `folds` or
    /// in `online`: an online change of a matrix must be the last change of its columns. The error is an [`Error::Order`] inside of an
    /// [`Error::Tensor`] with the name of the matrix.
    pub fn extend(&mut self, other: Changes) -> Result<()> {
        let columns = other.folds.iter().filter(|f| f.side == Side::Input).chain(&other.online);
        if let Some(late) = columns.into_iter().find(|f| self.online(&f.weight).is_some()) {
            let rule = "before a change of its inputs that the running network makes up for";
            return Err(Error::order("a change of the columns of a matrix", rule, "after it").in_tensor(&late.weight));
        }
        self.folds.extend(other.folds);
        self.online.extend(other.online);
        self.settings.extend(other.settings);
        self.tensors.extend(other.tensors);
        self.config.extend(other.config);
        Ok(())
    }

    /// Returns the change of the columns of the matrix `weight` that the running network makes up for by changing the matrix's inputs; the
    /// first in the list if there are several, None if there is none.
    pub fn online(&self, weight: &str) -> Option<&Fold> {
        self.online.iter().find(|f| f.weight == weight)
    }

    /// Returns all changes as named tensors, for a file of work in progress; [`Changes::from_tensors`] makes the changes from them again. A
    /// rotation that several folds share is stored once. Errors if a tensor exceeds the address space. Errors if the parameter name of an
    /// entry of `settings` (parameters for the compression of single matrices, by weight name and parameter name) contains a `.`; the
    /// weight name may contain it.
    pub fn to_tensors(&self) -> Result<MemTensors> {
        let mut out = MemTensors::new();
        for (list, folds) in [("fold", &self.folds), ("online", &self.online)] {
            for (i, fold) in folds.iter().enumerate() {
                write_fold(&format!("{list}.{i:010}"), fold, &mut out)?;
            }
        }
        for ((weight, name), value) in &self.settings {
            if name.contains('.') {
                return Err(Error::format(name, "the name of a setting must not contain a `.`").in_tensor(weight));
            }
            write_text(&format!("setting.{name}.{weight}"), &value_text(value), &mut out)?;
        }
        for (name, value) in &self.config {
            write_text(&format!("config.{name}"), &value_text(value), &mut out)?;
        }
        for name in self.tensors.names() {
            let (info, bytes) = (self.tensors.info(&name)?, self.tensors.get(&name).unwrap_or_default());
            out.write_shared(&format!("new.{name}"), &info, bytes)?;
        }
        Ok(out)
    }

    /// Reads the changes that [`Changes::to_tensors`] returned as tensors. `source` must hold nothing else. Errors if a tensor is not part
    /// of recorded changes, is invalid, or cannot be read.
    pub fn from_tensors(source: &dyn TensorSource) -> Result<Self> {
        let (mut changes, mut rotations) = (Changes::default(), BTreeMap::new());
        for name in source.names() {
            let broken = || Error::format(&name, "this tensor is no part of recorded changes");
            let (list, rest) = name.split_once('.').ok_or_else(broken)?;
            match list {
                "fold" | "online" => {
                    let fold = read_fold(&name, rest, source, &mut rotations).map_err(|e| e.in_tensor(&name))?;
                    if list == "fold" { &mut changes.folds } else { &mut changes.online }.push(fold);
                }
                "rotation" => {}
                "setting" => {
                    let (setting, weight) = rest.split_once('.').ok_or_else(broken)?;
                    let value = text_value(&read_text(&name, source)?).ok_or_else(broken)?;
                    changes.settings.insert((weight.to_string(), setting.to_string()), value);
                }
                "config" => {
                    let value = text_value(&read_text(&name, source)?).ok_or_else(broken)?;
                    changes.config.insert(rest.to_string(), value);
                }
                "new" => {
                    let info = source.info(&name)?;
                    let mut bytes = vec![0u8; info.bytes()?];
                    source.read_at(&name, 0, &mut bytes)?;
                    changes.tensors.write_shared(rest, &info, &bytes)?;
                }
                _ => return Err(broken()),
            }
        }
        Ok(changes)
    }
}

/// Writes a fold as the tensor `place.side.kind.weight`.
fn write_fold(place: &str, fold: &Fold, out: &mut MemTensors) -> Result<()> {
    let side = if fold.side == Side::Input { "input" } else { "output" };
    let name = |kind: &str| format!("{place}.{side}.{kind}.{}", fold.weight);
    match &fold.transform {
        Transform::Scale(v) => write_floats(out, &name("scale"), &[v.len()], v),
        Transform::Set(v) => write_floats(out, &name("set"), &[v.len()], v),
        Transform::Map(map) => {
            let mut words = vec![map.from() as u64, map.to() as u64];
            match map.as_selection() {
                Some(kept) => words.extend(kept.iter().map(|k| u64::from(*k))),
                None => {
                    let entry = |e: &(u32, u32, f32)| [u64::from(e.0), u64::from(e.1), u64::from(e.2.to_bits())];
                    words.extend(map.entries().iter().flat_map(entry));
                }
            }
            let kind = if map.as_selection().is_some() { "select" } else { "map" };
            write_words(&name(kind), &words, out)
        }
        Transform::Rotate(all) => {
            for r in all {
                r.save(&format!("rotation.{:032x}", r.key()), out)?;
            }
            let words: Vec<u64> = all.iter().flat_map(|r| [(r.key() >> 64) as u64, r.key() as u64]).collect();
            write_words(&name("rotate"), &words, out)
        }
    }
}

/// Reads the fold that is stored in the tensor `name`; `rest` is the name after that of the list.
fn read_fold(
    name: &str,
    rest: &str,
    source: &dyn TensorSource,
    rotations: &mut BTreeMap<u128, Rotation>,
) -> Result<Fold> {
    let broken = || Error::format(name, "this tensor is no recorded fold");
    let [_, side, kind, weight] =
        <[&str; 4]>::try_from(rest.splitn(4, '.').collect::<Vec<_>>()).map_err(|_| broken())?;
    let side = match side {
        "input" => Side::Input,
        "output" => Side::Output,
        _ => return Err(broken()),
    };
    let index = |w: &u64| u32::try_from(*w).map_err(|_| broken());
    let transform = match kind {
        "scale" | "set" => {
            let shape = source.info(name)?.shape;
            let values = read_floats(source, name, &shape)?;
            if kind == "scale" { Transform::Scale(values) } else { Transform::Set(values) }
        }
        "select" | "map" => {
            let words = read_words(name, source)?;
            let [from, to, list @ ..] = &words[..] else { return Err(broken()) };
            let sizes = [*from, *to].map(|n| usize::try_from(n).map_err(|_| broken()));
            let [from, to] = sizes;
            let (from, to) = (from?, to?);
            let whole = if kind == "select" { to == list.len() } else { list.len().is_multiple_of(3) };
            if !whole {
                return Err(broken());
            }
            Transform::Map(if kind == "select" {
                FeatureMap::selection(list.iter().map(index).collect::<Result<_>>()?, from)?
            } else {
                let entry = |e: &[u64; 3]| Ok((index(&e[0])?, index(&e[1])?, f32::from_bits(index(&e[2])?)));
                FeatureMap::new(from, to, list.as_chunks::<3>().0.iter().map(entry).collect::<Result<_>>()?)?
            })
        }
        "rotate" => {
            let mut all = Vec::new();
            let words = read_words(name, source)?;
            let (pairs, []) = words.as_chunks::<2>() else { return Err(broken()) };
            for pair in pairs {
                let key = u128::from(pair[0]) << 64 | u128::from(pair[1]);
                if let std::collections::btree_map::Entry::Vacant(place) = rotations.entry(key) {
                    place.insert(read_rotation(key, source)?);
                }
                all.extend(rotations.get(&key).cloned());
            }
            Transform::Rotate(all)
        }
        _ => return Err(broken()),
    };
    Ok(Fold { weight: weight.to_string(), side, transform })
}

fn read_rotation(key: u128, source: &dyn TensorSource) -> Result<Rotation> {
    let prefix = format!("rotation.{key:032x}");
    let size = |part: &str| -> Result<usize> {
        Ok(source.info(&format!("{prefix}.{part}"))?.shape.first().copied().unwrap_or(0))
    };
    let (p, dim) = (size("factor")?, size("signs")?);
    let spec = OpSpec::new("rotation", [dim; 2]).size("factor", p).size("power", dim.checked_div(p).unwrap_or(0));
    Rotation::load(&spec, &prefix, source)
}

fn write_words(name: &str, words: &[u64], out: &mut MemTensors) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    out.write_shared(name, &TensorInfo { dtype: DType::U64, shape: vec![words.len()] }, &bytes)
}

fn read_words(name: &str, source: &dyn TensorSource) -> Result<Vec<u64>> {
    let bytes = read_expected(source, name, DType::U64, &source.info(name)?.shape)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect())
}

fn write_text(name: &str, text: &str, out: &mut MemTensors) -> Result<()> {
    out.write_shared(name, &TensorInfo { dtype: DType::U8, shape: vec![text.len()] }, text.as_bytes())
}

fn read_text(name: &str, source: &dyn TensorSource) -> Result<String> {
    let bytes = read_expected(source, name, DType::U8, &source.info(name)?.shape)?;
    String::from_utf8(bytes).map_err(|e| Error::format(name, e.to_string()))
}

fn value_text(value: &Value) -> String {
    match value {
        Value::Bool(v) => format!("bool {v}"),
        Value::Int(v) => format!("int {v}"),
        Value::Float(v) => format!("float {:x}", v.to_bits()),
        Value::Text(v) => format!("text {v}"),
    }
}

fn text_value(text: &str) -> Option<Value> {
    let (kind, rest) = text.split_once(' ')?;
    match kind {
        "bool" => rest.parse().ok().map(Value::Bool),
        "int" => rest.parse().ok().map(Value::Int),
        "float" => u64::from_str_radix(rest, 16).ok().map(|bits| Value::Float(f64::from_bits(bits))),
        "text" => Some(Value::Text(rest.to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_changes_read_back() {
        let r = Rotation::new(&[1.0], 2, &[1.0, -1.0]).unwrap();
        let fold = |side, transform| Fold { weight: "a.b.weight".into(), side, transform };
        let mut tensors = MemTensors::new();
        write_floats(&mut tensors, "keys", &[2], &[1.0, 2.0]).unwrap();
        let map = FeatureMap::new(2, 3, vec![(0, 1, 0.5), (2, 0, -2.0)]).unwrap();
        let changes = Changes {
            folds: vec![
                fold(Side::Input, Transform::Scale(vec![0.5, 2.0])),
                fold(Side::Output, Transform::Rotate(vec![r.clone(), r.clone()])),
                fold(Side::Input, Transform::Rotate(vec![r])),
                fold(Side::Output, Transform::select(vec![3, 1], 4).unwrap()),
                fold(Side::Output, Transform::Map(map)),
            ],
            online: vec![fold(Side::Input, Transform::Set(vec![1.0]))],
            settings: BTreeMap::from([(("a.weight".into(), "bits".into()), Value::Int(3))]),
            tensors,
            config: BTreeMap::from([("tie".into(), Value::Bool(false)), ("eps".into(), Value::Float(1e-5))]),
        };
        let stored = changes.to_tensors().unwrap();
        let again = Changes::from_tensors(&stored).unwrap();
        assert_eq!(again.to_tensors().unwrap(), stored);
        assert_eq!((again.folds.len(), again.online.len()), (5, 1));
        assert_eq!((&again.settings, &again.config), (&changes.settings, &changes.config));
        assert_eq!(stored.names().iter().filter(|n| n.starts_with("rotation.")).count(), 2, "signs and factor, once");
        let mut broken = stored.clone();
        write_text("fold.000009.input.turn.w", "x", &mut broken).unwrap();
        assert!(Changes::from_tensors(&broken).is_err());
    }
}
