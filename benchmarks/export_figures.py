"""What an export costs, beside plain tf2onnx and ONNX Runtime, and how a repair goes, on a real VGG16."""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import read_json
from medimg.runtime.data import DataSet, read_data
from medimg.runtime.machine.cpus import usable_cpus
from memory import Cost, run_measured
from registry import ROOT, SCRATCH, figure

MODEL = "models/k3_vgg16_brain_mri_240_softmax4.h5"
IMAGES = "images/brain-mri"
HARD_LAYERS = ("block3_conv2", "block3_conv3")
ALONE = Path(__file__).parent.relative_to(ROOT) / "quantize_alone.py"
MAKE_HARD = ALONE.with_name("make_hard.py")


@dataclass(frozen=True)
class Counts:
    """How many images each part takes; fewer only to try the script."""

    calibration: int = 300
    flat: tuple[int, ...] = (100, 1000)
    """Calibration images that peak memory is compared over."""
    compared: int = 100
    """Calibration images beside the plain tools, which need 20 GB for more."""
    test: int = 394


@figure("export-cost")
def export_cost(counts: Counts = Counts()) -> dict[str, Any]:
    """Time by step and peak memory of a verified export of the brain-MRI VGG16, beside the plain tools."""
    work = _Work("export-cost", counts)
    whole = work.export(counts.calibration, "fp32", "fp16", "int8", name="whole")
    flat = {
        str(images): work.export(images, "int8", name=f"flat-{images}")["peak_mib"] for images in counts.flat
    }
    artefact = work.folder / "whole" / f"{work.model.stem}.onnx"
    medimg = work.alone("medimg", artefact)
    plain = work.alone("plain", work.model)
    ratio = medimg["seconds"]["calibrate and quantise"] / plain["seconds"]["calibrate and quantise"]
    print(f"calibration and quantisation alone: {ratio:.2f} of the plain tools' time")
    return {
        "model": f"$MEDIMG_TEST_DATA/{MODEL}",
        "threads": usable_cpus(),
        "whole_export": {"calibration_images": counts.calibration, **whole},
        "peak_mib_by_calibration_images": flat,
        "alone": {
            "calibration_images": counts.compared,
            "test_images": counts.test,
            "medimg": medimg,
            "plain": plain,
            "time_ratio_medimg_to_plain": round(ratio, 3),
        },
    }


@figure("export-repair")
def export_repair(counts: Counts = Counts()) -> dict[str, Any]:
    """The brain-MRI VGG16 with one layer made hard for INT8: without a repair, and repaired."""
    work = _Work("export-repair", counts)
    hard = work.folder / "hard.h5"
    run_measured("python", MAKE_HARD, work.model, hard, *HARD_LAYERS)
    outcomes = {
        name: work.export(
            counts.calibration, "int8", name=name, model=hard, options=("--repair-budget", minutes)
        )
        for name, minutes in (("unrepaired", "0"), ("repaired", "15"))
    }
    return {"model": f"$MEDIMG_TEST_DATA/{MODEL}", "made_hard": HARD_LAYERS[1], **outcomes}


class _Work:
    """The model, the images and the folder that one figure is measured in."""

    def __init__(self, name: str, counts: Counts) -> None:
        real = Path(os.environ["MEDIMG_TEST_DATA"])
        self.model, self.images, self._counts = real / MODEL, real / IMAGES, counts
        self.folder = SCRATCH / name
        (ROOT / self.folder).mkdir(parents=True, exist_ok=True)
        self._validation = self.folder / "validation.csv"
        _write_table(read_data(self.images).part("test"), counts.test, self.images, ROOT / self._validation)

    def export(
        self,
        calibration_images: int,
        *precisions: str,
        name: str,
        model: Path | None = None,
        options: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Run medimg-export; give what it took by step, and what it found of each artefact."""
        report = self.folder / f"{name}.json"
        precision_options = [word for precision in precisions for word in ("--precision", precision)]
        cost = run_measured(
            "medimg-export",
            model or self.model,
            *("--output", self.folder / name, "--json", report),
            *("--preprocessing", "unit", "--validation", self._validation),
            *("--calibration", self.images, "--calibration-images", str(calibration_images)),
            *precision_options,
            *options,
            accepted=(0, 1),
        )
        found = read_json(ROOT / report)
        kept = ("precision", "bytes", "verification", "float_layers", "written")
        return {
            **cost.figures(),
            "steps_s": {step: round(seconds, 1) for step, seconds in found["steps_s"].items()},
            "method": found["quantization"]["method"],
            "layers": found["quantization"]["layers"],
            "artefacts": [{key: item[key] for key in kept} for item in found["artefacts"]],
        }

    def alone(self, way: str, model: Path) -> dict[str, Any]:
        """Calibrate and quantise on the same images in a process of its own; score it on the test images."""
        cost = run_measured(
            *("python", ALONE, way, model, self.images, self.folder / f"{way}.onnx"),
            *("--images", str(self._counts.compared), "--test-images", str(self._counts.test)),
        )
        found = _last_line(cost)
        pairs = list(zip(found["fp32"], found["int8"], strict=True))
        same = sum(first == second for first, second in pairs)
        return {
            **cost.figures(),
            "seconds": found["seconds"],
            "agreement_with_fp32": round(same / len(pairs), 4),
        }


def _last_line(cost: Cost) -> Any:  # noqa: ANN401  any layout
    return json.loads(cost.output.strip().splitlines()[-1])


def _write_table(data: DataSet, count: int, root: Path, path: Path) -> None:
    """List labelled images; all of them, or evenly chosen ones."""
    chosen = data.samples[:: max(1, len(data) // count)][:count]
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([root / item.name, data.labels[item.label or 0]] for item in chosen)
