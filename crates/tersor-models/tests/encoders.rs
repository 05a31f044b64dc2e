//! The encoder compared with transformers, on small random models (made by `scripts/golden_encoders.py`).

use std::path::{Path, PathBuf};

use tersor_core::{Exec, Limits, TensorSource};
use tersor_formats::safetensors::File;
use tersor_models::{Architecture, Checkpoint, Decoder, Encoder};
use tersor_operators::registry;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-encoders").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&folder(name), &registry()).unwrap()
}

fn read(file: &File, name: &str) -> Vec<[u8; 4]> {
    let mut bytes = vec![0u8; file.info(name).unwrap().bytes().unwrap()];
    file.read_at(name, 0, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.to_vec()
}

#[test]
fn hidden_states_and_their_mean_are_those_of_transformers() {
    for name in ["bert", "bert-prefix-tanh", "bert-relu"] {
        let golden = File::open(&folder(name).join("hidden.safetensors.golden"), &Limits::default()).unwrap();
        let floats = |n: &str| read(&golden, n).into_iter().map(f32::from_le_bytes).collect::<Vec<_>>();
        let tokens: Vec<u32> = read(&golden, "tokens").into_iter().map(u32::from_le_bytes).collect();
        let encoder = Encoder::load(&open(name)).unwrap();
        let exec = Exec::new();
        for (got, want) in [
            (encoder.forward(&tokens, &exec).unwrap(), floats("hidden")),
            (encoder.embed(&tokens, &exec).unwrap(), floats("mean")),
        ] {
            assert_eq!(got.len(), want.len());
            let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 2e-5 * scale, "{name}: {worst} of {scale}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let checkpoint = open("bert");
    let encoder = Encoder::load(&checkpoint).unwrap();
    let exec = Exec::new();
    for bad in [&[][..], &[40], &[1; 33]] {
        assert!(encoder.embed(bad, &exec).is_err(), "{bad:?}");
    }
    assert!(encoder.embed(&[1; 32], &exec).is_ok());
    // An encoder cannot generate text, and a decoder cannot embed sentences.
    let Err(e) = Decoder::load(&checkpoint) else { panic!("a decoder of an encoder") };
    assert!(e.to_string().contains("bert"), "{e}");
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let Err(e) = Encoder::load(&Checkpoint::open(&llama, &registry()).unwrap()) else { panic!("an encoder") };
    assert!(e.to_string().contains("llama"), "{e}");
}

#[test]
fn sites_name_the_tensors_of_the_file() {
    for name in ["bert", "bert-prefix-tanh"] {
        let checkpoint = open(name);
        let Architecture::Encoder(config) = checkpoint.architecture().unwrap() else { panic!("{name}") };
        let sites = config.sites();
        assert_eq!(sites.len(), 4 * config.layers);
        for c in sites.iter().flat_map(|s| &s.consumers) {
            assert_eq!(checkpoint.matrix(&c.weight, c.shape).unwrap().shape(), c.shape);
            assert!(checkpoint.architecture().unwrap().layer_of(&c.weight).is_some());
        }
        assert!(config.embeddings().iter().all(|e| checkpoint.has(e)));
    }
}
