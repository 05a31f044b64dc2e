//! Evaluation on the model that ships: stored predictions, noise, answers to prompts, files of figures.

use std::fs;
use std::path::{Path, PathBuf};

use tersor_core::{Context, Error};
use tersor_pipeline::evaluate::{self, Evaluation, Options, Reference};
use tersor_pipeline::output::{FileKind, check_file};
use tersor_pipeline::{Pipeline, Text, report};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

fn model() -> PathBuf {
    examples().join("models/tiny-wiki")
}

fn text() -> Text {
    Text::file(examples().join("data/wiki-eval.txt"))
}

fn options(reference: Option<&Path>) -> Options {
    Options { ctx: Some(48), windows: Some(5), reference: reference.map(Path::to_path_buf), ..Options::default() }
}

/// Compresses the model into a directory by rounding to 4 bits.
fn compressed(dir: &Path) -> PathBuf {
    let (out, cx) = (dir.join("small"), Context::new());
    let planned = Pipeline::open(model(), "w4-g32-rtn", tersor::kinds()).unwrap().plan(&cx).unwrap();
    planned.compress(&out, &cx).unwrap();
    out
}

fn eval(model: &Path, text: &Text, against: Option<&Path>, options: &Options) -> Result<Evaluation, Error> {
    evaluate::decoder(model, text, against, options, tersor::kinds(), &Context::new())
}

/// Everything that does not depend on the machine, in full precision.
fn bits(found: &Evaluation) -> String {
    let mut json = serde_json::to_value(found).unwrap();
    json.as_object_mut().unwrap().remove("peak_rss_bytes");
    json.to_string()
}

/// A copy of the model, in which one weight is changed if `change`.
fn copied(dir: &Path, change: bool) -> PathBuf {
    fs::create_dir(dir).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if change && path.extension().is_some_and(|e| e == "safetensors") {
            let at = bytes.len() - 40;
            bytes[at] ^= 1;
        }
        fs::write(dir.join(path.file_name().unwrap()), bytes).unwrap();
    }
    dir.to_path_buf()
}

#[test]
fn figures_with_a_file_of_predictions_are_equal_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (small, model, file) = (compressed(dir.path()), model(), dir.path().join("reference"));
    let plain = eval(&small, &text(), Some(&model), &options(None)).unwrap();
    // The run that writes the file, and one that reads it.
    let wrote = eval(&small, &text(), Some(&model), &options(Some(&file))).unwrap();
    let stored = fs::read(&file).unwrap();
    let read = eval(&small, &text(), Some(&model), &options(Some(&file))).unwrap();
    assert_eq!(bits(&wrote), bits(&plain));
    assert_eq!(bits(&read), bits(&plain));
    assert!(fs::read(&file).unwrap() == stored, "reading changes nothing");
    assert!(plain.site_errors.as_ref().is_some_and(|s| s.values().any(|e| e.is_some_and(|e| e > 0.0))));

    // The model alone writes the same file, and compares as equal with it.
    let alone = dir.path().join("alone");
    let found = eval(&model, &text(), None, &options(Some(&alone))).unwrap();
    assert!(found.kl_mean.is_none() && fs::read(&alone).unwrap() == stored);
    let itself = eval(&model, &text(), Some(&model), &options(Some(&alone))).unwrap();
    assert_eq!((itself.kl_mean, itself.top1_agreement), (Some(0.0), Some(1.0)));
    assert_eq!(itself.perplexity, found.perplexity);
    // So does a streamed one, and a noise floor is the same with the file.
    let noisy = |reference| Options { noise_floor: true, stream: true, ..options(reference) };
    let floor = eval(&small, &text(), Some(&model), &noisy(None)).unwrap().kl_noise_floor;
    let with_file = eval(&small, &text(), Some(&model), &noisy(Some(&file))).unwrap();
    assert_eq!(with_file.kl_noise_floor, floor);
    assert_eq!(with_file.kl_mean, plain.kl_mean);
    let of_original = Options { noise_floor: true, ..options(None) };
    assert_eq!(eval(&model, &text(), None, &of_original).unwrap().kl_noise_floor, floor);
}

