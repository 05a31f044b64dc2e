//! The charts of the HTML page. Each function returns none if there is nothing to draw.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::svg::{COLOURS, ORIGINAL, Scale, Svg};

/// A compressed model and its manifest.
pub(crate) struct Run {
    /// Name of the recipe that the model was, or is to be, compressed by: that of its file, or the name that stands for it, such as `w4-g128-gptq`.
    pub name: String,
    /// Content of `tersor.json`.
    pub manifest: Json,
}

/// Returns minimum and maximum of the finite values.
fn span(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    values.filter(|v| v.is_finite()).fold(None, |s, v| match s {
        None => Some([v, v]),
        Some([a, b]) => Some([a.min(v), b.max(v)]),
    })
}

/// Draws perplexity over size, with a point for each evaluated row.
pub(crate) fn size_against_perplexity(rows: &[Json]) -> Option<String> {
    let points: Vec<(&str, f64, f64)> = rows
        .iter()
        .filter_map(|r| Some((r["recipe"].as_str()?, r["weight_bytes"].as_f64()? / 1e6, r["perplexity"].as_f64()?)))
        .collect();
    let right = span(points.iter().map(|p| p.1))?[1];
    let [low, high] = span(points.iter().map(|p| p.2))?;
    let x = Scale::new([0.0, right * 1.12], [70.0, 1000.0], false);
    let y = Scale::new([low * 0.97, high * 1.05], [370.0, 34.0], true);
    let mut svg = Svg::new(1020.0, 420.0);
    svg.axes(x, y, ["weights, MB", "perplexity"]);
    if let Some(original) = points.iter().find(|p| p.0 == "original") {
        svg.line([70.0, y.at(original.2)], [1000.0, y.at(original.2)], ORIGINAL, true);
    }
    // Recipes have the same colours as in the other charts, which do not show the original.
    let mut colours = COLOURS.iter().cycle();
    let mut placed: Vec<[f64; 2]> = points.iter().map(|p| [x.at(p.1) - 40.0, y.at(p.2) + 4.0]).collect();
    for (name, size, perplexity) in &points {
        let at = [x.at(*size), y.at(*perplexity)];
        let colour = if *name == "original" { ORIGINAL } else { colours.next().unwrap_or(&ORIGINAL) };
        // The label is beside its point, or at the nearest height at which it overlaps no other label or point.
        let free = |spot: &[f64; 2]| {
            let clear = |p: &[f64; 2]| (p[0] - spot[0]).abs() >= 110.0 || (p[1] - spot[1]).abs() >= 13.0;
            (20.0..=366.0).contains(&spot[1])
                && placed.iter().filter(|p| p[0] + 40.0 != at[0] || p[1] - 4.0 != at[1]).all(clear)
        };
        let spots =
            (0..40).map(|i| [at[0] + 14.0, at[1] + 4.0 + if i % 2 == 0 { -7.0 } else { 7.0 } * f64::from((i + 1) / 2)]);
        let spot = spots.clone().find(free).unwrap_or([at[0] + 14.0, at[1] + 4.0]);
        svg.line(at, [spot[0] - 3.0, spot[1] - 4.0], colour, false);
        svg.dot(at, colour, &format!("{name}: {size:.2} MB, perplexity {perplexity:.3}"));
        svg.text(spot, "start", "", name);
        placed.push(spot);
    }
    Some(svg.finish())
}

/// The errors of one recipe in a chart by layer.
pub(crate) struct Errors {
    name: String,
    /// Kind, layer and error of each point.
    points: Vec<(String, usize, f64)>,
}

/// Kinds of matrices, in the order of their panels.
pub(crate) const MATRICES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Kinds of sites, in the order of their panels.
pub(crate) const SITES: [&str; 4] = ["self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down"];

