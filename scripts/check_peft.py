#!/usr/bin/env python3
"""Loads the output of `tersor convert --to peft` in PEFT.

Compresses a model with a low-rank correction, writes base and adapter, loads both (pip install peft transformers), and compares their logits with
those of the whole corrected network.

    python3 scripts/check_peft.py [MODEL]
"""
import json, pathlib, subprocess, sys, tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
TERSOR = ROOT / "target/release/tersor"


def tersor(*args):
    return json.loads(subprocess.run([TERSOR, *map(str, args), "--json"], check=True, capture_output=True).stdout)


def logits(model):
    torch.manual_seed(0)
    return model(torch.randint(0, 2000, (2, 64))).logits.detach()


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else ROOT / "examples/models/tiny-wiki"
    failed = False
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        for recipe in ["w3-g32-rtn-lqer-r16", "w4-l2qer", "w3-g64-gptq-l2qer-r8"]:
            out, whole, apart = tmp / recipe, tmp / f"{recipe}-whole", tmp / f"{recipe}-peft"
            tersor("compress", model, "--recipe", recipe, "--out", out, "--calib", ROOT / "examples/data/wiki-calib.txt", "--calib-windows", 8)
            tersor("convert", out, "--to", "f32", "--out", whole)
            made = tersor("convert", out, "--to", "peft", "--out", apart)
            want = logits(AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32))
            base = AutoModelForCausalLM.from_pretrained(apart / "base", dtype=torch.float32)
            alone = logits(base)
            found = logits(PeftModel.from_pretrained(base, apart))
            far = lambda a: ((a - want).norm() / want.norm()).item()
            good = far(found) < 1e-5 < far(alone)
            failed |= not good
            print(f"{recipe:24} {made['modules']} modules: {far(found):.1e} from the whole, {far(alone):.1e} without the adapter{'' if good else '  WRONG'}")
    sys.exit(failed)


main()
