"""How far the native driver is from MLPerf's LoadGen, and what the harness itself costs."""

import os
import statistics
from functools import partial
from typing import Any

import numpy as np

from brain_model import ARTEFACTS, make_model
from medimg.benchmarks import native, with_loadgen
from medimg.benchmarks.benchmark import TUNING
from medimg.benchmarks.load import Load
from medimg.benchmarks.pipeline import Measurement, Pipeline
from medimg.benchmarks.queries import make_queries
from medimg.benchmarks.results import ScenarioName
from medimg.benchmarks.system import System
from medimg.benchmarks.warm_up import time_a_query, warm_up
from medimg.runtime.classifier import Classifier
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.spec import Intensity, ModelSpec
from registry import figure

ROUNDS = int(os.environ.get("MEDIMG_DRIVER_ROUNDS", "10"))
SECONDS = float(os.environ.get("MEDIMG_DRIVER_SECONDS", "10"))
"""LoadGen's own default is 60 s a scenario."""
BOOTSTRAPS = 10_000
DRIVERS = {"native": native.drive, "loadgen": with_loadgen.drive}
SCENARIOS: tuple[tuple[ScenarioName, int], ...] = (("single-stream", 1), ("multi-stream", 8), ("offline", 8))


@figure("driver-agreement")
def agreement() -> dict[str, Any]:
    """The native driver beside LoadGen, in turn: ratios of p90 and of throughput, INT8 VGG16 on arrays."""
    make_model()
    threads = usable_cpus()
    found: dict[str, Any] = {}
    for scenario, batch_size in SCENARIOS:
        with Classifier(ARTEFACTS["int8"], threads=threads, tuned_for=TUNING[scenario]) as classifier:
            pipeline = Pipeline(
                classifier.probabilities, classifier.spec, parallel=classifier.backend.parallel
            )
            samples = make_queries(classifier.spec.image).samples
            with System(pipeline, samples, threads) as system:
                found[scenario] = compare_drivers(system, scenario, batch_size, len(samples))
        print(scenario, {key: value["ratio"] for key, value in found[scenario].items()}, flush=True)
    return {"rounds": ROUNDS, "seconds_a_run": SECONDS, "target": "0.97 to 1.03", "scenarios": found}


def compare_drivers(
    system: System, scenario: ScenarioName, batch_size: int, samples: int, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Run both in turn, each first in every other round, and give native's figures over LoadGen's.

    Returns:
        For `p90` and `throughput`: both drivers' figures by round, the median of the rounds' ratios, and a
        95 % bootstrap interval of it.
    """
    load = Load(batch_size, SECONDS, samples)
    following = native.offline if scenario == "offline" else native.follow_one_another
    _, last = warm_up(partial(following, system), load, time_a_query)
    load = Load(batch_size, SECONDS, samples, expected_query_s=time_a_query(last) / 1e9)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in DRIVERS}
    for number in range(rounds):
        for name in sorted(DRIVERS, reverse=number % 2 == 1):
            figures[name].append(_figures(DRIVERS[name](scenario, system, load)))
    return {
        key: ratio_of(
            [pair[place] for pair in figures["native"]], [pair[place] for pair in figures["loadgen"]]
        )
        for place, key in enumerate(("p90_ms", "throughput_per_s"))
    }


def _figures(found: Measurement) -> tuple[float, float]:
    p90_ms = float(np.quantile(found.latencies_ns, 0.9)) / 1e6
    return p90_ms, found.images / (found.elapsed_ns / 1e9)


def ratio_of(native_figures: list[float], loadgen_figures: list[float]) -> dict[str, Any]:
    """Give the median ratio of pairs, with a percentile bootstrap interval over the pairs."""
    ratios = np.array(native_figures) / np.array(loadgen_figures)
    drawn = np.random.default_rng(0).choice(ratios, (BOOTSTRAPS, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {
        "ratio": statistics.median(ratios.tolist()),
        "ratio_ci95": [float(low), float(high)],
        "native": native_figures,
        "loadgen": loadgen_figures,
    }


@figure("self-cost")
def self_cost() -> dict[str, Any]:
    """Latency of a query of one array where the back end takes no time: the harness and all around it.

    It is an upper bound of the harness's own cost: the batch's copy and the choice of the most likely
    classes, which are the stages `preprocess` and `postprocess`, are in it.
    """
    spec = ModelSpec(("a", "b", "c"), ImageRule(224, 224), Intensity.named("caffe"))
    answer = np.full((1, 3), 1 / 3, np.float32)
    samples = make_queries(spec.image).samples
    found = {}
    for name, drive in DRIVERS.items():
        rounds_us = []
        for _ in range(5):
            with System(Pipeline(lambda _images: answer, spec), samples, 1) as system:
                load = Load(1, 2.0, len(samples), expected_query_s=1e-4)
                rounds_us.append(statistics.median(drive("single-stream", system, load).latencies_ns) / 1e3)
        found[name] = {"median_us": statistics.median(rounds_us), "rounds_us": rounds_us}
    return {"target_us": 50, "drivers": found}
