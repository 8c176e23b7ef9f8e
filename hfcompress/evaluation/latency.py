"""Latency of several models in one run: interleaved, with the same threads, the machine probed before and after."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

WARM_UP = 5
DRIFT = 0.15  # a machine that changed by more than this between the probes makes the figures noisy


def interleaved(
    requests: dict[str, Callable[[], object]], runs: int, back_to_back: bool = False
) -> dict[str, list[float]]:
    """Milliseconds of each call: every round calls each model once, in alternating order, so drift hits all alike.

    Args:
        back_to_back: before each timed call an untimed one of the same model, so that its weights lie in the caches as
            they do where requests come one behind the other, and not what the model before has left there. A call of
            0.1 ms takes three times as long otherwise.
    """
    for request in requests.values():
        for _ in range(WARM_UP):
            request()
    times: dict[str, list[float]] = {name: [] for name in requests}
    for round_number in range(runs):
        for name in list(requests)[:: 1 if round_number % 2 else -1]:
            if back_to_back:
                requests[name]()
            begun = time.perf_counter_ns()
            requests[name]()
            times[name].append((time.perf_counter_ns() - begun) / 1e6)
    return times


def side_by_side(
    requests: dict[str, Callable[[], object]], runs: int, back_to_back: bool = False
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """`interleaved`, and the machine before and after: before, after, noisy."""
    before = probe()
    times = interleaved(requests, runs, back_to_back)
    after = probe()
    return times, {"before": before, "after": after, "noisy": drifted(before, after)}


def percentiles(times: Iterable[float]) -> dict[str, float]:
    """p50, p95 and p99 in ms."""
    return {f"p{p}": round(float(np.percentile(list(times), p)), 3) for p in (50, 95, 99)}


def probe() -> dict[str, float]:
    """The machine now: GFLOP/s of one fp32 GEMM and GB/s of one copy, medians of several."""
    side = 768
    matrix = np.ones((side, side), dtype=np.float32)
    buffer, target = np.ones(8_000_000), np.empty(8_000_000)
    return {
        "gemm_gflops": round(2 * side**3 / median_seconds(lambda: matrix @ matrix) / 1e9, 1),
        "copy_gb_per_s": round(2 * buffer.nbytes / median_seconds(lambda: np.copyto(target, buffer)) / 1e9, 1),
    }


def median_seconds(call: Callable[[], object], runs: int = 15) -> float:
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def drifted(before: dict[str, float], after: dict[str, float]) -> bool:
    """Whether the machine changed by more than 15% between two probes."""
    return any(abs(after[name] / before[name] - 1) > DRIFT for name in before)


def default_threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe(
    times: list[float], *, batch: int, sequence_length: int | None, threads: int, runtime: str
) -> dict[str, Any]:
    """report.json's `latency_ms`."""
    return {
        **percentiles(times),
        "batch": batch,
        "sequence_length": sequence_length,
        "threads": threads,
        "runtime": runtime,
        "runs": len(times),
    }
