import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medimg.runtime.errors import UsageError
from medimg.runtime.model.spec import ModelSpec
from medimg.train import FitOptions, TuneOptions, TuneResult, tune
from medimg.train.errors import TuningError
from medimg.train.tuning.result import TrialResult

pytestmark = pytest.mark.long

BASE = FitOptions(
    arch="cnn", image_size=32, filters=8, blocks=2, epochs=1, batch_size=8, precision_policy="float32"
)
SPACE = """
[learning_rate]
low = 1e-4
high = 1e-2
sampling = "log"

[activation]
choices = ["relu", "gelu"]
"""


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="session")
def tuned(simulated: Path, space: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    """Three random trials, without interruption."""
    folder = tmp_path_factory.mktemp("tuned") / "search"
    return tune(simulated, folder, TuneOptions(max_trials=3), training=BASE, space=space)


def without_times(result: TuneResult) -> list[TrialResult]:
    return [dataclasses.replace(trial, figures={**trial.figures, "seconds": 0.0}) for trial in result.trials]


def command(simulated: Path, folder: Path, space: Path, *more: str) -> list[str]:
    """The same search as a user types it."""
    options = "--arch cnn --image-size 32 --filters 8 --blocks 2 --epochs 1 --batch-size 8 --max-trials 3"
    return [
        *(sys.executable, "-m", "medimg.train", "tune", str(simulated), "--output", str(folder)),
        *(*options.split(), "--precision-policy", "float32", "--space", str(space), *more),
    ]


def test_the_best_trial_is_the_saved_model(tuned: TuneResult) -> None:
    scores = [trial.score or 0 for trial in tuned.trials]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert tuned.fit is not None
    best = tuned.trials[0]
    assert tuned.fit.options == dataclasses.replace(BASE, **best.values)
    assert tuned.fit.validation.accuracy == pytest.approx(best.figures["val-accuracy"])
    assert ModelSpec.read(tuned.fit.output).labels == tuned.fit.labels
    assert Path(tuned.output, "best.h5").is_file()


def test_the_command_shown_trains_with_the_same_options(tuned: TuneResult, simulated: Path) -> None:
    from medimg.train.data.augmentation import read_augmentation
    from medimg.train.verbs.fit import fit
    from medimg.train.verbs.fit_flags import FIT_FIELDS

    assert tuned.command is not None
    assert tuned.fit is not None
    program, verb, *words = shlex.split(tuned.command)
    assert (program, verb) == ("medimg-train", "fit")
    given = fit.make_context("fit", words).params
    assert (given["data"], given["output"]) == (simulated, Path(tuned.fit.output))
    fields = {name: value for name, value in given.items() if name in FIT_FIELDS}
    fields["augment"] = read_augmentation(fields["augment"])
    assert FitOptions(**fields) == tuned.fit.options


def test_options_become_words_and_come_back() -> None:
    from medimg.train.data.augmentation import read_augmentation
    from medimg.train.tuning.summary import fit_arguments
    from medimg.train.verbs.fit import fit
    from medimg.train.verbs.fit_flags import FIT_FIELDS

    augment = read_augmentation("xray,rotation=5")
    options = FitOptions(
        resize=False, allow_unlisted=True, augment=augment, learning_rate=1.2345678901234567e-4, dense_units=3
    )
    given = fit.make_context("fit", ["data", "--output", "m.h5", *fit_arguments(options)]).params
    fields = {name: value for name, value in given.items() if name in FIT_FIELDS}
    assert FitOptions(**{**fields, "augment": read_augmentation(fields["augment"])}) == options


def test_the_picture_shows_every_parameter(tuned: TuneResult) -> None:
    assert tuned.picture is not None
    picture = Path(tuned.picture).read_text()
    assert picture.lstrip().startswith("<?xml")
    for words in ("learning rate", "activation", "val-accuracy"):
        assert f">{words}</text>" in picture


@pytest.mark.soak  # the oracles' own tests kill each before every write
def test_a_killed_search_goes_on_to_the_same_end(
    tuned: TuneResult, simulated: Path, space: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "search"
    with subprocess.Popen(command(simulated, folder, space), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (folder / "search" / "trial_1").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it had ended before"
    assert not (folder / "best.h5").exists()
    result = tune(simulated, folder, TuneOptions(max_trials=3), training=BASE, space=space, resume=True)
    assert result.resumed
    assert without_times(result) == without_times(tuned)
    assert result.fit is not None
    assert tuned.fit is not None
    assert result.fit.validation == tuned.fit.validation


def test_a_search_is_not_written_over(tuned: TuneResult, simulated: Path, space: Path) -> None:
    with pytest.raises(UsageError, match="holds a search already: go on with --resume"):
        tune(simulated, tuned.output, TuneOptions(max_trials=3), training=BASE, space=space)
    other = dataclasses.replace(BASE, dropout=0.1)
    with pytest.raises(UsageError, match="holds a search with other options"):
        tune(simulated, tuned.output, TuneOptions(max_trials=3), training=other, space=space, resume=True)
    with pytest.raises(UsageError, match="holds a search with other space"):
        tune(simulated, tuned.output, TuneOptions(max_trials=3), training=BASE, resume=True)


def test_a_failing_trial_is_recorded_and_not_fatal(simulated: Path, tmp_path: Path) -> None:
    from medimg.train.tuning.summary import tune_lines

    (tmp_path / "space.toml").write_text("[learning_rate]\nchoices = [0.001, 1e30]")
    tuning = TuneOptions(tuner="grid", max_trials=5)
    result = tune(simulated, tmp_path / "search", tuning, training=BASE, space=tmp_path / "space.toml")
    assert [trial.values["learning_rate"] for trial in result.trials] == [0.001, 1e30]
    assert [trial.status for trial in result.trials] == ["completed", "failed"]
    assert "the loss is no number" in (result.trials[1].failure or "")
    assert any("trial 1 failed" in line for line in tune_lines(result))


def test_too_many_failures_end_it_with_the_reason(simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("[learning_rate]\nchoices = [1e30, 1e31, 1e32]")
    tuning = TuneOptions(tuner="grid", max_failures=2)
    with pytest.raises(TuningError, match=r"2 trials in a row failed, the last .* the loss is no number"):
        tune(simulated, tmp_path / "search", tuning, training=BASE, space=tmp_path / "space.toml")


@pytest.mark.soak
def test_two_workers_share_the_trials(
    tuned: TuneResult, simulated: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras_tuner.src.distribute import oracle_chief

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    # The chief looks every 20 s whether the last worker is done.
    sleep = time.sleep
    monkeypatch.setattr(oracle_chief, "time", SimpleNamespace(sleep=lambda _seconds: sleep(0.1)))
    workers = [
        subprocess.Popen(
            command(simulated, tmp_path / name, space, "--json", str(tmp_path / f"{name}.json")),
            env={**os.environ, **where, "KERASTUNER_TUNER_ID": name},
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("worker0", "worker1")
    ]
    result = tune(simulated, tmp_path / "chief", TuneOptions(max_trials=3), training=BASE, space=space)
    said = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert all("This was a worker" in text for text in said)
    assert result.role == "chief"
    by_name = {trial.name: trial.values for trial in result.trials}
    assert by_name == {trial.name: trial.values for trial in tuned.trials}
    assert all(trial.score is not None for trial in result.trials)
    assert (tmp_path / "chief" / "best.h5").is_file()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "f2"}, "objective 'f2' does not exist: choose from val-accuracy, val-auc"),
        ({"objective": "deployed"}, "--latency-budget MS"),
        ({"latency_budget_ms": 5.0}, "use --objective deployed"),
        ({"objective": "deployed", "latency_budget_ms": 0.0}, "must be above 0"),
        ({"tuner": "guess"}, "tuner 'guess' is not one of random"),
        ({"max_trials": 0}, "0 trials"),
    ],
)
def test_options_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TuneOptions(**fields)
    assert message in str(caught.value)


def test_half_of_what_a_worker_needs_is_an_error(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(UsageError, match="KERASTUNER_TUNER_ID is not"):
        tune(simulated, tmp_path / "search", training=BASE)
