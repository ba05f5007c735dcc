from pathlib import Path

import cv2
import numpy as np
import pytest

import compression_figures
import own_split
from medimg.runtime.data import read_data
from medimg.train import simulate


def test_the_own_split_divides_the_whole_set_by_seed(tmp_path: Path) -> None:
    simulate(tmp_path / "set", train=12, test=4, size=32)
    tests = []
    for seed in (0, 0, 1):
        own_split.write_split(tmp_path / "set", tmp_path / "table.csv", seed)
        data = read_data(tmp_path / "table.csv")
        train, test = data.part("train"), data.part("test")
        assert (len(train), len(test)) == (32, 32)
        names = {sample.name for sample in test.samples}
        assert not names & {sample.name for sample in train.samples}
        assert all(any(f"/{part}/" in name for name in names) for part in ("train", "test"))
        tests.append(names)
    assert tests[0] == tests[1] != tests[2]


def test_what_is_nearly_a_copy_of_an_image_does_not_count(tmp_path: Path) -> None:
    simulate(tmp_path, train=12, test=4, size=64)
    train = read_data(tmp_path).part("train")
    whole = own_split.without_copies(train)
    assert whole.samples == train.samples
    first = cv2.imread(str(tmp_path / train.samples[0].name))
    assert first is not None
    assert cv2.imwrite(
        str(tmp_path / train.samples[0].name) + ".z.jpg", first, [cv2.IMWRITE_JPEG_QUALITY, 60]
    )
    copied = read_data(tmp_path).part("train")
    assert len(copied) == len(train) + 1
    assert own_split.without_copies(copied).samples == train.samples


def gate(drop: float, high: float, area: float, area_high: float) -> dict[str, object]:
    estimate = {"value": 0.9, "low": 0.8, "high": 0.95}
    return {
        "images": 400,
        "accuracy": estimate,
        "accuracy_drop": drop,
        "accuracy_drop_ci95": [-0.01, high],
        "roc_auc": estimate,
        "roc_auc_drop": {"value": area, "low": -0.01, "high": area_high},
    }


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (gate(0.0, 0.009, 0.0, 0.005), "proven"),
        (gate(0.0, 0.02, 0.0, 0.005), "not proven"),
        (gate(0.0, 0.009, 0.02, 0.03), "failed"),
        (gate(0.03, 0.05, 0.0, 0.005), "failed"),
    ],
)
def test_the_page_judges_by_the_default_bound(found: dict[str, object], verdict: str) -> None:
    point = {"commit": 40 * "a", "macs": 1.9e9, "latency_ms": 5.0, "parent_latency_ms": 20.0, "gate": found}
    run = {"seed": 1, "throughput_ratio": 3.456, **point}
    text = compression_figures.page(
        {
            "sets": {"brain-mri": {"4x": [run, run | {"throughput_ratio": 3.7}]}},
            "of_all_seeds": {"brain-mri": {"4x": found}},
            "ablations": {"uniform widths": point},
        }
    )
    assert f"| {verdict} | 3.46 | aaaaaaa |" in text
    assert "| brain-mri | 4x | all | 400 | 0.900 |" in text
    assert f"| {verdict} | 3.46 to 3.70 |" in text
    assert "| uniform widths | 1.90 | 4.0 | 0.900 |" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [{line.count("|") for line in table} for table in tables] == [{12}, {9}]


@pytest.mark.parametrize(
    ("found", "as_good"),
    [
        (gate(0.005, 0.02, 0.0, 0.01), True),
        (gate(-0.03, 0.0, 0.0, 0.005), True),
        (gate(0.006, 0.02, 0.0, 0.005), False),
        (gate(0.0, 0.009, 0.005, 0.011), False),
        (gate(0.003, 0.02, 0.0, 0.005) | {"accuracy_drop_ci95": [0.001, 0.02]}, False),
    ],
)
def test_as_good_is_what_the_page_says(found: dict[str, object], as_good: bool) -> None:
    assert compression_figures.is_as_good(found) is as_good


def test_an_image_of_several_seeds_is_drawn_with_all_that_was_said_of_it() -> None:
    from medimg.runtime.data import Sample
    from medimg.train.evaluation.answers import Answers

    def answers(right: int) -> Answers:
        """Of a hundred images so many are right, the first ones."""
        given = np.arange(100)[:, None] < right
        samples = tuple(Sample(f"{number}.png", np.zeros((1, 1), np.uint8)) for number in range(100))
        shown = np.tile([False, True], (100, 1))
        shown[::2] = ~shown[::2]
        probabilities = np.where(shown == given, 0.9, 0.1).astype(np.float32)
        return Answers(("cyst", "normal"), "multiclass", shown, probabilities, samples, "keras", "fp32")

    one = compression_figures.judged_together([(answers(90), answers(84))])
    three = compression_figures.judged_together([(answers(90), answers(84))] * 3)
    assert three.images == 300
    assert three.resampling.units == 100
    assert three.accuracy_drop == pytest.approx(0.06)
    # The same answers thrice tell no more than once, where Tango's interval alone would narrow.
    assert three.accuracy_drop_ci95[1] > 0.1
    assert three.roc_auc_drop == one.roc_auc_drop


def test_what_was_measured_once_is_not_measured_again(tmp_path: Path) -> None:
    def never() -> dict[str, object]:
        raise AssertionError

    first = compression_figures.once(tmp_path / "run.json", lambda: {"value": 1.5})
    assert compression_figures.once(tmp_path / "run.json", never) == first
    assert first["value"] == 1.5
    assert first["commit"]
    assert first["machine"]["cores"]
