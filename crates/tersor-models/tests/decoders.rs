//! The decoder compared with transformers, on small random models of every architecture and rotary variant
//! (made by `scripts/golden_decoders.py`), and with itself: in parts, streamed, site by site.

use std::path::{Path, PathBuf};

use tersor_core::{Cancel, Exec, Limits, LinearOp, Silent, TensorSource};
use tersor_formats::safetensors::File;
use tersor_models::{Checkpoint, Decoder, SiteKind, evaluate};
use tersor_operators::registry;

const VARIANTS: [&str; 7] = ["llama", "llama-linear", "llama-llama3", "llama-yarn", "mistral-window", "qwen2", "qwen3"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&folder(name), &registry()).unwrap()
}

fn read(file: &File, name: &str) -> Vec<[u8; 4]> {
    let mut bytes = vec![0u8; file.info(name).unwrap().bytes().unwrap()];
    file.read_at(name, 0, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.to_vec()
}

fn golden(name: &str) -> (Vec<u32>, Vec<f32>) {
    let file = File::open(&folder(name).join("logits.safetensors.golden"), &Limits::default()).unwrap();
    let tokens = read(&file, "tokens").into_iter().map(u32::from_le_bytes).collect();
    (tokens, read(&file, "logits").into_iter().map(f32::from_le_bytes).collect())
}

fn logits(decoder: &Decoder, parts: &[&[u32]]) -> Vec<f32> {
    let (mut state, exec) = (decoder.state().unwrap(), Exec::new());
    let hidden: Vec<f32> = parts.iter().flat_map(|p| decoder.forward(p, &mut state, &exec).unwrap()).collect();
    decoder.logits(&hidden, &exec).unwrap()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_transformers() {
    for name in VARIANTS {
        let (tokens, want) = golden(name);
        let got = logits(&Decoder::load(&open(name)).unwrap(), &[&tokens]);
        let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(worst(&got, &want) < 2e-5 * scale, "{name}: {} of {scale}", worst(&got, &want));
    }
}

#[test]
fn a_text_in_parts_and_layers_from_disk_give_the_same() {
    for name in VARIANTS {
        let (tokens, _) = golden(name);
        let decoder = Decoder::load(&open(name)).unwrap();
        let whole = logits(&decoder, &[&tokens]);
        let streamed = logits(&Decoder::load_streamed(open(name)).unwrap(), &[&tokens]);
        assert_eq!(whole, streamed, "{name}");
        let singles: Vec<&[u32]> = tokens.chunks(1).collect();
        assert!(worst(&whole, &logits(&decoder, &singles)) < 1e-3, "{name}: a token at a time");
        assert!(worst(&whole, &logits(&decoder, &[&tokens[..7], &tokens[7..]])) < 1e-3, "{name}: in two parts");
    }
}

#[test]
fn a_site_with_its_own_weights_gives_what_the_layer_computes() {
    for name in VARIANTS {
        let checkpoint = open(name);
        let (decoder, config) =
            (Decoder::load(&checkpoint).unwrap(), checkpoint.architecture().unwrap().decoder().unwrap().clone());
        let (tokens, _) = golden(name);
        let mut seen: Vec<(usize, SiteKind, Vec<f32>)> = Vec::new();
        let exec = Exec::new();
        decoder
            .forward_observed(&tokens, &mut decoder.state().unwrap(), &exec, &mut |layer, kind, x| {
                seen.push((layer, kind, x.data().to_vec()));
                Ok(())
            })
            .unwrap();
        let sites = decoder.sites();
        assert_eq!(sites.len(), 4 * config.layers + 1);
        assert_eq!(seen.len(), 4 * config.layers);
        for (i, (layer, kind, x)) in seen.iter().enumerate() {
            let site = &sites[i];
            assert_eq!((site.layer, site.features), (Some(*layer), x.len() / tokens.len()));
            let ops: Vec<Box<dyn LinearOp>> =
                site.consumers.iter().map(|c| checkpoint.matrix(&c.weight, c.shape).unwrap()).collect();
            let ops: Vec<&dyn LinearOp> = ops.iter().map(|o| &**o).collect();
            let out = decoder.site_output(*layer, *kind, x, tokens.len(), &ops, &exec).unwrap();
            // The output of this site's module is the input of the next site, unless a norm is between them.
            if matches!(kind, SiteKind::Qkv | SiteKind::GateUp) {
                assert_eq!(out, seen[i + 1].2, "{name}, {}", site.name);
            }
            // Other weights give another output; a sample that is not a whole window is refused.
            assert_eq!(out.len() % tokens.len(), 0);
            assert!(decoder.site_output(*layer, *kind, &x[1..], tokens.len(), &ops, &exec).is_err());
            assert!(decoder.site_output(*layer, *kind, x, tokens.len(), &ops[1..], &exec).is_err());
        }
    }
}

#[test]
fn sites_name_their_producers_and_writers() {
    let sites = open("llama").architecture().unwrap().sites();
    assert_eq!(sites[4].name, "model.layers.1.self_attn.qkv");
    assert_eq!(
        sites[4].writers,
        ["model.embed_tokens.weight", "model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"]
    );
    assert!(sites[1].writers.is_empty());
    assert_eq!(sites.last().unwrap().consumers[0].weight, "model.embed_tokens.weight", "a tied head");
    assert_eq!(open("qwen2").architecture().unwrap().sites().last().unwrap().consumers[0].weight, "lm_head.weight");
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let decoder = Decoder::load(&open("llama")).unwrap();
    let e = decoder.forward(&[3, 40], &mut decoder.state().unwrap(), &Exec::new()).unwrap_err().to_string();
    assert!(e.contains("40"), "{e}");
}

#[test]
fn a_network_agrees_with_itself_in_windows_of_several_blocks() {
    let decoder = Decoder::load(&open("llama")).unwrap();
    let vocab = decoder.config().vocab as u32;
    let window: Vec<u32> = (0..700).map(|i| (i * 7 + i / 3) % vocab).collect();
    let run = |window: &[u32]| {
        evaluate(&decoder, Some(&decoder), &[window], &Exec::new(), &Silent, &Cancel::new()).map(|e| e.against.unwrap())
    };
    let found = run(&window).unwrap();
    assert!(found.sites.len() == 8 && found.sites.iter().all(|(_, error)| *error == 0.0), "{:?}", found.sites);
    assert!(run(&window[..1]).is_err() && run(&[]).is_err());
}
