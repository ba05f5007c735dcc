"""Calls one after another for a while, timed; every one is in the figures."""

import json
import statistics
import time
from collections.abc import Callable

WARM_UP_CALLS = 5


def print_timed(call: Callable[[int], object], batch_size: int, seconds: float) -> None:
    """Call with a running number, and print the median latency and the throughput as JSON."""
    for number in range(WARM_UP_CALLS):
        call(number)
    latencies_ms: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call(len(latencies_ms))
        latencies_ms.append(1e3 * (time.perf_counter() - start))
    elapsed_s = time.perf_counter() - begin
    figures = {
        "p50_ms": statistics.median(latencies_ms),
        "throughput_per_s": len(latencies_ms) * batch_size / elapsed_s,
        "calls": len(latencies_ms),
    }
    print(json.dumps(figures))
