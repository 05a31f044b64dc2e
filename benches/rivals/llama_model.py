"""Times a GGUF file in llama.cpp (the package llama-cpp-python): tokens per second of a prompt of 512 tokens (logits of the last one only) and of 128
tokens decoded from an empty context. Answers each line `go` on its input with a line of JSON, so that another script can alternate it with others.

    llama_model.py MODEL.gguf TYPE OUT.gguf     requantizes all matrices to TYPE (q4_0, q8_0, ...) first, if OUT is not there
"""

import ctypes
import json
import os
import statistics
import sys
import time

import llama_cpp as ll

THREADS = int(os.environ.get("THREADS", "2"))


@ll.llama_log_callback
def quiet(level, text, data):
    pass


def requantize(source, name, out):
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, "LLAMA_FTYPE_MOSTLY_" + name.upper())
    params.allow_requantize = True
    params.nthread = THREADS
    if ll.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)) != 0:
        sys.exit("llama.cpp could not quantize " + source)


def main():
    source, name, out = sys.argv[1:4]
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    if not os.path.exists(out):
        requantize(source, name, out)
    model = ll.llama_model_load_from_file(out.encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx = 1024
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = THREADS
    context = ll.llama_init_from_model(model, params)
    vocab = ll.llama_model_n_vocab(model) if hasattr(ll, "llama_model_n_vocab") else 49152
    memory = ll.llama_get_memory(context)

    def run(tokens, first):
        """Appends tokens and returns the logits of the last one."""
        batch = ll.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = first + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i + 1 == len(tokens)
        if ll.llama_decode(context, batch) != 0:
            sys.exit("llama.cpp could not decode")
        # Waits for the result.
        ll.llama_get_logits(context)[0]
        ll.llama_batch_free(batch)

    def timed(work):
        ll.llama_memory_clear(memory, True)
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    prompt = [(i * 7919) % (vocab - 10) + 5 for i in range(512)]

    def decode():
        for i in range(128):
            run([prompt[i]], i)

    timed(lambda: run(prompt, 0))
    for line in sys.stdin:
        if line.strip() != "go":
            break
        prefill = statistics.median(timed(lambda: run(prompt, 0)) for _ in range(3))
        decoded = statistics.median(timed(decode) for _ in range(3))
        found = {"prefill": 512 / prefill, "decode": 128 / decoded, "bytes": os.path.getsize(out)}
        print(json.dumps(found), flush=True)


main()
