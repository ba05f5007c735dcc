"""From an ONNX file to an engine in its place, with the fake TensorRT: order, checks, files, notes.

Proves that each version's names suffice for the whole way, and that an engine which is not what was asked for
is not written. Does not prove what a real TensorRT builds: that it builds, `test_tensorrt_parser.py` shows.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from medimg.runtime import Classifier
from medimg.runtime.backends import with_tensorrt
from medimg.runtime.building import make
from medimg.runtime.building.make import EngineFile, make_engine
from medimg.runtime.cli import cli
from medimg.runtime.engines.builder import BuildOptions
from medimg.runtime.engines.golden import Golden, write_golden
from medimg.runtime.errors import (
    BackendError,
    CheckFailedError,
    DataError,
    GpuMemoryError,
    MissingDependencyError,
    TrustError,
    UsageError,
)
from medimg.runtime.machine.cuda import Cuda
from medimg.runtime.model import trust
from medimg.runtime.model.containers import embed_in_onnx, file_sha256, open_artefact, open_onnx
from medimg.runtime.model.plan import BatchProfile
from medimg.runtime.model.spec import ModelSpec, Verification

Images = NDArray[np.uint8]
Expected = Callable[[Images], NDArray[np.float32]]
OPTIONS = BuildOptions(BatchProfile(1, 4, 8), workspace_mib=256)


@pytest.fixture
def built_here(machine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine on which the libraries are found."""
    monkeypatch.setattr(make, "find_libraries", lambda: (machine.cuda, machine.api))
    monkeypatch.setattr(with_tensorrt, "Cuda", lambda: machine.cuda)
    monkeypatch.setattr(with_tensorrt, "load_tensorrt", lambda: machine.api)
    return machine


@pytest.fixture
def golden(onnx_file: Path, images: Images, expected: Expected) -> Path:
    path = onnx_file.with_name("model.golden.npz")
    write_golden(path, Golden(images, expected(images)))
    return path


def build(onnx_file: Path, **options: Any) -> EngineFile:
    return make_engine(onnx_file, options=OPTIONS, **options)


def test_an_engine_is_built_checked_verified_and_runs(
    built_here: Any, onnx_file: Path, golden: Path, images: Images, expected: Expected
) -> None:
    steps: list[str] = []
    made = build(onnx_file, progress=steps.append)
    plan = onnx_file.with_name("model.sm87.fp16.plan")
    assert Path(made.path) == plan
    assert (made.executed_precision, made.other_precision, made.unknown_precision) == ("fp16", (), ())
    assert made.golden is not None
    assert (made.golden.passed, made.golden.images, made.golden.max_abs_diff) == (True, 20, 0.0)
    assert "Building engine 2/2" in steps
    assert json.loads(plan.read_bytes())["layers"] == {"conv1": "Half", "conv2": "Half"}
    record = json.loads(plan.with_name("model.sm87.fp16.plan.json").read_text())
    assert (record["compute_capability"], record["gpu"]) == ("8.7", "Fake GPU A")
    assert record["profile"] == {"least": 1, "best": 4, "most": 8}
    assert ModelSpec.read(plan) == open_onnx(onnx_file).spec
    config = built_here.api.last_config
    assert config._flags == set()
    assert list(config._pools.values()) == [256 << 20]
    with Classifier(plan) as classifier:
        assert (classifier.backend.name, classifier.backend.precision, classifier.notes) == (
            "tensorrt",
            "fp16",
            (),
        )
        np.testing.assert_array_equal(classifier.probabilities(images[:5]), expected(images[:5]))
        answers = list(classifier.predict(iter(images)))
    assert len(answers) == len(images)


@pytest.mark.real
@pytest.mark.parametrize(
    "version", ["10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106"]
)
def test_engines_are_built_in_each_version(make_machine: Any, onnx_file: Path, version: str) -> None:
    machine = make_machine(version)
    options = BuildOptions(BatchProfile(1, 1, 1), 64, version_compatible=True)
    making = make.Making(open_onnx(onnx_file), machine.api, machine.cuda, 0, options, False, print)
    assert making.run(None).tensorrt == version
    assert machine.api.last_config._flags == {"VERSION_COMPATIBLE"}


def test_without_golden_inputs_predict_says_that_nothing_verified_it(
    built_here: Any, onnx_file: Path
) -> None:
    assert build(onnx_file).golden is None
    with Classifier(onnx_file.with_name("model.sm87.fp16.plan")) as classifier:
        (note,) = classifier.notes
    assert note.startswith("nothing has verified this engine on this GPU (Fake GPU A)")


def test_a_verification_holds_for_its_gpu_alone(built_here: Any, onnx_file: Path, golden: Path) -> None:
    build(onnx_file)
    with Classifier(onnx_file.with_name("model.sm87.fp16.plan"), device="gpu:1") as classifier:
        assert [note.partition(":")[0] for note in classifier.notes] == [
            "nothing has verified this engine on this GPU (Fake GPU B)",
            "the engine was built on Fake GPU A",
        ]


