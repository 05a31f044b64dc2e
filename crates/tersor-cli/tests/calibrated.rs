//! Compression with calibration data: the bytes do not depend on how the work was distributed, and changed inputs are refused.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;

/// Windows of the calibration text, and tokens per window.
const WINDOWS: [&str; 2] = ["90", "128"];

const SEQUENTIAL: &str = "w3-g32-gptq";

fn refused(code: i32, args: &[String], more: &[&str]) -> String {
    fails(code, &with(args, more))
}

/// A recipe with statistics of the original network.
fn original(dir: &Path) -> String {
    let path = dir.join("original.toml");
    let gptq = "{ kind = \"gptq\", bits = 3, group = 32 }";
    let text = recipe("w3-original", "statistics = \"original\"", &[(ENDS, RTN8), (ALL, gptq)]);
    fs::write(&path, text).unwrap();
    s(&path).to_string()
}

/// Finished matrices of the work in progress.
fn finished(out: &Path) -> usize {
    let names = fs::read_dir(out.join(".tersor")).into_iter().flatten().map(|e| e.unwrap().file_name());
    names.filter(|n| n.to_str().is_some_and(|n| n.starts_with('0') && n.ends_with(".json"))).count()
}

fn spawn(args: &[String]) -> std::process::Child {
    let mut run = Command::new(env!("CARGO_BIN_EXE_tersor"));
    run.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A check of the tests in `tersor-pipeline`, which continue from every step: here a process is killed, wherever it is.
#[test]
fn killed_at_some_moments_and_started_again_the_bytes_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let start = Instant::now();
    run(&compress(&shipped(), SEQUENTIAL, &whole, WINDOWS), &["--threads", "2"]);
    let (took, want) = (start.elapsed(), result(&whole));
    let mut killed = 0;
    for i in 0..5 {
        let out = dir.path().join(format!("out{i}"));
        let list = compress(&shipped(), SEQUENTIAL, &out, WINDOWS);
        let mut child = spawn(&list);
        std::thread::sleep(took * (2 * i + 1) / 10);
        let _ = child.kill();
        killed += usize::from(!child.wait().unwrap().success());
        assert!(
            !out.join("model.safetensors").exists() || out.join(".tersor").exists() || out.join("tersor.json").exists()
        );
        run(&list, &["--threads", if i % 2 == 0 { "1" } else { "2" }]);
        assert!(result(&out) == want, "killed run {i}");
    }
    assert!(killed > 0, "the moments were badly chosen");
}

