"""The built wheel on a device: Python 3.10, the base dependencies, one back end, no TensorFlow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


pytestmark = pytest.mark.long


def python_3_10() -> str:
    """Find an interpreter: on the PATH, or one that pyenv or uv keeps."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which("python3.10"), *map(str, sorted(pyenv.glob("3.10.*/bin/python")))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", "3.10"], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return found.stdout.strip()
    raise AssertionError("no Python 3.10: install it, or uv or pyenv which bring it")


def pip(device: Path, *arguments: str) -> list[str]:
    """Command of this environment's pip on that one: making one there takes longer than what is installed."""
    return [sys.executable, "-m", "pip", "--python", str(device / "python"), *arguments]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The `bin` folder of an environment with the wheel, its base dependencies and ONNX Runtime."""
    folder = tmp_path_factory.mktemp("device") / "env"
    subprocess.run([python_3_10(), "-m", "venv", "--without-pip", folder], env=CLEAN, check=True)
    install = ["install", "--quiet", "--no-compile", str(wheel), "onnxruntime>=1.23,<1.33"]
    subprocess.run(pip(folder / "bin", *install), env=CLEAN, check=True)
    return folder / "bin"


def test_device_predicts_without_tensorflow(device: Path, small_artefact: Path, tmp_path: Path) -> None:
    listed = subprocess.run(pip(device, "list", "--format=json"), env=CLEAN, capture_output=True, check=True)
    installed = {package["name"] for package in json.loads(listed.stdout)}
    assert {"medimg", "numpy", "opencv-python-headless", "click", "onnxruntime"} <= installed
    assert installed.isdisjoint({"tensorflow", "keras", "onnx", "tf2onnx", "openvino"})

    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    command = [str(device / "medimg-run"), "predict", str(small_artefact), str(picture), "--format", "jsonl"]
    done = subprocess.run(command, env=CLEAN, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["path"] == str(picture)
    assert sum(best["score"] for best in answer["top_k"]) == pytest.approx(1, abs=1e-5)
    assert "onnxruntime on cpu, fp32" in done.stderr
