//! The tensors of a model, each with a state, and with parameters of its own where that is wanted.

use std::collections::BTreeMap;

use tersor_core::tensors::join;
use tersor_core::{Check, Element, Error, Result, TensorSink, TensorSource};

use super::{CheckedOptimizer, Optimizer, State};

/// An optimizer of named tensors. States come into being with a tensor's first step.
pub struct Group {
    base: Optimizer,
    checked: CheckedOptimizer,
    own: BTreeMap<String, CheckedOptimizer>,
    states: BTreeMap<String, State>,
    /// Of every learning rate.
    factor: f32,
}

impl Group {
    /// Error when a parameter is out of range.
    pub fn new(base: Optimizer) -> Result<Self> {
        let checked = base.clone().check()?;
        Ok(Self { base, checked, own: BTreeMap::new(), states: BTreeMap::new(), factor: 1.0 })
    }

    /// Parameters of one tensor, made from those of all. To be called before its first step. Error when one is out of range.
    pub fn set(&mut self, name: &str, own: impl FnOnce(Optimizer) -> Optimizer) -> Result<()> {
        self.own.insert(name.to_string(), own(self.base.clone()).check()?);
        Ok(())
    }

    /// The rule of the stable embedding layer (arXiv 2110.02861, section 2.3): its moments stay in f32.
    pub fn keep_f32(&mut self, name: &str) -> Result<()> {
        self.set(name, |o| o.bits(32))
    }

    /// A learning-rate schedule: every learning rate is multiplied by `factor` from now on. Error when it is negative or not finite.
    pub fn scale_lr(&mut self, factor: f32) -> Result<()> {
        if !(0.0..f32::INFINITY).contains(&factor) {
            return Err(tersor_core::ParamError::new("factor", factor, "must be a finite number from 0 on").into());
        }
        self.factor = factor;
        Ok(())
    }

    /// The parameters of a tensor.
    pub fn params(&self, name: &str) -> &CheckedOptimizer {
        self.own.get(name).unwrap_or(&self.checked)
    }

    /// A step of one tensor; see [`CheckedOptimizer::step`], whose errors it gives with the tensor's name.
    pub fn step<P: Element, G: Element>(&mut self, name: &str, param: &mut [P], grad: &[G]) -> Result<()> {
        let how = self.own.get(name).unwrap_or(&self.checked);
        let mut new = None;
        let state = match self.states.get_mut(name) {
            Some(state) => state,
            None => new.insert(how.state(param.len())?),
        };
        how.step_at(how.0.lr * self.factor, state, param, grad).map_err(|e| e.in_tensor(name))?;
        if let Some(state) = new {
            self.states.insert(name.to_string(), state);
        }
        Ok(())
    }

    /// The state of a tensor, once it has made a step.
    pub fn state(&self, name: &str) -> Option<&State> {
        self.states.get(name)
    }

    /// Bytes of all states.
    pub fn bytes(&self) -> usize {
        self.states.values().map(State::bytes).sum()
    }

    /// Writes all states, each under its tensor's name.
    pub fn save(&self, sink: &mut dyn TensorSink) -> Result<()> {
        self.states.iter().try_for_each(|(name, state)| state.save(name, sink))
    }

    /// Reads all states that [`Group::save`] wrote, in place of those that are here. Error when one is broken or not of this optimizer; those that are
    /// here then stay.
    pub fn load(&mut self, source: &dyn TensorSource) -> Result<()> {
        let mut states = BTreeMap::new();
        for tensor in source.names() {
            if let Some(name) = tensor.strip_suffix(".state") {
                let state = State::load(name, source)?;
                self.params(name).check_state(&state).map_err(|e| e.in_tensor(name))?;
                states.insert(name.to_string(), state);
            }
        }
        if states.is_empty() {
            return Err(Error::Missing { name: join("", "state"), place: "the saved states".into() });
        }
        self.states = states;
        Ok(())
    }
}