#[test]
fn tasks_of_a_chain_merge_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    run(&compress(&shipped(), SEQUENTIAL, &whole, WINDOWS), &[]);
    let list = compress(&shipped(), SEQUENTIAL, &out, WINDOWS);
    let mut plan: Vec<String> = list.clone();
    plan[0] = "plan".into();
    let tasks = run(&[&plan[..4], &plan[6..]].concat(), &[])["tasks"].as_array().unwrap().clone();
    let kinds: Vec<&str> = tasks.iter().map(|t| t["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["matrix", "layer", "layer", "layer", "layer"]);
    assert_eq!((&tasks[1]["after"], &tasks[4]["after"]), (&serde_json::json!([0]), &serde_json::json!([3])));

    assert!(refused(1, &list, &["--task", "1"]).contains("comes first"));
    assert!(refused(2, &list, &["--task", "5"]).contains("below 5"));
    assert!(refused(1, &list, &["--merge"]).contains("has not been done"));
    for k in 0..tasks.len() {
        if k == 2 {
            assert!(refused(1, &list, &["--task", "4"]).contains("task of layer"));
        }
        run(&list, &["--task", &k.to_string()]);
    }
    run(&list, &["--merge"]);
    assert!(result(&out) == result(&whole));
    assert!(!out.join(".tersor").exists());
}

#[test]
fn processes_that_share_the_work_and_files_of_statistics_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = original(dir.path());
    let whole = dir.path().join("whole");
    run(&compress(&shipped(), &recipe, &whole, WINDOWS), &["--threads", "1"]);
    let want = result(&whole);

    let out = dir.path().join("shared");
    let list = compress(&shipped(), &recipe, &out, WINDOWS);
    let plan: Vec<String> = [&["plan".to_string()], &list[1..4], &list[6..]].concat();
    let tasks = run(&plan, &[])["tasks"].as_array().unwrap().clone();
    let shards = tasks.iter().filter(|t| t["kind"] == "statistics").count();
    assert_eq!((shards, tasks[0]["shard"].as_str()), (2, Some("1/2")));
    // Matrices depend on statistics; apart from that, tasks run in any order and concurrently.
    assert!(refused(1, &list, &["--task", "10"]).contains("shard 1"));
    for range in [0..shards, shards..tasks.len()] {
        let mut waiting: Vec<usize> = range.rev().collect();
        while !waiting.is_empty() {
            let now: Vec<usize> = waiting.drain(..waiting.len().min(4)).collect();
            let children = now.iter().map(|k| spawn(&[&list[..], &["--task".to_string(), k.to_string()]].concat()));
            let children: Vec<_> = children.collect();
            assert!(children.into_iter().all(|mut c| c.wait().unwrap().success()), "{now:?}");
        }
    }
    run(&list, &["--merge"]);
    assert!(result(&out) == want);

    let text = s(&root().join("examples/data/wiki-calib.txt")).to_string();
    let calibrate = |shard: Option<&str>, name: &str| -> PathBuf {
        let file = dir.path().join(name);
        let model = shipped();
        let mut list = vec![
            "calibrate",
            s(&model),
            "--recipe",
            &recipe,
            "--calib",
            &text,
            "--calib-windows",
            "90",
            "--ctx",
            "128",
        ];
        list.extend(shard.map(|s| ["--shard", s]).into_iter().flatten());
        tersor_json(&[&list[..], &["--out", s(&file)]].concat());
        file
    };
    let all = calibrate(None, "all");
    let (one, two) = (calibrate(Some("1/2"), "one"), calibrate(Some("2/2"), "two"));
    let stats = |files: &str, name: &str, recipe: &str| -> Vec<String> {
        let model = shipped();
        let out = dir.path().join(name);
        ["compress", s(&model), "--recipe", recipe, "--out", s(&out), "--stats", files].map(String::from).to_vec()
    };
    let both = format!("{},{}", s(&two), s(&one));
    for (files, name) in [(s(&all), "from-all"), (&both, "from-parts")] {
        run(&stats(files, name, &recipe), &[]);
        assert!(result(&dir.path().join(name)) == want, "{name}");
    }
    // A recipe without `statistics` accepts statistics of the original network; a sequential recipe does not.
    run(&stats(s(&all), "default", SEQUENTIAL), &[]);
    let chain = dir.path().join("chain.toml");
    fs::write(&chain, fs::read_to_string(&recipe).unwrap().replace("\"original\"", "\"sequential\"")).unwrap();
    assert!(refused(2, &stats(s(&all), "x", s(&chain)), &[]).contains("sequential"));
    // Parts that are missing, duplicated, of another text, or no statistics at all.
    assert!(refused(1, &stats(s(&one), "x", &recipe), &[]).contains("in no file"));
    assert!(refused(1, &stats(s(&two), "x", &recipe), &[]).contains("windows 0 to"));
    assert!(refused(1, &stats(&format!("{},{}", s(&one), s(&all)), "x", &recipe), &[]).contains("another file"));
    assert!(
        refused(1, &stats(s(&shipped().join("model.safetensors")), "x", &recipe), &[])
            .contains("no file of statistics")
    );
    let other = dir.path().join("other");
    let eval = root().join("examples/data/wiki-eval.txt");
    let model = shipped();
    let list = [
        "calibrate",
        s(&model),
        "--recipe",
        &recipe,
        "--calib",
        s(&eval),
        "--calib-windows",
        "90",
        "--ctx",
        "128",
        "--shard",
        "2/2",
    ];
    tersor_json(&[&list[..], &["--out", s(&other)]].concat());
    let mixed = format!("{},{}", s(&one), s(&other));
    assert!(refused(1, &stats(&mixed, "x", &recipe), &[]).contains("calibration text differs"));
    assert!(refused(2, &stats(s(&all), "x", &recipe), &["--calib", &text]).contains("--calib"));
    // A file that was cut off.
    let bytes = fs::read(&all).unwrap();
    for cut in (0..bytes.len()).step_by(bytes.len() / 23 + 1) {
        fs::write(&other, &bytes[..cut]).unwrap();
        refused(1, &stats(s(&other), "x", &recipe), &[]);
    }
    fs::remove_file(&other).unwrap();
    for bad in ["0/2", "3/2", "1/9", "1", "a/b", "1/0"] {
        let list =
            ["calibrate", s(&model), "--recipe", &recipe, "--calib", &text, "--calib-windows", "90", "--ctx", "128"];
        fails(2, &[&list[..], &["--shard", bad, "--out", s(&other)]].concat());
    }
    fails(2, &["calibrate", s(&model), "--recipe", "w4-rtn", "--calib", &text, "--out", s(&other)]);
}

