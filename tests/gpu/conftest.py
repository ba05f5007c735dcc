"""A small model in every precision, and what of NVIDIA's libraries is there."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.backends import availability_of
from medimg.runtime.images.load import load_image
from medimg.runtime.model.plan import BatchProfile
from medimg.runtime.model.spec import ModelSpec

SUFFIXES = {"fp32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}
LABELS = ("cyst", "normal", "solid")
SIZE_PX = 32
PROFILE = BatchProfile(1, 8, 64)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, each with pictures of one texture."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for place, label in enumerate(LABELS):
        (folder / label).mkdir()
        for number in range(20):
            noise = generator.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
            smooth = cv2.GaussianBlur(noise, (0, 0), 1 + 2 * place)
            cv2.imwrite(str(folder / label / f"{number:02}.png"), smooth)
    return folder


@pytest.fixture(scope="session")
def onnx_files(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The small classifier by precision, with golden inputs beside it.

    A machine without Keras finds it ready in the folder that MEDIMG_GPU_ARTEFACTS names.
    """
    ready = os.environ.get("MEDIMG_GPU_ARTEFACTS")
    if ready:
        return {name: Path(ready) / f"small{suffix}" for name, suffix in SUFFIXES.items()}
    folder = tmp_path_factory.mktemp("gpu")
    small_model, run = request.getfixturevalue("small_model"), request.getfixturevalue("run")
    precisions = [option for name in ("fp32", "fp16", "int8") for option in ("--precision", name)]
    data = ("--calibration", pictures, "--validation", pictures, "--golden", "16")
    run("medimg-export", small_model, "--output", folder, *precisions, *data, "--force")
    return {name: folder / f"small{suffix}" for name, suffix in SUFFIXES.items()}


@pytest.fixture(scope="session")
def images(pictures: Path, onnx_files: dict[str, Path]) -> NDArray[np.uint8]:
    """`(60, rows, columns, 3)` uint8 RGB, as large as the network's input."""
    rule = ModelSpec.read(onnx_files["fp32"]).image
    return np.stack([load_image(path, rule) for path in sorted(pictures.rglob("*.png"))])


@pytest.fixture(scope="session")
def needs_tensorrt() -> None:
    found = availability_of("tensorrt")
    if not found.devices:
        pytest.skip("needs TensorRT")


@pytest.fixture(scope="session")
def needs_onnxruntime_cuda() -> None:
    if "gpu:0" not in availability_of("onnxruntime").devices:
        pytest.skip("needs ONNX Runtime with CUDA")
