"""The cautions of an export: what each says, and when."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medimg.export import notes
from medimg.export.job import Job
from medimg.export.notes import notes_on
from medimg.export.options import ExportOptions
from medimg.export.repair import LayerEffect
from medimg.export.result import ArtefactFile, CalibrationImage, Quantization
from medimg.runtime.model.spec import Verification

FOUND = Verification(
    images=24, images_from="calibration", max_abs_diff=0.02, top1_agreement=1.0, verdict="unlabelled"
)


def artefact(precision: Any, found: Verification = FOUND, **fields: Any) -> ArtefactFile:
    made = ArtefactFile("m.onnx", "onnx", precision, 1, "0" * 64, found, 0.0, (), (), (), None, True)
    return replace(made, **fields)


def quantization(images: int = 300, *restored: str) -> Quantization:
    seen = tuple(CalibrationImage(f"{number}.png", "0" * 64) for number in range(images))
    effects = tuple(LayerEffect(**_effect(name)) for name in restored)
    return Quantization("percentile", (), seen, effects)


def _effect(name: str) -> dict[str, Any]:
    values = dict.fromkeys(LayerEffect.__dataclass_fields__, 0.0)
    return {**values, "layer": name, "restored": True}


def job(**options: Any) -> Job:
    trial = SimpleNamespace(batches=lambda: iter([np.zeros((1, 8, 8, 3), np.uint8)]))
    fields: Any = {"network": None, "trial": trial, "options": ExportOptions(**options), "threads": 1}
    return SimpleNamespace(**fields)  # type: ignore[return-value]  # what notes read of a Job


def test_int8_that_moves_probabilities_where_no_labels_judge_is_cautioned() -> None:
    (said,) = notes_on(artefact("int8", replace(FOUND, max_abs_diff=0.31)), job(), quantization())
    assert "caution: it moves a probability by up to 0.31 on 24 calibration images" in said
    assert "--validation DATA" in said
    assert notes_on(artefact("int8", replace(FOUND, max_abs_diff=0.1)), job(), quantization()) == []
    judged = replace(FOUND, max_abs_diff=0.31, accuracy=0.9, images_from="validation")
    assert notes_on(artefact("int8", judged), job(), quantization()) == []


def test_layers_that_stay_in_float_are_one_line() -> None:
    said = notes_on(artefact("int8"), job(), quantization(300, "conv1", "conv2"))
    assert said == ["int8: conv1, conv2 lost too much and stays in float32"]
    said = notes_on(artefact("fp16", float_layers=("dense", "scale")), job(), None)
    assert said == ["fp16: dense, scale would overflow and stay in float32"]


@pytest.mark.parametrize(
    ("images", "fields", "why", "steps", "absent"),
    [
        (
            24,
            {"top1_agreement": 0.5},
            "top-1 agreement 0.5000, at least 0.95 is asked for",
            ("more calibration images than 24 (about 300)", "labelled images with --validation DATA"),
            "labels",
        ),
        (
            300,
            {"images_from": "validation", "accuracy_drop": 0.2},
            "the accuracy drops by 0.2000",
            ("more time for repair than --repair-budget 3", "--precision fp16 instead"),
            "--validation",
        ),
    ],
)
def test_a_failed_int8_names_the_next_steps(
    images: int, fields: dict[str, Any], why: str, steps: tuple[str, ...], absent: str
) -> None:
    found = replace(FOUND, verdict="failed", **fields)
    (said,) = notes_on(artefact("int8", found), job(repair_minutes=3.0), quantization(images))
    assert f"int8 failed ({why})" in said
    assert all(step in said for step in steps)
    assert absent not in said


def test_a_batch_that_changes_int8_is_named_with_its_limit() -> None:
    item = artefact("int8", replace(FOUND, verdict="failed"), batch_max_abs_diff=0.2)
    (said,) = notes_on(item, job(), quantization())
    assert "a batch moves a probability by 2.0e-01, at most 5e-02 is allowed" in said


def test_fp16_that_fails_names_limit_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "to_fp16", lambda network, layers: network)
    monkeypatch.setattr(notes, "costliest_layer", lambda *_: "block2_conv1")
    found = replace(FOUND, verdict="failed", images_from="synthetic", top1_agreement=0.9)
    (said,) = notes_on(artefact("fp16", found), job(), None)
    assert "fp16 failed on 24 synthetic images (top-1 agreement 0.9000, at least 0.99 is asked for)" in said
    assert "half precision loses most in block2_conv1; --validation DATA judges on real images" in said
