"""The oracles without any training: which trials there are, killed between whichever two writes."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from medimg.runtime.errors import UsageError
from medimg.train import FitOptions, TuneOptions
from medimg.train.data.array_store import ArrayStore
from medimg.train.fitting.job import Job
from medimg.train.progress import Progress
from medimg.train.tuning import oracles as tuning_oracles
from medimg.train.tuning.options import TUNERS, TunerName
from medimg.train.tuning.result import TrialResult
from medimg.train.tuning.search_space import Choice, Range, SearchSpace

BASE = FitOptions(arch="cnn", image_size=32, epochs=4)
SPACE = SearchSpace({"dropout": Range(0.0, 0.6), "batch_size": Choice((8, 16)), "l2": Range(1e-6, 1, "log")})


class Killed(BaseException):
    """What ends a process between two writes."""


def run(values: Mapping[str, Any], done: Sequence[Mapping[str, float]]) -> dict[str, float]:
    del done
    return {"val-accuracy": 1 - values["dropout"], "seconds": 0.0}


def fail(values: Mapping[str, Any], done: Sequence[Mapping[str, float]]) -> dict[str, float]:
    raise ValueError(f"after {len(done)} trials\nand more")


def search(
    folder: Path, tuning: TuneOptions, how: Any = run, initial: int | None = None
) -> tuple[TrialResult, ...]:
    job = Job(ArrayStore(folder), 1, Progress(), BASE)
    oracle = tuning_oracles.make_oracle(tuning, SPACE, BASE)
    oracle.num_initial_points = initial
    found = tuning_oracles.Search(oracle, folder / "search", SPACE, job, how)
    found.search()
    return tuple(sorted(found.results(), key=lambda trial: int(trial.name)))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_oracles, "IDLE_S", 0)


@pytest.mark.parametrize("trials", [2, pytest.param(4, marks=pytest.mark.soak)])
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_search_killed_between_any_two_writes_ends_as_if_it_had_not_been(
    tuner: TunerName, trials: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = TuneOptions(tuner=tuner, max_trials=trials)
    writes, write = 0, tuning_oracles._save_state

    def count(thing: Any, path: str) -> None:
        nonlocal writes
        writes += 1
        write(thing, path)

    (tmp_path / "whole").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(tuning_oracles, "_save_state", count)
        whole = search(tmp_path / "whole", tuning)
    assert len(whole) == trials
    for last in range(writes):
        folder = tmp_path / str(last)
        folder.mkdir()
        left = last

        def stop(thing: Any, path: str) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            write(thing, path)

        with monkeypatch.context() as patch:
            patch.setattr(tuning_oracles, "_save_state", stop)
            with pytest.raises(Killed):
                search(folder, tuning)
        assert search(folder, tuning) == whole, f"killed before write {last}"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_a_gaussian_process_tries_next_does_not_depend_on_a_kill(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = search(tmp_path / "whole", TuneOptions(tuner="bayesian", max_trials=4), initial=2)
    search(tmp_path / "killed", TuneOptions(tuner="bayesian", max_trials=3), initial=2)
    assert search(tmp_path / "killed", TuneOptions(tuner="bayesian", max_trials=4), initial=2) == whole


@pytest.mark.parametrize("tuner", TUNERS)
def test_more_trials_can_be_asked_for_later(tuner: TunerName, tmp_path: Path) -> None:
    first = search(tmp_path, TuneOptions(tuner=tuner, max_trials=2))
    both = search(tmp_path, TuneOptions(tuner=tuner, max_trials=5))
    assert both[:2] == first
    assert len(both) == 5
    assert len({str(trial.values) for trial in both}) == 5


DAMAGES = (None, b"", b'{"trial_id": ', b"[]", b"\xff")


@pytest.mark.parametrize(
    ("tuner", "damage"),
    [
        pytest.param(tuner, damage, marks=[pytest.mark.soak] * (tuner != TUNERS[0] and damage != b""))
        for tuner in TUNERS
        for damage in DAMAGES
    ],
)
def test_a_damaged_trial_runs_again_with_the_same_values(
    tuner: TunerName, damage: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = search(tmp_path, TuneOptions(tuner=tuner, max_trials=3))
    file = sorted((tmp_path / "search").glob("trial_*/trial.json"))[1]
    if damage is None:
        shutil.rmtree(file.parent)
    else:
        file.write_bytes(damage)
    again = search(tmp_path, TuneOptions(tuner=tuner, max_trials=4))
    assert again[:3] == first
    assert len(again) == 4
    assert f"{file}: damaged, or gone" in caplog.text
    assert search(tmp_path, TuneOptions(tuner=tuner, max_trials=4)) == again


@pytest.mark.parametrize("damage", [None, b"", b"{}", b'{"start_order": ["0"]}'])
def test_a_search_whose_own_state_is_damaged_is_named(damage: bytes | None, tmp_path: Path) -> None:
    search(tmp_path, TuneOptions(max_trials=2))
    file = tmp_path / "search" / "oracle.json"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    with pytest.raises(UsageError, match=r"oracle\.json: damaged, or gone .* in another folder"):
        search(tmp_path, TuneOptions(max_trials=3))


@pytest.mark.parametrize("damage", [None, b""])
def test_the_tuners_own_file_holds_nothing(damage: bytes | None, tmp_path: Path) -> None:
    first = search(tmp_path, TuneOptions(max_trials=2))
    file = tmp_path / "search" / "tuner0.json"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert search(tmp_path, TuneOptions(max_trials=3))[:2] == first


def test_a_folder_whose_name_looks_like_a_pattern_is_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]*"
    folder.mkdir()
    first = search(folder, TuneOptions(max_trials=2))
    assert search(folder, TuneOptions(max_trials=3))[:2] == first


def test_a_grid_tries_every_combination_once(tmp_path: Path) -> None:
    trials = search(tmp_path, TuneOptions(tuner="grid", max_trials=100))
    assert len(trials) == SPACE.combinations == 5 * 2 * 5
    assert len({str(trial.values) for trial in trials}) == 50


def test_hyperband_ends_by_itself_and_gives_the_best_more_epochs(tmp_path: Path) -> None:
    trials = search(tmp_path, TuneOptions(tuner="hyperband"))
    epochs = [trial.values["epochs"] for trial in trials]
    assert set(epochs) == {2, 4}
    longest = max(trial.score or 0 for trial in trials if trial.values["epochs"] == 4)
    assert longest == max(trial.score or 0 for trial in trials)
    assert all(trial.values["fine_tune_epochs"] <= BASE.fine_tune_epochs for trial in trials)


def test_trials_that_fail_in_a_row_end_the_search_and_say_why(tmp_path: Path) -> None:
    trials = search(tmp_path, TuneOptions(max_trials=9, max_failures=2), fail)
    assert [trial.status for trial in trials] == ["failed", "failed"]
    assert [trial.failure for trial in trials] == ["ValueError: after 0 trials"] * 2
    # What was wrong has been put right: the failures of the earlier run do not count.
    again = search(tmp_path, TuneOptions(max_trials=9, max_failures=2))
    assert again[:2] == trials
    assert [trial.status for trial in again[2:]] == ["completed"] * 7


def test_single_failures_do_not_end_it(tmp_path: Path) -> None:
    def often(values: Mapping[str, Any], done: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return fail(values, done) if values["batch_size"] == 8 else run(values, done)

    trials = search(tmp_path, TuneOptions(max_trials=12, max_failures=12), often)
    assert len(trials) == 12
    assert {trial.values["batch_size"] for trial in trials if trial.score is None} == {8}
    assert {trial.values["batch_size"] for trial in trials if trial.score is not None} == {16}
