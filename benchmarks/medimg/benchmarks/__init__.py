"""Measures exported classifiers: how long an answer takes, and how many there are in a second.

from medimg.benchmarks import BenchmarkOptions, run_benchmark

result = run_benchmark("model.int8.onnx", BenchmarkOptions(data="images/"))
print(result.runs[0].latency_ms["p99"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medimg.benchmarks.benchmark import run_benchmark
    from medimg.benchmarks.comparison import BenchmarkComparison, compare_benchmarks
    from medimg.benchmarks.options import BenchmarkOptions, SweepOptions
    from medimg.benchmarks.results import Benchmark, ColdStart, Run
    from medimg.benchmarks.sweep import run_sweep
    from medimg.benchmarks.sweep_results import Sweep

_HOMES = {
    "Benchmark": "results",
    "BenchmarkComparison": "comparison",
    "BenchmarkOptions": "options",
    "ColdStart": "results",
    "Run": "results",
    "compare_benchmarks": "comparison",
    "Sweep": "sweep_results",
    "SweepOptions": "options",
    "run_benchmark": "benchmark",
    "run_sweep": "sweep",
}

__all__ = [
    "Benchmark",
    "BenchmarkComparison",
    "BenchmarkOptions",
    "ColdStart",
    "Run",
    "Sweep",
    "SweepOptions",
    "compare_benchmarks",
    "run_benchmark",
    "run_sweep",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module attribute
    """Import a public name when it is first used, so that `--help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
