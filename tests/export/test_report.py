"""The report, in a real browser: complete, self-contained, and safe whatever a file is called."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
Run = Callable[..., "subprocess.CompletedProcess[str]"]
HOSTILE = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def report(run: Run, small_model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    page = folder / "report.html"
    images = folder / "images"
    shutil.copytree(pictures, images)
    (images / "solid").rename(images / HOSTILE)
    precisions = [option for name in ("fp32", "fp16", "int8") for option in ("--precision", name)]
    done = run(
        *("medimg-export", small_model, *precisions, "--output", folder, "--report", page),
        *("--labels", f"cyst,normal,{HOSTILE}", "--calibration", images, "--validation", images),
        *("--max-drop", "0.1", "--json", folder / "report.json"),
    )
    assert done.returncode == 0, done.stderr
    return page


@pytest.fixture(scope="module")
def shown(report: Path) -> str:
    """The page as a browser makes it."""
    browser = shutil.which("chromium")
    assert browser, "no chromium: install the package chromium"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", report.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_browser_shows_the_figures_and_runs_nothing(shown: str) -> None:
    assert "<title>Export of small.keras</title>" in shown
    for text in (
        "small.int8.onnx",
        "Warnings",
        "Ranges come from 24 images",
        "min-max",
        "percentile",
        "entropy",
    ):
        assert text in shown
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/svg\+xml;base64,', shown)) >= 1


def test_the_page_holds_every_head_of_the_evidence(report: Path, shown: str) -> None:
    found = json.loads(report.with_suffix(".json").read_text())
    heads = (
        "Warnings",
        "What went in",
        "What came out",
        "Differences from Keras",
        "INT8",
        "Calibration images",
    )
    places = [shown.index(head) for head in heads]
    assert places == sorted(places)
    assert "95 % interval of the drop (Tango 1998)" in shown
    assert "alone and in a batch" in shown
    for caption in ("Recall a class, Keras beside int8", "Images by their largest difference"):
        assert f'alt="{caption}' in shown
    calibration = {image["name"]: image["sha256"] for image in found["quantization"]["images"]}
    assert len(calibration) == 24
    for name, sha256 in calibration.items():
        file = report.parent / "images" / name
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256
        assert sha256 in shown
    for item in found["artefacts"]:
        assert sum(item["difference_counts"]) == item["verification"]["images"]
        assert [entry["label"] for entry in item["recall"]] == ["cyst", "normal", HOSTILE]
        assert f"{item['batch_max_abs_diff']:.1e}" in shown


def test_nothing_is_fetched_and_no_path_is_shown(report: Path) -> None:
    text = report.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    assert str(report.parent) not in text
    assert HOSTILE not in text
