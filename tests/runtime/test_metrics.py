"""Figures against scikit-learn, against first principles, and against simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from medimg.runtime.statistics import metrics

LABELS = ("cyst", "normal", "solid")
answers = st.integers(1, 60).flatmap(
    lambda count: st.tuples(*[hnp.arrays(np.int64, count, elements=st.integers(0, 2))] * 2)
)


@pytest.mark.long
@settings(deadline=None)
@given(answers)
def test_evaluation_is_scikit_learn_s(pair: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
    from sklearn import metrics as peer

    truth, predicted = pair
    found = metrics.evaluate(truth, predicted, LABELS)
    assert found.images == len(truth)
    assert found.accuracy == pytest.approx(peer.accuracy_score(truth, predicted))
    assert found.confusion == tuple(
        map(tuple, peer.confusion_matrix(truth, predicted, labels=[0, 1, 2]).tolist())
    )
    expected = peer.precision_recall_fscore_support(truth, predicted, labels=[0, 1, 2], zero_division=np.nan)
    for index, row in enumerate(found.per_class):
        assert row.label == LABELS[index]
        assert row.precision == pytest.approx(expected[0][index], nan_ok=True)
        assert row.recall == pytest.approx(expected[1][index], nan_ok=True)
        assert row.f1 == pytest.approx(expected[2][index], nan_ok=True)
        assert row.images == expected[3][index]


def test_a_class_that_never_occurs_has_no_recall() -> None:
    truth = np.array([0, 0, 1])
    row = metrics.evaluate(truth, np.array([0, 2, 1]), LABELS).per_class[2]
    assert (row.images, row.precision, row.f1) == (0, 0.0, 0.0)
    assert math.isnan(row.recall)


def test_agreement_and_accuracy() -> None:
    first = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], np.float32)
    second = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.8, 0.2]], np.float32)
    assert metrics.top1_agreement(first, second) == 0.75
    assert metrics.accuracy(np.array([0, 1, 1, 0]), second.argmax(axis=1)) == 0.75


# The interval of Tango 1998.


def outcomes(images: int, lost: int, gained: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Answers of two models that are both right but for those that one of them lost or gained."""
    reference, other = np.ones(images, np.bool_), np.ones(images, np.bool_)
    other[:lost] = False
    reference[lost : lost + gained] = False
    return reference, other


def log_likelihood(lost: int, gained: int, both: int, gained_share: float, drop: float) -> float:
    shares = (gained_share + drop, gained_share, 1 - 2 * gained_share - drop)
    if min(shares) < 0 or any(
        count and not share for count, share in zip((lost, gained, both), shares, strict=True)
    ):
        return -math.inf
    return sum(
        count * math.log(share) for count, share in zip((lost, gained, both), shares, strict=True) if count
    )


def score_by_maximising(images: int, lost: int, gained: int, drop: float) -> float:
    """The score statistic with the nuisance share found by maximising the likelihood itself."""
    low, high = max(0.0, -drop), (1 - drop) / 2
    both = images - lost - gained
    for _ in range(200):
        left, right = low + (high - low) * 0.382, low + (high - low) * 0.618
        if log_likelihood(lost, gained, both, left, drop) < log_likelihood(lost, gained, both, right, drop):
            low = left
        else:
            high = right
    share = (low + high) / 2
    return (lost - gained - images * drop) / math.sqrt(images * (2 * share + drop * (1 - drop)))


@pytest.mark.parametrize(
    ("images", "lost", "gained"),
    [(394, 7, 2), (394, 1, 1), (44, 1, 0), (50, 0, 9), (624, 3, 3), (100, 30, 10), (1000, 0, 1)],
)
def test_the_ends_are_where_the_score_statistic_is_1_96(images: int, lost: int, gained: int) -> None:
    low, high = metrics.paired_drop_ci95(*outcomes(images, lost, gained))
    assert low < (lost - gained) / images < high
    assert score_by_maximising(images, lost, gained, low) == pytest.approx(1.959964, abs=1e-3)
    assert score_by_maximising(images, lost, gained, high) == pytest.approx(-1.959964, abs=1e-3)


