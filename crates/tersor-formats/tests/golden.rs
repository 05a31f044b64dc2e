//! Block types compared with other implementations: bytes decoded by llama.cpp's Python package, and worked examples.

use serde_json::Value as Json;
use tersor_formats::gguf::BlockType;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn kind(name: &str) -> BlockType {
    BlockType::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name)).unwrap()
}

fn decode(kind: BlockType, blocks: &[u8]) -> Vec<f32> {
    let mut out = vec![0f32; blocks.len() / kind.bytes() * kind.elements()];
    kind.decode(blocks, &mut out).unwrap();
    out
}

#[test]
fn random_blocks_of_every_type_decode_as_in_llama_cpp() {
    let golden: Json = serde_json::from_str(include_str!("golden/gguf-0.19.0.json")).unwrap();
    assert_eq!(golden.as_object().unwrap().len(), 10);
    for (name, case) in golden.as_object().unwrap() {
        let got = decode(kind(name), &bytes(case["blocks"].as_str().unwrap()));
        let want: Vec<f32> = bytes(case["values"].as_str().unwrap())
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(got.len(), want.len(), "{name}");
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            // Products of three factors may be computed in another order.
            assert!((g - w).abs() <= 4e-7 * w.abs().max(1e-3), "{name}[{i}]: {g} and {w}");
        }
    }
}

#[test]
fn worked_examples_decode() {
    for file in [include_str!("golden/gguf_blocks_small.json"), include_str!("golden/gguf_kquant_dequant.json")] {
        let golden: Json = serde_json::from_str(file).unwrap();
        for (name, case) in golden.as_object().unwrap().iter().filter(|(_, c)| c["block_hex"].is_string()) {
            let got = decode(kind(name), &bytes(case["block_hex"].as_str().unwrap()));
            let want = case["dequant"].as_array().unwrap();
            assert_eq!(got.len(), want.len());
            for (g, w) in got.iter().zip(want) {
                assert!((f64::from(*g) - w.as_f64().unwrap()).abs() < 1e-6, "{name}: {g} and {w}");
            }
        }
    }
}

#[test]
fn packed_scales_of_q4_k_are_read_as_they_are_packed() {
    let golden: Json = serde_json::from_str(include_str!("golden/kquant_scale_pack.json")).unwrap();
    let numbers = |key: &str| golden[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as f32);
    // With d = dmin = 1 and every code 1, element e is scale - minimum of its sub-block.
    let mut block = vec![0x00, 0x3c, 0x00, 0x3c];
    block.extend(numbers("bytes12").map(|v| v as u8));
    block.extend([0x11; 128]);
    let got = decode(BlockType::Q4_K, &block);
    for (j, (sc, m)) in numbers("sc").zip(numbers("m")).enumerate() {
        assert!(got[32 * j..32 * (j + 1)].iter().all(|v| *v == sc - m), "sub-block {j}");
    }
}

#[test]
fn wrong_lengths_are_errors() {
    for t in BlockType::ALL {
        let mut out = vec![0f32; t.elements()];
        assert!(t.decode(&vec![0; t.bytes() - 1], &mut out).is_err());
        assert!(t.decode(&vec![0; 2 * t.bytes()], &mut out).is_err());
        assert_eq!(BlockType::from_id(t.id()).unwrap(), t);
        if t.elements() > 1 {
            assert!(t.decode(&vec![0; t.bytes()], &mut out[1..]).is_err());
        }
    }
    assert!(BlockType::from_id(4).is_err());
}
