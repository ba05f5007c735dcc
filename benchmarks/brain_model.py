"""The VGG16 that speed is measured on: fine-tuned on the brain-MRI set and exported in every precision."""

import os
from pathlib import Path

from commands import run_command
from registry import SCRATCH

MODEL = SCRATCH / "brain-mri" / "model.h5"
ARTEFACTS = {
    "fp32": MODEL.with_suffix(".onnx"),
    "fp16": MODEL.with_suffix(".fp16.onnx"),
    "int8": MODEL.with_suffix(".int8.onnx"),
}


def make_model() -> None:
    """Fine-tune and export it, unless an earlier figure has left it there."""
    if all(path.exists() for path in (MODEL, *ARTEFACTS.values())):
        return
    real = Path(os.environ["MEDIMG_TEST_DATA"])
    images = real / "images" / "brain-mri"
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    weights = real / "weights" / "vgg16_imagenet_notop.h5"
    run_command("medimg-train", "fit", images, "--output", MODEL, "--weights", weights)
    precisions = [word for precision in ARTEFACTS for word in ("--precision", precision)]
    run_command("medimg-export", MODEL, *precisions, "--calibration", images, "--validation", images)
