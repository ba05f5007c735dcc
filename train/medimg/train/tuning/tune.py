"""`tune`: many trainings on images that are prepared once, and the best of them as a model."""

import contextlib
import hashlib
import io
import json
import logging
import shlex
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medimg.runtime.errors import UsageError
from medimg.runtime.files.plain import to_plain
from medimg.runtime.files.writing import replaced
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.optional import require
from medimg.runtime.tasks import task_of_head
from medimg.train.data.array_store import open_store
from medimg.train.data.division import Division, read_division
from medimg.train.errors import TuningError
from medimg.train.fitting.fit import FitResult, fit
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.preparation import prepare, require_head
from medimg.train.keras_setup import start_keras
from medimg.train.progress import Progress
from medimg.train.state_files import read_state
from medimg.train.tuning.options import Role, TuneOptions, role
from medimg.train.tuning.picture import draw
from medimg.train.tuning.result import TrialResult, TuneResult, ranked
from medimg.train.tuning.search_space import SearchSpace, default_space, read_space
from medimg.train.tuning.summary import fit_arguments

SEARCH, SETTINGS, PICTURE, BEST = "search", "settings.json", "trials.svg", "best.h5"
"""What DIR holds: Keras Tuner's own files, what was asked for, the picture, the model."""


def tune(
    data: str | Path,
    output: str | Path,
    options: TuneOptions | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    training: FitOptions | None = None,
    space: str | Path | None = None,
    cache_dir: str | Path | None = None,
    resume: bool = False,
) -> TuneResult:
    """Search for the options that train the best model, and train and save it.

    Images are decoded once and the outputs of frozen blocks computed once, for all trials. Where Keras
    Tuner's variables KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT are set, this is
    one process of a search over machines: the chief gives out the trials and trains the best model, the
    workers run them. A test part of the data is never looked at.

    Args:
        data: a data set with labels.
        output: a folder for the search, its picture and `best.h5`.
        options: which tuner, how many trials, what for.
        threads: processor threads; by default those this process may use.
        progress: shows how far it has come.
        training: what all trials have in common, the result's `options`.
        space: a TOML file with what to search; by default what matters most to the architecture.
        cache_dir: keeps decoded images and frozen features for later runs; by default they are removed.
        resume: whether to go on with the search that the folder holds.

    Raises:
        DataError: the data cannot be understood, or are too few.
        ImageError: an image cannot be read.
        WeightsError: the pretrained weights cannot be had.
        UsageError: options make no sense, or the folder holds another search.
        TuningError: too many trials in a row failed, or none can be used.
    """
    started = time.perf_counter()
    options, training = options or TuneOptions(), training or FitOptions()
    threads, progress = threads or usable_cpus(), progress or Progress()
    if options.objective == "deployed" and not task_of_head(training.head).exclusive:
        raise UsageError("objective 'deployed' needs one class an image: --head multilabel has none to count")
    part, folder = role(), Path(output)
    chosen = read_space(Path(space), training) if space else default_space(training)
    division = read_division(Path(data), training, threads, training.task)
    require_head(training, len(division.train.labels), division.train.task)
    settings = _settings(str(data), training, options, chosen, division)
    with (
        _taken(folder, settings, part, resume=resume) as resumed,
        open_store(Path(cache_dir) if cache_dir else None) as store,
    ):
        job = Job(store, threads, progress, training)
        found = _search(folder, division, chosen, options, part, job)
        trials = ranked(found.trials, options)
        outcome = None if part == "worker" else _train_best(str(data), folder, trials, found, options, job)
    if outcome:
        draw(trials, chosen, options, folder / PICTURE)
    return TuneResult(
        output=str(folder),
        data=str(data),
        options=training,
        tuning=options,
        space=chosen,
        role=part,
        resumed=resumed,
        trials=trials,
        command=_fit_command(outcome, str(data)) if outcome else None,
        fit=outcome,
        picture=str(folder / PICTURE) if outcome else None,
        prepare_seconds=found.prepare_seconds,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Found:
    """What the loop over trials gave."""

    trials: tuple[TrialResult, ...]
    gave_up: bool
    """Whether it ended because trial after trial failed."""
    prepare_seconds: float


def _search(
    folder: Path, division: Division, space: SearchSpace, tuning: TuneOptions, part: Role, job: Job
) -> _Found:
    """Run the trials, or as the chief give them out."""
    begin = time.perf_counter()
    start_keras(job.threads, job.options.seed)
    require("keras_tuner", "train")
    from medimg.train.tuning.oracles import Search, make_oracle
    from medimg.train.tuning.trials import TrialRunner

    oracle = make_oracle(tuning, space, job.options)
    if part == "chief":
        with _quiet():
            search = Search(oracle, folder / SEARCH, space, job)
            search.search()
        return _Found(search.results(), oracle.gave_up, 0.0)
    prepared = prepare(division, job)
    prepare_seconds = time.perf_counter() - begin
    with TrialRunner(prepared, space, tuning, job) as run, _quiet():
        search = Search(oracle, folder / SEARCH, space, job, run)
        search.search()
    return _Found(search.results(), oracle.gave_up, prepare_seconds)


def _train_best(
    data: str, folder: Path, trials: tuple[TrialResult, ...], found: _Found, tuning: TuneOptions, job: Job
) -> FitResult:
    """Train the best trial again by `fit` itself, on what the store holds.

    Raises:
        TuningError: there is no trial to train again.
    """
    best = trials[0]
    if found.gave_up:
        last = max((trial for trial in trials if trial.failure), key=lambda trial: int(trial.name))
        raise TuningError(
            f"{folder}: {tuning.max_failures} trials in a row failed, the last ({last.name}) because: "
            f"{last.failure}; mend that and go on with --resume"
        )
    if best.score is None:
        raise TuningError(f"{folder}: all {len(trials)} trials failed, the best guess is: {best.failure}")
    if tuning.objective == "deployed" and best.score < 0:
        timed = [trial.figures["latency-ms"] for trial in trials if "latency-ms" in trial.figures]
        raise TuningError(
            f"{folder}: no trial answers within {tuning.latency_budget_ms:g} ms; the fastest takes "
            f"{min(timed):.1f} ms: raise --latency-budget, or take smaller images or another --arch"
        )
    job.progress.note(f"training trial {best.name} again, the best of {len(trials)}")
    options = replace(job.options, **best.values)
    return fit(
        data,
        folder / BEST,
        options,
        threads=job.threads,
        cache_dir=job.store.folder,
        progress=job.progress,
        # A search that was killed here may have found a better trial since.
        restart=True,
    )


def _fit_command(result: FitResult, data: str) -> str:
    words = ["medimg-train", "fit", data, "--output", result.output, *fit_arguments(result.options)]
    return shlex.join(words)


def _settings(
    data: str, options: FitOptions, tuning: TuneOptions, space: SearchSpace, division: Division
) -> dict[str, Any]:
    """Collect what must not change where a search goes on; how long it may last may change."""
    names = "\n".join(
        sample.name for part in (division.train, division.validation) for sample in part.samples
    )
    return {
        "data": str(Path(data).resolve()),
        "images": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        "labels": list(division.train.labels),
        "options": to_plain(options),
        "space": to_plain(space),
        "tuning": to_plain(replace(tuning, max_trials=None, max_failures=1)),
    }


@contextlib.contextmanager
def _taken(folder: Path, settings: dict[str, Any], part: Role, *, resume: bool) -> Iterator[bool]:
    """Hold a search's folder and say whether it goes on; one that ends before its first trial leaves nothing.

    Raises:
        UsageError: as in `_take_folder`.
    """
    if part == "worker":  # on another machine it does not see the chief's folder
        yield False
        return
    made = not folder.exists()
    resumed = _take_folder(folder, settings, resume=resume)
    try:
        yield resumed
    except BaseException:
        if not (folder / SEARCH).exists():
            (folder / SETTINGS).unlink(missing_ok=True)
            if made:
                folder.rmdir()
        raise


def _take_folder(folder: Path, settings: dict[str, Any], *, resume: bool) -> bool:
    """Begin a search in a folder, or go on with the one it holds; say which.

    Raises:
        UsageError: it cannot be written to, or holds a search that is not to go on or is another.
    """
    file = folder / SETTINGS
    if file.exists():
        if not resume:
            raise UsageError(f"{folder}: holds a search already: go on with --resume, or name another folder")
        earlier = read_state(file, "begin the search anew in another folder")
        if changed := [name for name in settings if earlier.get(name) != settings[name]]:
            raise UsageError(
                f"{folder}: holds a search with other {changed[0]}: give the same, or name another folder"
            )
        return True
    if (folder / SEARCH).exists():
        raise UsageError(f"{folder}: holds a search, but not its {SETTINGS}: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(file) as temporary:
            temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Keras Tuner prints, and what its libraries think of many networks and of few points."""
    tensorflow = logging.getLogger("tensorflow")
    level = tensorflow.level
    tensorflow.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="sklearn")
            yield
    finally:
        tensorflow.setLevel(level)
