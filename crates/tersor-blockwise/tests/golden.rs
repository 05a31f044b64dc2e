//! Results of bitsandbytes 0.50.2 on a CPU, made by `scripts/golden_blockwise.py`.

use serde_json::Value;
use tersor_blockwise::{Blockwise, Map, Quantized, Scales};

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/bitsandbytes-0.50.2.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn bytes(v: &Value) -> Vec<u8> {
    let text = v.as_str().unwrap().as_bytes();
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    text.chunks(2).map(|c| digit(c[0]) << 4 | digit(c[1])).collect()
}

fn floats(v: &Value) -> Vec<f32> {
    bytes(v).chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

fn map(name: &str) -> Map {
    match name {
        "dynamic" => Map::dynamic(true),
        "dynamic-unsigned" => Map::dynamic(false),
        "nf4" => Map::nf4(),
        _ => Map::fp4(),
    }
}

fn digest(values: &[f32]) -> String {
    let sum = values
        .iter()
        .enumerate()
        .fold(0u64, |s, (i, v)| s.wrapping_add(u64::from(v.to_bits()).wrapping_mul(i as u64 + 1)));
    sum.to_string()
}

#[test]
fn maps_equal_bitsandbytes() {
    let golden = golden();
    for (name, values) in golden["maps"].as_object().unwrap() {
        let (ours, theirs) = (map(name), floats(values));
        // -0 of FP4 is 0 here and there.
        let same = ours.values().iter().zip(&theirs).all(|(a, b)| a.to_bits() == (b + 0.0).to_bits());
        assert!(same && ours.values().len() == theirs.len(), "{name}");
    }
}

#[test]
fn codes_scales_and_values_equal_bitsandbytes() {
    let golden = golden();
    for (name, tensor) in golden["tensors"].as_object().unwrap() {
        let x = floats(&tensor["x"]);
        for row in tensor["rows"].as_array().unwrap() {
            let (block, nested) = (row["block"].as_u64().unwrap() as usize, row["nested"].as_bool().unwrap());
            let what = format!("{name}, {}, {block}, nested {nested}", row["map"]);
            let map = map(row["map"].as_str().unwrap());
            let ours = Blockwise::new(map.clone()).block(block).nested(nested).quantize_values(&x).unwrap();
            assert!(ours.codes() == bytes(&row["codes"]), "{what}");
            let theirs = match ours.scales() {
                Scales::Plain(absmax) => {
                    // Of a last block that is short and all zero it keeps the 1e-38 that it divides by.
                    let theirs = floats(&row["absmax"]).into_iter().map(|v| if v == 1e-38 { 0.0 } else { v });
                    assert!(theirs.eq(absmax.iter().copied()), "{what}");
                    ours.scales().clone()
                }
                Scales::Nested { codes, absmax, offset } => {
                    // Their mean is a sum of f32 in an order of its own: up to two units in the last place from ours.
                    let (theirs, outer) = (floats(&row["offset"])[0], floats(&row["nested_absmax"]));
                    assert!((offset - theirs).abs() <= 2.0 * f32::EPSILON * theirs.abs(), "{what}: {offset} {theirs}");
                    let max = outer.iter().fold(0f32, |m, v| m.max(*v));
                    let near = |a: &f32, b: &f32| (a - b).abs() <= 2.0 * f32::EPSILON * theirs.abs().max(max);
                    assert!(absmax.iter().zip(&outer).all(|(a, b)| near(a, b)), "{what}");
                    let theirs_codes = bytes(&row["absmax_codes"]);
                    assert_eq!(codes.len(), theirs_codes.len());
                    Scales::Nested { codes: theirs_codes, absmax: outer, offset: theirs }
                }
            };
            // With their scales, since the library that quantized those looked them up in its table.
            let read = Quantized::from_parts(map, block, x.len(), ours.dtype(), ours.codes().to_vec(), theirs).unwrap();
            assert_eq!(digest(&read.dequantize().unwrap()), row["digest"].as_str().unwrap(), "{what}");
        }
    }
}

/// For f32 the library rounds values to a grid of 65536 points, which lacks zero, and looks codes up there: its codes are those of the rounded
/// values.
#[test]
fn codes_of_the_native_lookup_table_are_explained() {
    let (golden, map) = (golden(), Map::dynamic(true));
    let nearest = |v: f64| {
        let far = |c: &usize| (f64::from(map.values()[*c]) - v).abs();
        (0..256).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap() as u8
    };
    let (mut all, mut other) = (0usize, 0usize);
    for tensor in golden["tensors"].as_object().unwrap().values() {
        let x = floats(&tensor["x"]);
        for row in tensor["rows"].as_array().unwrap().iter().filter(|r| r["native"].is_string()) {
            let (native, exact) = (bytes(&row["native"]), bytes(&row["codes"]));
            let block = row["block"].as_u64().unwrap() as usize;
            for (b, part) in x.chunks(block).enumerate() {
                let max = part.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (i, v) in part.iter().enumerate() {
                    let at = b * block + i;
                    all += 1;
                    if native[at] == exact[at] {
                        continue;
                    }
                    other += 1;
                    if max == 0.0 {
                        assert_eq!(native[at], 0);
                        continue;
                    }
                    let steps = (f64::from(v / max) + 1.0) * 32767.5;
                    let around = [steps.floor(), steps.ceil()].map(|s| nearest(s / 32767.5 - 1.0));
                    assert!(around.contains(&native[at]), "{v} of {max}: {} {around:?}", native[at]);
                }
            }
        }
    }
    assert!(other > 0 && other * 4 < all, "{other} of {all}");
}
