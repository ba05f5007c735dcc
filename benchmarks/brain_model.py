"""The VGG16 that speed is measured on: fine-tuned on the brain-MRI set and exported in every precision."""

import os
from pathlib import Path

from commands import run_command
from registry import REAL_SETS
from training_figures import fine_tuned, path_of

SET = "brain-mri"
MODEL = path_of(SET)
ARTEFACTS = {
    "fp32": MODEL.with_suffix(".onnx"),
    "fp16": MODEL.with_suffix(".fp16.onnx"),
    "int8": MODEL.with_suffix(".int8.onnx"),
}


def make_model() -> None:
    """Fine-tune and export it, unless an earlier figure has left it there."""
    fine_tuned(SET)
    if all(path.exists() for path in ARTEFACTS.values()):
        return
    images = Path(os.environ["MEDIMG_TEST_DATA"]) / REAL_SETS[SET]
    precisions = [word for precision in ARTEFACTS for word in ("--precision", precision)]
    run_command("medimg-export", MODEL, *precisions, "--calibration", images, "--validation", images)
