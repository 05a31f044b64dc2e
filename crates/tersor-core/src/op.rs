//! The object-safe face of every result, and the registry that reopens it.

use crate::{Error, Exec, Input, MatViewMut, Result, RowSlot, TensorSink, TensorSource};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use tersor_kernels::dense::{How, Write, product_by_rows};
use tersor_kernels::integer::{self, Activations, Panels, Product, products};

/// A matrix `[out_features, in_features]` in whatever form, that multiplies: `y = x Wᵀ`.
pub trait LinearOp: Send + Sync {
    /// `[out_features, in_features]`.
    fn shape(&self) -> [usize; 2];
    /// Exact bits of all stored tensors: equal to the layout that the method announced and to the bytes written.
    fn storage_bits(&self) -> u64;
    /// Writes rows in f32, row-major, into `out` (`rows.len() * in_features` long). Error on a wrong range or length.
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
    /// `y += x Wᵀ`. Error when the shapes do not fit.
    fn apply_add(&self, x: &Input<'_>, y: MatViewMut<'_>, exec: &mut Exec) -> Result<()>;
    /// `y = x Wᵀ`. Error when the shapes do not fit.
    fn apply(&self, x: &Input<'_>, mut y: MatViewMut<'_>, exec: &mut Exec) -> Result<()> {
        y.rows_mut().for_each(|r| r.fill(0.0));
        self.apply_add(x, y, exec)
    }
    /// The integer product that [`LinearOp::apply`] comes down to, if it is one and nothing else: its activations and its weights. For
    /// [`apply_all`]. Error when the features do not fit.
    fn integer<'w>(&'w self, x: &Input<'_>, exec: &Exec) -> Result<Option<(Rc<Activations>, &'w Panels)>> {
        let _ = (x, exec);
        Ok(None)
    }
    /// Kind, parameters and parts: with the tensors, all that loading needs. It describes the whole of which these rows
    /// are the block `at`; see [`LinearOp::whole`].
    fn spec(&self, at: RowSlot) -> OpSpec;
    /// The slot of an operator that is the whole.
    fn whole(&self) -> RowSlot {
        RowSlot::whole(self.shape()[0])
    }
    /// Writes the tensors under `prefix`; `at` says which rows of the whole these are. Tensors of an operator that can
    /// be cut lead with the row axis; others are equal in every block.
    fn save(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()>;
}

/// Error unless `x`, the operator and `y` fit together.
pub fn check_apply([out, inp]: [usize; 2], x: &Input<'_>, y: &MatViewMut<'_>) -> Result<()> {
    let [tokens, features] = x.shape();
    if features != inp {
        return Err(Error::shape("features of the input", inp, features));
    }
    if y.shape() != [tokens, out] {
        return Err(Error::shape("output", [tokens, out], y.shape()));
    }
    Ok(())
}

/// `y = x Wᵀ`, or that added to `y`, where the weights of an operator of this shape are integers for the kernels. Error when the shapes do not fit.
pub fn multiply(
    panels: &Panels,
    shape: [usize; 2],
    x: &Input<'_>,
    y: MatViewMut<'_>,
    write: Write,
    exec: &mut Exec,
) -> Result<()> {
    check_apply(shape, x, &y)?;
    let x = x.activations(exec.isa(), panels.padding())?;
    let done = integer::product(exec.isa(), &x, panels, write, y.into_out(), exec.parallel());
    if done { Ok(()) } else { Err(Error::shape("output", "rows that fit their stride", "fewer elements")) }
}

/// `y_i = x W_iᵀ` for operators that share an input, together: what has few rows alone has enough for all threads with the others. Error when
/// the shapes do not fit.
pub fn apply_all(ops: &[&dyn LinearOp], x: &Input<'_>, ys: Vec<MatViewMut<'_>>, exec: &mut Exec) -> Result<()> {
    for (op, y) in ops.iter().zip(&ys) {
        check_apply(op.shape(), x, y)?;
    }
    let found: Option<Vec<_>> = ops.iter().map(|op| op.integer(x, exec)).collect::<Result<_>>()?;
    let Some(found) = found else {
        return ops.iter().zip(ys).try_for_each(|(op, y)| op.apply(x, y, exec));
    };
    let tasks = found.iter().zip(ys).map(|((x, w), y)| Product { x, w, write: Write::Set, y: y.into_out() });
    let done = products(exec.isa(), tasks.collect(), exec.parallel());
    if done { Ok(()) } else { Err(Error::shape("output", "rows that fit their stride", "fewer elements")) }
}

