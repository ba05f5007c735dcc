"""Keras Tuner's oracles, made to go on after a kill, and its tuner, made to run our trials.

Imports Keras Tuner: load it after `start_keras`.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from keras_tuner import HyperParameters, Objective, oracles
from keras_tuner.engine import base_tuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import config

from medimg.runtime.errors import UsageError
from medimg.runtime.files.writing import written_whole
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.tuning.options import DIRECTIONS, TuneOptions
from medimg.train.tuning.result import TrialResult
from medimg.train.tuning.search_space import SearchSpace
from medimg.train.tuning.trials import most_epochs, trial_fields

Figures: TypeAlias = Mapping[str, float]
RunTrial: TypeAlias = Callable[[Mapping[str, Any], Sequence[Figures]], Figures]
"""From what the oracle chose, and the figures of the trials that are done, to the figures of this one."""

# A failed trial is recorded; its traceback belongs into the log, not onto the terminal.
config.DEBUG = False

_LOG = logging.getLogger(__name__)

UNFINISHED = (TrialStatus.RUNNING, TrialStatus.INVALID)
FAILURES = (TrialStatus.INVALID, TrialStatus.FAILED)
MOST_TRIALS = 1_000_000
"""More than any search has."""
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)
IDLE_S = 0.02
"""How long a worker waits before it asks for the next trial; an oracle that has none yet answers at once."""


class Durable:
    """Goes before an oracle: its files appear whole, and no trial is lost or repeated by a kill between two.

    Keras Tuner writes over its files in place, and a trial's own file before the oracle's. On too many
    failures it raises an exception, which a chief's server does not survive; here the trials simply end.
    """

    trials: dict[str, Any]
    start_order: list[str]
    end_order: list[str]
    max_consecutive_failed_trials: int
    ongoing_trials: dict[str, Any]
    _retry_queue: list[str]
    _ended_before = 0

    @property
    def gave_up(self) -> bool:
        """Whether the last trials of this run all failed, so many that no more are tried."""
        last = self.end_order[self._ended_before :][-self.max_consecutive_failed_trials :]
        failed = [name for name in last if self.trials[name].status == TrialStatus.FAILED]
        return len(failed) == self.max_consecutive_failed_trials

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Choose the values of the next trial, if there is to be one."""
        if self.gave_up:
            return {"status": TrialStatus.STOPPED, "values": None}
        chosen: dict[str, Any] = super().populate_space(trial_id)  # type: ignore[misc]  # the oracle's
        return chosen

    def _check_consecutive_failures(self) -> None:
        """Leave the end to `populate_space`."""

    def save(self) -> None:
        """Write the oracle's state."""
        _save_state(self, self._get_oracle_fname())  # type: ignore[attr-defined]  # the oracle's

    def _save_trial(self, saved: Any) -> None:  # noqa: ANN401  Keras Tuner is untyped
        folder = self._get_trial_dir(saved.trial_id)  # type: ignore[attr-defined]  # the oracle's
        _save_state(saved, f"{folder}/trial.json")

    def get_state(self) -> dict[str, Any]:
        """Give the state with what each trial tries, so that one whose own file is damaged can run again."""
        values = {name: trial.hyperparameters.values for name, trial in self.trials.items()}
        state: dict[str, Any] = super().get_state()  # type: ignore[misc]  # the oracle's
        return {**state, "values": values}

    def reload(self) -> None:
        """Read the state back; what the oracle's own file does not know has not begun.

        Raises:
            UsageError: a file is damaged, and nothing else knows what it held.
        """
        file = Path(self._get_oracle_fname())  # type: ignore[attr-defined]  # the oracle's
        with _damage_named(file):
            state = json.loads(file.read_text(encoding="utf-8"))
            begun = dict.fromkeys(state["start_order"])
        for folder in file.parent.glob("trial_*"):
            if folder.name.removeprefix("trial_") not in begun:
                shutil.rmtree(folder)
        # Keras Tuner finds none where a bracket in the folder's name looks like a pattern.
        self.trials.update({name: _read_trial(file.parent, name, state) for name in begun})
        with _damage_named(file):
            self.set_state(state)  # type: ignore[attr-defined]  # the oracle's
        self.ongoing_trials = {}
        unfinished = [name for name in self.start_order if self.trials[name].status in UNFINISHED]
        ended = [name for name in self.end_order if name not in unfinished]
        finished = [name for name in self.start_order if name not in {*unfinished, *ended}]
        self._retry_queue, self.end_order = unfinished, ended + finished
        self._ended_before = len(self.end_order)


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise UsageError(
            f"{file}: damaged, or gone ({type(error).__name__}): begin the search anew in another folder"
        ) from None


