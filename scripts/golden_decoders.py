#!/usr/bin/env python3
"""Writes crates/tersor-models/tests/golden/: small random models of every supported architecture and rotary variant, with the
logits that transformers computes for them in float32.

    python3 -m pip install torch transformers safetensors
    python3 scripts/golden_decoders.py
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).resolve().parent.parent / "crates/tersor-models/tests/golden"
BASE = dict(
    hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=40,
    max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)
ROPE = lambda **k: dict(rope_parameters={"rope_theta": 1000.0, **k})
VARIANTS = {
    "llama": dict(model_type="llama", tie_word_embeddings=True, **ROPE(rope_type="default")),
    "llama-linear": dict(model_type="llama", **ROPE(rope_type="linear", factor=4.0)),
    "llama-llama3": dict(
        model_type="llama", head_dim=16,
        **ROPE(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    "llama-yarn": dict(model_type="llama", head_dim=16, **ROPE(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "mistral-window": dict(model_type="mistral", sliding_window=5, **ROPE(rope_type="default")),
    "qwen2": dict(model_type="qwen2", use_sliding_window=False, **ROPE(rope_type="default")),
    "qwen3": dict(model_type="qwen3", head_dim=6, use_sliding_window=False, **ROPE(rope_type="default")),
}

shutil.rmtree(FOLDER, ignore_errors=True)
for i, (name, change) in enumerate(VARIANTS.items()):
    torch.manual_seed(i)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**BASE, **change}), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (1.0 if parameter.dim() == 1 else 0.0))
            parameter.copy_(parameter.half().float())
        tokens = torch.randint(0, BASE["vocab_size"], (1, 24))
        logits = model(tokens).logits[0]
    folder = FOLDER / name
    folder.mkdir(parents=True)
    tensors = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    config = {k: v for k, v in model.config.to_dict().items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({"tokens": tokens[0].to(torch.int32), "logits": logits.contiguous()}, folder / "logits.safetensors.golden")
print("transformers", transformers.__version__)
