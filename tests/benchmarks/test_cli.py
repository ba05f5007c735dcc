import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
FRAMEWORKS = (
    "tensorflow",
    "keras",
    "onnx",
    "onnxruntime",
    "openvino",
    "h5py",
    "cv2",
    "numpy",
    "scipy",
    "matplotlib",
)


def bench(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medimg.benchmarks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.long
def test_a_run_prints_a_table_and_writes_json(tiny_artefact: Path, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    found = bench("run", tiny_artefact, "--duration", "0.2", "--batch-size", "1,2", "--json", output)
    assert found.returncode == 0, found.stderr
    assert max(map(len, found.stdout.splitlines())) <= 80
    plain = json.loads(output.read_text())
    assert list(plain)[:2] == ["schema", "model"]
    assert plain["schema"] == 1
    assert plain["model"] == str(tiny_artefact)
    assert [run["batch_size"] for run in plain["runs"]] == [1, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.long
def test_json_on_standard_output_stands_alone(run_here: Run, tiny_artefact: Path) -> None:
    options = ("--duration", "0.2", "--scenario", "single-stream", "--json", "-")
    found = run_here("medimg-bench", "run", tiny_artefact, *options)
    plain = json.loads(found.stdout)
    assert [run["scenario"] for run in plain["runs"]] == ["single-stream"]
    assert plain["warnings"] == [
        line.removeprefix("warning: ") for line in found.stderr.splitlines() if line.startswith("warning: ")
    ]


@pytest.mark.long
def test_threads_are_obeyed(run_here: Run, tiny_artefact: Path) -> None:
    found = run_here(
        "medimg-bench", "run", tiny_artefact, "--duration", "0.2", "--threads", "1", "--json", "-"
    )
    assert json.loads(found.stdout)["threads"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx"], "missing.onnx"),
        (["text.onnx"], "text.onnx: not an ONNX file"),
        (["empty.onnx"], "empty.onnx: carries no medimg entry"),
        (["{model}", "--data", "nowhere"], "nowhere"),
        (["{model}", "--data", "empty"], "empty"),
        (["{model}", "--data", "texts"], "texts"),
        (["{model}", "--duration", "0"], "--duration"),
        (["{model}", "--duration", "0.000001"], "too short"),
        (["{model}", "--batch-size", "0"], "--batch-size"),
        (["{model}", "--batch-size", "1,,2"], "--batch-size"),
        (["{model}", "--scenario", "sometimes"], "--scenario"),
        (["{model}", "--scenario", "server"], "--latency-bound"),
        (["{model}", "--percentile", "p99.9", "--duration", "0.001"], "too short"),
        (["{model}", "--report", "nowhere/bench.html"], "nowhere/bench.html"),
        (["{model}", "--device", "gpu:99"], "gpu:99"),
        (["{model}", "--device", "abacus"], "abacus"),
        (["{model}", "--json", "nowhere/bench.json"], "nowhere/bench.json"),
    ],
)
def test_bad_input_ends_with_one_message_and_status_2(
    run_here: Run, tiny_artefact: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.png").write_text("this is no image")
    words = [item.format(model=tiny_artefact) for item in arguments]
    found = run_here("medimg-bench", "run", *words, cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["sweep", "--help"], ["--version"]])
def test_help_and_version_import_no_framework(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from medimg.benchmarks.cli import cli\n"
        f"cli.main({arguments!r}, standalone_mode=False)\n"
        f"print('imported:', [name for name in {FRAMEWORKS!r} if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "imported: []"


def test_the_options_offer_what_can_be_measured() -> None:
    from medimg.benchmarks.cli import BACKENDS, PERCENTILES, SCENARIOS
    from medimg.benchmarks.native import SCENARIOS as DRIVERS
    from medimg.benchmarks.percentiles import SHARES
    from medimg.runtime.backends import ENGINE_NAMES, NAMES

    assert tuple(DRIVERS) == SCENARIOS
    assert tuple(SHARES) == PERCENTILES
    assert set(BACKENDS) == {"auto", *NAMES, *ENGINE_NAMES}


@pytest.mark.long
def test_the_affinity_of_the_process_sets_its_threads(tiny_artefact: Path) -> None:
    core = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, sys.executable, "-m", "medimg.benchmarks", "run", str(tiny_artefact)]
    found = subprocess.run(
        [*command, "--duration", "0.2", "--json", "-"], capture_output=True, text=True, check=True
    )
    plain = json.loads(found.stdout)
    assert plain["threads"] == 1
    assert plain["environment"]["affinity"] == [int(core)]
