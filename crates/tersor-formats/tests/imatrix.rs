//! Importance matrices in both of llama.cpp's formats, valid and invalid.

mod common;

use common::{Gguf, GgufEntry, string};
use tersor_core::Limits;
use tersor_formats::imatrix;

/// A file of the older format: two matrices, then the number of chunks and the name of the data.
fn binary() -> Vec<u8> {
    let mut out = 2i32.to_le_bytes().to_vec();
    for (name, count, values) in [("blk.0.attn_q.weight", 3i32, [1.5f32, 0.0, 4.0]), ("odd", 1, [2.0, 3.0, 5.0])] {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(count.to_le_bytes());
        out.extend(3i32.to_le_bytes());
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out
}

/// A file of the newer format; the second matrix has two experts.
fn gguf() -> Gguf {
    let entry =
        |name: &str, dims: &[u64], offset| GgufEntry { name: name.into(), dims: dims.to_vec(), kind: 0, offset };
    let mut file = Gguf::new().text("general.type", "imatrix");
    file.tensors = vec![
        entry("blk.0.attn_q.weight.in_sum2", &[3, 1], 0),
        entry("blk.0.attn_q.weight.counts", &[1, 1], 32),
        entry("experts.in_sum2", &[2, 2], 64),
        entry("experts.counts", &[1, 2], 96),
    ];
    file.data = vec![0; 128];
    for (at, values) in [(0, &[1.5f32, 0.0, 4.0][..]), (32, &[3.0]), (64, &[1.0, 2.0, 3.0, 4.0]), (96, &[5.0, 6.0])] {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        file.data[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    file
}

#[test]
fn both_formats_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let mut tail = binary();
    tail.extend(7i32.to_le_bytes());
    tail.extend(string(b"wiki.txt"));
    for bytes in [binary(), tail, gguf().bytes()] {
        std::fs::write(&path, bytes).unwrap();
        let all = imatrix::read(&path, &Limits::default()).unwrap();
        let q = &all["model.layers.0.self_attn.q_proj.weight"];
        assert_eq!((&q.squares[..], q.count), (&[1.5, 0.0, 4.0][..], 3));
        assert_eq!(all.len(), 2);
        if let Some(experts) = all.get("experts") {
            assert_eq!((&experts.squares[..], experts.count), (&[4.0, 6.0][..], 11));
        }
    }
}

#[test]
fn broken_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let fails = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        imatrix::read(&path, &Limits::default()).unwrap_err().to_string()
    };
    for whole in [binary(), gguf().bytes()] {
        for cut in 0..whole.len() {
            // The last tensor of the GGUF file has 8 bytes; the rest is padding.
            if whole.starts_with(b"GGUF") && cut >= whole.len() - 24 {
                continue;
            }
            fails(&whole[..cut]);
        }
    }
    let patch = |at: usize, with: &[u8]| {
        let mut bytes = binary();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    assert!(fails(&patch(0, &(-1i32).to_le_bytes())).contains("number of entries is -1"));
    assert!(fails(&patch(0, &0i32.to_le_bytes())).contains("no entries"));
    assert!(fails(&patch(0, &i32::MAX.to_le_bytes())).contains("entries"));
    assert!(fails(&patch(4, &i32::MAX.to_le_bytes())).contains("middle of an entry"));
    assert!(fails(&patch(8, &[0xff])).contains("UTF-8"));
    let values = 8 + "blk.0.attn_q.weight".len() + 8;
    assert!(fails(&patch(values - 4, &i32::MAX.to_le_bytes())).contains("middle of an entry"));
    assert!(
        fails(&patch(values, &f32::NAN.to_le_bytes())).contains("q_proj")
            || fails(&patch(values, &f32::NAN.to_le_bytes())).contains("attn_q")
    );
    fails(&patch(values, &(-1f32).to_le_bytes()));
    let twice = [&2i32.to_le_bytes()[..], &binary()[4..47], &binary()[4..47]].concat();
    assert!(fails(&twice).contains("twice"));
    assert!(fails(&Gguf::new().text("general.type", "imatrix").bytes()).contains("in_sum2"));
    let mut alone = gguf();
    alone.tensors.remove(1);
    assert!(fails(&alone.bytes()).contains("counts"));
}
