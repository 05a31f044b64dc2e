//! Built-in recipes and the grammar of their names:
//!
//! - `bf16`, `f16`, `f32`;
//! - `w<bits>[a<bits>[kv<bits>]][-g<group>][-smooth|-awq|-hadamard|-resq]-rtn|gptq[-sym][-ao][-mse]`; after `smooth`, `awq` and `hadamard` the method is
//!   `rtn` unless given, after `resq` it is `gptq-sym-mse`;
//! - `w4a8[-g<group>]-dgq|qqq`;
//! - `w<bits>[a<bits>][-g<block>]-nf4|fp4|dynamic[-dq]` and `w8[a<bits>]-int8`;
//! - any of the forms with `w`, with a low-rank correction at the end, `-lqer|l2qer[-r<rank>]`;
//! - a correction without method and group, over MXINT in groups of 16: `w4a8-l2qer`.

use tersor_core::{ParamError, Result};

use super::{Group, Part, Patterns, Recipe, Rule};
use tersor_lowrank::rotate::SHARES;

/// Methods in names, and the bits of those that have a fixed number.
const METHODS: [(&str, Option<u32>); 8] = [
    ("rtn", None),
    ("gptq", None),
    ("dgq", Some(4)),
    ("qqq", Some(4)),
    ("nf4", Some(4)),
    ("fp4", Some(4)),
    ("dynamic", Some(8)),
    ("int8", Some(8)),
];

/// Smoothings and rotations in names, and the value in a rule.
const SMOOTHINGS: [(&str, &str); 4] =
    [("smooth", "smoothquant"), ("awq", "awq"), ("hadamard", "hadamard"), ("resq", "resq")];

/// Low-rank corrections in names.
const CORRECTIONS: [&str; 2] = ["lqer", "l2qer"];

/// Returns whether a method quantizes in blocks by a codebook.
fn has_blocks(method: &str) -> bool {
    ["nf4", "fp4", "dynamic"].contains(&method)
}

/// Returns the names among which suggestions for an unknown name are searched.
fn catalogue() -> Vec<String> {
    let mut all: Vec<String> = ["bf16", "f16", "f32"].map(String::from).to_vec();
    for (method, bits) in METHODS {
        if let Some(bits) = bits {
            for group in ["", "-g64", "-g256"].into_iter().take(if method == "int8" { 1 } else { 3 }) {
                all.push(format!("w{bits}{group}-{method}"));
                all.push(format!("w{bits}a8{group}-{method}"));
                if ["dgq", "qqq"].contains(&method) {
                    all.push(format!("w{bits}a8-g128-{method}"));
                }
                if has_blocks(method) {
                    all.push(format!("w{bits}{group}-{method}-dq"));
                }
            }
            continue;
        }
        for bits in ["2", "3", "4", "5", "6", "7", "8", "4a8", "8a8", "4a4kv4", "4a8kv4"] {
            if method == "rtn" {
                all.extend([format!("w{bits}-lqer"), format!("w{bits}-l2qer")]);
            }
            for group in ["", "-g32", "-g64", "-g128"] {
                for tail in ["", "-sym", "-mse", "-sym-mse", "-ao", "-sym-ao", "-ao-mse", "-sym-ao-mse"] {
                    if method == "gptq" || !tail.contains("-ao") {
                        all.push(format!("w{bits}{group}-{method}{tail}"));
                        for (smooth, _) in SMOOTHINGS.iter().filter(|_| tail.is_empty()) {
                            all.push(format!("w{bits}{group}-{smooth}"));
                            all.push(format!("w{bits}{group}-{smooth}-gptq"));
                        }
                        if tail.is_empty() {
                            all.extend(CORRECTIONS.map(|c| format!("w{bits}{group}-{method}-{c}")));
                        }
                    }
                }
            }
        }
    }
    all
}

