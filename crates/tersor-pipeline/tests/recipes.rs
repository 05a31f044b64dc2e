//! Recipes by name, as TOML and as JSON.

use tersor::core::Role;
use tersor_pipeline::recipe::Recipe;

fn named(name: &str) -> tersor::core::Result<Recipe> {
    Recipe::from_name(name, tersor::stages())
}

fn toml(text: &str) -> tersor::core::Result<Recipe> {
    Recipe::from_toml(text, "test.toml", tersor::stages())
}

/// Returns the TOML of the stages of all matrices but embedding and head.
fn stages(name: &str) -> String {
    let recipe = named(name).unwrap();
    let text = recipe.to_toml(tersor::stages());
    let line = text.lines().find(|l| l.contains("match = \"*\", stages")).unwrap().to_string();
    let start = line.find("stages = [").unwrap() + 10;
    line[start..line.rfind("] }").unwrap()].to_string()
}

#[test]
fn names_stand_for_stages() {
    for (name, expected) in [
        ("w4-rtn", r#"{ kind = "rtn" }"#),
        ("w4", r#"{ kind = "rtn" }"#),
        ("w3-g64-rtn-sym-mse", r#"{ kind = "rtn", bits = 3, group = 64, grid = "sym", mse = true }"#),
        ("w8-gptq", r#"{ kind = "gptq", bits = 8 }"#),
        (
            "w4-g32-gptq-sym-ao",
            r#"{ kind = "gptq", group = 32, grid = "sym", act_order = true, static_groups = true }"#,
        ),
        ("w8a8-rtn", r#"{ kind = "rtn", bits = 8 }, { kind = "act" }"#),
        ("w4a4-rtn", r#"{ kind = "rtn" }, { kind = "act", bits = 4, scale = "asym" }"#),
        ("w8a8-smooth", r#"{ kind = "smoothquant" }, { kind = "rtn", bits = 8 }, { kind = "act" }"#),
        ("w3-g128-awq-gptq", r#"{ kind = "awq", clip = true }, { kind = "gptq", bits = 3, group = 128 }"#),
        ("w4a8-g64-dgq", r#"{ kind = "percentile" }, { kind = "dgq", group = 64 }, { kind = "act" }"#),
        ("w4a8-qqq", r#"{ kind = "adaptive" }, { kind = "qqq" }, { kind = "act" }"#),
        ("w4a8-g64-qqq", r#"{ kind = "adaptive" }, { kind = "qqq", group = 64 }, { kind = "act" }"#),
        ("w4-g64-nf4-dq", r#"{ kind = "nf4", nested = true }"#),
        ("w8-g256-dynamic", r#"{ kind = "dynamic", block = 256 }"#),
        ("w8-int8", r#"{ kind = "int8" }"#),
        ("w4a8-l2qer-r8", r#"{ kind = "mxint" }, { kind = "l2qer", rank = 8 }, { kind = "act" }"#),
        ("w3-g64-gptq-lqer-r32", r#"{ kind = "gptq", bits = 3, group = 64 }, { kind = "lqer", rank = 32 }"#),
        ("w4-g32-lqer", r#"{ kind = "rtn", group = 32 }, { kind = "lqer" }"#),
        ("bf16", r#"{ kind = "bf16" }"#),
        ("w4a4kv4-hadamard", r#"{ kind = "rtn" }, { kind = "act", bits = 4, scale = "asym" }"#),
    ] {
        assert_eq!(stages(name), expected, "{name}");
    }
}

#[test]
fn rotations_come_with_caches_and_parts() {
    let text = |name: &str| named(name).unwrap().to_toml(tersor::stages());
    let hadamard = text("w4a4kv4-g64-hadamard-gptq");
    assert!(hadamard.contains("network = [\n    { kind = \"rotate\" },\n]"), "{hadamard}");
    assert!(hadamard.contains(r#"{ match = "*", kind = "int", keys = "hadamard" }"#), "{hadamard}");
    assert_eq!(
        text("w4a4kv4-resq"),
        r#"version = 1
name = "w4a4kv4-resq"
network = [
    { kind = "rotate", by = "pca", mix = true, parts = [0.875, 0.125] },
]
cache = [
    { match = "*", kind = "int", keys = "stored", high = "eighth" },
]
rules = [
    { match = ["@embedding", "@head", "*pooler.dense.weight"], stages = [{ kind = "rtn", bits = 8 }] },
    { match = "@down", stages = [{ kind = "gptq", grid = "sym", mse = true }, { kind = "act", bits = 4, scale = "asym" }] },
    { match = "*", stages = [{ kind = "split", parts = [{ share = 0.875, stages = [{ kind = "gptq", grid = "sym", mse = true }, { kind = "act", bits = 4, scale = "asym" }] }, { share = 0.125, stages = [{ kind = "gptq", bits = 8, grid = "sym", mse = true }, { kind = "act", scale = "asym" }] }] }] },
]
"#
    );
    // Without a cache in the name there is none in the recipe.
    assert!(named("w4a4-resq").unwrap().cache.is_empty());
    let rtn = text("w4a4-resq-rtn");
    assert!(rtn.contains(r#"{ match = "@down", stages = [{ kind = "rtn" }"#), "{rtn}");
}

/// Names of every form.
fn names() -> Vec<String> {
    let mut all: Vec<String> = ["bf16", "f16", "f32", "keep"].map(String::from).to_vec();
    for bits in ["w2", "w4", "w8", "w4a8", "w4a4kv4", "w8a8kv3"] {
        for group in ["", "-g32"] {
            for transform in ["", "-smooth", "-awq", "-hadamard", "-resq"] {
                for method in ["-rtn", "-gptq", "-rtn-sym", "-gptq-sym-ao-mse", ""] {
                    for repair in ["", "-lqer", "-l2qer-r4", "-gram"] {
                        all.push(format!("{bits}{group}{transform}{method}{repair}"));
                    }
                }
            }
        }
    }
    all.extend(
        ["w4a8-dgq", "w4a8-g16-qqq", "w4-nf4-dq", "w4a8-fp4", "w8-dynamic", "w8a8-int8", "w4-svd-r3"].map(String::from),
    );
    all
}

#[test]
fn what_is_printed_is_parsed_again() {
    let kinds = tersor::stages();
    for name in names() {
        let recipe =
            if name.starts_with("w4-svd") { continue } else { named(&name).unwrap_or_else(|e| panic!("{name}: {e}")) };
        assert_eq!(recipe.name, name);
        let text = recipe.to_toml(kinds);
        assert_eq!(toml(&text).unwrap_or_else(|e| panic!("{e}\n{text}")), recipe, "{text}");
        assert_eq!(Recipe::from_json(&recipe.to_json(), "json", kinds).unwrap(), recipe, "{name}");
    }
    for file in ["mixed", "resq-without-pca", "resq-without-rotation"] {
        let path = format!("{}/../../examples/recipes/{file}.toml", env!("CARGO_MANIFEST_DIR"));
        let recipe = Recipe::find(&path, kinds).unwrap();
        assert_eq!(recipe.name, file);
        assert_eq!(toml(&recipe.to_toml(kinds)).unwrap(), recipe);
    }
}

#[test]
fn other_names_are_bad_usage_with_near_names() {
    for bad in [
        "w1-rtn",
        "w9-rtn",
        "w04-rtn",
        "w4-g0-rtn",
        "w4-",
        "w4-rtn-",
        "",
        "w4-rtn-sym-sym",
        "w4-g-rtn",
        "w+4-rtn",
        "w4-rtn-ao",
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
        "w4-rtn-r8",
        "w4-rtn-lqer-r0",
        "w4-lqer-sym-sym",
        "w4a8kv-rtn",
        "w4a8kv9-rtn",
        "w8a8-dgq",
        "w4a8-dgq-sym",
        "w4-awq-nf4",
        "w4-g32-awq-sym-sym",
        "w4-lqer-l2qer",
        "w4-rtn-gptq",
        "w4-hadamard-resq",
        "w4w3-rtn",
        "w4-rtn-g32-g64",
        "smooth",
        "lqer",
        "a8",
        "split",
    ] {
        let e = named(bad).expect_err(bad);
        assert!(e.is_usage(), "{bad}: {e}");
    }
    let near = named("w4-g128-rnt").unwrap_err().to_string();
    assert!(near.contains("near names: w4-g128-rtn") && near.contains("`rnt`"), "{near}");
}

#[test]
fn faults_are_named_with_line_rule_stage_and_parameter() {
    let head = "name = \"x\"\n";
    for (text, expected) in [
        (
            "rules = [{ match = \"*\", stages = [{ kind = \"rtn\", bitz = 4 }] }]",
            "line 2, rule 1, stage 1 (`rtn`): there is no parameter `bitz`; the nearest is `bits`",
        ),
        (
            "rules = [\n{ match = \"@v\", stages = [{ kind = \"rtn\" }] },\n{ match = \"*\",\nstages = [{ kind = \"gptq\",\nbits = 9 }] }]",
            "line 6, rule 2, stage 1 (`gptq`), `bits`: it is 9; it must be an integer of 2 to 8",
        ),
        ("rules = [{ match = \"*\", stages = [{ kind = \"gtpq\" }] }]", "the nearest is `gptq`"),
        ("rules = [{ match = \"@keys\", stages = [{ kind = \"rtn\" }] }]", "there is no role `@keys`"),
        ("rules = [{ match = \"[\", stages = [{ kind = \"rtn\" }] }]", "is no pattern"),
        ("rules = [{ stages = [{ kind = \"rtn\" }] }]", "has no `match`"),
        ("rules = [{ match = \"*\", stages = [{ bits = 3 }] }]", "has no `kind`"),
        ("rules = [{ match = \"*\", stages = [{ kind = \"act\" }] }]", "rule 1: "),
        ("rules = [{ match = \"*\", stages = [{ kind = \"act\" }, { kind = \"rtn\" }] }]", "rule 1: "),
        (
            "rules = [{ match = \"*\", stages = [{ kind = \"rtn\" }, { kind = \"gptq\" }] }]",
            "another stage already makes",
        ),
        ("rules = [{ match = \"*\", stages = [{ kind = \"rotate\" }] }]", "there is no kind of stage `rotate`"),
        ("rules = [{ match = \"*\", stages = [{ kind = \"rtn\", group = \"row\" }] }]", "`group`: it is \"row\""),
        ("rules = [{ match = \"*\", method = \"rtn\" }]", "there is no key of a rule `method`; the nearest is `match`"),
        (
            "rules = [{ match = \"*\", stages = [{ kind = \"rtn\" }], non_finite = \"ignore\" }]",
            "must be error, zero or clamp",
        ),
        ("network = [{ kind = \"rtn\" }]", "`network`, stage 1: there is no kind of stage `rtn`"),
        ("network = [{ kind = \"rotate\", by = \"hadamard\", mix = true }]", "`mix`"),
        ("network = [{ kind = \"rotate\", parts = [0.5, 0.4] }]", "add to 1"),
        ("network = [{ kind = \"rotate\", parts = [2.0] }]", "`parts`: it has 2.0"),
        ("cache = [{ match = \"rows\", kind = \"int\" }]", "it must be `*`, `layer 3` or `layers 0-3`"),
        ("cache = [{ kind = \"int\", bits = 1 }]", "cache 1, stage 1 (`int`), `bits`: it is 1"),
        ("version = 2", "this program reads version 1"),
        ("statistics = \"some\"", "must be sequential, layer or original"),
        ("rotate = \"hadamard\"", "there is no key of a recipe `rotate`"),
        (
            "rules = [{ match = \"*\", stages = [{ kind = \"split\", parts = [{ share = 0.5, stages = [{ kind = \"rtn\", bits = 9 }] }] }] }]",
            "element 1 of `parts`, stage 1 (`rtn`), `bits`: it is 9",
        ),
        (
            "rules = [{ match = \"*\", stages = [{ kind = \"split\", parts = [{ share = 1.0, stages = [{ kind = \"awq\" }, { kind = \"rtn\" }] }] }] }]",
            "no kind of stage `awq`",
        ),
        ("rules = [", "test.toml, line 2"),
        ("rules = 1979-05-27", "a date"),
    ] {
        let e = toml(&format!("{head}{text}\n")).expect_err(text);
        assert!(e.is_usage() && e.to_string().contains(expected), "{text}\n{e}");
    }
    assert!(toml("rules = []").unwrap_err().to_string().contains("no `name`"));
    for name in ["", ".x", "a/b", "a b"] {
        assert!(toml(&format!("name = \"{name}\"")).unwrap_err().is_usage(), "{name}");
    }
}

#[test]
fn parts_of_a_rotation_are_those_of_the_matrices() {
    let text = |rotation: &str, split: &str| {
        format!(
            "name = \"x\"\nnetwork = [{{ kind = \"rotate\", by = \"orthogonal\"{rotation} }}]\nrules = [{{ match = \"*\", stages = [{{ kind = \"split\", parts = [{split}] }}] }}]"
        )
    };
    let split =
        "{ share = 0.75, stages = [{ kind = \"rtn\" }] }, { share = 0.25, stages = [{ kind = \"rtn\", bits = 8 }] }";
    toml(&text(", parts = [0.75, 0.25]", split)).unwrap();
    for rotation in ["", ", parts = [0.875, 0.125]"] {
        let e = toml(&text(rotation, split)).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains("must have the same parts"), "{e}");
    }
}

#[test]
fn the_first_matching_rule_wins() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/recipes/mixed.toml");
    let recipe = Recipe::find(path, tersor::stages()).unwrap();
    let rule = |name: &str, roles: &[Role]| recipe.rule(name, roles).map(|r| r.0);
    assert_eq!(rule("model.layers.3.self_attn.v_proj.weight", &[Role::Value]), Some(1));
    assert_eq!(rule("model.layers.3.self_attn.q_proj.weight", &[Role::Query]), Some(2));
    assert_eq!(rule("lm_head.weight", &[Role::Head]), Some(0));
    assert_eq!(rule("model.embed_tokens.weight", &[Role::Embedding, Role::Head]), Some(0));
    assert_eq!(rule("model.norm.weight", &[]), None);
    let recipe = named("w4-rtn").unwrap();
    assert_eq!(recipe.rule("x", &[Role::Embedding]).map(|r| r.0), Some(0));
    assert_eq!(recipe.rule("x", &[]).map(|r| r.0), Some(1));
}
