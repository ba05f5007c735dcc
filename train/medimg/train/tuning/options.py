"""What `tune` may be told, beside the options of `fit` that stay fixed."""

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from medimg.runtime.errors import UsageError
from medimg.train.errors import require

TunerName: TypeAlias = Literal["random", "bayesian", "hyperband", "grid"]
ObjectiveName: TypeAlias = Literal["val-accuracy", "val-auc", "val-loss", "deployed"]
Direction: TypeAlias = Literal["max", "min"]
Role: TypeAlias = Literal["alone", "chief", "worker"]

TUNERS: tuple[TunerName, ...] = get_args(TunerName)
DIRECTIONS: dict[ObjectiveName, Direction] = {
    "val-accuracy": "max",
    "val-auc": "max",
    "val-loss": "min",
    "deployed": "max",
}
DEFAULT_TRIALS = 20
CONTENDER_MARGIN = 0.02
"""How far below the best validation accuracy so far a trial may lie and still be exported and timed."""


@dataclass(frozen=True)
class TuneOptions:
    """How a search goes."""

    tuner: TunerName = "random"
    max_trials: int | None = None
    """None for 20, or for as many as hyperband wants."""
    executions_per_trial: int = 1
    """Trainings a trial, each from another seed; their figures are averaged."""
    objective: ObjectiveName = "val-accuracy"
    """`deployed`: accuracy on the validation images after export to INT8, within the latency budget."""
    latency_budget_ms: float | None = None
    """For `deployed`: what 90 % of single images must be answered within, on this machine."""
    max_failures: int = 3
    """Trials in a row that may fail before the search is given up."""

    def __post_init__(self) -> None:
        budget = self.latency_budget_ms
        require(
            (self.tuner in TUNERS, f"tuner {self.tuner!r} is not one of {', '.join(TUNERS)}"),
            (
                self.objective in DIRECTIONS,
                f"objective {self.objective!r} does not exist: choose from {', '.join(DIRECTIONS)}",
            ),
            (
                self.max_trials is None or self.max_trials >= 1,
                f"{self.max_trials} trials: at least 1 is needed",
            ),
            (self.executions_per_trial >= 1, f"{self.executions_per_trial} executions a trial: at least 1"),
            (self.max_failures >= 1, f"{self.max_failures} failures in a row: at least 1"),
            (budget is None or budget > 0, f"a latency budget of {budget} ms: it must be above 0"),
            (
                self.objective != "deployed" or budget is not None,
                "objective 'deployed' needs a budget: --latency-budget MS",
            ),
            (
                self.objective == "deployed" or budget is None,
                f"a latency budget says nothing to objective {self.objective!r}: use --objective deployed",
            ),
        )

    @property
    def trials(self) -> int | None:
        """The most trials, or None for as many as the tuner wants."""
        return self.max_trials or (None if self.tuner == "hyperband" else DEFAULT_TRIALS)


def role() -> Role:
    """Tell which part of a search over machines this process is to play, by Keras Tuner's own variables.

    Raises:
        UsageError: some of the variables are missing.
    """
    names = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
    if names[1] not in os.environ:
        return "alone"
    if missing := [name for name in names if name not in os.environ]:
        raise UsageError(f"{names[1]} is set, {missing[0]} is not: a search over machines needs both")
    return "chief" if "chief" in os.environ[names[0]] else "worker"
