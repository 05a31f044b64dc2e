//! The sizes in plan, operator and files agree to the bit for any recipe and shape.

mod common;

use common::*;
use proptest::prelude::*;
use tersor::core::Limits;
use tersor::formats::Model;
use tersor::models::Checkpoint;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn plan_operators_and_files_agree(
        bits in 2u32..=8, group in prop_oneof![Just(String::new()), (1usize..100).prop_map(|g| format!("group = {g}, ")),
            Just("group = \"tensor\", ".to_string())],
        grid in prop_oneof![Just("asym"), Just("sym"), Just("sym_full"), Just("sym_narrow")],
        scales in prop_oneof![Just("f16"), Just("bf16"), Just("f32")],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let model = Tiny::llama().write(&dir.path().join("m"));
        let recipe = dir.path().join("r.toml");
        let stage = format!("{{ kind = \"rtn\", bits = {bits}, {group}grid = \"{grid}\", scales = \"{scales}\" }}");
        let rules = [("\"*layers*\"", stage.as_str()), (ALL, "{ kind = \"bf16\" }")];
        std::fs::write(&recipe, common::recipe("r", "", &rules)).unwrap();
        let out = dir.path().join("out");
        let plan = tersor_json(&["plan", s(&model), "--recipe", s(&recipe)]);
        tersor_json(&["compress", s(&model), "--recipe", s(&recipe), "--out", s(&out)]);
        let (checkpoint, stored) =
            (Checkpoint::open(&out, &tersor::registry()).unwrap(), Model::open(&out, &Limits::default()).unwrap());
        prop_assert_eq!(plan["weight_bytes"].as_u64().unwrap(), stored.weight_bytes());
        for t in plan["tensors"].as_array().unwrap() {
            let name = t["name"].as_str().unwrap();
            let part = |n: &str| n.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('.'));
            let on_disk: u64 = stored.tensors().iter().filter(|s| part(&s.name)).map(|s| s.bytes).sum();
            prop_assert_eq!(t["bytes"].as_u64().unwrap(), on_disk, "{}", name);
            if let Some(spec) = checkpoint.manifest().unwrap().specs.get(name) {
                prop_assert_eq!(checkpoint.matrix(name, spec.shape).unwrap().storage_bits(), 8 * on_disk);
            }
        }
        prop_assert_eq!(plan["bits_per_weight"].as_f64().unwrap(), checkpoint.bits_per_weight().0);
    }
}
