//! Factors of the inputs of a layer's sites: found once, kept with the work in progress, folded into weights as they are read.

use std::collections::BTreeMap;

use tersor::core::{
    DType, Error, Fold, FoldedRows, Folding, Limits, Module, NonFinite, Repaired, Result, RowSource, Site, TensorInfo,
    TensorSink, TensorSource, rows::check_finite,
};
use tersor::formats::safetensors::{File, Writer};
use tersor::llm::Seen;

use super::matrix::Job;

fn path(job: &Job<'_>, layer: usize) -> std::path::PathBuf {
    job.parts.scratch().join(format!("factors-{layer:06}"))
}

/// The factors of a layer's sites, by the names of the sites; none where they have not been found yet.
fn factors(job: &Job<'_>, layer: usize) -> Result<Option<BTreeMap<String, Vec<f32>>>> {
    let path = path(job, layer);
    if !path.is_file() {
        return Ok(None);
    }
    let file = File::open(&path, &Limits::default())?;
    let mut all = BTreeMap::new();
    for name in file.header().tensors.keys() {
        let mut bytes = vec![0u8; file.info(name)?.bytes()?];
        file.read_at(name, 0, &mut bytes)?;
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        all.insert(name.clone(), values);
    }
    Ok(Some(all))
}

/// What the factors of a layer ask of its tensors; none where they have not been found yet.
pub fn folds(job: &Job<'_>, layer: usize) -> Result<Option<Vec<Fold>>> {
    let Some(all) = factors(job, layer)? else { return Ok(None) };
    let sites = job.plan.network.as_ref().map(|n| n.sites()).unwrap_or_default();
    let known = sites.iter().filter_map(|s| Some((s, all.get(&s.name)?)));
    Ok(Some(known.flat_map(|(site, factors)| site.smoothed(factors)).collect()))
}

/// Factors that are applied when the network runs. Where none were found to be better, ones: their place is planned.
pub fn online(job: &Job<'_>, site: &Site) -> Result<Option<Vec<f32>>> {
    let Some(layer) = site.layer.filter(|_| job.plan.smoothings.contains_key(&site.name)) else { return Ok(None) };
    if site.folding() != Folding::Online {
        return Ok(None);
    }
    let found = factors(job, layer)?.and_then(|mut all| all.remove(&site.name));
    Ok(Some(found.unwrap_or_else(|| vec![1.0; site.features])))
}

/// Finds the factors of a layer, site by site, each on weights that the ones before have changed; keeps them and gives what they ask for.
pub fn rewrite(job: &Job<'_>, layer: usize, seen: &[Seen<'_>]) -> Result<Vec<Fold>> {
    let (mut found, mut folds) = (BTreeMap::new(), Vec::new());
    for s in seen {
        let Some(smoothing) = job.plan.smoothings.get(&s.site.name) else { continue };
        let names = || s.site.consumers.iter().map(|c| c.weight.as_str());
        let plain = names().map(|n| job.model.rows(n)).collect::<Result<Vec<_>>>()?;
        let mut repaired = Vec::new();
        for (rows, name) in plain.iter().zip(names()) {
            let rule = job.plan.recipe.rule(name)?.map_or(Ok(NonFinite::Refuse), |r| r.1.non_finite())?;
            repaired.push(Repaired::new(&**rows, rule));
        }
        let changed = repaired.iter().zip(names()).map(|(rows, n)| FoldedRows::new(rows, n, &folds));
        let changed = changed.collect::<Result<Vec<_>>>()?;
        let weights: Vec<&dyn RowSource> = changed.iter().map(|w| w as &dyn RowSource).collect();
        let module = Module { site: s.site, stats: &s.stats, weights: &weights, sample: &s.sample, output: &*s.output };
        let at = |e: Error| e.in_tensor(&s.site.name);
        let Some(factors) = smoothing.factors(&module, job.cx).map_err(at)? else { continue };
        check_finite(&factors, factors.len(), 0).map_err(at)?;
        drop(changed);
        folds.extend(s.site.smoothed(&factors));
        found.insert(s.site.name.clone(), factors);
    }
    let info = |f: &Vec<f32>| TensorInfo { dtype: DType::F32, shape: vec![f.len()] };
    let mut writer = Writer::create(&path(job, layer), found.iter().map(|(n, f)| (n.clone(), info(f))).collect())?;
    for (name, factors) in &found {
        let bytes: Vec<u8> = factors.iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.write_shared(name, &info(factors), &bytes)?;
    }
    writer.finish()?;
    Ok(folds)
}
