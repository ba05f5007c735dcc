"""What a search did, as it is written by `--json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medimg.train.fitting.fit import FitResult
from medimg.train.fitting.options import FitOptions
from medimg.train.tuning.options import DIRECTIONS, Role, TuneOptions
from medimg.train.tuning.search_space import SearchSpace


@dataclass(frozen=True)
class TrialResult:
    """One set of options, trained and judged on the validation images."""

    name: str
    """Its number in the search."""
    status: Literal["completed", "failed"]
    score: float | None
    """By the objective; None of a failed trial."""
    values: Mapping[str, Any]
    """The fields of FitOptions that the search chose, by name."""
    figures: Mapping[str, float]
    """`val-accuracy`, `val-auc`, `val-loss` and `epochs`, means over its executions, and `seconds`; of an
    exported trial also `int8-accuracy`, `latency-ms` and `export-seconds`."""
    failure: str | None
    """Why it failed."""


@dataclass(frozen=True)
class TuneResult:
    """A finished search, best trial first and failed ones last."""

    output: str
    """The folder with the search, its picture and the best model."""
    data: str
    options: FitOptions
    """What every trial has in common."""
    tuning: TuneOptions
    space: SearchSpace
    role: Role
    """`worker`: the trials are those that this process ran, and the chief has the model."""
    resumed: bool
    """Whether an earlier run had begun the search."""
    trials: tuple[TrialResult, ...]
    command: str | None
    """What `fit` is told to make the saved model again."""
    fit: FitResult | None
    """How the saved model was trained, and its figures; None of a worker."""
    picture: str | None
    """The scores by each parameter, as SVG; None of a worker."""
    prepare_seconds: float
    """Reading data, decoding and the first features."""
    seconds: float
    """This run, from start to end."""

    @property
    def failed(self) -> tuple[TrialResult, ...]:
        """The trials that gave no score."""
        return tuple(trial for trial in self.trials if trial.status == "failed")


def ranked(trials: tuple[TrialResult, ...], tuning: TuneOptions) -> tuple[TrialResult, ...]:
    """Sort trials, best first; of equal scores the earlier one leads, and failed trials come last."""
    sign = -1 if DIRECTIONS[tuning.objective] == "max" else 1

    def rank(trial: TrialResult) -> tuple[float, int]:
        return math.inf if trial.score is None else sign * trial.score, int(trial.name)

    return tuple(sorted(trials, key=rank))
