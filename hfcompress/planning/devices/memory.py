"""What a causal LM takes on a device: memory, ms a token and ms to the first one, from its shape and four numbers.

Making a token reads every weight and the key-value cache once and computes little: its time is bytes / bandwidth, and
behind a long text some arithmetic, where the cache is of integers that become floats one by one. A prompt reads them
once for many tokens and computes much: its time is operations / rate.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.errors import OptionError
from hfcompress.formats.runtimes.onnx_decoder import CHUNK

HERE = "here"
# Resident memory beside the model: CPython 3.11 with numpy, and onnxruntime with what a session of a 7B's graph keeps
# beside its weights: 96 MB together (benchmarks/shape_7b.py), and some for what varies from run to run.
INTERPRETER_BYTES = 29e6
RUNTIME_BYTES = 80e6
PLAIN_BYTES = 4  # norms and biases are float32 in every runtime
READ_BYTES = 256_000_000  # a buffer larger than a last-level cache
GEMM_SIZE = 1024
# onnxruntime beside a plain sum and BLAS, on a 7B's shape (benchmarks/shape_7b.py): decoding reads its packed matrices
# as fast as the sum does, a prompt's products reach about half as much again as float32 ones.
HERE_SUSTAINED = 1.0
HERE_PROMPT = 1.5
# Attention of one token over an int8 cache, as a share of that rate: fitted to a 7B's shape, where 1.04 GFLOP behind
# 1,984 tokens took 16 to 24 ms beyond the bytes and products reached about 300 GFLOP/s.
ATTENTION_SHARE = 0.2
ROUNDS = 5


@dataclass(frozen=True)
class Device:
    """A device as four numbers, each with the address of what it rests on.

    `estimated` names the numbers that no source states: they are derived, or guessed from a like device.
    """

    name: str
    memory_bandwidth: float
    """Peak of the memory, GB/s."""
    usable_memory: float
    """What one application may keep resident, GB."""
    sustained: float
    """Share of the peak bandwidth that decoding reaches."""
    compute: float
    """What a prompt's matrix products reach on the CPU, GFLOP/s (or int8 GOP/s: what the runtime computes in)."""
    sources: dict[str, str]
    estimated: tuple[str, ...] = ()


NUMBERS = ("memory_bandwidth", "usable_memory", "sustained", "compute")
PHONE_STUDY = "https://arxiv.org/abs/2410.03613"  # llama.cpp, Llama-2-7B in 4 bits, on Snapdragon phones
IPHONE_STUDY = "https://arxiv.org/abs/2505.06461"  # llama.cpp, 1.24B in F16 on an iPhone 15 Pro's CPU: 17 tokens/s
# An iOS application's share of 8 GB: 6 of 8 GB with an entitlement, 3 of 8 GB measured since 26.4. The lower counts.
IOS_MEMORY = "https://developer.apple.com/forums/thread/826325"