/// Returns the recipe of a name. Errors (bad usage), with similar names, if the name does not follow the grammar.
pub(super) fn built_in(name: &str) -> Result<Recipe> {
    let blank = Rule::named(Patterns::One("*".into()), name);
    if matches!(name, "bf16" | "f16" | "f32") {
        return Ok(Recipe { name: name.into(), statistics: None, kv: None, rotate: None, rules: vec![blank] });
    }
    let Some((mut body, kv)) = parse(name, &blank) else {
        let mut near = catalogue();
        near.sort_by(|a, b| strsim::jaro_winkler(b, name).total_cmp(&strsim::jaro_winkler(a, name)));
        near.truncate(4);
        let rule = format!("there is no recipe or file of this name; near names: {}", near.join(", "));
        return Err(ParamError::new("recipe", format!("`{name}`"), rule).into());
    };
    // An encoder's pooler is not used with mean pooling, so it has no calibration inputs.
    let outer = ["model.embed_tokens.weight", "lm_head.weight", "*_embeddings.weight", "*pooler.dense.weight"];
    let outer = Patterns::Many(outer.map(String::from).to_vec());
    let outer = Rule { patterns: outer, method: "rtn".into(), bits: Some(8), ..blank };
    // A rotation stands in the place of smoothing in a name, but belongs to the whole network.
    let rotate = body.smooth.take_if(|s| ["hadamard", "resq"].contains(&s.as_str()));
    // Below 8 bits, activations are quantized with a zero.
    if body.activations.is_some_and(|a| a < 8) {
        body.activation_scale = Some("asym".into());
    }
    let key_rotation = match rotate.as_deref() {
        Some("resq") => "-pca-eighth",
        Some(_) => "-hadamard",
        None => "",
    };
    let kv = kv.map(|bits| format!("int{bits}{key_rotation}"));
    let mut rules = vec![outer];
    if rotate.as_deref() == Some("resq") {
        // The rotation of the inner activations cannot be merged into the gated product, so down projections are not split into parts.
        rules.push(Rule { patterns: Patterns::One("*.mlp.down_proj.weight".into()), ..body.clone() });
        let (bits, activations) = (body.bits.take().unwrap_or(4), body.activations.take());
        let [low, high] = SHARES;
        let high = Part { share: high, bits: 8, activations: activations.map(|_| 8) };
        body.parts = vec![Part { share: low, bits, activations }, high];
    }
    rules.push(body);
    Ok(Recipe { name: name.into(), statistics: None, kv, rotate, rules })
}

