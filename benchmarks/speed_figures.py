"""How fast the runtime is: beside OpenVINO alone, the ideal of this machine, and the usual loop."""

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from brain_model import ARTEFACTS, MODEL, make_model
from commands import BIN, run_script
from medimg.runtime.backends import Tuning
from medimg.runtime.classifier import Classifier, Input
from medimg.runtime.images.load import load_image
from medimg.runtime.images.rule import ImageRule, JpegRule
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.statistics.metrics import paired_drop_ci95
from memory import run_measured
from registry import SCRATCH, figure
from speed_images import many_paths, real_pictures, write_enlarged_set, write_pictures

ROUNDS = 5
"""Both sides of a ratio are measured so often, in turn, and their medians compared."""
SECONDS = 10.0
INT8 = ARTEFACTS["int8"]
FP32 = ARTEFACTS["fp32"]
JPEG_RULES: tuple[JpegRule, ...] = get_args(JpegRule)


@figure("speed-arrays")
def arrays() -> dict[str, Any]:
    """INT8 VGG16 on arrays in memory, beside OpenVINO's own benchmark_app on the same file."""
    make_model()
    throughput = _compared(
        lambda: _own_throughput(INT8),
        lambda: _benchmark_app("-hint", "none", "-nstreams", "2", "-nireq", "4")["throughput"],
    )
    latency = _compared(
        lambda: _own_latency_ms(INT8), lambda: _benchmark_app("-hint", "latency", "-api", "sync")["median"]
    )
    return {
        "throughput_per_s": {**throughput, "target": 0.98},
        "latency_ms": {**latency, "target": 1.05},
        "pipeline_without_inference": _pipeline_alone(),
    }


@figure("speed-files")
def files() -> dict[str, Any]:
    """INT8 VGG16 from image files, beside what decoding and inference alone take of the processors."""
    return _from_files("jpeg-512", "png-1024", "dicom-512-16-bit")


@figure("speed-large-files")
def large_files() -> dict[str, Any]:
    """The same where decoding takes longer than inference."""
    return _from_files("png-4096")


def _from_files(*kinds: str) -> dict[str, Any]:
    make_model()
    found = {}
    for kind in kinds:
        paths = write_pictures(kind, SCRATCH / "files")
        found[kind] = _share_of_ideal(paths)
        print(f"{kind}: {found[kind]}", flush=True)
    return {"target": 0.95, "kinds": found}


@figure("speed-loop")
def loop() -> dict[str, Any]:
    """The usual loop of cv2.imread, cv2.resize and Keras's predict, beside `Classifier.predict`."""
    make_model()
    paths = write_pictures("jpeg-512", SCRATCH / "files")
    keras = run_script("usual_loop.py", MODEL, *paths)
    found = {}
    for name, artefact in (("fp32", FP32), ("int8", INT8)):
        with Classifier(artefact) as classifier:
            answers = list(classifier.predict(paths))
            seconds = _median_s(lambda: list(classifier.predict(paths)))
        same = [best.top_k[0].index == index for best, index in zip(answers, keras["top1"], strict=True)]
        found[name] = {
            "images_per_s": len(paths) / seconds,
            "ratio": keras["seconds"] / seconds,
            "same_top1": sum(same) / len(same),
        }
    return {"keras_images_per_s": len(paths) / keras["seconds"], "target": 4, "images": len(paths), **found}