def test_another_precision_than_asked_for_fails_and_names_layers(built_here: Any, onnx_file: Path) -> None:
    built_here.api.faults.executes = {"conv2": "Float"}
    with pytest.raises(
        CheckFailedError, match=r"another precision .*: conv2 \(fp32 instead of fp16\)\. Nothing"
    ):
        build(onnx_file)
    assert list(onnx_file.parent.glob("*.plan*")) == []
    made = build(onnx_file, force=True)
    assert made.other_precision == ("conv2 (fp32 instead of fp16)",)
    with Classifier(made.path) as classifier:
        assert "not in the precision asked for: conv2 (fp32 instead of fp16)" in classifier.notes


def test_what_the_inspector_does_not_tell_is_kept(built_here: Any, onnx_file: Path) -> None:
    built_here.api.faults.executes = {"conv1": "N/A"}
    assert build(onnx_file).unknown_precision == ("conv1",)


@pytest.mark.parametrize(
    ("precision", "worst", "wrong", "passes"),
    [("fp32", 9e-5, 0, True), ("fp32", 3e-4, 0, False), ("fp16", 4e-3, 0, True), ("fp16", 9e-3, 0, False),
     ("fp16", float("nan"), 0, False), ("int8", 0, 1, True), ("int8", 0, 2, False)],
)  # fmt: skip
def test_golden_inputs_judge_by_precision(
    built_here: Any,
    onnx_file: Path,
    images: Images,
    expected: Expected,
    precision: Any,
    worst: float,
    wrong: int,
    passes: bool,
) -> None:
    known = Verification(20, "validation", 1e-5, 0.98, "unlabelled")
    spec = open_onnx(onnx_file).spec.with_(precision=precision, verification=known)
    onnx_file.write_bytes(embed_in_onnx(b"\x08\x09", spec))
    built_here.api.convolutions = {"conv1": {"fp32": "FLOAT", "fp16": "HALF", "int8": "INT8"}[precision]}
    answers = expected(images)
    answers[0] += np.float32(worst)
    for place in range(wrong):
        answers[place] = np.eye(3)[(answers[place].argmax() + 1) % 3]
    write_golden(onnx_file.with_name("model.golden.npz"), Golden(images, answers))
    if not passes:
        with pytest.raises(CheckFailedError, match="the engine's answers are not Keras's"):
            build(onnx_file)
        assert list(onnx_file.parent.glob("*.plan*")) == []
        return
    made = build(onnx_file)
    assert made.golden is not None
    assert made.golden.passed


def test_golden_files(
    built_here: Any, onnx_file: Path, golden: Path, images: Images, expected: Expected
) -> None:
    assert golden.stat().st_mode & 0o777 == 0o600
    whole = golden.read_bytes()
    with np.load(golden, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["images", "probabilities"]
    golden.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"model\.golden\.npz: not a file of golden inputs"):
        build(onnx_file)
    write_golden(golden, Golden(images[:, :, :6], expected(images)))
    with pytest.raises(DataError, match=r"holds images of shape \(20, 5, 6, 3\)"):
        build(onnx_file)
    np.savez(golden, images=images.astype(np.float32), probabilities=expected(images))
    with pytest.raises(DataError, match="other types"):
        build(onnx_file)


# What goes wrong.


def test_tensorrt_refuses_the_graph(built_here: Any, onnx_file: Path) -> None:
    onnx_file.write_bytes(embed_in_onnx(b"\x0a\x09refuse me", open_onnx(onnx_file).spec))
    with pytest.raises(
        BackendError, match=r"model\.fp16\.onnx: TensorRT .* refuses it: conv1: no importer for Conv"
    ):
        build(onnx_file)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (
            "Error Code 10: could not find any implementation for node conv1",
            BackendError,
            "builds no engine: Error",
        ),
        (
            "Error Code 2: OutOfMemory (no further information)",
            GpuMemoryError,
            "--batch-size 1,1,4, or limit",
        ),
    ],
)
def test_tensorrt_builds_no_engine(
    built_here: Any, onnx_file: Path, said: str, error: type, message: str
) -> None:
    built_here.api.faults.no_engine = said
    with pytest.raises(error, match=message):
        build(onnx_file)
    assert list(onnx_file.parent.glob("*.plan*")) == []


def test_a_full_disk_leaves_nothing(
    built_here: Any, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Path, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match=r"plan: cannot be written \(No space left on device\)"):
        build(onnx_file)
    assert [path.name for path in onnx_file.parent.glob("*model*")] == [onnx_file.name]


def test_libraries_are_missed_in_order(
    machine: Any, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "Cuda", lambda: machine.cuda)
    monkeypatch.setenv("FAKE_CUDA_GPUS", "0")
    with pytest.raises(BackendError, match="no NVIDIA GPU is there"):
        build(onnx_file)
    monkeypatch.delenv("FAKE_CUDA_GPUS")
    with pytest.raises(MissingDependencyError, match=r"needs tensorrt .*pip install 'medimg\[tensorrt\]'"):
        build(onnx_file)
    monkeypatch.setattr(make, "Cuda", lambda: Cuda("libcudart-that-is-not-there.so"))
    with pytest.raises(MissingDependencyError, match="needs the CUDA runtime"):
        build(onnx_file)