/// Parses a name into the rule for all matrices but embedding and head, and the bits of the key-value cache. None if the name does not follow the
/// grammar.
fn parse(name: &str, blank: &Rule) -> Option<(Rule, Option<u32>)> {
    let mut parts = name.strip_prefix('w')?.split('-');
    let head = parts.next()?;
    let (bits, activations) = head.split_once('a').map_or((head, None), |(b, a)| (b, Some(a)));
    // Numbers have no sign and no leading zero.
    let number = |s: &str| s.parse::<u32>().ok().filter(|n| n.to_string() == s);
    let width = |s: &str| number(s).filter(|b| (2..=8).contains(b));
    let mut rule = Rule { bits: Some(width(bits)?), ..blank.clone() };
    let mut kv = None;
    if let Some(activations) = activations {
        let (a, cache) = activations.split_once("kv").map_or((activations, None), |(a, kv)| (a, Some(kv)));
        rule.activations = Some(width(a)?);
        kv = cache.map(|c| width(c).ok_or(())).transpose().ok()?;
    }
    let mut part = parts.next()?;
    // `gptq` also begins with `g`.
    if let Some(group) = part.strip_prefix('g').filter(|_| part != "gptq") {
        let group = number(group).filter(|&g| g > 0)?;
        rule.group = Some(Group::Size(u64::from(group)));
        part = parts.next()?;
    }
    // A correction without method is the form of the LQER paper, over MXINT.
    let alone = CORRECTIONS.contains(&part) && rule.group.is_none();
    let mut rest = parts.peekable();
    if let Some((name, smooth)) = SMOOTHINGS.iter().find(|s| s.0 == part) {
        rule.smooth = Some(smooth.to_string());
        rule.output_clip = *name == "awq";
        let next = rest.next_if(|p| ["rtn", "gptq"].contains(p));
        part = next.unwrap_or(if *name == "resq" { "gptq" } else { "rtn" });
        if *name == "resq" && next.is_none() {
            (rule.grid, rule.mse) = (Some("sym".into()), true);
        }
    }
    if alone {
        (rule.method, rule.grid) = ("rtn".into(), Some("mxint".into()));
    } else {
        let bits = METHODS.iter().find(|m| m.0 == part)?.1;
        if bits.is_some_and(|b| rule.bits != Some(b)) || part == "int8" && rule.group.is_some() {
            return None;
        }
        rule.method = part.into();
    }
    match part {
        "dgq" => rule.smooth = Some("percentile".into()),
        "qqq" => {
            rule.smooth = Some("adaptive".into());
            if rule.group.is_none() {
                // With one scale per row QQQ is GPTQ on the narrow symmetric grid.
                rule.method = "gptq".into();
                (rule.grid, rule.scales) = (Some("sym_narrow".into()), Some("f32".into()));
                (rule.act_order, rule.static_groups) = (true, true);
            }
        }
        _ => {}
    }
    // Options have a fixed order, each at most once.
    let own_bits = METHODS.iter().any(|m| m.0 == part && m.1.is_some());
    if own_bits {
        rule.nested = has_blocks(part) && rest.next_if_eq(&"dq").is_some();
    } else if !alone {
        if rest.next_if_eq(&"sym").is_some() {
            rule.grid = Some("sym".into());
        }
        if part == "gptq" && rest.next_if_eq(&"ao").is_some() {
            (rule.act_order, rule.static_groups) = (true, true);
        }
        rule.mse |= rest.next_if_eq(&"mse").is_some();
    }
    let correction = if alone { Some(part) } else { rest.next_if(|p| CORRECTIONS.contains(p)) };
    if let Some(correction) = correction {
        rule.low_rank = Some(correction.into());
        if let Some(rank) = rest.peek().and_then(|p| p.strip_prefix('r')) {
            rule.rank = Some(number(rank).filter(|r| *r > 0)? as usize);
            rest.next();
        }
    }
    rest.next().is_none().then_some((rule, kv))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_and_nothing_else() {
        for name in catalogue() {
            let recipe = built_in(&name).unwrap();
            recipe.check(tersor::stages()).unwrap();
            assert_eq!(recipe.name, name);
        }
        let rule = built_in("w3-g64-rtn-sym-mse").unwrap().rules[1].clone();
        assert_eq!(
            (rule.bits, rule.grid.as_deref(), rule.mse, rule.group),
            (Some(3), Some("sym"), true, Some(Group::Size(64)))
        );
        assert_eq!(built_in("w4a4kv3-g32-smooth").unwrap().kv.as_deref(), Some("int3"));
        let rule = built_in("w4a8-g32-rtn-sym").unwrap().rules[1].clone();
        assert_eq!((rule.bits, rule.activations), (Some(4), Some(8)));
        for bad in [
            "w1-rtn",
            "w9-rtn",
            "w04-rtn",
            "w4-g0-rtn",
            "w4-rtn-mse-sym",
            "w4",
            "w4-",
            "w4-g32",
            "w4-rtn-",
            "rtn",
            "",
            "w4-rtn-sym-sym",
            "w4-g-rtn",
            "w+4-rtn",
            "w4-rtn-ao",
            "w4-gptq-ao-sym",
            "w4a-rtn",
            "w4a9-rtn",
            "wa8-rtn",
            "w4a8a8-rtn",
            "w8-nf4",
            "w4-dynamic",
            "w8-g64-int8",
            "w8-int8-dq",
            "w4-nf4-sym",
            "w4-nf4-dq-dq",
            "w4-rtn-dq",
            "w4-g32-l2qer",
            "w4-rtn-r8",
            "w4-rtn-lqer-r0",
            "w4-lqer-sym",
            "w4kv4-rtn",
            "w4a8kv-rtn",
            "w4a8kv9-rtn",
            "w8a8-dgq",
            "w4a8-dgq-sym",
            "w4-smooth-awq",
            "w4-awq-nf4",
            "w4-g32-awq-sym-sym",
            "w4-lqer-l2qer",
        ] {
            let e = built_in(bad).unwrap_err();
            assert!(e.is_usage() && e.to_string().contains("near names"), "{bad}: {e}");
        }
        assert!(built_in("w4-g128-rnt").unwrap_err().to_string().contains("w4-g128-rtn"));
    }
}
