//! Directories of models, loaded as networks that then run, and recorded changes of networks.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tersor::core::{
    Changes, DType, Exec, FeatureMap, Fold, FoldedRows, MatView, MemTensors, RowSource, Side, TensorInfo, TensorSink,
    Transform, Value,
};
use tersor::models::{Architecture, Checkpoint, Decoder, Encoder};
use tersor::operators::{Dense, online};

use super::operators::{rotation, values};
use super::{file_of, split, stored};

/// Returns a configuration and tensors of a decoder, and of an encoder.
pub fn networks() -> Vec<Vec<u8>> {
    let decoder = json!({"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 3, "tie_word_embeddings": true});
    let encoder = json!({"model_type": "bert", "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2,
        "num_hidden_layers": 1, "vocab_size": 3, "max_position_embeddings": 4, "type_vocab_size": 1});
    let of_decoder: &[(&str, &[usize])] = &[
        ("model.embed_tokens.weight", &[3, 4]),
        ("model.norm.weight", &[4]),
        ("model.layers.0.input_layernorm.weight", &[4]),
        ("model.layers.0.post_attention_layernorm.weight", &[4]),
        ("model.layers.0.self_attn.q_proj.weight", &[4, 4]),
        ("model.layers.0.self_attn.k_proj.weight", &[2, 4]),
        ("model.layers.0.self_attn.v_proj.weight", &[2, 4]),
        ("model.layers.0.self_attn.o_proj.weight", &[4, 4]),
        ("model.layers.0.mlp.gate_proj.weight", &[6, 4]),
        ("model.layers.0.mlp.up_proj.weight", &[6, 4]),
        ("model.layers.0.mlp.down_proj.weight", &[4, 6]),
    ];
    let of_encoder: &[(&str, &[usize])] = &[
        ("embeddings.word_embeddings.weight", &[3, 4]),
        ("embeddings.position_embeddings.weight", &[4, 4]),
        ("embeddings.token_type_embeddings.weight", &[1, 4]),
        ("embeddings.LayerNorm", &[4]),
        ("encoder.layer.0.attention.self.query", &[4, 4]),
        ("encoder.layer.0.attention.self.key", &[4, 4]),
        ("encoder.layer.0.attention.self.value", &[4, 4]),
        ("encoder.layer.0.attention.output.dense", &[4, 4]),
        ("encoder.layer.0.attention.output.LayerNorm", &[4]),
        ("encoder.layer.0.intermediate.dense", &[6, 4]),
        ("encoder.layer.0.output.dense", &[4, 6]),
        ("encoder.layer.0.output.LayerNorm", &[4]),
    ];
    let mut tensors = [MemTensors::new(), MemTensors::new()];
    let put = |tensors: &mut MemTensors, name: &str, shape: &[usize]| {
        let mut bytes = vec![0u8; 2 * shape.iter().product::<usize>()];
        DType::F16.narrow_bytes(&values(bytes.len() / 2), &mut bytes).unwrap();
        tensors.write_shared(name, &TensorInfo { dtype: DType::F16, shape: shape.to_vec() }, &bytes).unwrap();
    };
    for (name, shape) in of_decoder {
        put(&mut tensors[0], name, shape);
    }
    for (name, shape) in of_encoder {
        if name.ends_with(".weight") {
            put(&mut tensors[1], name, shape);
        } else {
            put(&mut tensors[1], &format!("{name}.weight"), shape);
            put(&mut tensors[1], &format!("{name}.bias"), &shape[..1]);
        }
    }
    [decoder, encoder].into_iter().zip(&tensors).map(|(config, tensors)| model(&config, tensors)).collect()
}

/// Returns the length of the configuration in 4 bytes, the configuration, and the tensors as safetensors.
fn model(config: &Json, tensors: &MemTensors) -> Vec<u8> {
    let config = config.to_string().into_bytes();
    [&(config.len() as u32).to_le_bytes()[..], &config, &file_of(tensors)].concat()
}

/// Opens the two parts as a directory, loads the network, and runs it over two tokens.
pub fn network(bytes: &[u8]) -> bool {
    thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir().unwrap());
    let Some((config, file)) = split(bytes) else { return false };
    DIR.with(|dir| {
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let Ok(checkpoint) = Checkpoint::open(dir.path(), &tersor::registry()) else { return false };
        let exec = &Exec::serial();
        checkpoint.weights();
        let Ok(architecture) = checkpoint.architecture() else { return false };
        match architecture {
            Architecture::Decoder(_) => Decoder::load(&checkpoint).is_ok_and(|decoder| {
                let run = |mut state| decoder.next_logits(&[0, 1], &mut state, exec).is_ok();
                decoder.state().is_ok_and(run)
            }),
            Architecture::Encoder(_) => Encoder::load(&checkpoint).is_ok_and(|e| e.embed(&[0, 1], exec).is_ok()),
        }
    })
}

/// Features of the matrix that recorded changes are applied to.
const FEATURES: usize = 12;

/// Returns a file of changes with a fold of each kind.
pub fn changes() -> Vec<Vec<u8>> {
    let fold = |side, transform| Fold { weight: "w".into(), side, transform };
    let reversed = || Transform::permute((0..FEATURES as u32).rev().collect()).unwrap();
    let mut tensors = MemTensors::new();
    tersor::core::tensors::write_floats(&mut tensors, "keys", &[2], &[1.0, 2.0]).unwrap();
    let map = FeatureMap::new(FEATURES, 3, vec![(0, 1, 0.5), (2, 0, -2.0)]).unwrap();
    let changes = Changes {
        folds: vec![
            fold(Side::Input, Transform::Scale(vec![0.5; FEATURES])),
            fold(Side::Output, Transform::Rotate(vec![rotation()])),
            fold(Side::Input, reversed()),
            fold(Side::Output, Transform::Set(vec![1.0; FEATURES])),
            fold(Side::Output, Transform::Map(map)),
            fold(Side::Output, Transform::select(vec![2, 1], 3).unwrap()),
        ],
        online: vec![fold(Side::Input, Transform::Rotate(vec![rotation()]))],
        settings: BTreeMap::from([(("w".into(), "bits".into()), Value::Int(3))]),
        tensors,
        config: BTreeMap::from([("tie".into(), Value::Bool(false)), ("eps".into(), Value::Float(1e-5))]),
    };
    vec![file_of(&changes.to_tensors().unwrap())]
}

/// Reads changes, writes them again, and applies them to a matrix of [`FEATURES`] features.
pub fn changed(bytes: &[u8]) -> bool {
    let Some(changes) = stored(bytes).and_then(|f| Changes::from_tensors(&f).ok()) else { return false };
    assert!(changes.to_tensors().is_ok(), "changes that cannot be written");
    let w = values(FEATURES * FEATURES);
    let matrix = MatView::new(&w, [FEATURES; 2]).unwrap();
    let mut ok = true;
    for weight in changes.folds.iter().map(|f| &f.weight) {
        let Ok(rows) = FoldedRows::new(&matrix, weight, &changes.folds) else { return false };
        let [n, cols] = rows.shape();
        if n.saturating_mul(cols) > 1 << 12 {
            return false;
        }
        ok &= rows.read_rows(0..n, &mut vec![0.0; n * cols]).is_ok();
    }
    for fold in &changes.online {
        let Ok(change) = fold.transform.input_change() else { return false };
        let op = Dense::new(w.clone(), [FEATURES; 2], DType::F32).unwrap();
        ok &= online(Box::new(op), &change).is_ok();
    }
    ok
}
