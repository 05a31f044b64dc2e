//! What files of other kinds are told as.

use std::path::PathBuf;

use tersor_core::Limits;
use tersor_formats::{Content, FileAt, Model, describe};

/// Files by their name, with what they hold and a word of the remedy where a model is expected.
const FILES: [(&str, &[u8], Content, &str); 10] = [
    ("pytorch_model.bin", b"PK\x03\x04\0\0archive/data.pkl", Content::Zip, "save_pretrained"),
    ("old.pt", b"\x80\x02}q\0.", Content::Pickle, "save_pretrained"),
    ("model.onnx", b"\x08\x07\x12\x07pytorch\x1a\x05", Content::Onnx, "exported from"),
    ("chart.png", b"\x89PNG\r\n\x1a\n\0", Content::Png, "directory with safetensors"),
    ("photo.jpg", b"\xff\xd8\xff\xe0\0", Content::Jpeg, "directory with safetensors"),
    ("text.txt", "Der Fluß ström".as_bytes(), Content::Text, "directory with safetensors"),
    ("text.gguf", b"GGUF is a format.", Content::Text, "directory with safetensors"),
    (
        "model.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        Content::LfsPointer,
        "git lfs pull",
    ),
    ("none.safetensors", b"", Content::Empty, "directory with safetensors"),
    ("none.gguf", b"", Content::Empty, "directory with safetensors"),
];

fn written(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_file_that_is_no_model_is_told_with_the_way_out() {
    for (name, bytes, content, remedy) in FILES {
        let dir = tempfile::tempdir().unwrap();
        let path = written(&dir, name, bytes);
        assert_eq!(describe(&path).unwrap(), content, "{name}");
        let said = Model::open(&path, &Limits::default()).err().unwrap().to_string();
        let whole = said.contains(name) && said.contains(&content.to_string()) && said.contains(remedy);
        assert!(whole, "{said}");
    }
    // Files of the right kind whose content is invalid have the errors of their format.
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in
        [("bad.gguf", &b"GGUF\x03\0\0\0"[..]), ("bad.safetensors", b"\x09\0\0\0\0\0\0\0{"), ("short", b"\x01")]
    {
        let said = Model::open(&written(&dir, name, bytes), &Limits::default()).err().unwrap().to_string();
        assert!(!said.contains("no model"), "{said}");
    }
}

#[test]
fn a_directory_without_weights_is_told_with_what_it_has() {
    let open = |files: &[(&str, &[u8])]| {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| drop(written(&dir, name, bytes)));
        Model::open(dir.path(), &Limits::default()).err().unwrap().to_string()
    };
    let said = open(&[("config.json", b"{}")]);
    assert!(said.contains("model.safetensors") && said.contains(".gguf"), "{said}");
    let said = open(&[("config.json", b"{}"), ("pytorch_model.bin", b"PK\x03\x04")]);
    assert!(said.contains("`pytorch_model.bin` is a zip archive") && said.contains("save_pretrained"), "{said}");
    let said = open(&[("model.Q4_0.gguf", b"GGUF\x03\0\0\0")]);
    assert!(said.contains("give its file `model.Q4_0.gguf`"), "{said}");
    let said = open(&[("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n")]);
    assert!(said.contains("git lfs pull"), "{said}");
}

#[test]
fn a_directory_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(describe(dir.path()).unwrap(), Content::Directory);
    let said = FileAt::open(dir.path()).err().unwrap().to_string();
    assert!(said.contains("it is a directory"), "{said}");
    assert!(describe(&dir.path().join("none")).is_err());
}

#[test]
fn beginnings_that_are_ambiguous() {
    let of = |bytes: &[u8]| Content::of(bytes);
    // Importance matrices of llama.cpp in the older form begin with a number of entries.
    for entries in [1i32, 8, 128, 0x0708, 0x0280] {
        let head = [entries.to_le_bytes(), 24i32.to_le_bytes()].concat();
        assert_eq!(of(&head), Content::Other, "{entries}");
    }
    // The first bytes of a safetensors file are a length, whatever they look like.
    assert_eq!(of(b"PK\x03\x04\0\0\0\0{\"a\":"), Content::Safetensors);
    assert_eq!(of(&[&[b'a'; 4095][..], "é".as_bytes()].concat()), Content::Text);
    assert_eq!(of(b"caf\xe9"), Content::Other);
    assert_eq!(of(b"a\0b"), Content::Other);
}
