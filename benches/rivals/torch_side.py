"""Times block-wise quantization and optimizer steps of bitsandbytes and torch on the CPU, for 64 M values. Answers each line on its input, `quantize MAP
BLOCK`, `dequantize MAP BLOCK`, `step adamw 8` (bitsandbytes) or `step adamw 32` (torch's fused AdamW), with the median time in seconds."""

import os
import statistics
import sys
import time

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch

N = 64 << 20
torch.set_num_threads(int(os.environ.get("THREADS", "2")))


def timed(work, most=5):
    work()
    times = []
    for _ in range(most):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    torch.manual_seed(7)
    x = torch.randn(N)
    for line in sys.stdin:
        what, name, number = line.split()
        if what == "step":
            p = torch.nn.Parameter(torch.randn(N))
            p.grad = x
            if number == "8":
                optimizer = bnb.optim.AdamW8bit([p], lr=1e-3)
            else:
                optimizer = torch.optim.AdamW([p], lr=1e-3, fused=True)
            print(timed(optimizer.step, 3), flush=True)
            continue
        four = name in ("nf4", "fp4")
        if four:
            codes, state = F.quantize_4bit(x, blocksize=int(number), quant_type=name)
            back = lambda: F.dequantize_4bit(codes, state)
            there = lambda: F.quantize_4bit(x, blocksize=int(number), quant_type=name)
        else:
            codes, state = F.quantize_blockwise(x, blocksize=int(number))
            back = lambda: F.dequantize_blockwise(codes, state)
            there = lambda: F.quantize_blockwise(x, blocksize=int(number))
        print(timed(there if what == "quantize" else back, 3), flush=True)


main()
