import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import figures
import mutated_inputs
import registry


def test_a_figure_is_written_with_command_commit_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured() -> dict[str, Any]:
        """What it is."""
        return {"value": 1, "file": "/some/where/a.png"}

    monkeypatch.setenv("MEDIMG_TEST_DATA", "/some/where")
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    monkeypatch.setitem(registry.FIGURES, "mine", measured)
    target = figures.write_figure("mine")
    plain = json.loads(target.read_text())
    assert plain["figure"] == "mine"
    assert plain["what"] == "What it is."
    assert plain["command"] == "python benchmarks/figures.py mine"
    assert plain["commit"]
    assert plain["machine"]["cpu"]
    assert plain["value"] == 1
    assert plain["file"] == "$MEDIMG_TEST_DATA/a.png"


def test_an_unknown_figure_is_refused_with_the_known_ones() -> None:
    script = registry.ROOT / "benchmarks" / "figures.py"
    done = subprocess.run([sys.executable, script, "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no figure 'nothing'" in done.stderr
    assert "startup" in done.stderr


def test_every_verb_of_every_command_is_timed() -> None:
    from medimg.benchmarks.cli import cli as bench
    from medimg.runtime.cli import cli as run
    from medimg.train.cli import cli as train

    for command, group in (("medimg-bench", bench), ("medimg-run", run), ("medimg-train", train)):
        assert set(figures.VERBS[command]) == {"", *group.commands}


def test_results_name_no_host_no_user_and_no_folder() -> None:
    for path in figures.RESULTS.glob("*.json"):
        text = path.read_text()
        assert platform.node() not in text, path
        assert '"/' not in text, path
        assert str(Path.home()) not in text, path
        assert json.loads(text)["figure"] in {*registry.FIGURES, mutated_inputs.NAME, "gpu-kit"}, path