def test_models_that_never_disagree_still_have_an_interval() -> None:
    low, high = metrics.paired_drop_ci95(*outcomes(381, 0, 0))
    assert high == pytest.approx(0.01, abs=5e-5)
    assert low == pytest.approx(-high)
    assert metrics.paired_drop_ci95(*outcomes(380, 0, 0))[1] > 0.01


@given(st.integers(1, 300), st.data())
def test_the_interval_holds_the_estimate_and_turns_round_with_the_models(
    images: int, data: st.DataObject
) -> None:
    lost = data.draw(st.integers(0, images))
    gained = data.draw(st.integers(0, images - lost))
    reference, other = outcomes(images, lost, gained)
    low, high = metrics.paired_drop_ci95(reference, other)
    assert -1 <= low <= (lost - gained) / images <= high <= 1
    assert metrics.paired_drop_ci95(other, reference) == pytest.approx((-high, -low), abs=1e-9)


def test_four_times_the_images_halve_the_interval() -> None:
    ends = [metrics.paired_drop_ci95(*outcomes(500 * times, 20 * times, 10 * times)) for times in (1, 4, 16)]
    widths = [high - low for low, high in ends]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.05)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.01)


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(5)
    images, lost_share, gained_share = 300, 0.04, 0.02
    counts = generator.multinomial(images, [lost_share, gained_share, 1 - lost_share - gained_share], 1500)
    bounds = {
        (lost, gained): metrics.paired_drop_ci95(*outcomes(images, lost, gained))
        for lost, gained, _ in {tuple(row) for row in counts.tolist()}
    }
    covered = [
        bounds[lost, gained][0] <= lost_share - gained_share <= bounds[lost, gained][1]
        for lost, gained, _ in counts.tolist()
    ]
    assert 0.935 <= np.mean(covered) <= 0.965


@pytest.mark.parametrize("runs", [50, pytest.param(200, marks=pytest.mark.soak)])
def test_with_several_images_a_patient_the_interval_covers_the_truth_about_as_often(runs: int) -> None:
    generator = np.random.default_rng(6)
    patients, images, lost_share, gained_share = 80, 10, 0.1, 0.05
    owners = [f"{number // images}" for number in range(patients * images)]
    covered = []
    for _ in range(runs):
        # All images of a patient are lost, gained, or neither.
        kind = generator.choice(3, patients, p=[lost_share, gained_share, 1 - lost_share - gained_share])
        reference, other = np.repeat(kind != 1, images), np.repeat(kind != 0, images)
        ends = [metrics.paired_drop_ci95(reference, other, given) for given in ((), owners)]
        covered.append([low <= lost_share - gained_share <= high for low, high in ends])
    alone, together = np.mean(covered, axis=0)
    assert alone < 0.6
    assert together > 0.9


def test_a_drop_of_just_what_is_accepted_is_not_a_failure() -> None:
    assert metrics.judge_drop(0.865 - 0.855, 0.034, 0.01) == "not proven"
    assert metrics.judge_drop(0.0101, 0.034, 0.01) == "failed"
    assert metrics.judge_drop(0.0, 0.01, 0.01) == "proven"


def test_an_image_each_or_no_disagreement_leaves_the_interval_as_it_is() -> None:
    for lost in (0, 9):
        alone = metrics.paired_drop_ci95(*outcomes(500, lost, 0))
        assert metrics.paired_drop_ci95(*outcomes(500, lost, 0), [None] * 500) == alone
        assert metrics.paired_drop_ci95(*outcomes(500, lost, 0), list(map(str, range(500)))) == alone
    agreed = metrics.paired_drop_ci95(*outcomes(500, 0, 0))
    assert metrics.paired_drop_ci95(*outcomes(500, 0, 0), ["one", "other"] * 250) == agreed
