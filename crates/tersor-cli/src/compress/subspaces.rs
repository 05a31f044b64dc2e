//! Principal directions of what flows through the original network: found once, kept with the work in progress.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use tersor::core::tensors::{read_floats, write_floats};
use tersor::core::{DType, Limits, Producer, Result, Rotation, Site, StatNeeds, StatSet, TensorInfo};
use tersor::formats::safetensors::{File, Writer};
use tersor::llm::{Behind, Calibration, Checkpoint, Hooks, Seen, SiteChanges};
use tersor::lowrank::Moments;

use super::matrix::{Job, check_source, source_hash};
use super::parts::{record_file, recorded};
use crate::plan::rotation::{Found, Rotations};
use crate::plan::{Action, Entry, SAMPLE_TOKENS};

fn path(job: &Job<'_>) -> PathBuf {
    job.parts.scratch().join("rotations")
}

fn value_name(layer: usize, head: usize) -> String {
    format!("values.{layer}.{head}")
}

/// The rotations, where they have been found. Error when the file is not what was recorded.
pub fn load(job: &Job<'_>, rotations: &Rotations) -> Result<Option<Found>> {
    if recorded(&path(job))?.is_none() {
        return Ok(None);
    }
    let file = File::open(&path(job), &Limits::default())?;
    let c = rotations.config();
    let read = |name: &str, dim: usize| -> Result<Rotation> {
        Rotation::dense(&read_floats(&file, name, &[dim, dim])?).map_err(|e| e.in_tensor(name))
    };
    let values = |l: usize| (0..c.kv_heads).map(|h| read(&value_name(l, h), c.head_dim)).collect();
    Ok(Some(Found {
        stream: read("stream", c.hidden)?,
        values: (0..c.layers).map(values).collect::<Result<_>>()?,
        keys: (0..c.layers).map(|l| read(&format!("keys.{l}"), c.head_dim)).collect::<Result<_>>()?,
    }))
}

/// Error unless the tensors of the model are still those that the rotations were found on.
pub fn check(job: &Job<'_>) -> Result<()> {
    let json = recorded(&path(job))?.unwrap_or_default();
    for entry in sources(job) {
        job.cx.cancel.check()?;
        check_source(job.model, entry, json["sources"][&entry.name].as_str())?;
    }
    Ok(())
}

fn sources<'j>(job: &Job<'j>) -> impl Iterator<Item = &'j Entry> {
    job.plan.entries.iter().filter(|e| !matches!(e.action, Action::Keys(_)))
}

/// Takes the calibration text through the original network, and keeps the directions in which the normed stream, the values of each head and the
/// keys of each layer vary most.
pub fn find(job: &Job<'_>, rotations: &Rotations, checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<()> {
    let (plan, cx, c) = (job.plan, job.cx, rotations.config());
    let slices: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let scratch = plan.spill.then(|| job.parts.scratch());
    let mut calibration = Calibration::new(checkpoint, &slices, 0..slices.len(), plan.windows[1], scratch)?;
    calibration.embed(&mut |name, row, out| job.model.rows(name)?.read_rows(row..row + 1, out))?;
    let norms = rotations.norms(job.model)?;
    let heads = rotations.blocks(c.head_dim)?;
    let mut stream = Moments::new(c.hidden)?;
    let mut found: BTreeMap<String, Rotation> = BTreeMap::new();
    cx.progress.begin("principal directions", c.layers as u64);
    for layer in 0..c.layers {
        let needs = |site: &Site| StatNeeds {
            gram: matches!(site.producer, Producer::Norm { .. }),
            sample: if makes_heads(site) { SAMPLE_TOKENS } else { 0 },
            ..StatNeeds::default()
        };
        let rewrite = &mut |seen: &[Seen<'_>]| {
            for s in seen {
                if let Some(gram) = s.stats.gram() {
                    stream.add(gram)?;
                }
                let Some([keys, values]) = (s.kept)(&s.sample)? else { continue };
                let mut all = Moments::new(c.head_dim)?;
                all.observe(&keys)?;
                found.insert(format!("keys.{layer}"), all.rotation(&heads)?);
                for head in 0..c.kv_heads {
                    let mut own = Moments::new(c.head_dim)?;
                    let rows: Vec<f32> =
                        values.chunks_exact(c.head_dim).skip(head).step_by(c.kv_heads).flatten().copied().collect();
                    own.observe(&rows)?;
                    found.insert(value_name(layer, head), own.rotation(&heads)?);
                }
            }
            Ok(Vec::new())
        };
        let mut hooks = Hooks {
            behind: Behind::Original,
            cancel: &cx.cancel,
            seed: plan.seed,
            needs: &|_| StatNeeds::default(),
            change: &|_| Ok(None),
            compress: &mut |_: &Site, _: &StatSet| Ok(Vec::new()),
            rewriting: Some(SiteChanges { needs: &needs, rewrite }),
            folds: norms.merged(&format!("model.layers.{layer}.")),
        };
        calibration.layer(layer, &mut hooks)?;
        cx.progress.advance(1, &format!("layer {layer}"));
    }
    cx.progress.end();
    found.insert("stream".into(), stream.rotation(&rotations.blocks(c.hidden)?)?);
    let info = |r: &Rotation| TensorInfo { dtype: DType::F32, shape: vec![r.dim(), r.dim()] };
    let mut writer = Writer::create(&path(job), found.iter().map(|(n, r)| (n.clone(), info(r))).collect())?;
    for (name, rotation) in &found {
        write_floats(&mut writer, name, &[rotation.dim(); 2], &rotation.matrix())?;
    }
    writer.finish()?;
    let hashes = sources(job).map(|e| Ok((e.name.clone(), source_hash(job.model, e)?)));
    let hashes = hashes.collect::<Result<BTreeMap<_, _>>>()?;
    record_file(&path(job), json!({"sources": hashes}))
}

/// Whether queries, keys and values read it.
fn makes_heads(site: &Site) -> bool {
    site.consumers.iter().any(|c| c.weight.ends_with(".self_attn.k_proj.weight"))
}
