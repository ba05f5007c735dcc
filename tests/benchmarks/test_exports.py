"""The files a benchmark writes: kept after every run, and safe whatever a model is called."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import browse, result, run_of

from medimg.benchmarks.exports import Destinations, to_csv, to_markdown
from medimg.benchmarks.monitor import Energy, MachineLog, MachineState
from medimg.benchmarks.report import render
from medimg.benchmarks.results import Benchmark, Knee, ServerLoad, Trial
from medimg.benchmarks.table import show

HOSTILE = "=cmd|<img src=x onerror=document.title='owned'>$x$ \x1b[31m.onnx"


def state(at_s: float) -> MachineState:
    return MachineState(at_s, 2500.0 - at_s, 55.0, 300.0, None, None, None)


@pytest.fixture(scope="module")
def full() -> Benchmark:
    """A result with everything in it."""
    random = np.random.default_rng(0)
    raw = 10 + random.gamma(2, 0.3, 1500)
    raw[700] = 250.0
    machine = MachineLog(
        before=state(0),
        during=tuple(map(state, range(1, 15))),
        after=state(15),
        own_cores=1.9,
        other_cores=0.1,
        throttled=False,
        peak_memory_mib=300.0,
        energy=Energy(75.0, 0.05, "RAPL"),
    )
    stages = {
        "queue": None,
        "decode": 1.2,
        "preprocess": 0.1,
        "copy_in": None,
        "infer": 9.0,
        "copy_out": None,
        "postprocess": 0.05,
    }
    busy = dict.fromkeys(stages, None) | {"decode": 0.12, "infer": 0.97}
    single = replace(run_of(raw), stages_ms=stages, machine=machine)
    offline = [
        replace(run_of(raw * size, "offline", size), stages_ms=stages, utilisation=busy, machine=machine)
        for size in (1, 4, 8)
    ]
    trials = (Trial(40.0, 11.0, 15.0, True), Trial(80.0, 300.0, 900.0, False))
    server = replace(
        run_of(raw, "server"), stages_ms=stages, utilisation=busy, server=ServerLoad(20.0, 40.0, trials)
    )
    return result(
        single, *offline, server, model=f"/some/where/{HOSTILE}", knee=Knee(1, 0.95, 90.0), warnings=("odd",)
    )


def test_csv_is_a_row_a_run_that_no_spreadsheet_executes(full: Benchmark) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(full))))
    assert [row["scenario"] for row in rows] == ["single-stream", *["offline"] * 3, "server"]
    assert float(rows[0]["p99_ms"]) == full.runs[0].latency_ms["p99"]
    assert float(rows[0]["joules_per_image"]) == 0.05
    assert rows[0]["copy_in_ms"] == ""
    assert rows[0]["model"].startswith("'=cmd")


def test_markdown_holds_the_figures_and_no_markup_of_others(full: Benchmark) -> None:
    text = to_markdown(full)
    assert "| single-stream | 1 |" in text
    assert "**Warning:** odd" in text
    assert "\\<img src=x" in text
    assert "\x1b" not in text


def test_the_terminal_shows_all_within_80_columns_and_no_escape(full: Benchmark) -> None:
    many = replace(run_of(np.full(50, 10.0), "multi-stream", 128), stages_ms=full.runs[0].stages_ms)
    lines = show(replace(full, runs=(*full.runs, many)))
    assert sum(line.startswith("multi-stream 128 ") for line in lines) == 1
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines[1:])) <= 80
    text = " ".join(line.strip() for line in lines)
    for words in ("0.05 J an image (RAPL)", "40 images a second, p90 to stay within 20 ms", "knee: batch 1"):
        assert words in text, words


def test_a_browser_shows_the_report_and_runs_nothing(full: Benchmark, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(full))
    shown = browse(page)
    assert "<title>Benchmark of =cmd|&lt;img" in shown
    for head in ("Warnings", "What was measured", "Figures", "single-stream", "server, batch 1", "Machine"):
        assert f"{head}</" in shown, head
    captions = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,', shown)
    # A histogram with CDF and a timeline a run, the stages, and two throughput-latency curves.
    assert len(captions) == 2 * len(full.runs) + 3
    for words in ("histogram (log) and CDF", "every query over the run", "Stages", "by rate of arrivals"):
        assert any(words in caption for caption in captions), words
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    assert "/some/where" not in text
    assert HOSTILE not in text


def test_an_incomplete_result_writes_its_json_only(full: Benchmark, tmp_path: Path) -> None:
    files = Destinations(str(tmp_path / "a.json"), tmp_path / "a.csv", tmp_path / "a.md", tmp_path / "a.html")
    files.write(replace(full, complete=False))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text())["complete"] is False
    files.write(full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.html", "a.json", "a.md"]


@pytest.mark.long
def test_a_killed_run_keeps_what_it_has_measured(tiny_artefact: Path, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    command = [sys.executable, "-m", "medimg.benchmarks", "run", str(tiny_artefact), "--driver", "native"]
    options = ["--scenario", "single-stream", "--scenario", "offline", "--batch-size", "1"]
    with subprocess.Popen([*command, *options, "--duration", "2", "--json", str(output)]) as process:
        while not output.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    plain = json.loads(output.read_text())
    assert plain["complete"] is False
    assert [run["scenario"] for run in plain["runs"]] == ["single-stream"]
    assert len(plain["runs"][0]["raw_ms"]) > 100