#[test]
fn memory_is_kept_within_its_cap_or_refused_with_the_figure() {
    let dir = tempfile::tempdir().unwrap();
    let (free, capped) = (dir.path().join("free"), dir.path().join("capped"));
    let list = |out: &Path| {
        let mut list = compress(&shipped(), SEQUENTIAL, out, WINDOWS);
        *list.iter_mut().find(|a| *a == "90").unwrap() = "700".into();
        list
    };
    let plan = |more: &[&str]| {
        let all = list(&free);
        run(&[&["plan".to_string()], &all[1..4], &all[6..]].concat(), more)
    };
    let total = |plan: &serde_json::Value| {
        plan["peak_memory_bytes"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum::<u64>()
    };
    let (all, spilled) = (plan(&[]), plan(&["--max-memory", "48MB"]));
    assert_eq!((&all["hidden_states_on_disk"], &spilled["hidden_states_on_disk"]), (&false.into(), &true.into()));
    assert!(total(&all) > 90_000_000 && total(&spilled) <= 48_000_000, "{} {}", total(&all), total(&spilled));
    let a = run(&list(&free), &[]);
    let b = run(&list(&capped), &["--max-memory", "48MB"]);
    assert!(result(&free) == result(&capped));
    let peak = |r: &serde_json::Value| r["peak_rss_bytes"].as_u64().unwrap();
    assert!(peak(&a) <= total(&all) * 11 / 10, "{} of {}", peak(&a), total(&all));
    assert!(peak(&b) <= 48_000_000, "{}", peak(&b));
    let said = refused(2, &list(&dir.path().join("x")), &["--max-memory", "5MB"]);
    assert!(said.contains("max-memory") && said.contains(" MB"), "{said}");
    assert!(!dir.path().join("x").exists());
    for bad in ["much", "-1", "3XB", ""] {
        refused(2, &list(&dir.path().join("x")), &["--max-memory", bad]);
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_result_and_the_work_goes_on_after() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    run(&compress(&shipped(), SEQUENTIAL, &whole, WINDOWS), &[]);
    let list = compress(&shipped(), SEQUENTIAL, &out, WINDOWS);
    // Limits on the file size, in blocks of 512 bytes: below the embedding's part, the hidden states on disk, the result.
    for blocks in [1, 100, 1000] {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let mut limited = Command::new("sh");
        limited.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_tersor")]).args(&list).args(["--max-memory", "48MB"]);
        let done = limited.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{blocks}: {said}");
        assert!(said.contains("too large") || said.contains("space"), "{said}");
        for name in if out.exists() { files(&out) } else { Default::default() }.keys() {
            assert!(name.starts_with(".tersor/"), "{name}");
        }
    }
    run(&list, &[]);
    assert!(result(&out) == result(&whole));
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_at_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let list = compress(&shipped(), SEQUENTIAL, &out, WINDOWS);
    let mut child = Command::new(env!("CARGO_BIN_EXE_tersor")).args(&list).stderr(Stdio::piped()).spawn().unwrap();
    while finished(&out) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("again"), "{said}");
    assert!(!out.join("tersor.json").exists() && out.join(".tersor").exists());
    let whole = dir.path().join("whole");
    run(&list, &[]);
    run(&compress(&shipped(), SEQUENTIAL, &whole, WINDOWS), &[]);
    assert!(result(&out) == result(&whole));
}

#[test]
fn calibration_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let model = shipped();
    let gptq = ["compress", s(&model), "--recipe", SEQUENTIAL, "--out", s(&out)];
    assert!(fails(2, &gptq).contains("--calib"));
    let text = dir.path().join("text");
    let with = |more: &[&str]| -> Vec<String> {
        gptq.iter().chain(&["--calib", s(&text)]).chain(more).map(|a| a.to_string()).collect()
    };
    fs::write(&text, "Too short.").unwrap();
    assert!(refused(1, &with(&[]), &[]).contains("do not fill one window"));
    fs::write(&text, [0xff, 0xfe]).unwrap();
    assert!(refused(1, &with(&[]), &[]).contains("UTF-8"));
    assert!(refused(2, &with(&["--calib-windows", "0"]), &[]).contains("at least 1"));
    assert!(refused(2, &with(&["--ctx", "1"]), &[]).contains("must be 2 to"));
    assert!(refused(2, &with(&["--ctx", "100000"]), &[]).contains("must be 2 to"));
    // Fewer windows than requested, or fewer tokens than features, give a warning.
    fs::write(&text, "The river runs to the sea. ".repeat(12)).unwrap();
    let few = with(&["--ctx", "16", "--calib-windows", "3"]);
    let done = Command::new(env!("CARGO_BIN_EXE_tersor")).args(&few).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("rank 48 at most"), "{said}");
    fs::remove_dir_all(&out).unwrap();
    let many = with(&["--ctx", "16", "--calib-windows", "300"]);
    let done = Command::new(env!("CARGO_BIN_EXE_tersor")).args(&many).output().unwrap();
    assert!(String::from_utf8_lossy(&done.stderr).contains("fewer than 300"));

    // Activations that overflow give an error that names the site, and no NaN in the result.
    let mut tiny = Tiny::llama();
    for i in 0..48 {
        tiny.set("model.layers.0.input_layernorm.weight", i, 3e38);
    }
    let model = tiny.write(&dir.path().join("m"));
    let calib = root().join("examples/data/wiki-calib.txt");
    let out = dir.path().join("overflow");
    let said = fails(
        1,
        &[
            "compress",
            s(&model),
            "--recipe",
            SEQUENTIAL,
            "--out",
            s(&out),
            "--calib",
            s(&calib),
            "--calib-windows",
            "2",
        ],
    );
    assert!(said.contains("layers.0") && (said.contains("NaN") || said.contains("inf")), "{said}");
    assert!(!out.join("tersor.json").exists());
    // A recipe that needs data for an embedding table, or for a model of unknown architecture.
    let toml = dir.path().join("all.toml");
    fs::write(&toml, recipe("all", "", &[(ALL, "{ kind = \"gptq\" }")])).unwrap();
    let said = fails(1, &["plan", s(&model), "--recipe", s(&toml)]);
    assert!(said.contains("embed_tokens") && said.contains("rtn"), "{said}");
    assert!(fails(1, &["plan", s(&model), "--recipe", SEQUENTIAL, "--generic"]).contains("unknown architecture"));
}
