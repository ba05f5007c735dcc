"""Activation ranges from images, streamed: feed, histogram, forget.

Memory does not grow with the number of images: each tensor keeps one histogram, whose range doubles when a
larger value comes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from medimg.export.errors import CalibrationError
from medimg.export.graph import INPUT, is_float_node
from medimg.runtime.optional import require
from medimg.runtime.tasks.probabilities import NO_NUMBER

BINS = 2048
LEVELS = 128
"""Magnitudes that symmetric int8 tells apart."""
QUANTIZED_OPS = ("Conv", "Gemm", "MatMul")


@dataclass
class Histogram:
    """Counts of one tensor's magnitudes, over `[0, limit)`."""

    limit: float = 0.0
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    largest: float = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count a batch of values of any shape."""
        magnitudes = np.abs(values).reshape(-1)
        largest = float(magnitudes.max())
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            # A power of two, so that the outcome does not depend on which image comes first.
            self.limit = 2.0 ** np.ceil(np.log2(max(largest, 2.0**-20)))
        while largest >= self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
            self.limit *= 2
        counted = cv2.calcHist([magnitudes], [0], None, [BINS], [0.0, self.limit])
        self.counts += counted.reshape(-1)


def quantized_nodes(model: ModelProto) -> tuple[str, ...]:
    """Name the nodes that run in int8: every Conv, Gemm and MatMul of the network, in graph order."""
    return tuple(
        node.name for node in model.graph.node if node.op_type in QUANTIZED_OPS and not is_float_node(node)
    )


def ends(model: ModelProto) -> tuple[str, ...]:
    """Name the layers that stay in float32 in INT8: the last, which gives the logits, and the first.

    They are a hundredth of the arithmetic and, on the fine-tuned VGG16, most of the error. A network of up
    to three layers keeps only its last, so that something is left to quantise.
    """
    layers = quantized_nodes(model)
    return (layers[0], layers[-1]) if len(layers) > 3 else layers[1:][-1:]


def quantized_inputs(model: ModelProto) -> tuple[str, ...]:
    """Name the activations that Q/DQ pairs go on: inputs of Conv, Gemm and MatMul, in graph order."""
    constants = {initializer.name for initializer in model.graph.initializer}
    names = [
        name
        for node in model.graph.node
        if node.op_type in QUANTIZED_OPS and not is_float_node(node)
        for name in node.input[:2]
        if name not in constants
    ]
    return tuple(dict.fromkeys(names))


def collect(
    model: ModelProto, batches: Iterable[NDArray[Any]], threads: int, names: Sequence[str] = ()
) -> dict[str, Histogram]:
    """Run the model on images and count its activations.

    Args:
        model: a checked float32 graph, with every shape inferred.
        batches: arrays for the input `image`, one at a time.
        threads: processor threads.
        names: what the images are called.

    Returns:
        A histogram for each tensor that `quantized_inputs` names.

    Raises:
        CalibrationError: an image gives no number.
    """
    histograms = {name: Histogram() for name in quantized_inputs(model)}
    for activations in numbers_only(watch(model, tuple(histograms), batches, threads), names):
        for name, values in activations.items():
            histograms[name].add(values)
    return histograms


def watch(
    model: ModelProto, names: tuple[str, ...], batches: Iterable[NDArray[Any]], threads: int
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Run the model and give its inner tensors by name, a dictionary a batch."""
    if not names:
        return
    onnxruntime = require("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    watched = _with_outputs(model, names).SerializeToString()
    session = onnxruntime.InferenceSession(watched, options, ["CPUExecutionProvider"])
    for batch in batches:
        yield dict(zip(names, session.run(list(names), {INPUT: batch}), strict=True))


def numbers_only(
    activations: Iterable[dict[str, NDArray[np.float32]]], names: Sequence[str]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Pass on what `watch` gives of images one at a time.

    Args:
        activations: a dictionary an image.
        names: what the images are called.

    Raises:
        CalibrationError: names the first image that gives no number somewhere.
    """
    for place, values in enumerate(activations):
        if not all(np.isfinite(array).all() for array in values.values()):
            name = names[place] if names else f"image {place + 1}"
            raise CalibrationError(no_number(name))
        yield values


def no_number(name: str) -> str:
    """Say of a calibration image that it gives no ranges."""
    return f"{name}: {NO_NUMBER}: take it out of the calibration images"


def entropy_threshold(histogram: Histogram) -> float:
    """Choose the clipping magnitude whose 128-level version loses the least information.

    For each candidate the values beyond it are put into the last bin (P), P is reduced to 128 levels and
    spread back over its non-empty bins (Q), and the candidate with the least Kullback-Leibler divergence
    from Q to P is kept. Candidates are every 16th bin.

    Source:
        S. Migacz, 8-bit Inference with TensorRT, GPU Technology Conference 2017.
    """
    counts = histogram.counts.copy()
    # Exact zeros, half of what a ReLU gives, cost nothing in any version and would drown the rest.
    counts[0] = counts[1]
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else LEVELS
    candidates = range(LEVELS, max(last, LEVELS) + 1, 16)
    divergences = [_divergence(counts, bins) for bins in candidates]
    best = candidates[int(np.argmin(divergences))]
    return min(best / BINS * histogram.limit, histogram.largest)


def percentile_threshold(histogram: Histogram, share: float = 0.9999) -> float:
    """Choose the magnitude that all but one in ten thousand values stay below."""
    reached = np.searchsorted(histogram.counts.cumsum(), share * histogram.counts.sum())
    return min((int(reached) + 1) / BINS * histogram.limit, histogram.largest)


def squared_error_threshold(histogram: Histogram) -> float:
    """Choose the magnitude that makes the squared error of clipping and rounding least.

    A value below the threshold t is rounded to a step of t / 127, whose squared error is step² / 12 on
    average; one above it loses what is clipped.
    """
    centres = (np.arange(BINS) + 0.5) / BINS * histogram.limit
    counts = histogram.counts
    moments = [(counts * centres**power)[::-1].cumsum()[::-1] for power in range(3)]
    edges = np.arange(1, BINS) / BINS * histogram.limit
    above, first, second = (moment[1:] for moment in moments)
    clipped = second - 2 * edges * first + edges**2 * above
    # Exact zeros, in the first bin, cost nothing.
    rounded = (counts[1:].sum() - above) * (edges / 127) ** 2 / 12
    return min(float(edges[int(np.argmin(clipped + rounded))]), histogram.largest)


def largest_magnitude(histogram: Histogram) -> float:
    """Clip nothing."""
    return histogram.largest


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    kept = counts[:bins]
    clipped = kept.copy()
    clipped[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    filled = kept > 0
    totals = np.bincount(level, weights=kept, minlength=LEVELS)
    sizes = np.bincount(level, weights=filled, minlength=LEVELS)
    spread = np.where(filled, (totals / np.maximum(sizes, 1))[level], 0.0)
    if not clipped.sum() or not spread.sum():
        return np.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))


def _with_outputs(model: ModelProto, names: tuple[str, ...]) -> ModelProto:
    """Copy a model so that it also gives some inner tensors."""
    copy = ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    types = {value.name: value for value in (*copy.graph.value_info, *copy.graph.input)}
    for name in names:
        if name not in present:
            copy.graph.output.append(types.get(name) or ValueInfoProto(name=name))
    return copy