def test_options() -> None:
    with pytest.raises(UsageError, match="batch sizes 4,2,8: the least, the best and the most"):
        BatchProfile(4, 2, 8)


# The timing cache.


def test_the_timing_cache_is_kept_by_version_and_gpu(built_here: Any, onnx_file: Path, homes: Path) -> None:
    build(onnx_file)
    (cache,) = (homes / "cache" / "medimg" / "timing").iterdir()
    assert cache.read_bytes() == b"+"
    build(onnx_file)
    assert cache.read_bytes() == b"++"
    cache.write_bytes(b"damaged")
    build(onnx_file)
    assert cache.read_bytes() == b"+"
    built_here.api.__version__ = "10.3.99"
    build(onnx_file)
    assert len(list(cache.parent.iterdir())) == 2


def test_a_timing_cache_that_others_can_write_to_is_left_alone(
    built_here: Any, onnx_file: Path, homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(onnx_file)
    (cache,) = (homes / "cache" / "medimg" / "timing").iterdir()
    cache.write_bytes(b"planted")
    cache.parent.chmod(0o777)
    build(onnx_file)
    assert cache.read_bytes() == b"planted"
    assert built_here.api.last_config._cache is None


def test_an_engine_is_opened_as_an_artefact(built_here: Any, onnx_file: Path) -> None:
    made = build(onnx_file)
    artefact = open_artefact(made.path)
    assert artefact.engine is not None
    assert artefact.engine.engine_sha256 == made.sha256
    for choice, message in (
        ({"backend": "openvino"}, "openvino cannot run a TensorRT engine"),
        ({"device": "cpu"}, "an engine runs on the GPU"),
        ({"device": "gpu:7"}, "device 'gpu:7' cannot be had"),
    ):
        with pytest.raises(BackendError, match=message):
            Classifier(made.path, **choice)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=r"tensorrt runs engines: build one with medimg-export"):
        Classifier(onnx_file, backend="tensorrt")


# The commands.


@pytest.fixture
def picture(tmp_path: Path, images: Images) -> Path:
    import cv2

    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), images[0])
    return path


def test_predict_runs_an_engine_and_says_what_vouches_for_it(
    built_here: Any, onnx_file: Path, picture: Path
) -> None:
    made = build(onnx_file)
    arguments = ["predict", made.path, str(picture), "--format", "jsonl"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.return_value == 0, done.output
    assert "tensorrt on gpu:0, fp16 (auto: engines run in TensorRT)" in done.stderr
    assert "warning: nothing has verified this engine on this GPU (Fake GPU A)" in done.stderr
    assert len(json.loads(done.stdout)["top_k"]) == 3
    (trust.cache_folder() / "built" / f"{made.sha256}.json").unlink()
    record = file_sha256(Path(f"{made.path}.json"))
    with pytest.raises(TrustError, match=f"--trust {record}"):
        CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    done = CliRunner().invoke(cli, [*arguments, "--trust", record], standalone_mode=False)
    assert done.return_value == 0, done.output


def test_inspect_tells_what_an_engine_is_and_verifies_it(
    built_here: Any, onnx_file: Path, golden: Path
) -> None:
    aside = golden.rename(golden.with_name("aside.npz"))
    made = build(onnx_file)
    done = CliRunner().invoke(cli, ["inspect", made.path], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert "cyst, normal, solid" in done.stdout
    assert "engine for     Fake GPU A, compute capability 8.7" in done.stdout
    assert "batch          1 to 8 images, tuned for 4" in done.stdout
    assert made.sha256 in done.stdout
    done = CliRunner().invoke(cli, ["inspect", made.path, "--golden", str(aside)], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert "passed: 20 golden images, max |Δp| 0.0e+00, top-1 agreement 1.0000" in done.stderr
    with Classifier(made.path) as classifier:
        assert classifier.notes == ()


def test_inspect_keeps_a_failed_verification_from_vouching(
    built_here: Any, onnx_file: Path, images: Images, expected: Expected, tmp_path: Path
) -> None:
    made = build(onnx_file)
    wrong = tmp_path / "wrong.npz"
    write_golden(wrong, Golden(images, expected(images)[:, ::-1]))
    done = CliRunner().invoke(cli, ["inspect", made.path, "--golden", str(wrong)], standalone_mode=False)
    assert done.return_value == 1
    assert "failed: 20 golden images" in done.stderr
    with Classifier(made.path) as classifier:
        assert len(classifier.notes) == 1


def test_an_engine_that_is_trusted_by_name_runs_beside_a_cache_that_is_not(
    built_here: Any, onnx_file: Path, golden: Path, homes: Path
) -> None:
    made = build(onnx_file)
    (homes / "cache" / "medimg").chmod(0o777)
    with pytest.raises(TrustError, match="others can write to it"):
        Classifier(made.path)
    with Classifier(made.path, trusted=[file_sha256(Path(f"{made.path}.json"))]) as classifier:
        assert classifier.notes[0].startswith("nothing has verified this engine")
