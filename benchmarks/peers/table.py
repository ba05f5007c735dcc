"""medimg beside its peers: the same artefact and images, in turn in one run; writes docs/benchmarks.md."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from brain_model import ARTEFACTS, MODEL, make_model
from commands import BIN, read_json
from medimg.benchmarks.exports import markdown_table
from medimg.benchmarks.table import digits
from medimg.runtime.backends import availability
from medimg.runtime.data import read_data
from medimg.runtime.model.spec import ModelSpec
from registry import ROOT, SCRATCH, figure

DOCS = ROOT / "docs" / "benchmarks.md"
START, END = "<!-- written by benchmarks/figures.py peers -->", "<!-- end -->"
ROUNDS = int(os.environ.get("MEDIMG_PEER_ROUNDS", "5"))
"""Each peer is run so often, in turn with medimg, and the medians compared."""
SECONDS = float(os.environ.get("MEDIMG_PEER_SECONDS", "10"))
IMAGES = 64
BATCH = 8
Figures = Mapping[str, Any]
"""`p50_ms` of one image after another and `throughput_per_s`; of medimg also what ran, `ran_in`."""


@dataclass(frozen=True)
class Peer:
    """One way to run the model."""

    name: str
    precision: str
    """What it computes in."""
    beside: str | None
    """The back end of medimg that it is compared with, on the artefact of its precision; None is openvino."""
    measure: Callable[[], Figures]


@figure("peers")
def peers() -> dict[str, Any]:
    """VGG16 in every precision on every back end, beside benchmark_app, ONNX Runtime, Keras and trtexec."""
    make_model()
    images = _write_images(SCRATCH / "peers")
    backends = [found.name for found in availability() if found.devices]
    own = {
        (precision, backend): partial(_medimg, artefact, backend, images)
        for precision, artefact in ARTEFACTS.items()
        for backend in backends
    }
    found_peers = _peers(images, backends)
    ours: dict[tuple[str, str], list[Figures]] = {key: [] for key in own}
    theirs: list[list[Figures]] = [[] for _ in found_peers]
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", flush=True)
        for key, measure in own.items():
            ours[key].append(measure())
            for place, peer in enumerate(found_peers):
                if (peer.precision, peer.beside) == key:
                    theirs[place].append(peer.measure())
        for place, peer in enumerate(found_peers):
            if (peer.precision, peer.beside) not in own:
                theirs[place].append(peer.measure())
    rows = [
        _row(f"medimg, {backend}", precision, found, None, "") for (precision, backend), found in ours.items()
    ]
    for peer, found in zip(found_peers, theirs, strict=True):
        precision = peer.precision if peer.precision in ARTEFACTS else "fp32"
        backend = peer.beside or backends[0]
        rows.append(_row(peer.name, peer.precision, found, ours[precision, backend], backend))
    result = {"rounds": ROUNDS, "seconds_a_run": SECONDS, "images": IMAGES, "batch": BATCH, "rows": rows}
    write_docs(result, DOCS)
    return result


def _peers(images: Path, backends: Sequence[str]) -> list[Peer]:
    array = images / "images.npy"
    found = []
    if "openvino" in backends:
        found += [
            Peer("benchmark_app", name, "openvino", partial(_benchmark_app, path, images / "npy", "f32"))
            for name, path in ARTEFACTS.items()
        ]
        bf16 = partial(_benchmark_app, ARTEFACTS["fp32"], images / "npy", "bf16")
        found.append(Peer("benchmark_app", "bf16", None, bf16))
    if "onnxruntime" in backends:
        found += [
            Peer("onnxruntime alone", name, "onnxruntime", partial(_script, "onnxruntime_alone", path, array))
            for name, path in ARTEFACTS.items()
        ]
    found.append(Peer("Keras predict", "fp32", None, partial(_script, "keras_predict", MODEL, array)))
    if shutil.which("trtexec"):
        found += [Peer("trtexec", name, None, partial(_trtexec, path)) for name, path in ARTEFACTS.items()]
    return found


def _row(
    name: str, precision: str, found: Sequence[Figures], ours: Sequence[Figures] | None, backend: str
) -> dict[str, Any]:
    """Give the medians, and medimg's speed as a multiple of the peer's."""
    ran_in = found[0].get("ran_in", precision)
    shown = precision if ran_in == precision else f"{precision} (runs in {ran_in})"
    row: dict[str, Any] = {"name": name, "precision": shown, "rounds": [dict(item) for item in found]}
    for key in ("p50_ms", "throughput_per_s"):
        row[key] = _median(found, key)
        if ours is None or row[key] is None or (own := _median(ours, key)) is None:
            continue
        row[f"{key}_ratio"] = row[key] / own if key == "p50_ms" else own / row[key]
    return row if ours is None else {**row, "medimg_backend": backend}


def _median(found: Sequence[Figures], key: str) -> float | None:
    values = [value for item in found if (value := item.get(key)) is not None]
    return statistics.median(values) if values else None


def _write_images(folder: Path) -> Path:
    """Write test images of the network's size as PNG files and as arrays: the same pixels for everybody."""
    spec = ModelSpec.read(ARTEFACTS["fp32"])
    data = read_data(Path(os.environ["MEDIMG_TEST_DATA"]) / "images" / "brain-mri").part("test")
    pixels = [sample.load(spec.image) for sample in data.samples[:: len(data) // IMAGES][:IMAGES]]
    for name in ("png", "npy"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels):
        cv2.imwrite(str(folder / "png" / f"{number:03}.png"), image[..., ::-1])
        np.save(folder / "npy" / f"{number:03}.npy", image[None])
    np.save(folder / "images.npy", np.stack(pixels))
    return folder


def _medimg(artefact: Path, backend: str, images: Path) -> Figures:
    result = images / "medimg.json"
    command = [sys.executable, "-m", "medimg.benchmarks", "run", str(artefact), "--backend", backend]
    options = ["--data", str(images / "png"), "--from", "arrays", "--duration", f"{SECONDS:g}"]
    sizes = ["--batch-size", f"1,{BATCH}", "--json", str(result)]
    subprocess.run([*command, *options, *sizes], check=True, stdout=subprocess.DEVNULL)
    found = read_json(result)
    runs = found["runs"]
    return {
        "ran_in": found["precision"],
        "p50_ms": next(run["latency_ms"]["p50"] for run in runs if run["scenario"] == "single-stream"),
        "throughput_per_s": max(run["throughput_per_s"] for run in runs if run["scenario"] == "offline"),
    }


def _benchmark_app(artefact: Path, images: Path, precision: str) -> Figures:
    """Run OpenVINO's tool in its own best setting for each of the two figures."""
    rows, columns = np.load(next(images.iterdir())).shape[1:3]
    command = [
        str(BIN / "benchmark_app"), "-m", str(artefact), "-d", "CPU", "-t", f"{max(1, round(SECONDS))}",
        "-shape", f"[1,{rows},{columns},3]", "-i", str(images), "-infer_precision", precision,
    ]  # fmt: skip
    latency = _output([*command, "-hint", "latency", "-api", "sync"])
    throughput = _output([*command, "-hint", "throughput"])
    return {
        "p50_ms": _median_latency_ms(latency),
        "throughput_per_s": _last(r"Throughput:\s+([\d.]+) FPS", throughput),
    }


def _median_latency_ms(text: str) -> float:
    """Read benchmark_app's word; it changes to microseconds for small networks."""
    value, unit = re.findall(r"Median:\s+([\d.]+) (ms|us)", text)[-1]
    return float(value) / (1 if unit == "ms" else 1000)


def _script(name: str, model: Path, array: Path) -> Figures:
    """Run one of the modules beside this one, at batch 1 and at a larger one."""
    found = []
    for size in (1, BATCH):
        command = [sys.executable, "-m", f"peers.{name}", str(model), str(array), str(size), f"{SECONDS:g}"]
        found.append(json.loads(_output(command).splitlines()[-1]))
    return {
        "p50_ms": found[0]["p50_ms"],
        "throughput_per_s": max(item["throughput_per_s"] for item in found),
    }


def _trtexec(artefact: Path) -> Figures:
    """Run TensorRT's tool; it builds an engine first, in the precision that the file says."""
    spec = ModelSpec.read(artefact)
    shape = f"--shapes=image:1x{spec.image.rows}x{spec.image.columns}x3"
    text = _output(
        ["trtexec", f"--onnx={artefact}", shape, "--stronglyTyped", f"--duration={max(1, round(SECONDS))}"]
    )
    return {
        "p50_ms": _last(r"\bLatency: .*?median = ([\d.]+) ms", text),
        "throughput_per_s": _last(r"Throughput: ([\d.]+) qps", text),
    }


def _output(command: Sequence[str]) -> str:
    # The scripts beside this file are modules of the folder above it.
    path = os.pathsep.join(filter(None, (str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def _last(pattern: str, text: str) -> float:
    return float(re.findall(pattern, text)[-1])


def write_docs(result: Mapping[str, Any], path: Path) -> None:
    """Put the table in its place in the documentation; what stands around it stays."""
    head = ("what runs it", "precision", "one image, ms", "images/s", "latency, times", "images/s, times")
    rows: list[tuple[str, ...]] = [
        (
            row["name"],
            row["precision"],
            digits(row["p50_ms"]),
            digits(row["throughput_per_s"]),
            _times(row, "p50_ms_ratio"),
            _times(row, "throughput_per_s_ratio"),
        )
        for row in result["rows"]
    ]
    words = (
        f"Medians of {result['rounds']} rounds of {result['seconds_a_run']:g} s each, in turn, "
        f"{result['images']} images."
    )
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    middle = "\n".join((START, "", words, "", *markdown_table(head, rows), "", END))
    path.write_text(before + middle + after, encoding="utf-8")


def _times(row: Mapping[str, Any], key: str) -> str:
    """Write medimg's speed beside a peer's."""
    return f"{row[key]:.2f} ({row['medimg_backend']})" if key in row else ""
