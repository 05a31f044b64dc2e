#![doc = include_str!("../README.md")]

mod architecture;
mod calibrate;
mod checkpoint;
mod config;
mod decoder;
mod encoder;
mod evaluate;
mod generate;
mod layer;
mod network;
mod sites;
mod tokenizer;

pub use architecture::Architecture;
pub use calibrate::{
    CONCURRENT_NETWORKS, Calibration, Hooks, ObservedSite, ReadRow, Replacements, Sensitivity, SiteChanges,
    Substitution, Upstream, batch_tokens, shard_windows,
};
pub use checkpoint::{
    Checkpoint, MANIFEST, Manifest, StoredWeight, Weights, bits_per_weight, is_embedding_or_head, is_key_rotation,
    key_rotation_name,
};
pub use config::DecoderConfig;
pub use decoder::{Decoder, State};
pub use encoder::{Activation, Encoder, EncoderConfig};
pub use evaluate::{
    Agreement, Bucket, CONFIDENCES, Evaluation, KeepPredictions, Original, Request, States, StoredPredictions,
    evaluate, evaluate_with, windows,
};
pub use generate::{Sampling, Temperature, generate};
pub use layer::{Layer, Linear, SiteKind};
pub use network::ModelNetwork;
pub use tokenizer::Tokenizer;
