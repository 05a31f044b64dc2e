//! The rotations of a network as a [`Rewrite`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use tersor_core::tensors::write_floats;
use tersor_core::{
    Changes, Context, DType, Effect, Error, Fold, Layout, Result, Rewrite, Role, Scope, Seen, Side, Site, StatNeeds,
    StatSet, TensorInfo, Transform, Value, Weights, bias_name, read_finite,
};
use tersor_linalg::{rotation, rotation_shape};

use super::algorithm::{Rotations, principal_of_rows};
use super::parts::Parts;
use super::{By, CheckedRotate, SAMPLE_TOKENS};
use crate::principal_rotation;

impl CheckedRotate {
    /// Returns rotations into the principal directions of the normed stream, of the values of each head and of the keys of each layer. Errors if
    /// `seen` lacks the keys and values of a layer or the Gram matrix of the stream.
    fn principal(&self, parts: &Parts<'_>, seen: &dyn Seen, cx: &Context) -> Result<Rotations> {
        let mut stream = StatSet::new(parts.hidden, StatNeeds::none().with_gram(), 0, 0)?;
        let (mut values, mut keys) = (Vec::new(), Vec::new());
        seen.each(&mut |sites| {
            for s in sites {
                if s.stats.gram().is_some() {
                    stream.merge(s.stats)?;
                }
                let Some([seen_keys, seen_values]) = (s.keys_and_values)(s.sample)? else { continue };
                let missing = || Error::missing(format!("layer of {}", s.site.name), "the layers of the network");
                let layer = parts.layers.get(keys.len()).ok_or_else(missing)?;
                let (dim, blocks) = (layer.head_dim, self.blocks(layer.head_dim, cx)?);
                keys.push(principal_of_rows(&seen_keys, dim, &blocks)?);
                let head = |head: usize| {
                    let rows = seen_values.chunks_exact(dim).skip(head).step_by(layer.kv_heads);
                    principal_of_rows(&rows.flatten().copied().collect::<Vec<f32>>(), dim, &blocks)
                };
                values.push((0..layer.kv_heads).map(head).collect::<Result<Vec<_>>>()?);
            }
            Ok(())
        })?;
        if values.len() != parts.layers.len() {
            return Err(Error::missing("keys and values of every layer", "the calibration of the network"));
        }
        let stream = principal_rotation(stream.require_gram()?, &self.blocks(parts.hidden, cx)?)?;
        Ok(Rotations { stream, values, keys })
    }
}

/// Returns the folds that move the weights of norms into the matrices that read them. `head` is the name of the head's weight. Errors if the weight
/// of a norm is missing, of another length than its site, or not finite.
fn fold_norms(parts: &Parts<'_>, head: &str, weights: &dyn Weights) -> Result<Vec<Fold>> {
    let mut folds = Vec::new();
    for (site, name) in &parts.normed {
        let rows = weights.rows(name)?;
        let norm = read_finite(&*rows, 0..rows.shape()[0]).map_err(|e| e.in_tensor(name))?;
        if norm.len() != site.features {
            return Err(Error::shape("length of a norm", site.features, norm.len()).in_tensor(name));
        }
        for c in &site.consumers {
            folds.push(fold(reader(parts, head, &c.weight), Side::Input, Transform::Scale(norm.clone())));
        }
        folds.push(fold(name, Side::Input, Transform::Set(vec![1.0; norm.len()])));
    }
    Ok(folds)
}

/// Returns the fold of one side of a weight.
fn fold(weight: &str, side: Side, transform: Transform) -> Fold {
    Fold { weight: weight.into(), side, transform }
}

/// Returns the name of a matrix that reads the stream: `weight`, or for a head tied to the embedding the name `head` of its new matrix.
fn reader<'n>(parts: &Parts<'_>, head: &'n str, weight: &'n str) -> &'n str {
    if parts.tied && weight == parts.embedding { head } else { weight }
}

/// Returns the name of the tensor with the rotation of a layer's keys, given the name of the key projection's weight.
fn key_rotation(key: &str) -> String {
    match key.strip_suffix(".k_proj.weight") {
        Some(attention) => format!("{attention}.k_rotation"),
        None => format!("{key}.k_rotation"),
    }
}

impl Rewrite for CheckedRotate {
    fn name(&self) -> String {
        match self.by {
            By::Hadamard => "rotate by Hadamard matrices",
            By::Orthogonal => "rotate by orthogonal matrices",
            By::Principal { .. } => "rotate into principal directions",
        }
        .into()
    }

    fn scope(&self) -> Scope {
        Scope::Network
    }