#[test]
fn logits_are_stored_if_they_fit_and_change_no_figure() {
    let dir = tempfile::tempdir().unwrap();
    let (small, model, file) = (compressed(dir.path()), model(), dir.path().join("reference"));
    let plain = eval(&small, &text(), Some(&model), &options(None)).unwrap();
    // Five windows of 48 tokens, of which 47 are scored, in a vocabulary of 2048.
    let size = 5 * 47 * 2048 * 4;
    let with_logits = |file: &Path, reference_logits| Options { reference_logits, ..options(Some(file)) };
    let wrote = eval(&small, &text(), Some(&model), &with_logits(&file, size)).unwrap();
    let stored = fs::read(&file).unwrap();
    assert!(stored.len() as u64 > size);
    // What a reading run allows does not matter.
    let read = eval(&small, &text(), Some(&model), &options(Some(&file))).unwrap();
    assert_eq!((bits(&wrote), bits(&read)), (bits(&plain), bits(&plain)));
    // The original alone writes the same file; one byte less, and it has no logits.
    let (alone, without) = (dir.path().join("alone"), dir.path().join("without"));
    eval(&model, &text(), None, &with_logits(&alone, size)).unwrap();
    assert!(fs::read(&alone).unwrap() == stored);
    eval(&model, &text(), None, &with_logits(&without, size - 1)).unwrap();
    assert!((fs::read(&without).unwrap().len() as u64) < size);

    // Changed logits are refused wherever they are.
    let json = &stored[8..8 + u64::from_le_bytes(stored[..8].try_into().unwrap()) as usize];
    let header: serde_json::Value = serde_json::from_slice(json).unwrap();
    let starts = |name: &str| 8 + json.len() + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    for at in [starts("logits"), starts("logits") + size as usize - 1, starts("logit_hashes") + 7] {
        let mut bytes = stored.clone();
        bytes[at] ^= 1;
        fs::write(&alone, bytes).unwrap();
        let said = eval(&small, &text(), Some(&model), &options(Some(&alone))).unwrap_err();
        assert!(said.to_string().contains("are not those that were written"), "{said}");
    }
}

#[test]
fn files_of_other_predictions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (kinds, cx, file) = (tersor::kinds(), Context::new(), dir.path().join("reference"));
    eval(&model(), &text(), None, &options(Some(&file))).unwrap();
    let stored = fs::read(&file).unwrap();
    let reference = Reference::open(&file).unwrap();
    let matches = |model: &Path, text: &Text, o: &Options| reference.matches(model, text, o, kinds, &cx);
    matches(&model(), &text(), &options(None)).unwrap();
    matches(&copied(&dir.path().join("same"), false), &text(), &options(None)).unwrap();
    let changed = copied(&dir.path().join("changed"), true);
    let other = Text::file(examples().join("data/wiki-calib.txt"));
    for (model, text, options, key) in [
        (&changed, &text(), options(None), "original differs"),
        (&model(), &other, options(None), "text differs"),
        (&model(), &text(), Options { windows: Some(4), ..options(None) }, "windows differs"),
        (&model(), &text(), Options { ctx: Some(47), ..options(None) }, "ctx"),
    ] {
        let said = matches(model, text, &options).unwrap_err();
        assert!(matches!(said, Error::Format { .. }) && said.to_string().contains(key), "{said}");
        let with_file = Options { reference: Some(file.clone()), ..options };
        let said = eval(model, text, None, &with_file).unwrap_err();
        assert!(said.to_string().contains("remove it or choose another name"), "{said}");
    }
    assert!(fs::read(&file).unwrap() == stored);
    assert!(matches!(reference.window(5), Err(Error::Range { .. })));

    // Every part of a file is checked: its header, its description, its values and their hashes.
    let damaged = dir.path().join("damaged");
    let header = u64::from_le_bytes(stored[..8].try_into().unwrap()) as usize + 8;
    let of_values = (0..30).map(|i| header + i * (stored.len() - header) / 30);
    for at in (0..15).map(|i| 9 + i * header / 16).chain(of_values) {
        let mut bytes = stored.clone();
        bytes[at] ^= 0x10;
        fs::write(&damaged, bytes).unwrap();
        let all = Reference::open(&damaged).and_then(|r| {
            (0..5).try_for_each(|i| r.window(i).map(drop))?;
            r.matches(&model(), &text(), &options(None), kinds, &cx)
        });
        assert!(all.is_err(), "byte {at}");
    }
    let said = eval(&compressed(dir.path()), &text(), Some(&model()), &options(Some(&damaged))).unwrap_err();
    assert!(said.to_string().contains("not those that were written"), "{said}");
    fs::write(&damaged, &stored[..stored.len() - 1]).unwrap();
    assert!(Reference::open(&damaged).is_err());

    // Other files are neither read nor replaced.
    let mine = dir.path().join("mine.txt");
    fs::write(&mine, "mine").unwrap();
    let said = eval(&model(), &text(), None, &options(Some(&mine))).unwrap_err();
    assert!(said.to_string().contains("no earlier file of predictions"), "{said}");
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    assert!(
        check_file(&file, FileKind::Statistics, &[]).is_err() && check_file(&file, FileKind::Reference, &[]).is_ok()
    );
    // Predictions with a quantized cache are not those that others are compared with.
    let kv = Options { kv: Some("int8".into()), ..options(Some(&dir.path().join("kv"))) };
    assert!(eval(&model(), &text(), None, &kv).unwrap_err().is_usage());
    assert!(!dir.path().join("kv").exists());
}

