"""Damaged inputs: the short form of `make soak`, and that its watching sees what it is there for."""

import json
from pathlib import Path

import pytest

import figures
import mutated_inputs

TASK = """
import os, time

def check(seed, folder):
    if seed == 3:
        os.abort()
    if seed == 5:
        raise KeyError("not typed")
    if seed == 7:
        time.sleep(600)
    return "result" if seed % 2 else "refused"

kept = []

def leak(seed, folder):
    kept.append(bytearray(os.urandom(2**20)))
    return "result"
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_check.py").write_text(TASK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("faulty")
def test_crashes_hangs_and_untyped_errors_are_seen_and_named_by_their_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mutated_inputs, "STUCK_S", 1.0)
    outcome = mutated_inputs.run(10, check="faulty_check:check")
    assert outcome.endings == {"result": 2, "refused": 5}
    assert outcome.crashes == {3: -6}
    assert outcome.untyped == {5: "untyped KeyError: 'not typed'"}
    assert outcome.hangs == [7]
    assert outcome.faults == [
        "seed 5: untyped KeyError: 'not typed'",
        "seed 3: ended the process (-6)",
        "seed 7: no answer after 1 s",
    ]


@pytest.mark.usefixtures("faulty")
def test_growing_memory_is_seen() -> None:
    outcome = mutated_inputs.run(200, check="faulty_check:leak")
    assert 80 < outcome.growth_mb < 140
    assert outcome.faults == [f"memory grew by {outcome.growth_mb} MB"]


def test_a_seed_gives_the_same_damage_each_time() -> None:
    assert mutated_inputs.damaged(17) == mutated_inputs.damaged(17)
    inputs = {mutated_inputs.damaged(seed) for seed in range(50)}
    assert len(inputs) == 50
    assert {Path(name).suffix for name, _ in inputs} >= {".png", ".jpg", ".tif", ".bmp", ".dcm"}


@pytest.mark.long
def test_a_few_hundred_damaged_files_end_in_a_result_or_a_typed_error() -> None:
    outcome = mutated_inputs.run(300)
    assert outcome.faults == []
    assert outcome.endings.total() == 300
    assert outcome.endings["result"] > 30
    assert outcome.endings["refused"] > 30


def test_the_result_names_its_command_commit_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    written = json.loads(mutated_inputs.write(40, seed=7).read_text())
    assert written["command"] == "python benchmarks/mutated_inputs.py --write --inputs 40 --seed 7"
    assert written["commit"]
    assert written["machine"]["cpu"]
    assert sum(written["endings"].values()) == written["inputs"] == 40
    assert written["faults"] == []


@pytest.mark.soak
def test_twenty_thousand_damaged_files_end_in_a_result_or_a_typed_error() -> None:
    """What it finds is written to benchmarks/results/mutated-inputs.json, faults included."""
    written = json.loads(mutated_inputs.write(mutated_inputs.INPUTS).read_text())
    assert written["faults"] == []
    assert sum(written["endings"].values()) == mutated_inputs.INPUTS
