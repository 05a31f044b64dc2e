"""Times products of ggml, the library of llama.cpp, called directly in the shared libraries of the package llama-cpp-python.

Each line `FORM ROWS COLS TOKENS` on the input is answered with the median time in seconds of `ggml_mul_mat` of f32 activations with weights as
FORM: `q4_0`, `q4_K`, `q8_0`, `f32`, or one of them with `+` for the layout into which ggml repacks it for this processor (NaN where it
has none). Weights rotate through more memory than the processor's caches hold. The environment variable THREADS sets the number of threads, each of
which is pinned to a processor.
"""

import ctypes
import os
import statistics
import sys
import time
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_void_p

import llama_cpp
import numpy as np

THREADS = int(os.environ.get("THREADS", "2"))
BEYOND = 128 << 20
TYPES = {"f32": 0, "q4_0": 2, "q8_0": 8, "q4_K": 12}
# With another type on x86, the library aborts the process.
REPACKS = {"q4_0", "q4_K"}
KNOWN = {}

LIBRARIES = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
base, cpu, ggml = (
    ctypes.CDLL(os.path.join(LIBRARIES, f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
    for name in ("ggml-base", "ggml-cpu", "ggml")
)


class InitParams(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("buffer", c_void_p), ("no_alloc", c_bool)]


class ThreadpoolParams(ctypes.Structure):
    _fields_ = [("cpumask", c_bool * 512), ("n_threads", c_int), ("prio", c_int), ("poll", c_uint32), ("strict", c_bool), ("paused", c_bool)]


def function(library, name, result, *arguments):
    f = getattr(library, name)
    f.restype, f.argtypes = result, list(arguments)
    return f


init = function(base, "ggml_init", c_void_p, InitParams)
new_tensor = function(base, "ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
mul_mat = function(base, "ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
new_graph = function(base, "ggml_new_graph", c_void_p, c_void_p)
expand = function(base, "ggml_build_forward_expand", None, c_void_p, c_void_p)
free = function(base, "ggml_free", None, c_void_p)
row_size = function(base, "ggml_row_size", c_size_t, c_int, c_int64)
quantize = function(base, "ggml_quantize_chunk", c_size_t, c_int, POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, c_void_p)
allocate = function(base, "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
release = function(base, "ggml_backend_buffer_free", None, c_void_p)
set_tensor = function(base, "ggml_backend_tensor_set", None, c_void_p, c_void_p, c_size_t, c_size_t)
compute = function(base, "ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
buffer_name = function(base, "ggml_backend_buft_name", c_char_p, c_void_p)
reg_device = function(base, "ggml_backend_reg_dev_get", c_void_p, c_void_p, c_size_t)
reg_address = function(base, "ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)
cpu_reg = function(cpu, "ggml_backend_cpu_reg", c_void_p)
cpu_init = function(cpu, "ggml_backend_cpu_init", c_void_p)
cpu_threads = function(cpu, "ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)
cpu_pool = function(cpu, "ggml_backend_cpu_set_threadpool", None, c_void_p, c_void_p)
pool_new = function(cpu, "ggml_threadpool_new", c_void_p, POINTER(ThreadpoolParams))
plain_buffer = function(base, "ggml_backend_cpu_buffer_type", c_void_p)


def repacked_buffer():
    """The buffer type whose tensors are repacked, if this build has one."""
    address = reg_address(cpu_reg(), b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return None
    extra = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(reg_device(cpu_reg(), 0))
    for i in range(8):
        if not extra or not extra[i]:
            return None
        if buffer_name(extra[i]) == b"CPU_REPACK":
            return extra[i]
    return None


def backend():
    made = cpu_init()
    cpu_threads(made, THREADS)
    params = ThreadpoolParams(n_threads=THREADS, poll=50, strict=True)
    for i, core in enumerate(sorted(os.sched_getaffinity(0))[:THREADS]):
        params.cpumask[core] = True
    cpu_pool(made, pool_new(ctypes.byref(params)))
    return made


BACKEND, REPACKED = backend(), repacked_buffer()


def median(form, rows, cols, tokens):
    name, repack = form.rstrip("+"), form.endswith("+")
    if repack and (REPACKED is None or name not in REPACKS):
        return float("nan")
    kind = TYPES[name]
    size = row_size(kind, cols) * rows
    copies = BEYOND // size + 2
    if (kind, rows, cols) not in KNOWN:
        w = (np.arange(rows * cols, dtype=np.int64) * 7919 % 2001).astype(np.float32) / 1000 - 1
        KNOWN[kind, rows, cols] = w
        if kind != 0:
            KNOWN[kind, rows, cols] = np.zeros(size, np.uint8)
            to = KNOWN[kind, rows, cols].ctypes.data
            quantize(kind, w.ctypes.data_as(POINTER(c_float)), to, 0, rows, cols, None)
    data = KNOWN[kind, rows, cols]
    weights = init(InitParams(1 << 20, None, True))
    tensors = [new_tensor(weights, kind, cols, rows) for _ in range(copies)]
    held = allocate(weights, REPACKED if repack else plain_buffer())
    for t in tensors:
        set_tensor(t, data.ctypes.data, 0, size)
    work = init(InitParams(16 << 20, None, True))
    x = new_tensor(work, 0, cols, tokens)
    graphs = []
    for t in tensors:
        graph = new_graph(work)
        expand(graph, mul_mat(work, t, x))
        graphs.append(graph)
    also = allocate(work, plain_buffer())
    values = (np.arange(tokens * cols, dtype=np.int64) * 7919 % 2001).astype(np.float32) / 1000 - 1
    set_tensor(x, values.ctypes.data, 0, values.nbytes)

    def once(i):
        start = time.perf_counter()
        compute(BACKEND, graphs[i % copies])
        return time.perf_counter() - start

    once(0)
    reps = min(max(int(0.3 / once(1)), 5), 300)
    found = statistics.median(once(i + 2) for i in range(reps))
    for buffer in (held, also):
        release(buffer)
    for context in (weights, work):
        free(context)
    return found


for line in sys.stdin:
    form, *shape = line.split()
    print(median(form, *map(int, shape)), flush=True)
