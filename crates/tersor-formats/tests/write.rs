//! Canonical files: equal content gives equal bytes, and an incomplete file never has its final name.

use std::collections::BTreeMap;
use tersor_core::{DType, Limits, TensorInfo, TensorSink, TensorSource};
use tersor_formats::safetensors::{File, Writer};

fn layout() -> BTreeMap<String, TensorInfo> {
    let info = |dtype, shape: &[usize]| TensorInfo { dtype, shape: shape.to_vec() };
    BTreeMap::from([
        ("codes".to_string(), info(DType::U8, &[4, 3])),
        ("scales".to_string(), info(DType::F16, &[4, 2])),
        ("order".to_string(), info(DType::U32, &[3])),
        ("empty".to_string(), info(DType::F32, &[0, 7])),
    ])
}

#[test]
fn the_order_of_writing_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, blocks: &[usize]| {
        let path = dir.path().join(name);
        let (l, mut w) = (layout(), Writer::create(&path, layout()).unwrap());
        for &first in blocks {
            w.write_shared("order", &l["order"], &[5; 12]).unwrap();
            w.write_rows("scales", &l["scales"], first, &[first as u8; 8]).unwrap();
            w.write_rows("codes", &l["codes"], first, &[first as u8 + 1; 6]).unwrap();
        }
        assert!(!path.exists(), "only a finished file has its name");
        w.finish().unwrap();
        std::fs::read(path).unwrap()
    };
    let bytes = write("a", &[0, 2]);
    assert_eq!(bytes, write("b", &[2, 0]));
    let header = std::str::from_utf8(&bytes[8..])
        .unwrap_or_else(|e| std::str::from_utf8(&bytes[8..8 + e.valid_up_to()]).unwrap());
    assert!(header.starts_with(r#"{"codes":{"dtype":"U8","shape":[4,3],"data_offsets":[28,40]},"empty""#), "{header}");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(length.is_multiple_of(8) && bytes.len() as u64 == 8 + length + 40);
    let file = File::open(&dir.path().join("a"), &Limits::default()).unwrap();
    assert_eq!(file.names(), ["codes", "empty", "order", "scales"]);
    let mut row = [0u8; 3];
    file.read_at("codes", 9, &mut row).unwrap();
    assert_eq!(row, [3; 3]);
    assert!(file.read_at("codes", 10, &mut row).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary files are left");
}

#[test]
fn half_written_and_contradicting_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (l, path) = (layout(), dir.path().join("x"));
    let mut w = Writer::create(&path, layout()).unwrap();
    w.write_rows("codes", &l["codes"], 0, &[1; 12]).unwrap();
    assert!(w.write_rows("codes", &l["codes"], 3, &[1; 6]).is_err(), "past the end");
    assert!(w.write_rows("codes", &l["codes"], 0, &[1; 4]).is_err(), "not whole rows");
    assert!(w.write_rows("codes", &l["scales"], 0, &[1; 4]).is_err(), "another type");
    assert!(w.write_rows("more", &l["codes"], 0, &[1; 3]).is_err(), "not in the layout");
    w.write_shared("order", &l["order"], &[1; 12]).unwrap();
    assert!(w.write_shared("order", &l["order"], &[2; 12]).is_err(), "another content");
    let e = w.finish().unwrap_err().to_string();
    assert!(e.contains("scales"), "{e}");
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing is left of it");
}
