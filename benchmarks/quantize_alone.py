"""Calibration and quantisation alone, in a process of its own, by medimg or by plain tools.

`quantize_alone.py medimg|plain MODEL DATA OUT --images N --test-images N` prints its seconds, and the classes
that float32 and INT8 give the test images, as JSON. MODEL is an artefact of medimg-export, or for `plain` the
Keras file, whose images are scaled to 0…1.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet, Sample, load_batches, read_data
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.machine.cpus import usable_cpus

Batches = Iterator[NDArray[Any]]


@dataclass(frozen=True)
class Quantized:
    """Two files that the same images are given to."""

    fp32: Path
    int8: Path
    seconds: dict[str, float]
    """By step; `calibrate and quantise` is what is compared."""


class Clock:
    """Keeps how long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """Name what went on since the last call."""
        now = time.perf_counter()
        self.seconds[step] = round(now - self._last, 3)
        self._last = now


def by_medimg(model: Path, samples: tuple[Sample, ...], rule: ImageRule, out: Path) -> Quantized:
    """Equalise, take entropy ranges and quantise, as `medimg-export` does for one method."""
    import onnx

    from medimg.export import graph
    from medimg.export.calibration import collect, ends, entropy_threshold
    from medimg.export.equalize import equalize
    from medimg.export.int8 import EQUALIZING_IMAGES
    from medimg.export.to_int8 import to_int8
    from medimg.runtime.model.containers import open_onnx

    clock = Clock()
    network = graph.check(onnx.load_from_string(open_onnx(model).content))
    clock.lap("read")
    first = load_batches(samples[:EQUALIZING_IMAGES], rule, 1, usable_cpus())
    network = equalize(network, first, usable_cpus())
    histograms = collect(network, load_batches(samples, rule, 1, usable_cpus()), usable_cpus())
    ranges = {name: entropy_threshold(found) for name, found in histograms.items()}
    quantized = to_int8(network, ranges, ends(network))
    onnx.save(quantized, out)
    clock.lap("calibrate and quantise")
    return Quantized(model, out, clock.seconds)


def by_plain_tools(model: Path, samples: tuple[Sample, ...], rule: ImageRule, out: Path) -> Quantized:
    """Convert with tf2onnx, prepare and quantise with ONNX Runtime: entropy, Q/DQ, per channel."""
    import keras
    import tensorflow as tf
    import tf2onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    clock = Clock()
    network = keras.models.load_model(model, compile=False)
    clock.lap("load")
    fp32, prepared = out.with_suffix(".fp32.onnx"), out.with_suffix(".prepared.onnx")
    signature = [tf.TensorSpec((None, rule.rows, rule.columns, 3), tf.float32, "image")]
    traced = tf.function(lambda images: network(images, training=False), input_signature=signature)
    tf2onnx.convert.from_function(traced, signature, opset=17, output_path=str(fp32))
    clock.lap("convert")
    quant_pre_process(str(fp32), str(prepared))
    clock.lap("prepare")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # no types
        def __init__(self) -> None:
            self._batches = load_batches(samples, rule, 1, usable_cpus())

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"image": scaled(batch)}

    quantization.quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        calibrate_method=quantization.CalibrationMethod.Entropy,
    )
    clock.lap("calibrate and quantise")
    return Quantized(fp32, out, clock.seconds)


def scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale to 0…1, as the brain-MRI model was trained."""
    return images.astype(np.float32) / np.float32(255)


def classes(model: Path, batches: Batches) -> list[int]:
    """Run a file with ONNX Runtime; a graph that takes float images gets them scaled."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    session = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    as_input: Callable[[Any], Any] = scaled if image.type == "tensor(float)" else np.asarray
    answers = [session.run(None, {image.name: as_input(batch)})[0] for batch in batches]
    found: list[int] = np.concatenate(answers).argmax(axis=1).tolist()
    return found


def drawn(data: DataSet, count: int) -> tuple[Sample, ...]:
    """Draw images evenly with a fixed seed; the same for both ways."""
    order = np.random.default_rng(0).permutation(len(data))[:count]
    return tuple(data.samples[place] for place in sorted(order))


def main() -> None:
    """Quantise, then compare with float32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=("medimg", "plain"))
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--size", type=int, default=240, help="rows and columns")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--test-images", type=int, required=True)
    given = parser.parse_args()
    data, rule = read_data(given.data), ImageRule(given.size, given.size)
    way = by_medimg if given.way == "medimg" else by_plain_tools
    found = way(given.model, drawn(data.part("train"), given.images), rule, given.out)
    test = drawn(data.part("test"), given.test_images)
    answers = {
        name: classes(path, load_batches(test, rule, 1, usable_cpus()))
        for name, path in (("fp32", found.fp32), ("int8", found.int8))
    }
    print(json.dumps({"seconds": found.seconds, **answers}))


if __name__ == "__main__":
    main()