def _read_trial(folder: Path, name: str, state: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Read a trial's own file; where it is damaged, the trial is to run again, with the same values."""
    file = folder / f"trial_{name}" / "trial.json"
    try:
        return Trial.from_state(json.loads(file.read_text(encoding="utf-8")))
    except _DAMAGE as error:
        with _damage_named(file):
            declared = HyperParameters.from_config(state["hyperparameters"])
            declared.values = dict(state["values"][name])
        _LOG.warning("%s: damaged, or gone (%s): that trial runs again", file, type(error).__name__)
        file.parent.mkdir(exist_ok=True)
        return Trial(declared, name, TrialStatus.RUNNING)


class RandomOracle(Durable, oracles.RandomSearchOracle):  # type: ignore[misc]  # Keras Tuner ships no types
    """Random search."""


class BayesianOracle(Durable, oracles.BayesianOptimizationOracle):  # type: ignore[misc]
    """Bayesian optimisation by a Gaussian process."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Choose the values of the next trial, the same ones after a kill."""
        self._random_state = np.random.RandomState(self.seed + len(self.trials))
        return super().populate_space(trial_id)


class HyperbandOracle(Durable, oracles.HyperbandOracle):  # type: ignore[misc]
    """Hyperband: many short trials, of which the best are run again for longer (arXiv:1603.06560)."""


class GridOracle(Durable, oracles.GridSearchOracle):  # type: ignore[misc]
    """Every combination in turn; Keras Tuner's own forgets at a restart where it was."""

    def get_state(self) -> dict[str, Any]:
        """Give the state with the order of the combinations."""
        order, name = [], self._ordered_ids._next_index[None]
        while name is not None:
            order.append(self._ordered_ids._memory[name])
            name = self._ordered_ids._next_index[name]
        return {**super().get_state(), "ordered_ids": order}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up the state; each trial is asked again whether a combination follows it."""
        super().set_state(state)
        for name in state["ordered_ids"]:
            self._ordered_ids.insert(name)
        self._populate_next = list(self.start_order)


def make_oracle(tuning: TuneOptions, space: SearchSpace, base: FitOptions) -> Any:  # noqa: ANN401
    """Make the oracle that chooses what to try.

    Args:
        tuning: which kind, what for, how long.
        space: what it chooses from.
        base: the options that stay as they are; its seed is the oracle's.
    """
    declared = HyperParameters()
    space.declare(declared, base, grid=tuning.tuner == "grid")
    common = {
        "objective": Objective(tuning.objective, DIRECTIONS[tuning.objective]),
        "hyperparameters": declared,
        "allow_new_entries": False,
        "tune_new_entries": False,
        # Keras Tuner takes 0 for no seed.
        "seed": base.seed + 1,
        "max_consecutive_failed_trials": tuning.max_failures,
    }
    oracle: Any
    if tuning.tuner == "hyperband":
        oracle = HyperbandOracle(max_epochs=most_epochs(base), **common)
        oracle.max_trials = tuning.trials
    else:
        kinds = {"random": RandomOracle, "bayesian": BayesianOracle, "grid": GridOracle}
        oracle = kinds[tuning.tuner](max_trials=tuning.trials, **common)
    oracle.verbose = 0
    return oracle


class Search(base_tuner.BaseTuner):  # type: ignore[misc]  # Keras Tuner ships no types
    """Keras Tuner's loop over trials: in one process, as the chief, or as a worker."""

    def __init__(
        self,
        oracle: Any,  # noqa: ANN401  Keras Tuner is untyped
        folder: Path,
        space: SearchSpace,
        job: Job,
        run: RunTrial | None = None,
    ) -> None:
        """Take up the search in a folder, or begin one there.

        Args:
            oracle: from `make_oracle`.
            folder: Keras Tuner's own files.
            space: what the oracle chooses from.
            job: the options that stay fixed; its progress takes a line a trial.
            run: trains and judges; a chief needs none.
        """
        self._run, self._space, self._job = run, space, job
        self._own: list[TrialResult] = []
        super().__init__(oracle, directory=str(folder.parent), project_name=folder.name)
        if not Path(self._get_tuner_fname()).exists() and any(folder.glob("trial_*")):
            # Without the file that Keras Tuner looks for, it would begin anew over what is there.
            self.reload()

    def results(self) -> tuple[TrialResult, ...]:
        """Give the trials of the whole search; of a worker those that it ran."""
        if self._is_worker():
            return tuple(self._own)
        return tuple(
            self._result(trial, trial.score, _figures(trial)) for trial in self.oracle.trials.values()
        )

    def on_search_begin(self) -> None:
        """Leave a trace, so that a search which is killed in its first trial is taken up too."""
        self.save()

    def pre_create_trial(self) -> None:
        """Do not ask a busy oracle in a tight loop."""
        time.sleep(IDLE_S)

    def run_trial(self, trial: Any) -> Figures:  # noqa: ANN401
        """Train and judge one trial; Keras Tuner records what this raises as the trial's failure."""
        assert self._run is not None, "only a chief has nothing to run, and it runs no trials"
        every = self.oracle.get_best_trials(MOST_TRIALS)
        done = [_figures(other) for other in every if other.status == TrialStatus.COMPLETED]
        found = self._run(trial.hyperparameters.values, done)
        self._own.append(self._result(trial, found[self.oracle.objective.name], found))
        return found

    def on_trial_end(self, trial: Any) -> None:  # noqa: ANN401
        """Say how the trial went, and store it."""
        failed = trial.status in FAILURES
        if failed:
            self._own.append(self._result(trial, None, {}))
            _LOG.debug("%s", trial.message)
        last = self._own[-1]
        outcome = f"failed: {last.failure}" if failed else f"{self.oracle.objective.name} {last.score:.4f}"
        self._job.progress.note(f"trial {trial.trial_id}: {outcome}")
        super().on_trial_end(trial)

    def reload(self) -> None:
        """Take up the oracle's state; the tuner has none of its own."""
        if not self._is_worker():
            self.oracle.reload()

    def save(self) -> None:
        """Write the state of tuner and oracle, each whole."""
        if not self._is_worker():
            self.oracle.save()
        _save_state(self, self._get_tuner_fname())

    def _result(self, trial: Any, score: float | None, figures: Figures) -> TrialResult:  # noqa: ANN401
        failed = trial.status in FAILURES
        return TrialResult(
            name=trial.trial_id,
            status="failed" if failed else "completed",
            score=None if failed else score,
            values=trial_fields(trial.hyperparameters.values, self._space, self._job.options),
            figures=figures,
            failure=_failure(trial) if failed else None,
        )


def _save_state(thing: Any, path: str) -> None:  # noqa: ANN401
    """Write what Keras Tuner would, but the file appears whole.

    Raises:
        UsageError: it cannot be written.
    """
    with written_whole(Path(path)) as temporary:
        temporary.write_text(json.dumps(thing.get_state()), encoding="utf-8")


def _figures(trial: Any) -> dict[str, float]:  # noqa: ANN401
    """Give what was measured of a trial, by name."""
    return {name: float(history.get_best_value()) for name, history in trial.metrics.metrics.items()}


def _failure(trial: Any) -> str:  # noqa: ANN401
    """Give the last exception of a failed trial without its traceback."""
    lines = (trial.message or "").strip().splitlines()
    if not lines:
        return "it ran on a worker, whose own output says why"
    after_frames = [index + 1 for index, line in enumerate(lines[:-1]) if line.startswith("  ")]
    return lines[after_frames[-1] if after_frames else 0]