    fn needs(&self, site: &Site) -> StatNeeds {
        if !self.needs_data() {
            return StatNeeds::none();
        }
        let keys = site.consumers.iter().any(|c| c.role == Role::Key);
        let normed = matches!(site.producer, tersor_core::Producer::Norm { .. });
        StatNeeds {
            gram: normed && site.layer.is_some(),
            sample: if keys { SAMPLE_TOKENS } else { 0 },
            ..StatNeeds::none()
        }
    }

    fn plan(&self, sites: &[Site]) -> Result<Vec<(String, Effect)>> {
        let parts = Parts::find(sites)?;
        let mut effects = Vec::new();
        if parts.tied {
            effects.push((self.head.clone(), Effect::Untie { from: parts.embedding.into() }));
        }
        effects.push((parts.embedding.to_string(), Effect::Values));
        for (site, norm) in &parts.normed {
            effects.push((norm.to_string(), Effect::Values));
            let read = |c: &tersor_core::Consumer| (reader(&parts, &self.head, &c.weight).to_string(), Effect::Values);
            effects.extend(site.consumers.iter().map(read));
        }
        let vector = |name: &str, dtype, shape| (name.to_string(), TensorInfo { dtype, shape });
        for layer in &parts.layers {
            for weight in [layer.value, layer.attention_output, layer.down] {
                effects.push((weight.to_string(), Effect::Values));
                effects.extend(bias_name(weight).map(|b| (b, Effect::Values)));
            }
            if self.split_heads {
                let order = vector("order", DType::U32, vec![layer.heads * layer.head_dim]);
                let layout = Layout { tensors: vec![order], exact: true };
                effects.push((layer.attention_output.into(), Effect::Online(layout)));
            }
            let [p, _] = rotation_shape(layer.inner)?;
            let signs = vector("signs", DType::I8, vec![layer.inner]);
            let layout = Layout { tensors: vec![signs, vector("factor", DType::F32, vec![p, p])], exact: true };
            effects.push((layer.down.into(), Effect::Online(layout)));
            if self.needs_data() {
                let info = TensorInfo { dtype: DType::F32, shape: vec![1, layer.head_dim, layer.head_dim] };
                effects.push((key_rotation(layer.key), Effect::New { info, beside: layer.key.into() }));
            }
        }
        Ok(effects)
    }

    fn observed_with(&self, sites: &[Site], weights: &dyn Weights) -> Result<Vec<Fold>> {
        fold_norms(&Parts::find(sites)?, &self.head, weights)
    }

    fn rewrite(&self, sites: &[Site], weights: &dyn Weights, seen: &dyn Seen, cx: &Context) -> Result<Changes> {
        let parts = Parts::find(sites)?;
        let found = if self.needs_data() { self.principal(&parts, seen, cx)? } else { self.random(&parts, cx)? };
        let mut changes = Changes { folds: fold_norms(&parts, &self.head, weights)?, ..Changes::default() };
        let folds = &mut changes.folds;
        let stream = || Transform::Rotate(vec![found.stream.clone()]);
        for (site, _) in &parts.normed {
            for c in &site.consumers {
                folds.push(fold(reader(&parts, &self.head, &c.weight), Side::Input, stream()));
            }
        }
        folds.push(fold(parts.embedding, Side::Input, stream()));
        // One Hadamard rotation for all layers of the same width, whatever `by` is: it is cheap to apply when the network runs.
        let mut inner = BTreeMap::new();
        for (number, layer) in parts.layers.iter().enumerate() {
            let values = || Transform::Rotate(found.values[number].clone());
            for weight in [layer.attention_output, layer.down] {
                folds.push(fold(weight, Side::Output, stream()));
                folds.extend(bias_name(weight).map(|b| fold(&b, Side::Input, stream())));
            }
            folds.push(fold(layer.value, Side::Output, values()));
            folds.extend(bias_name(layer.value).map(|b| fold(&b, Side::Input, values())));
            folds.push(fold(layer.attention_output, Side::Input, values()));
            if self.split_heads {
                let order = Transform::permute(self.order(layer))?;
                changes.online.push(fold(layer.attention_output, Side::Input, order));
            }
            if let Entry::Vacant(place) = inner.entry(layer.inner) {
                place.insert(rotation(layer.inner, &mut cx.stream("rotation of inner activations"))?);
            }
            let rotated = inner.get(&layer.inner).cloned().into_iter().collect();
            changes.online.push(fold(layer.down, Side::Input, Transform::Rotate(rotated)));
            if let Some(keys) = found.keys.get(number) {
                let shape = [1, layer.head_dim, layer.head_dim];
                write_floats(&mut changes.tensors, &key_rotation(layer.key), &shape, &keys.matrix())?;
            }
        }
        changes.config.insert("tie_word_embeddings".into(), Value::Bool(false));
        Ok(changes)
    }
}
