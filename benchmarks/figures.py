"""The project's figures, measured anew: `figures.py [NAME…]` writes results/NAME.json for each.

The sets of real images are those in the folder that MEDIMG_TEST_DATA points to.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import archive_figures  # noqa: F401  its figures are registered as it is read
import compression_figures  # noqa: F401
import driver_figures  # noqa: F401
import export_figures  # noqa: F401
import fleet_figures  # noqa: F401
import node_figures  # noqa: F401
import peers.table  # noqa: F401
import speed_figures  # noqa: F401
import training_speed  # noqa: F401
import tuning_figures  # noqa: F401
from commands import BIN, CommandFailedError, as_typed, read_json, run_command, run_script
from medimg.benchmarks.environment import now, read_environment
from medimg.runtime.classifier import Classifier
from medimg.runtime.data import DataSet, load_batches, read_data
from medimg.runtime.files.plain import to_plain
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.statistics.metrics import accuracy, paired_drop_ci95, top1_agreement
from medimg.runtime.streams import write_json
from medimg.runtime.tasks import Probabilities
from registry import FIGURES, REAL_SETS, ROOT, Figure, commit, figure
from training_figures import fine_tuned, trained_by

RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = 1

PRECISIONS = {"fp32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}
BACKENDS = ("onnxruntime", "openvino")
VERBS = {
    "medimg-train": ("", "fit", "tune", "check", "augment", "calibrate", "compress", "evaluate", "simulate"),
    "medimg-export": ("",),
    "medimg-run": (
        "",
        "predict",
        "archive",
        "inspect",
        "doctor",
        "listen",
        "queue",
        "audit",
        "bundle",
        "sbom",
    ),
    "medimg-bench": ("", "run", "sweep", "compare"),
}
IMPORTS = ("pass", "import numpy, cv2", "import medimg.runtime", "from medimg.runtime import Classifier")


@figure("startup")
def startup() -> dict[str, Any]:
    """Time `--help` of every command, and imports, as medians of ten new processes."""
    helps = {
        " ".join(filter(None, (command, verb, "--help"))): _median_s(
            [str(BIN / command), *filter(None, (verb,)), "--help"]
        )
        for command, verbs in VERBS.items()
        for verb in verbs
    }
    return {
        "help_s": helps,
        "help_target_s": 0.5,
        "python_s": {code: _median_s([sys.executable, "-c", code]) for code in IMPORTS},
    }


@figure("vgg16-real-sets")
def real_sets() -> dict[str, Any]:
    """VGG16 fine-tuned on each real set, exported and judged on all published test images."""
    found = {name: _judged(name) for name in REAL_SETS}
    right = [np.array(item.pop("right"), bool) for item in found.values()]
    reference, int8 = np.concatenate(right, axis=1)
    low, high = paired_drop_ci95(reference, int8)
    together = {
        "test_images": len(reference),
        "int8_accuracy_drop": float(reference.mean() - int8.mean()),
        "int8_accuracy_drop_ci95": [low, high],
        "int8_drop_target": 0.01,
    }
    return {"together": together, "sets": found}


def _judged(name: str) -> dict[str, Any]:
    """Fit, evaluate and export, each by its command."""
    real, model = Path(os.environ["MEDIMG_TEST_DATA"]), fine_tuned(name)
    images = real / REAL_SETS[name]
    regression = run_script("frozen_features.py", images, real / "weights" / "vgg16_imagenet_notop.h5")
    evaluation, export = model.with_suffix(".evaluation.json"), model.with_suffix(".export.json")
    run_command("medimg-train", "evaluate", model, images, "--json", evaluation)
    precisions = [word for precision in PRECISIONS for word in ("--precision", precision)]
    export_s = run_command(
        "medimg-export", model, *precisions, "--calibration", images, "--validation", images, "--json", export
    )
    test = read_data(images).part("test")
    answers = {
        (precision, backend): _answers(model.with_suffix(suffix), backend, test)
        for precision, suffix in PRECISIONS.items()
        for backend in BACKENDS
    }
    reference = answers["fp32", "onnxruntime"]
    return {
        "trained_by": trained_by(model),
        "fit_s": read_json(model.with_suffix(".fit.json"))["seconds"],
        "export_s": export_s,
        "logistic_regression_on_frozen_features": regression["accuracy"],
        "keras": read_json(evaluation),
        "export": [_without_path(item) for item in read_json(export)["artefacts"]],
        "backends": [
            {
                "artefact": precision,
                "backend": backend,
                "accuracy": accuracy(test.truth, found.argmax(axis=1)),
                "agreement_with_fp32_onnxruntime": top1_agreement(reference, found),
                "max_abs_diff_to_fp32_onnxruntime": float(np.abs(reference - found).max()),
            }
            for (precision, backend), found in answers.items()
        ],
        "right": [
            reference.argmax(axis=1) == test.truth,
            answers["int8", "openvino"].argmax(axis=1) == test.truth,
        ],
    }


def _answers(artefact: Path, backend: str, test: DataSet) -> Probabilities:
    with Classifier(artefact, backend=backend, tuned_for="latency") as classifier:
        assert classifier.spec.labels == test.labels, "fit takes the data set's labels"
        batches = load_batches(test.samples, classifier.spec.image, 16, usable_cpus())
        return np.concatenate([classifier.probabilities(batch) for batch in batches])


def _without_path(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "path"}


def _median_s(command: list[str], runs: int = 10) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds), 4)


def main() -> None:
    """Measure the figures named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)} [default: all]")
    names = parser.parse_args().names or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure {unknown[0]!r}: choose from {', '.join(FIGURES)}")
    if "MEDIMG_TEST_DATA" not in os.environ:
        parser.error("set MEDIMG_TEST_DATA to the folder with the real data sets")
    os.chdir(ROOT)
    for name in names:
        try:
            print(f"\nwrote {write_figure(name).relative_to(ROOT)}")
        except CommandFailedError as error:
            sys.exit(f"error: {name}: {error}")


def write_figure(name: str, measure: Figure | None = None) -> Path:
    """Measure a figure, the registered one unless given, and write it with where and by what it was made."""
    started, load, measured_at = now(), os.getloadavg(), commit()
    measure = measure or FIGURES[name]
    result = measure()
    head = {
        "schema": SCHEMA,
        "figure": name,
        "what": measure.__doc__,
        "command": f"python benchmarks/figures.py {name}",
        "commit": measured_at,
        "machine": to_plain(read_environment(started, load)),
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}.json"
    # No folder of this machine may stand in a result, wherever a command put it.
    write_json(json.loads(as_typed(json.dumps(result))), str(target), **head)
    return target


if __name__ == "__main__":
    main()