#[test]
fn quantiles_buckets_and_noise_agree_with_the_mean() {
    let dir = tempfile::tempdir().unwrap();
    let noisy = Options { noise_floor: true, ..options(None) };
    let found = eval(&compressed(dir.path()), &text(), Some(&model()), &noisy).unwrap();
    let (mean, median, p90) = (found.kl_mean.unwrap(), found.kl_median.unwrap(), found.kl_p90.unwrap());
    assert!(0.0 < median && median < p90 && mean < 10.0 * p90, "{median} {mean} {p90}");
    let buckets = found.kl_by_confidence.as_ref().unwrap();
    assert_eq!(buckets.len(), 5);
    assert_eq!(buckets.iter().map(|b| b.tokens).sum::<u64>(), found.tokens);
    let sum: f64 = buckets.iter().filter_map(|b| Some(b.kl_mean? * b.tokens as f64)).sum();
    assert!((sum / found.tokens as f64 - mean).abs() < 1e-12 * mean.max(1.0));
    // Four bits are distinguishable from the noise of bf16, the model itself is not.
    let floor = found.kl_noise_floor;
    assert!(floor.is_some_and(|f| 0.0 < f && f < 0.01), "{floor:?}");
    assert!(!found.below_noise(floor) && !found.below_noise(None));
    let itself = eval(&model(), &text(), Some(&model()), &options(None)).unwrap();
    assert!(itself.below_noise(floor));
}

#[test]
fn answers_are_counted() {
    let (kinds, cx, o) = (tersor::kinds(), Context::new(), Options::default());
    let task = |lines: &str| evaluate::task(&model(), &Text::new("task", lines), &o, kinds, &cx);
    // What the model says itself is right, anything else is not.
    let checkpoint = tersor_models::Checkpoint::open(&model(), &kinds.operators).unwrap();
    let (decoder, tokenizer) =
        (tersor_models::Decoder::load(&checkpoint).unwrap(), tersor_models::Tokenizer::of(&checkpoint).unwrap());
    let mut lines = String::new();
    for prompt in ["The river runs", "In the year 1900 the"] {
        let tokens = tokenizer.encode(prompt).unwrap();
        let said = tersor_models::generate(&decoder, &tokens, 6, tersor_models::Sampling::Greedy, &cx.exec, |_| true);
        let said = tokenizer.decode(&said.unwrap()).unwrap();
        lines += &format!("{}\n\n", serde_json::json!({"prompt": prompt, "answer": format!(" {said}\n"), "id": 1}));
        lines += &format!("{}\n", serde_json::json!({"prompt": prompt, "answer": format!("{said}x")}));
    }
    let found = task(&lines).unwrap();
    assert_eq!((found.task_accuracy, found.task_total), (0.5, 4));

    let good = "{\"prompt\": \"a\", \"answer\": \"b\"}\n";
    let long = format!("{{\"prompt\": \"{}\", \"answer\": \"b\"}}", "many words ".repeat(4000));
    for (bad, what) in [
        ("no json", "no JSON"),
        ("[1]", "`prompt` is missing"),
        ("{\"prompt\": \"a\"}", "`answer` is missing"),
        ("{\"prompt\": \"a\", \"answer\": 4}", "no text"),
        ("{\"prompt\": \"a\", \"answer\": \" \"}", "`answer` is empty"),
        (long.as_str(), "tokens"),
    ] {
        let said = task(&format!("{good}\n{bad}\n")).unwrap_err();
        assert!(matches!(said, Error::Format { .. }), "{said}");
        let said = said.to_string();
        assert!(said.starts_with("task:3") && said.contains(what), "{said}");
    }
    assert!(task("\n").is_err());
}

#[test]
fn files_of_figures_are_rows_of_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let small = compressed(dir.path());
    let mut files = Vec::new();
    for (name, model, against) in [("a.json", model(), None), ("b.json", small, Some(model()))] {
        let found = eval(&model, &text(), against.as_deref(), &options(None)).unwrap();
        let out = dir.path().join(name);
        for _ in 0..2 {
            evaluate::save(&out, &model, &found).unwrap();
        }
        files.push(out);
    }
    let page = report::page(&files).unwrap();
    for part in ["<td>original</td>", "<td>w4-g32-rtn</td>", "Recipes on tiny-wiki", "KL, median", "Size against"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("answers, %"));
    // The page does not replace what it is made of, and other files are no rows.
    assert!(report::save(&files, &files[0]).is_err());
    let other = dir.path().join("other.json");
    fs::write(&other, "{}").unwrap();
    assert!(report::page(std::slice::from_ref(&other)).is_err());
    assert!(evaluate::save(&other, &model(), &1).is_err());
}
