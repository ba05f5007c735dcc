"""What the tests of all rooms share: the real data, the installed commands, and one trained model."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# `make test` tries the same examples each time, `make soak` others; neither is a test of speed.
SETTINGS: Any = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("default", **SETTINGS)
hypothesis.settings.register_profile("repeatable", derandomize=True, **SETTINGS)
hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]
ROOMS = {
    "medimg-run": "runtime",
    "medimg-export": "export",
    "medimg-train": "train",
    "medimg-bench": "benchmarks",
}

# What takes longest starts first, so that the two workers of `make test` end together.
LONGEST = ("brain", "tests/export/", "tests/train/", "tests/")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: [_group(item).startswith(name) for name in LONGEST].index(True))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    for item in items:
        if "MEDIMG_TEST_DATA" not in os.environ and item.get_closest_marker("real"):
            item.add_marker(
                pytest.mark.skip(reason="needs MEDIMG_TEST_DATA, the folder with the real data sets")
            )


def _group(item: pytest.Item) -> str:
    """The group of tests that share what a fixture built: one worker runs a group."""
    if isinstance(item, pytest.Function) and "brain_artefacts" in item.fixturenames:
        return "brain"
    return item.path.relative_to(ROOT).as_posix()


def _has_gpu() -> bool:
    from medimg.runtime.errors import MedimgError
    from medimg.runtime.machine.cuda import Cuda

    try:
        return Cuda().count() > 0
    except MedimgError:
        return False


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets; tests that use it are marked `real`."""
    return Path(os.environ["MEDIMG_TEST_DATA"])


@pytest.fixture(scope="session")
def brain_mri(real_data: Path) -> Path:
    return real_data / "images" / "brain-mri"


@pytest.fixture(scope="session")
def imagenet_weights(real_data: Path) -> Path:
    return real_data / "weights" / "vgg16_imagenet_notop.h5"


@pytest.fixture(scope="session")
def run() -> Run:
    """Run an installed command as a user does; the result holds its exit status and what it printed."""

    def call(
        *command: str | Path, cwd: Path | None = None, stdin: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        program = Path(sys.executable).with_name(str(command[0]))
        return subprocess.run(
            [program, *map(str, command[1:])],
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command as `run` does, but in this process: where a process of its own would show no more."""

    def call(*command: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        arguments = [str(argument) for argument in command]
        entry = importlib.import_module(f"medimg.{ROOMS[arguments[0]]}.__main__")
        on_interrupt = signal.getsignal(signal.SIGINT)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            if cwd is not None:
                patch.chdir(cwd)
            with pytest.raises(SystemExit) as ended:
                entry.main()
        signal.signal(signal.SIGINT, on_interrupt)
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Keras classifier of 32 px with a spec, for tests of everything but accuracy."""
    import keras

    from medimg.runtime.images.rule import ImageRule
    from medimg.runtime.model.containers import write_spec
    from medimg.runtime.model.spec import Intensity, ModelSpec

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.Dense(3, activation="softmax", name="classes"),
        ]
    )
    path = tmp_path_factory.mktemp("small") / "small.keras"
    model.save(path)
    write_spec(path, ModelSpec(("cyst", "normal", "solid"), ImageRule(32, 32), Intensity.named("caffe")))
    return path


@pytest.fixture(scope="session")
def small_artefact(small_model: Path, run: Run) -> Path:
    """That classifier, exported in float32."""
    done = run("medimg-export", small_model)
    assert done.returncode == 0, done.stderr
    return small_model.with_suffix(".onnx")


@pytest.fixture(scope="session")
def brain_artefacts(
    tmp_path_factory: pytest.TempPathFactory, real_data: Path, brain_mri: Path, run: Run
) -> dict[str, Path]:
    """The ready VGG16 of the brain-MRI set exported in all precisions, by precision.

    Keras is asked about every sixth published test image; `json` is the export's own report.
    """
    folder = tmp_path_factory.mktemp("brain")
    model = folder / "model.h5"
    model.symlink_to(real_data / "models" / "k3_vgg16_brain_mri_240_softmax4.h5")
    parts = {"calibration": (brain_mri / "train", 15), "validation": (brain_mri / "test", 6)}
    for part, (source, step) in parts.items():
        for of_class in sorted(source.iterdir()):
            (folder / part / of_class.name).mkdir(parents=True)
            for image in sorted(of_class.iterdir())[::step]:
                (folder / part / of_class.name / image.name).symlink_to(image)
    report = folder / "export.json"
    precisions = [option for name in ("fp32", "fp16", "int8") for option in ("--precision", name)]
    done = run(
        *("medimg-export", model, *precisions, "--json", report, "--force", "--repair-budget", "0"),
        *(
            "--preprocessing",
            "unit",
            "--labels",
            ",".join(sorted(path.name for path in (brain_mri / "test").iterdir())),
        ),
        *("--calibration", folder / "calibration", "--validation", folder / "validation"),
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    names = {
        "fp32": "model.onnx",
        "fp16": "model.fp16.onnx",
        "int8": "model.int8.onnx",
        "json": "export.json",
    }
    return {precision: folder / name for precision, name in names.items()}
