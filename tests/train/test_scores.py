"""Figures beside scikit-learn's, and intervals beside what they promise."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as peer

from medimg.runtime.statistics.bootstrap import Resamples
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.scores import Ranking, score

Made = Callable[..., Answers]


def resamples(answers: Answers, draws: int = 50) -> Resamples:
    return Resamples(answers.patients, draws)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_areas_are_those_of_scikit_learn_with_weights(data: st.DataObject) -> None:
    images = data.draw(st.integers(2, 12))
    shown = data.draw(arrays.arrays(bool, images))
    scores = data.draw(arrays.arrays(np.float32, images, elements=st.sampled_from([0, 0.25, 0.5, 0.75, 1])))
    weights = data.draw(arrays.arrays(np.float64, (2, images), elements=st.sampled_from([0.0, 1.0, 2.0])))
    ours = Ranking.of(shown, scores).areas(weights).T
    for draw, row in enumerate(weights):
        positives, negatives = row[shown].sum(), row[~shown].sum()
        if positives and negatives:
            assert ours[0][draw] == pytest.approx(peer.roc_auc_score(shown, scores, sample_weight=row))
        else:
            assert np.isnan(ours[0][draw])
        if positives:
            expected = peer.average_precision_score(shown, scores, sample_weight=row)
            assert ours[1][draw] == pytest.approx(expected)
        else:
            assert np.isnan(ours[1][draw])


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_of_one_class_an_image_are_scikit_learns(classes: int, made: Made) -> None:
    answers = made(classes, 90, seed=classes)
    found = score(answers, resamples(answers))
    truth, predicted = answers.shown.argmax(axis=1), answers.probabilities.argmax(axis=1)
    assert found.accuracy.value == pytest.approx(peer.accuracy_score(truth, predicted))
    assert found.balanced_accuracy.value == pytest.approx(peer.balanced_accuracy_score(truth, predicted))
    precision, recall, f1, images = peer.precision_recall_fscore_support(truth, predicted)
    specificity = peer.multilabel_confusion_matrix(truth, predicted)
    for place, row in enumerate(found.per_class):
        assert row.images == images[place]
        assert row.precision.value == pytest.approx(precision[place])
        assert row.recall.value == pytest.approx(recall[place])
        assert row.f1.value == pytest.approx(f1[place])
        (left, false), _ = specificity[place]
        assert row.specificity.value == pytest.approx(left / (left + false))
        curve = peer.roc_auc_score(answers.shown[:, place], answers.probabilities[:, place])
        assert row.roc_auc.value == pytest.approx(curve)
    shares = [[cell.value for cell in row] for row in found.confusion]
    np.testing.assert_allclose(shares, peer.confusion_matrix(truth, predicted, normalize="true"))
    if classes == 2:
        assert (found.positive, found.pr_auc) == ("normal", found.per_class[1].pr_auc)
        assert score(answers, resamples(answers), "cyst").pr_auc == found.per_class[0].pr_auc
    else:
        macro = peer.roc_auc_score(
            truth, answers.probabilities.astype(float), multi_class="ovr", labels=[0, 1, 2]
        )
        assert found.positive is None
        assert found.roc_auc.value == pytest.approx(macro, abs=1e-6)


def test_scores_of_several_labels_an_image_are_scikit_learns(made: Made) -> None:
    answers = made(3, 120, seed=4, task="multilabel")
    found = score(answers, resamples(answers))
    decided = answers.probabilities >= 0.5
    assert found.accuracy.value == pytest.approx(peer.accuracy_score(answers.shown, decided))
    assert found.roc_auc.value == pytest.approx(peer.roc_auc_score(answers.shown, answers.probabilities))
    pr = peer.average_precision_score(answers.shown, answers.probabilities)
    assert found.pr_auc.value == pytest.approx(pr)
    assert found.confusion == ()
    recall = peer.recall_score(answers.shown, decided, average=None)
    assert [row.recall.value for row in found.per_class] == pytest.approx(list(recall))


def test_intervals_hold_the_truth_as_often_as_they_promise() -> None:
    held = 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(150) < 0.8
        found = Resamples([None] * 150, draws=300, seed=seed).estimate(
            lambda weights, right=right: weights @ right / weights.sum(axis=1)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        )[()]
        held += found.low <= 0.8 <= found.high
    assert 180 <= held <= 199


def test_images_of_one_patient_widen_the_interval() -> None:
    answers = np.repeat(np.random.default_rng(0).random(30) < 0.7, 10)

    def width(patients: list[str | None]) -> float:
        found = Resamples(patients, 500).estimate(lambda weights: weights @ answers / weights.sum(axis=1))[()]
        return found.high - found.low

    alone = width([None] * 300)
    together = width([str(place // 10) for place in range(300)])
    assert 2.2 < together / alone < 4.5  # sqrt(10) = 3.2 where a patient's images are all alike


def test_draws_are_the_same_each_time_and_say_what_was_drawn() -> None:
    patients = ["a", "a", None, "b", None]
    draws = Resamples(patients, draws=40, seed=3)
    assert (draws.resampling.unit, draws.resampling.units) == ("patients", 4)
    first, again = (np.concatenate(list(draws.weights())) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:, 0], first[:, 1])
    columns = np.concatenate(list(draws.weights(columns=500_000)))
    np.testing.assert_array_equal(first, columns)
    assert Resamples([None, None]).resampling.unit == "images"


def test_a_class_without_images_is_no_number_and_no_warning(made: Made) -> None:
    answers = made(3, 30, seed=1)
    shown = answers.shown.copy()
    shown[:, 0] |= shown[:, 2]
    shown[:, 2] = False
    without = replace(answers, shown=shown)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(without, resamples(without))
    assert np.isnan(found.per_class[2].recall.value)
    assert np.isnan(found.per_class[2].roc_auc.low)
    assert found.balanced_accuracy.value == pytest.approx(
        np.mean([row.recall.value for row in found.per_class[:2]])
    )