/// The product of any operator through its own rows, a block at a time; never the whole matrix in f32.
pub fn apply_by_rows(
    op: &(impl LinearOp + ?Sized),
    x: &Input<'_>,
    y: MatViewMut<'_>,
    write: Write,
    exec: &mut Exec,
) -> Result<()> {
    let shape = op.shape();
    check_apply(shape, x, &y)?;
    let rows = |r: Range<usize>, out: &mut [f32]| op.decompress_rows(r, out);
    let how = How { isa: exec.isa(), write, parallel: exec.parallel() };
    let fitted = product_by_rows(how, x.data(), x.shape(), shape[0], rows, y.into_out())?;
    if fitted { Ok(()) } else { Err(Error::shape("output", "rows that fit their stride", "fewer elements")) }
}

/// A parameter of an operator, as it is written to JSON.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Value {
    Int(i64),
    Float(f64),
    Text(String),
}

/// What an operator is, without its tensors.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OpSpec {
    /// The name that its loader is registered under.
    pub kind: String,
    /// `[out_features, in_features]` of the whole.
    pub shape: [usize; 2],
    /// Parameters by name.
    pub params: BTreeMap<String, Value>,
    /// Specifications of the operators inside; their tensors lie under `prefix.name`.
    pub parts: BTreeMap<String, OpSpec>,
}

impl OpSpec {
    /// A specification without parameters and parts.
    pub fn new(kind: &str, shape: [usize; 2]) -> Self {
        Self { kind: kind.to_string(), shape, ..Self::default() }
    }

    /// Adds a whole number.
    pub fn int(mut self, name: &str, value: impl Into<i64>) -> Self {
        self.params.insert(name.to_string(), Value::Int(value.into()));
        self
    }

    /// Adds a text.
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.params.insert(name.to_string(), Value::Text(value.to_string()));
        self
    }

    /// Adds an operator inside.
    pub fn part(mut self, name: &str, spec: OpSpec) -> Self {
        self.parts.insert(name.to_string(), spec);
        self
    }

    /// Reads a whole number. Error when it is missing or something else.
    pub fn get_int(&self, name: &str) -> Result<i64> {
        match self.params.get(name) {
            Some(Value::Int(v)) => Ok(*v),
            _ => Err(self.missing(name)),
        }
    }

    /// Reads a number that is a size. Error when it is missing or negative.
    pub fn get_size(&self, name: &str) -> Result<usize> {
        usize::try_from(self.get_int(name)?).map_err(|_| self.missing(name))
    }

    /// Reads a text. Error when it is missing or something else.
    pub fn get_text(&self, name: &str) -> Result<&str> {
        match self.params.get(name) {
            Some(Value::Text(v)) => Ok(v),
            _ => Err(self.missing(name)),
        }
    }

    /// The specification of an operator inside. Error when it is missing.
    pub fn get_part(&self, name: &str) -> Result<&OpSpec> {
        self.parts.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        Error::Missing { name: name.to_string(), place: format!("the specification of a `{}`", self.kind) }
    }

    fn depth(&self) -> usize {
        1 + self.parts.values().map(OpSpec::depth).max().unwrap_or(0)
    }
}

/// Rebuilds one kind of operator from its specification and the tensors under a prefix.
pub type Loader = fn(&OpSpec, &str, &dyn TensorSource, &Registry) -> Result<Box<dyn LinearOp>>;

/// Kind to loader. Each method crate registers its kinds; [`Registry::core`] has those of this crate.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Loader>);

impl Registry {
    /// Operators nested deeper than this are refused.
    pub const MAX_DEPTH: usize = 16;

    /// No kinds.
    pub fn new() -> Self {
        Self::default()
    }

    /// The kinds of this crate: dense, factored and the wrappers.
    pub fn core() -> Self {
        let mut registry = Self::new();
        crate::compose::register(&mut registry);
        registry
    }

    /// Adds a kind; a later loader of the same kind replaces an earlier one.
    pub fn register(&mut self, kind: &'static str, loader: Loader) {
        self.0.insert(kind, loader);
    }

    /// The registered kinds, sorted.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// Reopens an operator. Error when its kind is unknown, or its tensors are not what the specification says.
    pub fn load(&self, spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Box<dyn LinearOp>> {
        if spec.depth() > Self::MAX_DEPTH {
            let (found, limit) = (spec.depth() as u64, Self::MAX_DEPTH as u64);
            return Err(Error::Limit { what: "nesting of operators", found, limit }.in_tensor(prefix));
        }
        let loader = self.0.get(spec.kind.as_str()).ok_or_else(|| {
            let known: Vec<_> = self.kinds().collect();
            let value = format!("`{}` (known here: {})", spec.kind, known.join(", "));
            Error::Unsupported { what: "kind of operator", value }.in_tensor(prefix)
        })?;
        let op = loader(spec, prefix, source, self).map_err(|e| e.in_tensor(prefix))?;
        if op.shape() != spec.shape {
            return Err(Error::shape("shape of a loaded operator", spec.shape, op.shape()).in_tensor(prefix));
        }
        Ok(op)
    }
}
