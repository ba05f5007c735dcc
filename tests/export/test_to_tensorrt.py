"""`--to tensorrt`: from a ready ONNX file with the runtime's packages alone, and behind an export."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from medimg.export import pipeline, to_tensorrt
from medimg.export.cli import cli
from medimg.export.options import ExportOptions
from medimg.runtime.building.make import EngineFile
from medimg.runtime.engines.builder import BuildOptions
from medimg.runtime.engines.golden import GoldenCheck, read_golden
from medimg.runtime.errors import MedimgError, MissingDependencyError, UsageError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import open_onnx
from medimg.runtime.model.spec import Intensity, ModelSpec

FRAMEWORKS = (
    "tensorflow",
    "keras",
    "tf_keras",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "openvino",
    "h5py",
    "sympy",
)
pytestmark = pytest.mark.long
CHECK = GoldenCheck(4, "0" * 64, 1e-4, 1.0, True, "at most 5.0e-03 from Keras")


def blocked(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run medimg-export where none of the frameworks can be imported."""
    code = (
        f"import sys\nfor name in {FRAMEWORKS!r}: sys.modules[name] = None\n"
        "from medimg.export.__main__ import main\nmain()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the runtime's builder, which a machine without a GPU has to do without."""
    calls: list[dict[str, Any]] = []

    def make(path: str | Path, **options: Any) -> EngineFile:
        calls.append({"path": Path(path), **options})
        return EngineFile(
            f"{Path(path).stem}.plan", "tensorrt", "fp16", "fp16", 12345, "a" * 64, "10.3.0", "Orin", "8.7",
            (), ("conv1",), CHECK,
        )  # fmt: skip

    monkeypatch.setattr(to_tensorrt, "make_engine", make)
    return calls


def test_a_device_needs_no_framework(small_artefact: Path) -> None:
    """Everything up to TensorRT itself is reached, and says what is missing."""
    done = blocked(small_artefact, "--to", "tensorrt", "--batch-size", "1,2,4")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert any(
        reason in done.stderr
        for reason in ("no NVIDIA driver is loaded", "needs the CUDA runtime", "no NVIDIA GPU is there")
    )
    done = blocked(small_artefact, "--precision", "fp32")
    assert done.returncode == 2
    assert "an export needs onnx: pip install 'medimg[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ready_file(small_artefact: Path, made: list[dict[str, Any]], tmp_path: Path) -> None:
    options = ["--to", "tensorrt", "--batch-size", "2,4,8", "--workspace", "512", "--version-compatible"]
    done = CliRunner().invoke(
        cli, [str(small_artefact), *options, "--output", str(tmp_path), "--json", "-"], standalone_mode=False
    )
    assert done.return_value == 0, done.output
    (call,) = made
    assert (call["path"], call["output"], call["force"]) == (small_artefact, tmp_path, False)
    build: BuildOptions = call["options"]
    assert (build.profile.least, build.profile.best, build.profile.most) == (2, 4, 8)
    assert (build.workspace_mib, build.version_compatible) == (512, True)
    result = json.loads(done.stdout)
    assert result["schema"] == 1
    assert result["source"]["kind"] == "ONNX"
    assert result["artefacts"][0]["golden"]["passed"] is True
    assert "does not tell the precision of 1 convolutions" in result["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp16"], "is fp32, and precision lives in the ONNX file"),
        (["--head", "softmax"], "--head concerns an export"),
        (["--calibration", "x"], "--calibration concerns an export"),
        (["--batch-size", "8,4,2"], "batch sizes 8,4,2"),
        (["--batch-size", "many"], "'many' is not least,best,most"),
    ],
)
def test_what_does_not_fit_a_ready_file(
    small_artefact: Path, made: list[dict[str, Any]], arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(cli, [str(small_artefact), "--to", "tensorrt", *arguments])
    assert message in done.output + str(done.exception)
    assert made == []


def test_one_number_is_the_largest_batch(small_artefact: Path, made: list[dict[str, Any]]) -> None:
    CliRunner().invoke(cli, [str(small_artefact), "--to", "tensorrt", "--batch-size", "16"])
    profile = made[0]["options"].profile
    assert (profile.least, profile.best, profile.most) == (1, 16, 16)


@pytest.mark.usefixtures("kept_workers")
def test_behind_an_export(
    small_model: Path, pictures: Path, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    arguments = [
        small_model,
        "--to",
        "tensorrt",
        "--precision",
        "fp16",
        "--output",
        tmp_path,
        "--golden",
        "5",
    ]
    report = tmp_path / "result.json"
    done = CliRunner().invoke(
        cli,
        [*map(str, arguments), "--validation", str(pictures), "--json", str(report)],
        standalone_mode=False,
    )
    assert done.return_value in (0, 1), done.output
    onnx = tmp_path / "small.fp16.onnx"
    assert [call["path"] for call in made] == [onnx]
    plain = json.loads(report.read_text())
    assert plain["engines"][0]["format"] == "tensorrt"
    assert plain["artefacts"][0]["path"] == str(onnx)

    file = tmp_path / "small.golden.npz"
    golden = read_golden(file, open_onnx(onnx).spec)
    assert golden.images.shape == (5, 32, 32, 3)
    # They are spread over the data, so that each class has its share.
    assert len({image.tobytes() for image in golden.images}) == 5
    np.testing.assert_allclose(golden.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert file.stat().st_mode & 0o777 == 0o600
    assert str(pictures) not in file.read_bytes().decode("latin-1")


def test_without_tensorrt_the_onnx_file_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_path: str, **_options: Any) -> EngineFile:
        raise MissingDependencyError("needs tensorrt (No module named 'tensorrt')")

    monkeypatch.setattr(to_tensorrt, "make_engine", missing)
    with pytest.raises(MedimgError) as caught:
        to_tensorrt.build_exported(["out/model.fp16.onnx"], BuildOptions(), force=False, progress=print)
    assert "needs tensorrt" in str(caught.value)
    assert "ready: on the device, run medimg-export model.fp16.onnx --to tensorrt" in str(caught.value)


def test_golden_inputs_need_a_known_scaling() -> None:
    floats = ModelSpec(("a", "b"), ImageRule(8, 8), Intensity("unspecified"))
    with pytest.raises(UsageError, match="--golden writes images as the network takes them"):
        pipeline._refuse_golden_floats(floats, ExportOptions(golden=4))
    pipeline._refuse_golden_floats(floats, ExportOptions())
