#!/usr/bin/env python3
"""Writes crates/tersor-models/tests/golden-encoders/: small random BERT models with the hidden states that transformers computes for them
in float32.

    python3 -m pip install torch transformers safetensors
    python3 scripts/golden_encoders.py
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

FOLDER = Path(__file__).resolve().parent.parent / "crates/tersor-models/tests/golden-encoders"
BASE = dict(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, vocab_size=40, max_position_embeddings=32,
    type_vocab_size=2, layer_norm_eps=1e-6, architectures=["BertModel"],
)
VARIANTS = {"bert": ("", dict()), "bert-prefix-tanh": ("bert.", dict(hidden_act="gelu_new")), "bert-relu": ("", dict(hidden_act="relu"))}

shutil.rmtree(FOLDER, ignore_errors=True)
for i, (name, (prefix, change)) in enumerate(VARIANTS.items()):
    torch.manual_seed(i)
    model = BertModel(BertConfig(**{**BASE, **change}), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (1.0 if parameter.dim() == 1 else 0.0))
            parameter.copy_(parameter.half().float())
        tokens = torch.randint(0, BASE["vocab_size"], (1, 17))
        hidden = model(tokens).last_hidden_state[0]
    folder = FOLDER / name
    folder.mkdir(parents=True)
    tensors = {prefix + k: v.half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    save_file(tensors, folder / "model.safetensors")
    config = {k: v for k, v in model.config.to_dict().items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    golden = {"tokens": tokens[0].to(torch.int32), "hidden": hidden.contiguous(), "mean": hidden.mean(0).contiguous()}
    save_file(golden, folder / "hidden.safetensors.golden")
print("transformers", transformers.__version__)
