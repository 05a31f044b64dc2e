//! Statistics gathered layer by layer, compared with those of a plain forward pass; in parts, on disk, and resumed.

use std::path::Path;
use std::sync::Arc;

use tersor_core::{Cancel, DType, Error, Exec, LinearOp, MatView, MemTensors, Site, StatNeeds, StatSet};
use tersor_models::{
    Calibration, Checkpoint, Decoder, Hooks, ObservedSite, Replacements, SiteChanges, SiteKind, Upstream,
};
use tersor_operators::{Dense, registry};

const NEEDS: StatNeeds = StatNeeds { squares: true, channel: true, gram: true, sample: 7, windows: false };

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name), &registry()).unwrap()
}

/// Windows of 12 tokens; the last has 5.
fn windows(count: usize) -> Vec<Vec<u32>> {
    (0..count as u32)
        .map(|w| (0..if w + 1 == count as u32 { 5 } else { 12 }).map(|t| (w * 7 + t * t) % 40).collect())
        .collect()
}

/// Statistics of every site of the windows in `part`.
fn gather(
    checkpoint: &Checkpoint,
    windows: &[Vec<u32>],
    part: std::ops::Range<usize>,
    scratch: Option<&Path>,
) -> Vec<StatSet> {
    let slices: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    // Windows of at most 2048 tokens make shards of four windows.
    let mut calibration = Calibration::new(checkpoint, &slices, part, 2048, scratch).unwrap();
    embed(checkpoint, &mut calibration);
    let mut seen = Vec::new();
    let mut compress = |_: &Site, stats: &StatSet| {
        seen.push(stats.clone());
        Ok(Replacements::new())
    };
    let cancel = Cancel::new();
    let mut hooks = Hooks {
        upstream: Upstream::Original,
        cancel: &cancel,
        seed: 3,
        needs: &|_| NEEDS,
        change: &|_| Ok(None),
        compress: &mut compress,
        rewriting: None,
        folds: Vec::new(),
    };
    for layer in 0..checkpoint.architecture().unwrap().layers() {
        calibration.layer(layer, &mut hooks).unwrap();
    }
    if checkpoint.architecture().unwrap().decoder().is_ok() {
        seen.push(calibration.head(NEEDS, 3, &cancel).unwrap());
    }
    seen
}

