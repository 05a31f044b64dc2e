//! Low-rank corrections as adapters.

mod common;

use common::*;
use tersor::core::{Limits, read_finite};
use tersor::formats::{Model, json};

#[test]
fn base_and_adapter_make_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (shipped, calib) = (root().join("examples/models/tiny-wiki"), root().join("examples/data/wiki-calib.txt"));
    let [out, whole, apart] = ["out", "whole", "apart"].map(|n| dir.path().join(n));
    let args = ["compress", s(&shipped), "--recipe", "w4a8-l2qer-r8", "--out", s(&out), "--calib", s(&calib)];
    tersor_json(&[&args[..], &["--calib-windows", "4", "--ctx", "64"]].concat());
    tersor_json(&["convert", s(&out), "--to", "f32", "--out", s(&whole)]);
    let made = tersor_json(&["convert", s(&out), "--to", "peft", "--out", s(&apart)]);
    assert_eq!(made["modules"], 28);
    // Repeating the command changes nothing.
    tersor_json(&["convert", s(&out), "--to", "peft", "--out", s(&apart)]);
    let config = json::read(&apart.join("adapter_config.json"), &Limits::default()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&8.into(), &8.into()));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 28);
    let values = |path: &std::path::Path, name: &str| {
        let model = Model::open(path, &Limits::default()).unwrap();
        let rows = model.rows(name).unwrap();
        (read_finite(&*rows, 0..rows.shape()[0]).unwrap(), rows.shape())
    };
    let module = "model.layers.2.mlp.up_proj";
    let ((sum, [n, k]), (base, _)) =
        (values(&whole, &format!("{module}.weight")), values(&apart.join("base"), &format!("{module}.weight")));
    let file = apart.join("adapter_model.safetensors");
    let factor = |part: &str| values(&file, &format!("base_model.model.{module}.{part}.weight"));
    let ((down, [r, _]), (up, _)) = (factor("lora_A"), factor("lora_B"));
    for row in 0..n {
        for col in 0..k {
            let low: f32 = (0..r).map(|i| up[row * r + i] * down[i * k + col]).sum();
            assert!((base[row * k + col] + low - sum[row * k + col]).abs() < 1e-6);
        }
    }
    // Without a correction there is no adapter.
    let plain = dir.path().join("plain");
    tersor_json(&["compress", s(&shipped), "--recipe", "w4-rtn", "--out", s(&plain)]);
    let said = fails(1, &["convert", s(&plain), "--to", "peft", "--out", s(&dir.path().join("none"))]);
    assert!(said.contains("-l2qer"), "{said}");
    assert!(!dir.path().join("none").exists());
}
