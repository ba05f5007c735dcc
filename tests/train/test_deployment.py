from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medimg.runtime.data import read_data
from medimg.train import FitOptions, TuneOptions
from medimg.train.data.parts import Part
from medimg.train.errors import DeploymentError
from medimg.train.tuning import deployment
from medimg.train.tuning import trials as tuning_trials
from medimg.train.tuning.deployment import Deployment, Judges, measure, time_singles, write_judges
from medimg.train.tuning.trials import TrialRunner, validation_figures

LABELS = ("cyst", "normal", "solid")


def part(images: int) -> Part:
    random = np.random.default_rng(images)
    pixels = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    return Part(pixels, np.arange(images) % 3, np.ones(images, np.float32))


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Judges:
    return write_judges(part(24), part(12), LABELS, tmp_path_factory.mktemp("judges"))


def test_the_judges_are_the_validation_images_to_the_pixel(judges: Judges) -> None:
    read = read_data(judges.validation)
    assert read.labels == LABELS
    rule = FitOptions(image_size=32).image
    by_number = {int(Path(sample.name).stem): sample for sample in read.samples}
    wanted = part(12)
    assert len(by_number) == 12
    for number, sample in by_number.items():
        assert np.array_equal(sample.load(rule), wanted.inputs[number])
        assert sample.label == wanted.truth[number]


def test_calibration_takes_evenly_chosen_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "CALIBRATION_IMAGES", 5)
    read = read_data(write_judges(part(24), part(12), LABELS, tmp_path).calibration)
    numbers = sorted(int(Path(sample.name).stem) for sample in read.samples)
    assert numbers == [0, 4, 8, 12, 16]


@pytest.mark.soak
def test_export_and_bench_say_what_a_model_is_worth(
    small_model: Path, judges: Judges, tmp_path: Path
) -> None:
    model = tmp_path / "trial.keras"
    model.write_bytes(small_model.read_bytes())
    found = measure(model, judges, threads=1)
    assert found.accuracy * 12 == pytest.approx(round(found.accuracy * 12))
    assert 0 < found.latency_ms < 1e3 * found.seconds


@pytest.mark.long
def test_a_command_that_fails_gives_its_own_words(judges: Judges, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"medimg.export failed: .*absent.keras: no such file"):
        measure(tmp_path / "absent.keras", judges, threads=1)


@pytest.mark.long
def test_a_slow_device_is_timed_for_longer(small_artefact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "TIMED_S", (1e-6, 1.0))
    assert time_singles(small_artefact, 1)["p50"] > 0
    monkeypatch.setattr(deployment, "TIMED_S", (1e-6,))
    with pytest.raises(DeploymentError, match="a duration of 1e-06 s is too short"):
        time_singles(small_artefact, 1)


class Trained:
    """What a trial trained."""

    def __init__(self, wrong: int) -> None:
        self.phases: tuple[Any, ...] = ()
        self._wrong = wrong

    def validation_probabilities(self) -> Any:
        truth = part(100).truth.copy()
        truth[: self._wrong] = (truth[: self._wrong] + 1) % 3
        return np.eye(3, dtype=np.float32)[truth]


def runner(
    monkeypatch: pytest.MonkeyPatch, wrong: int, exported: list[Any], found: Deployment
) -> TrialRunner:
    """A runner whose trials have so many wrong answers of 100, and are all worth the same when exported."""
    from types import SimpleNamespace

    monkeypatch.setattr(tuning_trials, "train", lambda *_arguments: Trained(wrong))

    def export(_self: TrialRunner, trained: Any) -> Deployment:
        exported.append(trained)
        return found

    monkeypatch.setattr(TrialRunner, "_export", export)
    monkeypatch.setattr(tuning_trials, "replace", lambda job, **_fields: job)
    images = SimpleNamespace(validation=part(100))
    options = SimpleNamespace(seed=0)
    space = SimpleNamespace(drawn=lambda _values: {})
    tuning = TuneOptions(objective="deployed", latency_budget_ms=10)
    prepared, job = SimpleNamespace(images=images), SimpleNamespace(options=options, progress=None)
    return TrialRunner(prepared, space, tuning, job)  # type: ignore[arg-type]  # stand-ins


@pytest.mark.parametrize(
    ("wrong", "done", "latency_ms", "score"),
    [
        (10, [], 9.0, 0.8),  # the first is always a contender
        (10, [0.95], 9.0, -0.1),  # 0.05 below the best: not exported
        (10, [0.915], 9.0, 0.8),  # within 0.02
        (10, [0.7, 0.8], 9.0, 0.8),  # the best so far
        (10, [], 11.0, -0.2),  # too slow
    ],
)
def test_contenders_are_exported_and_the_slow_score_below_all_that_can_be_used(
    monkeypatch: pytest.MonkeyPatch, wrong: int, done: Sequence[float], latency_ms: float, score: float
) -> None:
    exported: list[Any] = []
    run = runner(monkeypatch, wrong, exported, Deployment(0.8, latency_ms, 5.0))
    figures = run({}, [{"val-accuracy": accuracy} for accuracy in done])
    assert figures["deployed"] == pytest.approx(score)
    was_exported = score != -0.1
    assert len(exported) == was_exported
    assert ("export-seconds" in figures) == was_exported


def test_figures_are_those_of_scikit_learn_and_of_counting() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], np.float32)
    truth = np.array([0, 1, 2, 2])
    found = validation_figures(truth, probabilities)
    assert found["val-accuracy"] == 0.75
    assert found["val-loss"] == pytest.approx(-np.log([0.7, 0.6, 0.2, 0.6]).mean(), rel=1e-5)
    # By class, the share of pairs of an image of it and another that it ranks right.
    assert found["val-auc"] == pytest.approx((1 + 1 + 0.75) / 3)


def test_several_classes_an_image_are_counted_one_by_one() -> None:
    truth = np.array([[1, 0], [1, 1], [0, 1]], np.float32)
    probabilities = np.array([[0.9, 0.2], [0.4, 0.8], [0.1, 0.7]], np.float32)
    found = validation_figures(truth, probabilities)
    assert found["val-accuracy"] == pytest.approx(5 / 6)
    assert found["val-auc"] == 1
    expected = -np.log([0.9, 0.8, 0.4, 0.8, 0.9, 0.7]).mean()
    assert found["val-loss"] == pytest.approx(expected, rel=1e-5)
