//! Files that are inconsistent, truncated or corrupted: each gives an error, in bounded time and memory.

mod common;

use common::*;
use std::fs;
use tersor_core::{Error, Limits, TensorSource};
use tersor_formats::{Model, gguf, safetensors};

fn refused(result: Result<usize, Error>, word: &str) {
    let e = result.unwrap_err().to_string();
    assert!(e.contains(word), "expected `{word}` in: {e}");
}

#[test]
fn every_truncation_is_an_error() {
    let whole = small_safetensors();
    assert_eq!(read_safetensors(whole.clone()).unwrap(), 24 + 5 + 2);
    for n in 0..whole.len() {
        assert!(read_safetensors(whole[..n].to_vec()).is_err(), "safetensors cut at {n}");
    }
    assert!(read_safetensors([&whole[..], &[0]].concat()).is_err(), "a byte too many");
    let whole = small_gguf().bytes();
    assert_eq!(read_gguf(whole.clone()).unwrap(), 6 + 32 + 512 + 4);
    for n in 0..whole.len() {
        assert!(read_gguf(whole[..n].to_vec()).is_err(), "GGUF cut at {n}");
    }
}

#[test]
fn safetensors_headers_that_lie() {
    let file = |header: &str, data: usize| read_safetensors(safetensors_bytes(header, &vec![0u8; data]));
    let t = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |tensor: String| format!(r#"{{"a":{tensor}}}"#);
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    assert_eq!(file(&two(t("U8", "[4]", 0, 4), t("U8", "[0,9]", 4, 4)), 4).unwrap(), 4, "an empty tensor is fine");

    refused(file(&two(t("U8", "[4]", 0, 4), t("U8", "[4]", 5, 9)), 9), "hole");
    refused(file(&two(t("U8", "[4]", 0, 4), t("U8", "[4]", 3, 7)), 7), "overlap");
    refused(file(&one(t("U8", "[4]", 0, 4)), 5), "ends at");
    refused(file(&one(t("U8", "[4]", 0, 4)), 3), "ends at");
    refused(file(&one(t("F32", "[4]", 0, 4)), 4), "bytes of a tensor");
    refused(file(&one(t("F32", "[4]", 4, 0)), 0), "bytes of a tensor");
    refused(file(&one(t("F99", "[4]", 0, 4)), 4), "F99");
    refused(file(&one(t("f32", "[1]", 0, 4)), 4), "f32");
    refused(file(&one(t("U8", "[4294967296,4294967296]", 0, 4)), 4), "overflows");
    refused(file(&one(t("F64", "[1152921504606846976]", 0, 0)), 0), "overflows");
    refused(file(&one(t("U8", "[-1]", 0, 4)), 4), "header");
    refused(file(&one(t("U8", "[1,1,1,1,1,1,1,1,1]", 0, 1)), 1), "axes");
    refused(file(&one(t("U8", "[1]", u64::MAX - 1, u64::MAX)), 1), "");
    refused(file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1}}"#, 1), "more");
    let twice = format!(r#"{{"a":{0},"a":{0}}}"#, t("U8", "[1]", 0, 1));
    refused(file(&twice, 1), "twice");
    refused(file(r#"{"__metadata__":{"a":"b"},"__metadata__":{}}"#, 0), "twice");
    refused(file(r#"{"__metadata__":{"a":1}}"#, 0), "header");
    refused(file(" {}", 0), "does not begin");
    refused(file("{", 0), "header");
    refused(file("[]", 0), "");
    assert_eq!(file("{}      ", 0).unwrap(), 0, "no tensors, padded");

    for length in [1u64 << 63, u64::MAX, 100_000_001, 9] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        assert!(read_safetensors(bytes).is_err());
    }
    // Tensor names may differ by case only, contain a NUL or dots, and be a megabyte long.
    let long = "n".repeat(1 << 20);
    for name in ["A", "../../etc/passwd", r"\u0000", "", &long] {
        let header = format!(r#"{{"a":{},"{name}":{}}}"#, t("U8", "[1]", 0, 1), t("U8", "[1]", 1, 2));
        assert_eq!(file(&header, 2).unwrap(), 2);
    }
}

#[test]
fn gguf_headers_that_lie() {
    let g = small_gguf;
    refused(read_gguf(Gguf { magic: *b"GGML", ..g() }.bytes()), "GGUF");
    for version in [0, 1, 4, 0x0300_0000] {
        refused(read_gguf(Gguf { version, ..g() }.bytes()), "version");
    }
    for count in [5, 1 << 20, 1 << 40, u64::MAX] {
        assert!(read_gguf(Gguf { tensor_count: Some(count), ..g() }.bytes()).is_err());
        assert!(read_gguf(Gguf { key_count: Some(count.max(100)), ..g() }.bytes()).is_err());
    }
    let with = |change: &dyn Fn(&mut GgufEntry)| {
        let mut g = g();
        change(&mut g.tensors[1]);
        read_gguf(g.bytes())
    };
    // A dimension count of 2^32 - 1 that is not followed by as many dimensions.
    let mut bytes = g().bytes();
    let at = bytes.windows(9).position(|w| w == [1, 0, 0, 0, 0, 0, 0, 0, b'x']).unwrap() + 9;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(read_gguf(bytes), "axes");
    refused(with(&|t| t.dims = vec![1; 5]), "axes");
    refused(with(&|t| t.dims = vec![33]), "blocks of 32");
    refused(with(&|t| t.dims = vec![0, u64::MAX, u64::MAX]), "overflows");
    refused(with(&|t| t.dims = vec![1 << 62]), "overflows");
    refused(with(&|t| t.dims = vec![1 << 62, 0]), "overflows");
    refused(with(&|t| t.dims = vec![1 << 32, 1 << 32]), "overflows");
    refused(with(&|t| t.dims = vec![64]), "overlap");
    refused(with(&|t| t.kind = 99), "number 99");
    refused(with(&|t| t.offset = 16), "multiple");
    refused(with(&|t| t.offset = 0), "overlap");
    refused(with(&|t| t.offset = 1 << 20), "beyond the end of the file");
    refused(with(&|t| t.offset = u64::MAX - 31), "beyond the end of the file");
    refused(with(&|t| t.name = b"x".to_vec()), "twice");
    refused(with(&|t| t.name = vec![0xff, 0xfe]), "UTF-8");
    assert!(with(&|t| t.name = b"../../etc/passwd\0".to_vec()).is_ok());
    assert!(with(&|t| t.name = vec![b'n'; 1 << 20]).is_ok());

    let keyed = |g: Gguf| read_gguf(g.bytes());
    for alignment in [0, 3, 1 << 30] {
        let mut g = g();
        g.keys[1].2 = u32::to_le_bytes(alignment).to_vec();
        refused(keyed(g), "alignment");
    }
    refused(keyed(g().u32("f", 1)), "twice");
    let mut unknown = g();
    unknown.keys.push(("odd".into(), 13, vec![0; 8]));
    refused(keyed(unknown), "number 13");
    let mut truth = g();
    truth.keys.push(("odd".into(), 7, vec![2]));
    refused(keyed(truth), "boolean");
    // Lists and strings with a length beyond the file or above the limit.
    for n in [1 << 40, u64::MAX, 1 << 23] {
        let mut list = 0u32.to_le_bytes().to_vec();
        list.extend(u64::to_le_bytes(n));
        let mut g = g();
        g.keys.push(("list".into(), 9, list));
        assert!(keyed(g).is_err());
        let mut g = small_gguf();
        g.keys.push(("text".into(), 8, n.to_le_bytes().to_vec()));
        assert!(keyed(g).is_err());
    }
    let mut nest = Vec::new();
    for _ in 0..200_000 {
        nest.extend(9u32.to_le_bytes());
        nest.extend(1u64.to_le_bytes());
    }
    let mut deep = g();
    deep.keys.push(("deep".into(), 9, nest));
    refused(keyed(deep), "nesting");
}

#[test]
fn limits_hold_and_can_be_raised() {
    let mut limits = Limits::default();
    limits.tensors = 2;
    let open = |limits: &Limits| safetensors::File::new(Box::new(small_safetensors()), limits).map(|_| ());
    assert!(matches!(open(&limits), Err(Error::Limit { limit: 2, found: 3, .. })));
    assert!(open(&Limits::none()).is_ok());
    let gguf = |limits: &Limits| gguf::File::new(Box::new(small_gguf().bytes()), limits).map(|_| ());
    for limit in ["tensors", "keys", "array", "string", "nesting"] {
        let mut limits = Limits::default();
        match limit {
            "tensors" => limits.tensors = 1,
            "keys" => limits.keys = 1,
            "array" => limits.array_entries = 2,
            "string" => limits.string_bytes = 3,
            _ => limits.nesting = 1,
        }
        assert!(matches!(gguf(&limits), Err(Error::Limit { .. })), "{limit}");
    }
    assert!(gguf(&Limits::none()).is_ok());
}

#[test]
fn shards_and_index_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let shard = |tensors: &[&str]| {
        let entry =
            |(i, n): (usize, &&str)| format!(r#""{n}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1);
        let header: Vec<String> = tensors.iter().enumerate().map(entry).collect();
        safetensors_bytes(&format!("{{{}}}", header.join(",")), &vec![7; tensors.len()])
    };
    fs::write(path("one.safetensors"), shard(&["a", "b"])).unwrap();
    fs::write(path("two.safetensors"), shard(&["c"])).unwrap();
    let open = |map: &str| {
        fs::write(path(safetensors::INDEX), format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#)).unwrap();
        safetensors::Shards::open_dir(dir.path(), &Limits::default())
    };
    let good = r#"{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}"#;
    let shards = open(good).unwrap();
    assert_eq!(shards.names(), ["a", "b", "c"]);
    assert_eq!(shards.file_of("c"), Some("two.safetensors"));

    let fails = |map: &str, words: &[&str]| {
        let e = open(map).map(|_| ()).unwrap_err().to_string();
        assert!(words.iter().all(|w| e.contains(w)), "expected {words:?} in: {e}");
    };
    fails(&good.replace("two.", "three."), &["index.json", "three.safetensors"]);
    fails(r#"{"a":"one.safetensors","b":"one.safetensors","d":"two.safetensors"}"#, &["`d`", "two.safetensors"]);
    fails(r#"{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}"#, &["`b`", "two.safetensors"]);
    fails(r#"{"a":"one.safetensors","c":"two.safetensors"}"#, &["`b`", "one.safetensors"]);
    fails(r#"{"a":"../one.safetensors"}"#, &["../one.safetensors", "beside"]);
    fails(r#"{"a":"/etc/passwd"}"#, &["/etc/passwd"]);
    fails(r#"{"a":1}"#, &["not a string"]);
    fails("[]", &["weight_map"]);
    fs::write(path("two.safetensors"), shard(&["c", "a"])).unwrap();
    fails(good, &["`a`", "one.safetensors", "two.safetensors"]);

    fs::remove_file(path(safetensors::INDEX)).unwrap();
    let e = Model::open(dir.path(), &Limits::default()).map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("2 safetensors files"), "{e}");
}

#[test]
fn what_is_no_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |p: &std::path::Path| Model::open(p, &Limits::default()).map(|_| ()).unwrap_err().to_string();
    assert!(open(dir.path()).contains("model.safetensors"));
    assert!(open(&dir.path().join("none")).contains("none"));
    let empty = dir.path().join("empty.gguf");
    fs::write(&empty, b"").unwrap();
    assert!(open(&empty).contains("empty.gguf"));
    fs::write(dir.path().join("config.json"), b"{").unwrap();
    fs::write(dir.path().join("model.safetensors"), small_safetensors()).unwrap();
    assert!(open(dir.path()).contains("config.json"));
    #[cfg(unix)]
    assert!(open(std::path::Path::new("/dev/zero")).contains("regular file"));
}
