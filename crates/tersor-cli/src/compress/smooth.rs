//! Factors of the inputs of a layer's sites: found once, kept with the work in progress, folded into weights as they are read.

use std::collections::BTreeMap;
use std::sync::Arc;

use tersor::core::tensors::{read_floats, write_floats};
use tersor::core::{
    DType, Error, Fold, FoldedRows, Folding, Limits, Module, NonFinite, Repaired, Result, RowSource, Site, TensorInfo,
    rows::check_finite,
};
use tersor::formats::safetensors::{File, Writer};
use tersor::llm::Seen;

use super::matrix::Job;

/// Factors by the names of sites.
pub type Factors = BTreeMap<String, Vec<f32>>;

fn path(job: &Job<'_>, layer: usize) -> std::path::PathBuf {
    job.parts.scratch().join(format!("factors-{layer:06}"))
}

/// The factors of a layer's sites, by the names of the sites; none where they have not been found yet.
fn factors(job: &Job<'_>, layer: usize) -> Result<Option<Arc<Factors>>> {
    let mut known = job.factors.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((_, factors)) = known.as_ref().filter(|(l, _)| *l == layer) {
        return Ok(Some(factors.clone()));
    }
    let path = path(job, layer);
    if !path.is_file() {
        return Ok(None);
    }
    let file = File::open(&path, &Limits::default())?;
    let names = file.header().tensors.iter();
    let all = names.map(|(name, t)| Ok((name.clone(), read_floats(&file, name, &t.info.shape)?)));
    let all = Arc::new(all.collect::<Result<Factors>>()?);
    *known = Some((layer, all.clone()));
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
    let found = factors(job, layer)?.and_then(|all| all.get(&site.name).cloned());
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
        write_floats(&mut writer, name, &[factors.len()], factors)?;
    }
    writer.finish()?;
    Ok(folds)
}