@figure("speed-jpeg")
def reduced_jpeg() -> dict[str, Any]:
    """Large JPEG files decoded in full and by the rule `dct-scaled`: speed, and accuracy of models made so.

    The models are logistic regressions on frozen features, each fitted and scored under one rule.
    """
    make_model()
    found = {}
    for side in (1024, 2048):
        data = write_enlarged_set(side, SCRATCH / f"set-{side}")
        paths = sorted((data / "test").rglob("*.jpg"))[:: 394 // 64]
        rates = {rule: _jpeg_rate(paths, rule) for rule in JPEG_RULES}
        decode_s = {rule: _decode_s(paths, ImageRule(224, 224, jpeg=rule)) for rule in JPEG_RULES}
        weights = Path(os.environ["MEDIMG_TEST_DATA"]) / "weights" / "vgg16_imagenet_notop.h5"
        models = {
            rule: run_script("frozen_features.py", data, weights, "--jpeg", rule) for rule in JPEG_RULES
        }
        full, scaled = (np.array(models[rule]["right"]) for rule in JPEG_RULES)
        found[side] = {
            "images_per_s": rates,
            "images_per_s_ratio": rates["dct-scaled"] / rates["full"],
            "decode_core_ms": {rule: 1e3 * decode_s[rule] for rule in JPEG_RULES},
            "decode_ratio": decode_s["full"] / decode_s["dct-scaled"],
            "accuracy": {rule: models[rule]["accuracy"] for rule in JPEG_RULES},
            "accuracy_drop_ci95": paired_drop_ci95(full, scaled),
            "test_images": len(full),
        }
        print(f"{side} px: {found[side]}", flush=True)
    return {"sides_px": found}


@figure("speed-start")
def start() -> dict[str, Any]:
    """Seconds from the start of `medimg-run predict` to its end, for one image and the INT8 VGG16."""
    make_model()
    (path,) = write_pictures("jpeg-512", SCRATCH / "files")[:1]
    command = [str(BIN / "medimg-run"), "predict", str(INT8), str(path)]
    seconds = [_seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(10)]
    return {"median_s": statistics.median(seconds), "seconds": seconds, "target_s": 1.0}


@figure("speed-many")
def many() -> dict[str, Any]:
    """Time and memory of `medimg-run predict` on 10 to 10,000 files."""
    make_model()
    pictures = write_pictures("jpeg-512", SCRATCH / "files")
    found = {}
    for count in (10, 100, 1_000, 10_000):
        folder = many_paths(pictures, count, SCRATCH / f"many-{count}")
        cost = run_measured(
            "medimg-run", "predict", INT8, folder, "--format", "jsonl", "--output", SCRATCH / "many.jsonl"
        )
        assert len((SCRATCH / "many.jsonl").read_text().splitlines()) == count
        found[count] = cost
    slope = (found[10_000].seconds - found[1_000].seconds) / 9_000
    before = (found[1_000].seconds - found[100].seconds) / 900
    return {
        "files": {count: cost.figures() for count, cost in found.items()},
        "growth_mib": found[10_000].peak_mib - found[1_000].peak_mib,
        "growth_target_mib": 50,
        "ms_a_file": {"100 to 1,000": before * 1e3, "1,000 to 10,000": slope * 1e3},
    }


def _jpeg_rate(paths: list[Path], rule: JpegRule) -> float:
    """Give the INT8 model's rate on files decoded by a rule; its answers are not looked at."""
    with Classifier(INT8, backend="openvino") as classifier:
        classifier.spec = classifier.spec.with_(image=replace(classifier.spec.image, jpeg=rule))
        return statistics.median(_rate(classifier, paths) for _ in range(3))


def _compared(own: Callable[[], float], peer: Callable[[], float]) -> dict[str, Any]:
    """Measure both in turn; the ratio is of the medians."""
    pairs = [(own(), peer()) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    found = {"medimg": ours, "benchmark_app": theirs, "ratio": ours / theirs, "rounds": pairs}
    print(found, flush=True)
    return found


def _own_throughput(artefact: Path) -> float:
    with Classifier(artefact, backend="openvino") as classifier:
        return _rate(classifier, _network_inputs(classifier))


def _rate(classifier: Classifier, inputs: list[Any], seconds: float = SECONDS) -> float:
    """Give images a second of `predict` over inputs repeated for a while, after a warm-up."""
    for _ in classifier.predict(inputs[: 4 * usable_cpus()]):
        pass
    begin = time.perf_counter()

    def repeated() -> Iterable[Input]:
        while time.perf_counter() - begin < seconds:
            yield from inputs

    answered = sum(1 for _ in classifier.predict(repeated()))
    return answered / (time.perf_counter() - begin)


def _own_latency_ms(artefact: Path, tuned_for: Tuning = "latency") -> float:
    with Classifier(artefact, backend="openvino", tuned_for=tuned_for) as classifier:
        batches = [image[None] for image in _network_inputs(classifier)]
        for batch in batches[:10]:
            classifier.probabilities(batch)
        begin = time.perf_counter()
        found: list[float] = []
        while time.perf_counter() - begin < SECONDS:
            batch = batches[len(found) % len(batches)]
            found.append(1e3 * _seconds(lambda: classifier.probabilities(batch)))  # noqa: B023
    return statistics.median(found)


def _benchmark_app(*options: str) -> dict[str, float]:
    """Run OpenVINO's tool in the precision that ours uses; it takes all the machine's processors."""
    rule = "[1,224,224,3]"
    command = [
        str(BIN / "benchmark_app"), "-m", str(INT8), "-d", "CPU", "-t", str(int(SECONDS)), "-shape", rule,
        "-infer_precision", "f32", *options,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    patterns = {"throughput": r"Throughput:\s+([\d.]+) FPS", "median": r"Median:\s+([\d.]+) ms"}
    return {name: float(re.findall(pattern, done.stdout)[-1]) for name, pattern in patterns.items()}


def _network_inputs(classifier: Classifier) -> list[Any]:
    rule = classifier.spec.image
    return [cv2.resize(picture, (rule.columns, rule.rows)) for picture in real_pictures()]


def _pipeline_alone() -> dict[str, float]:
    """Rate of `predict` with a back end that computes nothing: what Python itself allows."""

    class Nothing:
        name, device, precision, parallel, batch_size = "nothing", "cpu", "none", 4, 1

        def infer(self, images: Any, outputs: Any = ()) -> Any:  # noqa: ANN401
            del outputs
            return {"probabilities": np.full((len(images), 4), 0.25, np.float32)}

        def close(self) -> None:
            pass

    with Classifier(INT8) as classifier:
        inputs = _network_inputs(classifier)
        classifier.backend.close()
        classifier.backend = Nothing()
        return {"images_per_s": _rate(classifier, inputs, 5.0)}


def _share_of_ideal(paths: list[Path]) -> dict[str, float]:
    """Compare the rate from files with `cores / (decoding + inference)`, in seconds of one core an image."""
    cores = usable_cpus()
    with Classifier(INT8, backend="openvino") as classifier:
        rule, inputs = classifier.spec.image, _network_inputs(classifier)
        ratios, last = [], (0.0, 0.0, 0.0)
        for _ in range(ROUNDS):
            decode_s = _decode_s(paths, rule)
            infer_s = cores / _rate(classifier, inputs)
            rate = _rate(classifier, paths)
            ratios.append(rate / (cores / (decode_s + infer_s)))
            last = (decode_s, infer_s, rate)
    return {
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "decode_core_ms": 1e3 * last[0],
        "infer_core_ms": 1e3 * last[1],
        "images_per_s": last[2],
    }


def _decode_s(paths: list[Path], rule: ImageRule) -> float:
    """Give the processor time that decoding a file takes."""
    begin = time.process_time()
    for path in paths:
        load_image(path, rule)
    return (time.process_time() - begin) / len(paths)


def _median_s(work: Callable[[], object], rounds: int = 3) -> float:
    return statistics.median(_seconds(work) for _ in range(rounds))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
