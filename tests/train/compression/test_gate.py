from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from medimg.runtime.statistics.bootstrap import Resamples
from medimg.runtime.statistics.metrics import images_needed, paired_drop_ci95
from medimg.train.compression.gate import judge, passes
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.scores import area_difference, score

Make = Callable[..., Answers]


def turned(answers: Answers, share: float) -> Answers:
    """Answers of which a share is those of another image."""
    count = round(share * len(answers.probabilities))
    probabilities = answers.probabilities.copy()
    probabilities[:count] = np.roll(probabilities[:count], 1, axis=0)
    return replace(answers, probabilities=probabilities)


def test_the_same_answers_are_proven_by_as_many_images_as_are_asked_for(made: Make) -> None:
    enough = made(3, images_needed(0.01), seed=0)
    found = judge(enough, enough, 0.01)
    assert (found.verdict, found.accuracy_drop, found.roc_auc_drop.value) == ("proven", 0, 0)
    fewer = made(3, images_needed(0.01) - 1, seed=0)
    assert judge(fewer, fewer, 0.01).verdict == "not proven"


def misled(answers: Answers, count: int) -> Answers:
    """Answers of which so many that were right are wrong."""
    places = np.flatnonzero(answers.right)[:count]
    probabilities = answers.probabilities.copy()
    probabilities[places] = np.roll(probabilities[places], 1, axis=1)
    return replace(answers, probabilities=probabilities)


@pytest.mark.parametrize(("count", "verdict"), [(2, "not proven"), (40, "failed")])
def test_slightly_worse_answers_are_not_proven_and_worse_fail(made: Make, count: int, verdict: str) -> None:
    answers = made(3, 400, seed=1)
    found = judge(answers, misled(answers, count), 0.01)
    assert found.verdict == verdict
    assert found.accuracy_drop == pytest.approx(count / 400)
    assert found.accuracy_drop_ci95 == paired_drop_ci95(answers.right, misled(answers, count).right)
    assert found.roc_auc_drop.low <= found.roc_auc_drop.value <= found.roc_auc_drop.high


def test_images_of_one_patient_widen_the_interval(made: Make) -> None:
    answers = made(3, 800, seed=4)

    def of_patients(found: Answers) -> Answers:
        owned = (replace(sample, patient=f"{n // 8}") for n, sample in enumerate(found.samples))
        return replace(found, samples=tuple(owned))

    # All mistakes are those of the first patients.
    worse = misled(answers, 24)
    alone = judge(answers, worse, 0.1)
    together = judge(of_patients(answers), of_patients(worse), 0.1)
    assert together.accuracy_drop == alone.accuracy_drop
    assert together.accuracy_drop_ci95[1] > alone.accuracy_drop_ci95[1] + 0.01
    assert together.resampling.unit == "patients"
    same = judge(of_patients(answers), of_patients(answers), 0.1)
    assert same.accuracy_drop_ci95 == judge(answers, answers, 0.1).accuracy_drop_ci95


def test_an_area_that_is_lost_fails_though_no_decision_changes(made: Make) -> None:
    answers = made(2, 600, seed=2)
    blunt = np.where(answers.probabilities > 0.5, 0.9, 0.1).astype(np.float32)
    found = judge(answers, replace(answers, probabilities=blunt), 0.01)
    assert found.accuracy_drop == 0
    assert found.roc_auc_drop.low > 0.01
    assert found.verdict == "failed"


@pytest.mark.parametrize(("classes", "task"), [(2, "multiclass"), (3, "multiclass"), (3, "multilabel")])
def test_the_difference_of_areas_is_that_of_the_scores_on_the_same_draws(
    made: Make, classes: int, task: str
) -> None:
    answers = made(classes, 300, seed=3, task=task)
    other = turned(answers, 0.1)
    resamples = Resamples(answers.patients)
    found = area_difference(answers, other, resamples)
    alone = [score(item, resamples).roc_auc for item in (answers, other)]
    assert found.value == pytest.approx(alone[0].value - alone[1].value)
    # Pairing makes the interval narrower than those of the two alone.
    assert found.high - found.low < max(item.high - item.low for item in alone)


def test_strict_keeps_only_what_is_proven() -> None:
    assert passes("proven", strict=True)
    assert passes("not proven", strict=False)
    assert not passes("not proven", strict=True)
    assert not passes("failed", strict=False)
