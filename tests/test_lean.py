"""What importing and asking for help load, and what the wheel holds."""

import json
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FRAMEWORKS = (
    "tensorflow",
    "keras",
    "keras_tuner",
    "matplotlib",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "openvino",
    "h5py",
    "pydicom",
    "pynetdicom",
    "highdicom",
    "cryptography",
    "cyclonedx",
    "sklearn",
    "ray",
    "pyarrow",
    "tritonclient",
    "prometheus_client",
    "pynvml",
)
ALLOWED = ("medimg", "numpy", "cv2", "click")
COMMANDS = {
    "medimg-run": (
        *(
            ("predict",),
            ("archive",),
            ("inspect",),
            ("doctor",),
            ("listen",),
            ("audit", "verify"),
            ("bundle", "sign"),
        ),
        *(("bundle", "verify"), ("sbom",), ("queue", "list")),
    ),
    "medimg-export": ((),),
    "medimg-train": (("fit",), ("tune",), ("check",), ("calibrate",), ("evaluate",), ("simulate",)),
    "medimg-bench": (("run",), ("sweep",), ("compare",)),
}
PACKAGES = {
    "medimg-run": "runtime",
    "medimg-export": "export",
    "medimg-train": "train",
    "medimg-bench": "benchmarks",
}


def loaded_modules(code: str, *arguments: str) -> tuple[set[str], str]:
    """Run code in a fresh interpreter; give the top-level modules that are not the standard library's."""
    report = (
        "import atexit, sys\natexit.register(lambda: print('\\nMODULES', *sys.modules, file=sys.stderr))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", report + code, *arguments], capture_output=True, text=True, check=True
    )
    modules = done.stderr.rpartition("MODULES")[2].split()
    ours = sys.stdlib_module_names | {"__main__", "_distutils_hack", "sitecustomize"}
    return {name.partition(".")[0] for name in modules} - ours, done.stdout


def test_runtime_imports_nothing_outside_the_allow_list() -> None:
    modules = (
        *(
            "building.make",
            "classifier",
            "data",
            "doctor",
            "images.load",
            "machine.nvml",
            "machine.tegrastats",
        ),
        *("model.containers", "model.preprocess", "output", "statistics.metrics"),
    )
    loaded, _ = loaded_modules("\n".join(f"import medimg.runtime.{name}" for name in modules))
    unexpected = {name for name in loaded if not name.startswith(("_editable_impl", "_virtualenv"))} - set(
        ALLOWED
    )
    assert unexpected == set()


ASK = """
import sys
from medimg.{package}.__main__ import main
from medimg.{package}.cli import cli
for arguments in {verbs!r}:
    cli.main([*arguments, "--help"], standalone_mode=False)
sys.argv[1:] = ["--version"]
main()
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_import_no_framework(command: str) -> None:
    """Help of the command and of all its verbs, one after the other in one process, and its version."""
    asked = list(dict.fromkeys([(), *COMMANDS[command]]))
    loaded, printed = loaded_modules(ASK.format(package=PACKAGES[command], verbs=asked))
    assert loaded.isdisjoint(FRAMEWORKS)
    assert printed.count("Usage:") == len(asked)
    assert "medimg, version" in printed


def test_wheel_installs_medimg_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {
        "medimg",
        f"{wheel.name.split('-py3')[0]}.dist-info",
    }
    assert "medimg/__init__.py" not in names
    for room in PACKAGES.values():
        assert f"medimg/{room}/py.typed" in names
        assert f"medimg/{room}/__init__.py" in names


@pytest.fixture(scope="module")
def installed() -> dict[str, Distribution]:
    """What is installed here, by name: all that `pip install 'medimg[cpu]'` brings is."""
    return {canonicalize_name(item.name): item for item in distributions()}


def needed(name: str, installed: dict[str, Distribution], seen: set[str]) -> set[str]:
    """Give a distribution and all that it needs without an extra."""
    for line in installed[name].requires or ():
        requirement = Requirement(line)
        wanted = canonicalize_name(requirement.name)
        holds = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if holds and wanted not in seen:
            seen |= needed(wanted, installed, seen | {wanted})
    return seen | {name}


@pytest.mark.parametrize(
    ("extra", "limit_mb"),
    [((), 230), (("onnxruntime",), 300), (("openvino",), 410), (("onnxruntime", "openvino"), 490)],
)
def test_installed_size(
    installed: dict[str, Distribution], wheel: Path, extra: tuple[str, ...], limit_mb: float
) -> None:
    names = set().union(*(needed(name, installed, set()) for name in ("medimg", *extra)))
    # This tree's own files are those of the wheel.
    others = (file for name in names - {"medimg"} for file in installed[name].files or ())
    files = {Path(str(file.locate())) for file in others if file.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as archive:
        own = sum(member.file_size for member in archive.infolist())
    size_mb = (own + sum(file.stat().st_size for file in files)) / 1e6
    assert {"numpy", "opencv-python-headless", "click"} <= names
    assert 100 < size_mb <= limit_mb, sorted(names)


@pytest.mark.soak
def test_pip_brings_what_was_counted(installed: dict[str, Distribution], wheel: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    resolve = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command = [*resolve, "--report", str(report), f"{wheel}[cpu]"]
    subprocess.run(command, check=True, capture_output=True)
    brought = {
        canonicalize_name(item["metadata"]["name"]) for item in json.loads(report.read_text())["install"]
    }
    counted = (needed(name, installed, set()) for name in ("medimg", "onnxruntime", "openvino"))
    assert brought == set().union(*counted)
