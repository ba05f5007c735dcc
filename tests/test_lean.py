"""What importing and asking for help load, and what the wheel holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = (
    "tensorflow",
    "keras",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "openvino",
    "h5py",
    "pydicom",
    "sklearn",
)
ALLOWED = ("medimg", "numpy", "cv2", "click")
COMMANDS = {
    "medimg-run": (("predict",), ("inspect",), ("doctor",)),
    "medimg-export": ((),),
    "medimg-train": (("fit",), ("evaluate",), ("simulate",)),
    "medimg-bench": (("run",),),
}
HELP = [(command, verb) for command, verbs in COMMANDS.items() for verb in ((), *verbs)]
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
    modules = "classifier, containers, data, images, metrics, output, preprocess, spec"
    loaded, _ = loaded_modules(f"import medimg.runtime\nfrom medimg.runtime import {modules}")
    unexpected = {name for name in loaded if not name.startswith(("_editable_impl", "_virtualenv"))} - set(
        ALLOWED
    )
    assert unexpected == set()


@pytest.mark.parametrize(("command", "verb"), HELP, ids=[" ".join((c, *v)) for c, v in HELP])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_no_framework(command: str, verb: tuple[str, ...], flag: str) -> None:
    if flag == "--version" and verb:
        verb = ()
    code = f"import sys\nfrom medimg.{PACKAGES[command]}.__main__ import main\nmain()"
    loaded, printed = loaded_modules(code, *verb, flag)
    assert loaded.isdisjoint(FRAMEWORKS)
    assert ("Usage:" if flag == "--help" else "medimg, version") in printed


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
