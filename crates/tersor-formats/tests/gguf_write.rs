//! Encoded blocks compared with llama.cpp's, and written files that are read again.

use tersor_core::{Limits, RowSource};
use tersor_formats::gguf::{BlockType, File, MetaWriter, Writer, gguf_name, hf_name};

fn normal(n: usize) -> Vec<f32> {
    let mut state = 9u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    let mut one = || (-2.0 * next().max(1e-7).ln()).sqrt() * (std::f32::consts::TAU * next()).cos();
    (0..n).map(|_| one()).collect()
}

fn encode(kind: BlockType, x: &[f32]) -> Vec<u8> {
    let mut out = vec![0u8; x.len() / kind.elements() * kind.bytes()];
    kind.encode(x, &mut out).unwrap();
    out
}

fn back(kind: BlockType, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    kind.decode(&encode(kind, x), &mut out).unwrap();
    out
}

#[test]
fn known_blocks_to_the_byte() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/gguf_blocks_small.json")).unwrap();
    let x: Vec<f32> = golden["input"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
    for (kind, name) in [(BlockType::Q4_0, "q4_0"), (BlockType::Q4_1, "q4_1"), (BlockType::Q8_0, "q8_0")] {
        let hex: String = encode(kind, &x).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden[name]["block_hex"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn errors_are_ordered_as_bits_are() {
    let x = normal(256 * 64);
    let error = |kind| {
        let sum: f64 = x.iter().zip(back(kind, &x)).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        (sum / x.len() as f64).sqrt()
    };
    use BlockType::*;
    // Errors of independent implementations on normal values.
    for (kind, want) in [(Q8_0, 0.0053), (Q6_K, 0.0177), (Q5_K, 0.0357), (Q4_K, 0.0714), (Q4_1, 0.0778), (Q4_0, 0.0851)]
    {
        let found = error(kind);
        assert!((found / want - 1.0).abs() < 0.05, "{}: {found}", kind.name());
    }
    assert!(error(Q5_0) < 0.55 * error(Q4_0) && error(Q5_1) < 0.55 * error(Q4_1));
    assert!(error(F32) == 0.0 && error(F16) < 3e-4 && error(BF16) < 3e-3);
}

#[test]
fn zeros_constants_and_extremes() {
    for kind in BlockType::ALL.into_iter().filter(|k| k.can_encode()) {
        let n = kind.elements();
        assert!(back(kind, &vec![0.0; n]).iter().all(|v| *v == 0.0), "{}", kind.name());
        for value in [1.0f32, -3.0, 1e-3] {
            let wrong = back(kind, &vec![value; n]).into_iter().find(|v| (v - value).abs() > 0.04 * value.abs());
            assert_eq!(wrong, None, "{} of {value}", kind.name());
        }
        let mut out = vec![0u8; kind.bytes()];
        if !matches!(kind, BlockType::F32 | BlockType::BF16) {
            assert!(kind.encode(&vec![3e38; n], &mut out).is_err(), "{}", kind.name());
        }
        assert!(kind.encode(&vec![0.0; n + 1], &mut out).is_err());
    }
    assert!(BlockType::Q2_K.encode(&[0.0; 256], &mut [0; 84]).unwrap_err().to_string().contains("Q2_K"));
}

#[test]
fn codes_that_are_a_types_own_are_packed_as_they_are() {
    let codes: Vec<u8> = (0..32).map(|i| (i * 7 % 32) as u8).collect();
    for (kind, zero, mask) in [(BlockType::Q4_0, 8.0, 15), (BlockType::Q5_0, 16.0, 31), (BlockType::Q8_0, 128.0, 255)] {
        let codes: Vec<u8> = codes.iter().map(|c| c & mask).collect();
        let (mut block, mut out) = (vec![0u8; kind.bytes()], [0f32; 32]);
        kind.pack_codes(0.25, 0.0, &codes, &mut block).unwrap();
        kind.decode(&block, &mut out).unwrap();
        assert!(out.iter().zip(&codes).all(|(v, c)| *v == 0.25 * (f32::from(*c) - zero)), "{}", kind.name());
    }
    let (mut block, mut out) = ([0u8; 24], [0f32; 32]);
    BlockType::Q5_1.pack_codes(0.5, -3.0, &codes, &mut block).unwrap();
    BlockType::Q5_1.decode(&block, &mut out).unwrap();
    assert!(out.iter().zip(&codes).all(|(v, c)| *v == 0.5 * f32::from(*c) - 3.0));
    assert!(BlockType::Q4_0.pack_codes(1.0, 0.0, &codes, &mut [0; 18]).is_none(), "a code above 15");
    assert!(BlockType::Q4_1.pack_codes(1e9, 0.0, &[0; 32], &mut [0; 20]).is_none());
}

#[test]
fn a_file_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let (w, norm) = (normal(6 * 64), normal(64));
    let mut meta = MetaWriter::new();
    meta.text("general.architecture", "llama").uint("llama.block_count", 2).float("x", 0.5).bool("y", true);
    meta.texts("tokens", ["a", "é", ""].into_iter()).ints("types", &[1, -2, 3]);
    let tensors = [
        ("b.weight".to_string(), vec![6, 64], BlockType::Q8_0),
        ("a.weight".to_string(), vec![64], BlockType::F32),
        ("empty".to_string(), vec![0, 64], BlockType::Q4_0),
    ];
    let mut file = Writer::create(&path, &meta, &tensors).unwrap();
    file.write("b.weight", &w[..2 * 64]).unwrap();
    file.write("a.weight", &norm).unwrap();
    file.write("b.weight", &w[2 * 64..]).unwrap();
    assert!(file.write("b.weight", &w[..64]).is_err() && file.write("c", &w[..64]).is_err());
    assert!(!path.exists());
    file.finish().unwrap();
    let read = File::open(&path, &Limits::default()).unwrap();
    assert_eq!((read.meta().uint("llama.block_count"), read.meta().float("x")), (Some(2), Some(0.5)));
    assert_eq!(read.meta().array("tokens").unwrap().len(), 3);
    let mut out = vec![0f32; 6 * 64];
    read.rows("b.weight").unwrap().read_rows(0..6, &mut out).unwrap();
    assert_eq!(out, back(BlockType::Q8_0, &w));
    read.rows("a.weight").unwrap().read_rows(0..1, &mut out[..64]).unwrap();
    assert_eq!(out[..64], norm);
    // Keys are copied from file to file with their types.
    let mut again = MetaWriter::new();
    read.meta().0.keys().for_each(|k| {
        again.raw(k, &read.raw_meta(k).unwrap());
    });
    assert_eq!(again, meta);
    assert!(read.raw_meta("none").is_err());

    let other = dir.path().join("o.gguf");
    assert!(Writer::create(&other, &meta, &tensors[..1]).unwrap().finish().is_err());
    assert!(!other.exists() && std::fs::read_dir(dir.path()).unwrap().count() == 1);
    let uneven = [("w".to_string(), vec![2, 48], BlockType::Q4_0)];
    let found = Writer::create(&other, &meta, &uneven).err().unwrap().to_string();
    assert!(found.contains("48 columns") && found.contains("`w`"), "{found}");
}

#[test]
fn names_go_both_ways() {
    for own in
        ["token_embd.weight", "output.weight", "blk.7.attn_q.bias", "blk.0.ffn_down.weight", "blk.11.attn_norm.weight"]
    {
        let hf = hf_name(own).unwrap();
        let again = gguf_name(&hf.name).unwrap();
        assert_eq!((again.name.as_str(), again.rows), (own, hf.rows));
    }
    assert!(gguf_name("model.layers.x.mlp.up_proj.weight").is_none() && gguf_name("rope").is_none());
}