DEVICES = (
    Device(
        # LPDDR5X at 4800 MHz, two transfers a clock, 64 bits wide: 76.8 GB/s. Half of 8 GB is left to an application.
        "snapdragon-8-gen-3", 76.8, 4.0, 0.55, 500,
        {
            "memory_bandwidth": "https://www.qualcomm.com/products/mobile/snapdragon/smartphones/"
            "snapdragon-8-series-mobile-platforms/snapdragon-8-gen-3-mobile-platform",
            "usable_memory": "https://signalweekly.org/articles/article-2",
            "sustained": PHONE_STUDY,
            "compute": PHONE_STUDY,
        },
        estimated=("sustained", "compute"),
    ),
    Device(
        # LPDDR5X at 5300 MHz: 84.8 GB/s. Phones with it have at least 12 GB.
        "snapdragon-8-elite", 84.8, 6.0, 0.55, 800,
        {
            "memory_bandwidth": "https://geektopia.es/es/technology/2024/10/22/noticias/amp/"
            "qualcomm-anuncia-el-snapdragon-8-elite-para-moviles-de-gama-alta.html",
            "usable_memory": "https://www.qualcomm.com/products/mobile/snapdragon/smartphones/"
            "snapdragon-8-series-mobile-platforms/snapdragon-8-elite-mobile-platform",
            "sustained": PHONE_STUDY,
            "compute": PHONE_STUDY,
        },
        estimated=("usable_memory", "sustained", "compute"),
    ),
    Device(
        # LPDDR5-6400, 64 bits wide. 17 tokens/s of 2.48 GB are 42 GB/s: 0.82 of the peak.
        "apple-a17-pro", 51.2, 3.0, 0.82, 400,
        {
            "memory_bandwidth": "https://en.wikipedia.org/wiki/Apple_A17",
            "usable_memory": IOS_MEMORY,
            "sustained": IPHONE_STUDY,
            "compute": IPHONE_STUDY,
        },
        estimated=("usable_memory", "compute"),
    ),
    Device(
        # LPDDR5X-7500, 64 bits wide: Apple's "17 percent more memory bandwidth".
        "apple-a18", 60.0, 3.0, 0.82, 450,
        {
            "memory_bandwidth": "https://en.wikipedia.org/wiki/Apple_A18",
            "usable_memory": IOS_MEMORY,
            "sustained": IPHONE_STUDY,
            "compute": IPHONE_STUDY,
        },
        estimated=("usable_memory", "sustained", "compute"),
    ),
    Device(
        # LPDDR4X-4267, 32 bits wide: 17.1 GB/s. TinyLlama in q8_0: 9 tokens/s of 1.17 GB are 10.5 GB/s, 0.62 of it.
        # Llama-2-7B in Q4_0 reads 8.1 tokens a second of a prompt: 2 * 6.74e9 * 8.1 = 109 GOP/s. Of 8 GB, 1 to the OS.
        "raspberry-pi-5", 17.1, 7.0, 0.62, 109,
        {
            "memory_bandwidth": "https://www.raspberrypi.com/products/raspberry-pi-5/",
            "usable_memory": "https://www.raspberrypi.com/products/raspberry-pi-5/",
            "sustained": "https://justine.lol/matmul/",
            "compute": "https://github.com/ggml-org/llama.cpp/pull/6928",
        },
        estimated=("usable_memory",),
    ),
)  # fmt: skip


def device(name: str, threads: int = 2) -> Device:
    """A device by name; "here" is this machine, measured now.

    Raises:
        UserError: no such device.
    """
    if known_device(name) == HERE:
        return measured_here(threads)
    return next(known for known in DEVICES if known.name == name)


def known_device(name: str) -> str:
    """The name, when it is one of a device.

    Raises:
        UserError: no such device.
    """
    names = [HERE, *(known.name for known in DEVICES)]
    if name not in names:
        raise OptionError(".device", "choose from {known}", name, known=", ".join(names))
    return name


def kv_cache_bytes(shape: LanguageShape, tokens: int) -> float:
    """Keys and values of so many tokens, no more than the sliding window keeps."""
    kept = min(tokens, shape.sliding_window or tokens)
    return shape.layers * 2 * shape.kv_heads * shape.head_dim * kept * shape.kv_bits / 8


def resident_bytes(shape: LanguageShape, context: int, *, interpreter: bool = True) -> dict[str, float]:
    """Where each byte goes at a context length; their sum is the resident memory.

    The activations are those of a prompt's batch in float32: the residual and its normed copy, the MLP's two halves,
    queries, keys and values, and every token's logits.

    Args:
        context: tokens, prompt and answer together.
        interpreter: whether the model is served from Python.
    """
    batch = min(CHUNK, context)
    attention = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return {
        "weights": shape.layer_parameters * shape.memory_bits / 8
        + head_bytes(shape)
        + shape.plain_parameters * PLAIN_BYTES,
        "embedding": shape.embedding_parameters * embedding_bits(shape) / 8,
        "kv_cache": kv_cache_bytes(shape, context),
        "activations": 4.0 * batch * (2 * shape.hidden + 2 * shape.intermediate + attention + shape.vocab),
        "runtime": RUNTIME_BYTES,
        "interpreter": INTERPRETER_BYTES if interpreter else 0.0,
    }


def embedding_bits(shape: LanguageShape) -> float:
    return shape.weight_bits if shape.embedding_bits is None else shape.embedding_bits


def head_bytes(shape: LanguageShape) -> float:
    """The head's own bytes in memory: none where it is the embedding, unless the runtime repacks it."""
    if shape.tied and shape.resident_bits is None:
        return 0.0
    return shape.embedding_parameters * shape.memory_bits / 8


