"""A training that was broken off goes on to the model that it would have given without the break."""

import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.errors import UsageError
from medimg.train import FitOptions, FitResult, fit, simulate
from medimg.train.data.augmentation import read_augmentation
from medimg.train.errors import DivergedError
from medimg.train.fitting.checkpoint import Checkpoint, Variables, training_folder
from medimg.train.fitting.journal import Epoch, Phase
from medimg.train.keras_files import load_float32

pytestmark = pytest.mark.long


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Keep every epoch, and break off after the writes that the list names."""
    after: list[int] = []
    writes = 0
    write = Checkpoint.write

    def write_and_break_off(self: Checkpoint, *state: object) -> None:
        nonlocal writes
        self._written_s = -math.inf
        write(self, *state)  # type: ignore[arg-type]
        writes += 1
        if writes in after:
            raise KilledError

    monkeypatch.setattr(Checkpoint, "write", write_and_break_off)
    yield after
    assert writes >= max(after, default=0)


def assert_same(result: FitResult, other: FitResult) -> None:
    assert [phase.epochs for phase in result.phases] == [phase.epochs for phase in other.phases]
    assert [phase.best_epoch for phase in result.phases] == [phase.best_epoch for phase in other.phases]
    models = (load_float32(Path(made.output)).get_weights() for made in (result, other))
    for old, new in zip(*models, strict=True):
        np.testing.assert_array_equal(old, new)


def broken_off_and_resumed(data: Path, output: Path, options: FitOptions, kills: int) -> FitResult:
    for number in range(kills):
        with pytest.raises(KilledError):
            fit(data, output, options, resume=number > 0)
    return fit(data, output, options, resume=True, history=output.with_suffix(".csv"))


def test_in_both_phases_of_fine_tuning(
    fine_tuned: FitResult, simulated: Path, tmp_path: Path, kill: list[int]
) -> None:
    kill += [1, 2, 4]  # the head's first and second epoch; the last block's
    result = broken_off_and_resumed(simulated, tmp_path / "model.keras", fine_tuned.options, len(kill))
    assert_same(result, fine_tuned)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.csv", "model.keras"]
    rows = (tmp_path / "model.csv").read_text().splitlines()
    assert rows[0] == "phase,epoch,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds"
    assert [row.split(",")[:2] for row in rows[1:]] == [
        ["head", "1"],
        ["head", "2"],
        ["head", "3"],
        ["last block", "1"],
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "schedule": "plateau", "augment": read_augmentation("ultrasound")},
        pytest.param({"precision_policy": "mixed_bfloat16"}, marks=pytest.mark.soak),
    ],
)
def test_from_scratch(
    changes: dict[str, object], small: FitOptions, simulated: Path, tmp_path: Path, kill: list[int]
) -> None:
    options = replace(small, **changes)  # type: ignore[arg-type]
    without_break = fit(simulated, tmp_path / "whole.h5", options)
    kill += [len(without_break.phases[0].epochs) + place for place in (1, 3)]
    assert_same(broken_off_and_resumed(simulated, tmp_path / "model.h5", options, 2), without_break)


@pytest.fixture
def small() -> FitOptions:
    return FitOptions(arch="cnn", image_size=32, filters=4, blocks=2, dense_units=4, epochs=4, batch_size=8)


@pytest.fixture
def broken_off(simulated: Path, tmp_path: Path, small: FitOptions, kill: list[int]) -> Path:
    """The output of a training that was broken off after its first epoch."""
    kill.append(1)
    output = tmp_path / "model.h5"
    with pytest.raises(KilledError):
        fit(simulated, output, small)
    assert not output.exists()
    return output


def test_what_was_broken_off_is_not_begun_anew_unasked(
    broken_off: Path, simulated: Path, small: FitOptions
) -> None:
    with pytest.raises(UsageError, match=r"was broken off: go on with it by --resume, or .* --restart"):
        fit(simulated, broken_off, small)
    assert fit(simulated, broken_off, replace(small, seed=1), restart=True).phases[0].epochs
    assert not broken_off.with_name("model.h5.training").exists()


def test_other_options_or_data_are_not_gone_on_with(
    broken_off: Path, simulated: Path, small: FitOptions, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"begun with another dropout \(0\.5, now 0\.1\)"):
        fit(simulated, broken_off, replace(small, dropout=0.1), resume=True)
    simulate(tmp_path / "others", train=8, test=1, size=48, seed=1)
    with pytest.raises(UsageError, match="begun with another set of images"):
        fit(tmp_path / "others", broken_off, small, resume=True)


def test_a_damaged_checkpoint(broken_off: Path, simulated: Path, small: FitOptions) -> None:
    file = broken_off.with_name("model.h5.training") / "checkpoint.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"checkpoint\.npz: is damaged .* --restart"):
        fit(simulated, broken_off, small, resume=True)


def test_a_folder_belongs_to_one_process_and_goes_with_success(tmp_path: Path) -> None:
    output = tmp_path / "model.h5"
    with training_folder(output, resume=False, restart=False) as folder:
        assert folder.is_dir()
        second = training_folder(output, resume=True, restart=False)
        with pytest.raises(UsageError, match=r"another process is training model\.h5"), second:
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "kept"), [(DivergedError, False), (KeyboardInterrupt, True)])
def test_what_is_left_after_an_error(error: type[BaseException], kept: bool, tmp_path: Path) -> None:
    def train() -> None:
        with training_folder(tmp_path / "model.h5", resume=False, restart=False) as folder:
            (folder / "checkpoint.npz").touch()
            raise error

    with pytest.raises(error):
        train()
    assert bool(list(tmp_path.iterdir())) == kept


def test_both_ways_out_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of them"):
        fit(tmp_path, tmp_path / "model.h5", resume=True, restart=True)


def test_a_checkpoint_gives_back_what_it_got(tmp_path: Path) -> None:
    epoch = Epoch(0.1 + 0.2, 1 / 3, 2 / 3, 0.5, 1e-3, 0.25)
    phase = Phase("head", (epoch,), 1, 1.5)
    numbers: list[NDArray[Any]] = [
        np.array([[1, np.pi]], np.float32),
        np.array(7),
        np.array([3, 4], np.uint32),
    ]
    Checkpoint(tmp_path, {"epochs": "6"}).write(
        (phase, phase), phase, np.inf, lambda: Variables(numbers, [], numbers)
    )
    saved = Checkpoint(tmp_path, {"epochs": "6"}).read()
    assert saved is not None
    assert (saved.finished, saved.phase, saved.best_val_loss) == ((phase, phase), phase, np.inf)
    for group in (saved.variables.model, saved.variables.best):
        for old, new in zip(numbers, group, strict=True):
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(old, new)


def test_states_are_not_kept_more_often_than_the_interval(tmp_path: Path) -> None:
    phase = Phase("head", (), 0, 0.0)
    checkpoint = Checkpoint(tmp_path, {}, interval_s=60)
    for best in (1.0, 2.0):
        checkpoint.write((), phase, best, lambda: Variables([], [], []))
    saved = checkpoint.read()
    assert saved is not None
    assert saved.best_val_loss == 1.0


def killed_and_resumed(folder: Path, kills: int, seed: int) -> tuple[int, FitResult, FitResult]:
    """Train by the command, kill it at random moments, and go on; train the same without a break.

    Returns:
        How many kills found it alive, and the two results.
    """
    simulate(folder / "data", train=12, test=1, size=48)
    options = FitOptions(
        arch="cnn", image_size=32, filters=8, epochs=40, batch_size=4, augment=read_augmentation("ultrasound")
    )
    words = "--arch cnn --image-size 32 --filters 8 --epochs 40 --batch-size 4 --augment ultrasound --resume"
    output, chance, found_alive = folder / "killed.h5", random.Random(seed), 0
    command = [sys.executable, "-m", "medimg.train", "fit", str(folder / "data"), *words.split()]
    for kill in range(kills):
        checkpoint = folder / "killed.h5.training" / "checkpoint.npz"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        with subprocess.Popen([*command, "--output", str(output)], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not _changed(checkpoint, before):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.8) if kill else 0)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                found_alive += 1
    resumed = fit(folder / "data", output, options, resume=True)
    return found_alive, resumed, fit(folder / "data", folder / "whole.h5", options)


def _changed(path: Path, before: int | None) -> bool:
    try:
        return path.stat().st_mtime_ns != before
    except FileNotFoundError:
        return False


def test_killed(tmp_path: Path) -> None:
    alive, resumed, whole = killed_and_resumed(tmp_path, kills=1, seed=0)
    assert alive >= 1
    assert_same(resumed, whole)
    assert not list(tmp_path.glob("*.training"))


@pytest.mark.soak
def test_killed_twenty_times(tmp_path: Path) -> None:
    alive = 0
    for seed in range(10):
        (tmp_path / str(seed)).mkdir()
        found_alive, resumed, whole = killed_and_resumed(tmp_path / str(seed), kills=2, seed=seed)
        assert_same(resumed, whole)
        alive += found_alive
    assert alive == 20
