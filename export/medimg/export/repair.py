"""Repair of an INT8 model that lost too much: the most sensitive layers go back to float32."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from medimg.export.answers import answers
from medimg.export.calibration import ends, quantized_nodes
from medimg.export.ranges import HeldBack
from medimg.export.to_int8 import to_int8
from medimg.runtime.model.spec import ModelSpec, Verification

BUDGET_S = 15 * 60
BUDGET_SHARE = 0.5
"""At most this share of the layers is restored."""
RANKING_BATCHES = 4
"""Batches of held-back images that layers are ranked on."""


@dataclass(frozen=True)
class LayerEffect:
    """What quantising one layer alone does."""

    layer: str
    mean_abs_diff: float
    """Mean difference of a probability from float32 on held-back images."""
    restored: bool = False


@dataclass(frozen=True)
class Repair:
    """The outcome: the graph, its verification, and every layer's effect, the most sensitive first."""

    model: ModelProto
    verification: Verification
    effects: tuple[LayerEffect, ...]
    float_layers: tuple[str, ...]
    """All layers that run in float32: the network's ends and the restored ones."""


def rank_layers(
    network: ModelProto, spec: ModelSpec, thresholds: Mapping[str, float], judging: HeldBack, threads: int
) -> tuple[LayerEffect, ...]:
    """Quantise each layer alone and measure how far the answers move, the most sensitive first."""
    every = quantized_nodes(network)
    layers = [name for name in every if name not in ends(network)]
    batches = judging.batches[:RANKING_BATCHES]
    reference = judging.reference[: sum(map(len, batches))]
    effects = []
    for layer in layers:
        others = tuple(name for name in every if name != layer)
        found = answers(to_int8(network, thresholds, others), spec, batches, threads)
        effects.append(LayerEffect(layer, float(np.abs(found - reference).mean())))
    return tuple(sorted(effects, key=lambda effect: -effect.mean_abs_diff))


def repair(
    network: ModelProto,
    spec: ModelSpec,
    thresholds: Mapping[str, float],
    judging: HeldBack,
    *,
    judge: Callable[[ModelProto, tuple[str, ...]], Verification],
    threads: int,
    budget_s: float = BUDGET_S,
) -> Repair:
    """Restore layers to float32, one more at a time, until the verdict is no longer *failed*.

    Args:
        network: the checked float32 graph.
        spec: its spec.
        thresholds: the ranges.
        judging: images that layers are ranked on.
        judge: verifies a graph, given the layers that it keeps in float32.
        threads: processor threads.
        budget_s: seconds after which no further layer is tried.

    Returns:
        The first graph that passes, or the last one tried.
    """
    deadline = time.monotonic() + budget_s
    ranked = rank_layers(network, spec, thresholds, judging, threads)
    most = max(1, int(BUDGET_SHARE * len(ranked)))
    for count in range(1, most + 1):
        restored = (*ends(network), *(effect.layer for effect in ranked[:count]))
        model = to_int8(network, thresholds, restored)
        verification = judge(model, restored)
        if verification.verdict != "failed" or count == most or time.monotonic() > deadline:
            break
    effects = tuple(
        LayerEffect(effect.layer, effect.mean_abs_diff, place < count) for place, effect in enumerate(ranked)
    )
    return Repair(model, verification, effects, restored)