fn embed(checkpoint: &Checkpoint, calibration: &mut Calibration<'_>) {
    calibration.embed(&mut |name, row, out| checkpoint.model().rows(name)?.read_rows(row..row + 1, out)).unwrap();
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    let scale = b.iter().fold(0f64, |m, v| m.max(v.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * scale)
}

#[test]
fn a_layer_at_a_time_sees_what_a_forward_pass_sees() {
    let (checkpoint, windows) = (open("golden/qwen3"), windows(6));
    let stats = gather(&checkpoint, &windows, 0..6, None);
    let decoder = Decoder::load(&checkpoint).unwrap();
    let mut want: Vec<StatSet> =
        decoder.sites().iter().map(|s| StatSet::new(s.features, NEEDS, 3, 0).unwrap()).collect();
    let exec = Exec::new();
    for window in &windows {
        let mut state = decoder.state().unwrap();
        let hidden = decoder
            .forward_observed(window, &mut state, &exec, &mut |layer, kind, x| {
                let at = SiteKind::ALL.iter().position(|k| *k == kind).unwrap();
                want[layer * 4 + at].observe(&MatView::new(x.data(), x.shape())?)
            })
            .unwrap();
        let features = decoder.config().hidden;
        want.last_mut().unwrap().observe(&MatView::new(&hidden, [window.len(), features]).unwrap()).unwrap();
    }
    assert_eq!(stats.len(), want.len());
    for (i, (got, want)) in stats.iter().zip(&want).enumerate() {
        assert_eq!(got.tokens(), 65);
        assert!(close(got.gram().unwrap(), want.gram().unwrap(), 1e-5), "site {i}");
        assert!(close(&got.channel().unwrap().sum_abs, &want.channel().unwrap().sum_abs, 1e-5), "site {i}");
        // The sample has the same tokens.
        let [a, b] = [got, want].map(|s| s.sample().unwrap().iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        assert!(close(&a, &b, 1e-5), "site {i}");
    }
}

#[test]
fn shards_from_several_runs_add_to_the_same_bytes() {
    for name in ["golden/llama", "golden-encoders/bert"] {
        let (checkpoint, windows) = (open(name), windows(11));
        let whole = gather(&checkpoint, &windows, 0..11, None);
        let parts = [0..4, 4..8, 8..11].map(|part| gather(&checkpoint, &windows, part, None));
        for (i, whole) in whole.iter().enumerate() {
            let mut sum = StatSet::new(whole.features(), NEEDS, 3, 0).unwrap();
            for part in &parts {
                sum.merge(&part[i]).unwrap();
            }
            let bytes = |s: &StatSet| {
                let mut file = MemTensors::new();
                s.save("s", &mut file).unwrap();
                ["head", "gram", "sum_sq", "min", "max_mean_abs", "sample", "sample_tokens"]
                    .map(|n| file.get(&format!("s.{n}")).unwrap().to_vec())
            };
            assert!(bytes(whole) == bytes(&sum), "{name}, site {i}");
        }
    }
}

#[test]
fn hidden_states_on_disk_give_the_same_and_leave_nothing() {
    for name in ["golden/qwen2", "golden-encoders/bert"] {
        let (checkpoint, windows) = (open(name), windows(11));
        let dir = tempfile::tempdir().unwrap();
        assert!(
            gather(&checkpoint, &windows, 0..11, None) == gather(&checkpoint, &windows, 0..11, Some(dir.path())),
            "{name}"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_kept_stream_goes_on_where_it_was() {
    let (checkpoint, windows) = (open("golden/llama"), windows(5));
    let want = gather(&checkpoint, &windows, 0..5, None);
    let slices: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let (dir, cancel) = (tempfile::tempdir().unwrap(), Cancel::new());
    for scratch in [None, Some(dir.path())] {
        let mut seen = Vec::new();
        let mut compress = |_: &Site, stats: &StatSet| {
            seen.push(stats.clone());
            Ok(Replacements::new())
        };
        let mut hooks = Hooks {
            upstream: Upstream::Original,
            cancel: &cancel,
            seed: 3,
            needs: &|_| NEEDS,
            change: &|_| Ok(None),
            compress: &mut compress,
            rewriting: None,
            folds: Vec::new(),
        };
        let file = dir.path().join("kept");
        let mut first = Calibration::new(&checkpoint, &slices, 0..5, 2048, scratch).unwrap();
        embed(&checkpoint, &mut first);
        first.layer(0, &mut hooks).unwrap();
        first.save(&file).unwrap();
        drop(first);
        let mut second = Calibration::new(&checkpoint, &slices, 0..5, 2048, scratch).unwrap();
        second.resume(&file).unwrap();
        second.layer(1, &mut hooks).unwrap();
        assert!(seen[..] == want[..8]);
        std::fs::write(&file, [0u8; 12]).unwrap();
        assert!(second.resume(&file).unwrap_err().to_string().contains("12 bytes"));
    }
}

#[test]
fn what_replaces_a_matrix_is_what_later_sites_see() {
    let (checkpoint, windows) = (open("golden/llama"), windows(3));
    let slices: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let run = |upstream: Upstream| {
        let mut calibration = Calibration::new(&checkpoint, &slices, 0..3, 2048, None).unwrap();
        embed(&checkpoint, &mut calibration);
        let mut energies = Vec::new();
        let mut compress = |site: &Site, stats: &StatSet| {
            energies.push(stats.channel().unwrap().sum_sq.iter().sum::<f64>());
            // The attention output becomes zero; the other matrices are unchanged.
            let zero = |c: &tersor_core::Consumer| -> tersor_core::Result<Option<Arc<dyn LinearOp>>> {
                let values = vec![0f32; c.shape[0] * c.shape[1]];
                Ok(if c.weight.contains("v_proj") {
                    Some(Arc::new(Dense::new(values, c.shape, DType::F32)?))
                } else {
                    None
                })
            };
            site.consumers.iter().map(zero).collect()
        };
        let cancel = Cancel::new();
        let mut hooks = Hooks {
            upstream,
            cancel: &cancel,
            seed: 0,
            needs: &|_| NEEDS,
            change: &|_| Ok(None),
            compress: &mut compress,
            rewriting: None,
            folds: Vec::new(),
        };
        calibration.layer(0, &mut hooks).unwrap();
        calibration.layer(1, &mut hooks).unwrap();
        energies
    };
    let (compressed, original) = (run(Upstream::Compressed), run(Upstream::Original));
    assert_eq!(compressed[0], original[0]);
    assert!(compressed[1] == 0.0 && original[1] > 0.0);
    assert!(compressed[2] != original[2]);
    // Behind compressed layers, statistics of the first layer are those of the original network; those of the second begin as sequential ones and
    // go on through the layer's own matrices.
    let layers = run(Upstream::CompressedLayers);
    assert_eq!(layers[..4], original[..4]);
    assert_eq!(layers[4], compressed[4]);
    assert!(layers[4] != original[4] && layers[5] > 0.0 && compressed[5] == 0.0);
}

#[test]
fn bad_windows_and_cancellation_are_errors() {
    let checkpoint = open("golden/llama");
    let make = |windows: &[&[u32]], part| Calibration::new(&checkpoint, windows, part, 16, None).map(|_| ());
    assert!(make(&[], 0..0).is_err());
    assert!(make(&[&[1, 2], &[]], 0..2).is_err());
    assert!(make(&[&[1; 17]], 0..1).is_err());
    assert!(make(&[&[1, 2]], 0..2).is_err());
    assert!(make(&[&[1, 40]], 0..1).unwrap_err().to_string().contains("below 40"));
    make(&[&[1, 39]], 0..1).unwrap();
    let mut calibration = Calibration::new(&checkpoint, &[&[1, 2]], 0..1, 16, None).unwrap();
    embed(&checkpoint, &mut calibration);
    let cancel = Cancel::new();
    cancel.cancel();
    let mut compress = |_: &Site, _: &StatSet| Ok(Replacements::new());
    let mut hooks = Hooks {
        upstream: Upstream::Original,
        cancel: &cancel,
        seed: 0,
        needs: &|_| NEEDS,
        change: &|_| Ok(None),
        compress: &mut compress,
        rewriting: None,
        folds: Vec::new(),
    };
    assert!(matches!(calibration.layer(0, &mut hooks), Err(Error::Cancelled)));
}

#[test]
fn a_rewrite_that_needs_a_sample_alone_gets_it() {
    let checkpoint = open("golden/llama");
    let (all, cancel) = (windows(3), Cancel::new());
    let slices: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
    let mut calibration = Calibration::new(&checkpoint, &slices, 0..3, 16, None).unwrap();
    embed(&checkpoint, &mut calibration);
    let mut sampled = Vec::new();
    let mut rewrite = |observed: &[ObservedSite<'_>]| {
        for site in observed {
            sampled.push(site.sample.len() / site.site.features);
            let weights: Vec<Box<dyn LinearOp>> = site
                .site
                .consumers
                .iter()
                .map(|c| {
                    Box::new(Dense::new(vec![0.5; c.shape[0] * c.shape[1]], c.shape, DType::F32).unwrap())
                        as Box<dyn LinearOp>
                })
                .collect();
            let weights: Vec<&dyn LinearOp> = weights.iter().map(|w| &**w).collect();
            assert!(!(site.output)(&site.sample, &weights, false)?.is_empty());
        }
        Ok(Vec::new())
    };
    let mut hooks = Hooks {
        upstream: Upstream::Original,
        cancel: &cancel,
        seed: 0,
        needs: &|_| StatNeeds::default(),
        change: &|_| Ok(None),
        compress: &mut |_: &Site, _: &StatSet| Ok(Replacements::new()),
        rewriting: Some(SiteChanges {
            needs: &|_| StatNeeds { sample: 24, ..StatNeeds::default() },
            rewrite: &mut rewrite,
        }),
        folds: Vec::new(),
    };
    calibration.layer(0, &mut hooks).unwrap();
    assert_eq!(sampled, [24; 4]);
}

#[test]
fn a_calibration_without_embeddings_is_an_error() {
    let (checkpoint, cancel) = (open("golden/llama"), Cancel::new());
    let mut calibration = Calibration::new(&checkpoint, &[&[1, 2]], 0..1, 16, None).unwrap();
    let e = calibration.head(NEEDS, 0, &cancel).unwrap_err();
    assert!(e.to_string().contains("hidden states"), "{e}");
}
