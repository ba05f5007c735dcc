import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest

from medimg.train import FitOptions, TuneOptions, TuneResult
from medimg.train.tuning.picture import draw
from medimg.train.tuning.result import TrialResult, ranked
from medimg.train.tuning.search_space import Choice, SearchSpace, default_space
from medimg.train.tuning.summary import UNUSABLE, WIDTH, tune_lines

SPACE = SearchSpace({**default_space(FitOptions()).parameters, "dense_units": Choice(("none", 64, 256))})
VALUES = {
    "learning_rate": 0.00123456,
    "dropout": 0.25,
    "l2": 1.5e-5,
    "batch_size": 32,
    "activation": "relu",
    "dense_layers": 1,
    "dense_units": None,
    "unfreeze_blocks": 2,
}


def trial(number: int, score: float | None, failure: str | None = None) -> TrialResult:
    figures = (
        {} if score is None else {"val-accuracy": score, "val-auc": 0.9, "val-loss": 0.3, "seconds": 12.34}
    )
    return TrialResult(str(number), "failed" if failure else "completed", score, VALUES, figures, failure)


def result(*trials: TrialResult, tuning: TuneOptions | None = None) -> TuneResult:
    """A worker's, which has no model."""
    return TuneResult(
        "search", "data", FitOptions(), tuning or TuneOptions(), SPACE, "worker", False, trials,
        None, None, None, 3.0, 60.0,
    )  # fmt: skip


def test_no_line_is_wider_than_a_terminal_and_no_column_is_lost() -> None:
    lines = tune_lines(result(*(trial(number, 0.9 - number / 100) for number in range(30))))
    assert max(map(len, lines)) <= WIDTH
    words = " ".join(lines).split()
    assert {*SPACE.parameters, "acc", "AUC", "s"} <= {*words}
    assert "0.00123" in words
    assert "none" in words
    assert "… and 10 more, in --json" in lines


def test_a_grid_says_how_many_combinations_it_has() -> None:
    lines = tune_lines(result(trial(0, 0.5), tuning=TuneOptions(tuner="grid")))
    assert lines[0].startswith(f"1 trials by grid of {SPACE.combinations:,} combinations for val-accuracy")


def test_failures_are_named_and_made_safe() -> None:
    lines = tune_lines(
        result(trial(0, 0.5), trial(1, None, "ValueError: \x1b[31mred\nand more " + "x " * 60))
    )
    assert any(line.startswith("trial 1 failed: ValueError: \\x1b[31mred") for line in lines)
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize(("objective", "order"), [("val-accuracy", "2 0 1 3"), ("val-loss", "1 0 2 3")])
def test_the_best_comes_first_and_the_failed_last(objective: str, order: str) -> None:
    trials = (trial(0, 0.5), trial(1, 0.4), trial(2, 0.6), trial(3, None, "Error: no"))
    tuning = TuneOptions(objective=objective)  # type: ignore[arg-type]  # one of the names
    assert " ".join(item.name for item in ranked(trials, tuning)) == order


def test_the_picture_has_a_mark_for_every_trial(tmp_path: Path) -> None:
    trials = (trial(0, 0.9), trial(1, 0.8), trial(2, None, "Error: no"))
    draw(trials, SPACE, TuneOptions(), tmp_path / "one.svg")
    draw(trials[:2], SPACE, TuneOptions(), tmp_path / "two.svg")
    with_failed, without = (
        len(list(ElementTree.parse(tmp_path / name).iter("{http://www.w3.org/2000/svg}use")))
        for name in ("one.svg", "two.svg")
    )
    assert with_failed - without == len(SPACE.parameters)


def test_the_same_trials_give_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw((trial(0, 0.9), trial(1, 0.8)), SPACE, TuneOptions(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_deployed_trial_shows_what_it_cost() -> None:
    cost = {"int8-accuracy": 0.8, "latency-ms": 6.25, "export-seconds": 31.0}
    first = trial(0, 0.8)
    exported = dataclasses.replace(first, figures={**first.figures, **cost})
    lines = tune_lines(
        result(exported, trial(1, -0.1), tuning=TuneOptions(objective="deployed", latency_budget_ms=10))
    )
    head = next(line for line in lines if line.startswith("trial"))
    assert [name for name in ("deployed", "INT8", "ms", "export s") if name not in head] == []
    assert UNUSABLE in lines
    assert len(UNUSABLE) <= WIDTH