/// Splits a name into the index of a layer and the name relative to it.
fn in_layer(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// Returns the relative weight error of each matrix in a manifest.
pub(crate) fn of_matrices(run: &Run) -> Errors {
    let mut points = Vec::new();
    for (name, t) in run.manifest["tensors"].as_object().into_iter().flatten() {
        if let (Some((layer, part)), Some(error)) = (in_layer(name), t["report"]["relative_error"].as_f64()) {
            let kind = part.trim_end_matches(".weight").rsplit('.').next().unwrap_or(part);
            points.push((kind.to_string(), layer, error));
        }
    }
    Errors { name: run.name.clone(), points }
}

/// Returns the relative input error of each site in an evaluated row.
pub(crate) fn of_sites(row: &Json) -> Option<Errors> {
    let sites = row["site_errors"].as_object()?;
    let point = |(name, error): (&String, &Json)| {
        let (layer, kind) = in_layer(name)?;
        Some((kind.to_string(), layer, error.as_f64()?))
    };
    Some(Errors { name: row["recipe"].as_str()?.to_string(), points: sites.iter().filter_map(point).collect() })
}

/// Index of a recipe, and its error by layer.
type Line = (usize, Vec<(usize, f64)>);

/// Draws error over layer, with a panel for each kind and a line for each recipe.
pub(crate) fn error_by_layer(recipes: &[Errors], kinds: &[&str]) -> Option<String> {
    let mut panels: BTreeMap<usize, Vec<Line>> = BTreeMap::new();
    let mut all = Vec::new();
    for (i, recipe) in recipes.iter().enumerate() {
        for (k, kind) in kinds.iter().enumerate() {
            let points = recipe.points.iter().filter(|e| e.0 == *kind && e.2 > 0.0);
            let mut line: Vec<(usize, f64)> = points.map(|e| (e.1, e.2)).collect();
            line.sort_by_key(|p| p.0);
            if !line.is_empty() {
                all.extend(line.iter().map(|p| p.1));
                panels.entry(k).or_default().push((i, line));
            }
        }
    }
    let [low, high] = span(all.into_iter())?;
    let layers = panels.values().flatten().flat_map(|(_, l)| l.iter().map(|p| p.0)).max()?;
    const COLUMNS: usize = 4;
    let top = panels.len().div_ceil(COLUMNS) as f64 * 210.0 + 30.0;
    // The legend takes as many lines as it needs.
    let (mut legend, mut at) = (Vec::new(), (52.0, 0.0));
    for recipe in recipes {
        let width = 40.0 + 7.2 * recipe.name.len() as f64;
        if at.0 + width > 1020.0 {
            at = (52.0, at.1 + 18.0);
        }
        legend.push(at);
        at.0 += width;
    }
    let mut svg = Svg::new(1020.0, top + at.1 + 20.0);
    for (n, (k, lines)) in panels.iter().enumerate() {
        let (px, py) = ((n % COLUMNS) as f64 * 250.0 + 52.0, (n / COLUMNS) as f64 * 210.0 + 30.0);
        let x = Scale::new([0.0, layers.max(1) as f64], [px, px + 185.0], false);
        let y = Scale::new([low * 0.8, high * 1.25], [py + 140.0, py], true);
        svg.axes(x, y, ["layer", kinds[*k]]);
        for (i, line) in lines {
            let points: Vec<[f64; 2]> = line.iter().map(|p| [x.at(p.0 as f64), y.at(p.1)]).collect();
            svg.path(&points, COLOURS[i % COLOURS.len()]);
        }
    }
    for ((x, y), (i, recipe)) in legend.into_iter().zip(recipes.iter().enumerate()) {
        svg.bar([x, top + y], [14.0, 4.0], COLOURS[i % COLOURS.len()]);
        svg.text([x + 19.0, top + y + 6.0], "start", "", &recipe.name);
    }
    Some(svg.finish())
}

/// Draws two bars for each row: seconds to compress, and peak memory.
pub(crate) fn time_and_memory(rows: &[Json]) -> Option<String> {
    let rows: Vec<&Json> = rows.iter().filter(|r| r["compress_seconds"].as_f64().is_some_and(|s| s > 0.0)).collect();
    let seconds = span(rows.iter().filter_map(|r| r["compress_seconds"].as_f64()))?[1];
    let memory = span(rows.iter().filter_map(|r| r["compress_peak_rss_bytes"].as_f64())).map(|s| s[1]);
    let mut svg = Svg::new(1020.0, rows.len() as f64 * 26.0 + 40.0);
    svg.text([170.0, 18.0], "start", "axis", "seconds");
    svg.text([600.0, 18.0], "start", "axis", "peak memory, MB");
    for (i, r) in rows.iter().enumerate() {
        let y = 30.0 + i as f64 * 26.0;
        svg.text([160.0, y + 13.0], "end", "", r["recipe"].as_str().unwrap_or("?"));
        let s = r["compress_seconds"].as_f64().unwrap_or(0.0);
        svg.bar([170.0, y], [330.0 * s / seconds, 16.0], COLOURS[0]);
        svg.text([176.0 + 330.0 * s / seconds, y + 13.0], "start", "", &format!("{s:.2}"));
        if let (Some(max), Some(m)) = (memory, r["compress_peak_rss_bytes"].as_f64()) {
            svg.bar([600.0, y], [330.0 * m / max, 16.0], COLOURS[1]);
            svg.text([606.0 + 330.0 * m / max, y + 13.0], "start", "", &format!("{:.0}", m / 1e6));
        }
    }
    Some(svg.finish())
}