def matrices_allowed(shape: LanguageShape, context: int, resident: float) -> float:
    """Bytes that matrices and embedding may take of `resident` ones, served from Python."""
    found = resident_bytes(shape, context)
    matrices = found["weights"] - shape.plain_parameters * PLAIN_BYTES + found["embedding"]
    return resident - (sum(found.values()) - matrices)


def token_bytes(shape: LanguageShape, context: int) -> float:
    """What making one token reads: every matrix but the embedding, of which a row is looked up, and the cache.

    A tied head is the embedding, and is read whole.
    """
    head = head_bytes(shape) or shape.embedding_parameters * embedding_bits(shape) / 8
    layers = shape.layer_parameters * shape.memory_bits / 8
    return layers + head + shape.plain_parameters * PLAIN_BYTES + kv_cache_bytes(shape, context)


def decode_ms(shape: LanguageShape, on: Device, context: int) -> float:
    """Milliseconds of a token after `context` others."""
    reading = token_bytes(shape, context) / (on.memory_bandwidth * 1e9 * on.sustained)
    if shape.kv_bits > 8:
        return 1e3 * reading
    return 1e3 * (reading + attention_operations(shape, context) / (on.compute * 1e9 * ATTENTION_SHARE))


def attention_operations(shape: LanguageShape, context: int) -> float:
    """Multiplications and additions of one token's queries with the keys, and of its weights with the values."""
    return 4.0 * shape.layers * shape.heads * shape.head_dim * min(context, shape.sliding_window or context)


def prompt_operations(shape: LanguageShape, tokens: int) -> float:
    """Multiplications and additions of a prompt: the matrices of the layers, attention, and one token's head."""
    matrices = 2.0 * (shape.layer_parameters * tokens + shape.embedding_parameters)
    seen = shape.sliding_window or tokens
    pairs = sum_of_pairs(tokens, seen)
    return matrices + 4.0 * shape.layers * shape.heads * shape.head_dim * pairs


def sum_of_pairs(tokens: int, window: int) -> float:
    """Pairs of a token and one that it attends to, itself included."""
    if tokens <= window:
        return tokens * (tokens + 1) / 2
    return window * (window + 1) / 2 + (tokens - window) * window


def first_token_ms(shape: LanguageShape, on: Device, prompt: int) -> float:
    """Milliseconds until a prompt's first answer token: at the device's rate, the weights read once at least."""
    return max(1e3 * prompt_operations(shape, prompt) / (on.compute * 1e9), decode_ms(shape, on, prompt))


def fits(shape: LanguageShape, on: Device, context: int) -> bool:
    """Whether the model may stay resident, served without Python."""
    return sum(resident_bytes(shape, context, interpreter=False).values()) <= on.usable_memory * 1e9


def measured_here(threads: int) -> Device:
    """This machine: the best of some rounds of reading a large buffer, and of float32 matrix products."""
    import psutil

    how = "measured by hfcompress.planning.devices.memory.measured_here"
    return Device(
        HERE,
        memory_bandwidth=read_bandwidth(threads),
        usable_memory=psutil.virtual_memory().available / 1e9,
        sustained=HERE_SUSTAINED,
        compute=HERE_PROMPT * gemm_rate(threads),
        sources=dict.fromkeys(NUMBERS, how),
    )


def read_bandwidth(threads: int) -> float:
    """GB/s of summing a buffer of READ_BYTES a thread, all threads at once."""
    buffers = [np.ones(READ_BYTES // 8, np.int64) for _ in range(threads)]
    seconds = best_of(threads, lambda i: buffers[i].sum())
    return threads * READ_BYTES / seconds / 1e9


def gemm_rate(threads: int) -> float:
    """GFLOP/s of square float32 products, one in each thread."""
    from threadpoolctl import threadpool_limits

    matrices = [np.ones((GEMM_SIZE, GEMM_SIZE), np.float32) for _ in range(threads)]
    with threadpool_limits(1):
        seconds = best_of(threads, lambda i: matrices[i] @ matrices[i])
    return threads * 2 * GEMM_SIZE**3 / seconds / 1e9


def best_of(threads: int, work: Any) -> float:
    """Seconds of the fastest of ROUNDS rounds in which every thread i calls work(i)."""
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS + 1):  # the first one starts the threads and touches the memory
            begun = time.perf_counter()
            list(pool.map(work, range(threads)))
            times.append(time.perf_counter() - begun)
    return min(times[1:])
