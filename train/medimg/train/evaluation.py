"""`evaluate`: the figures of a model, Keras file or exported artefact, on labelled images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medimg.runtime.cpus import usable_cpus
from medimg.runtime.data import DataSet, Split, read_data
from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.metrics import Evaluation
from medimg.runtime.metrics import evaluate as count
from medimg.runtime.spec import ModelSpec
from medimg.train.answers import Answers, ask
from medimg.train.bootstrap import Resamples, Resampling
from medimg.train.operating_points import PointScores, measure_point
from medimg.train.progress import Progress
from medimg.train.reliability import Reliability, measure_reliability
from medimg.train.scores import Scores, score
from medimg.train.simulation import is_simulated


@dataclass(frozen=True)
class ModelEvaluation:
    """A model's figures on a data set, and what ran to get them."""

    model: str
    data: str
    part: str
    """`train`, `val` or `test`, or `all` where the data are not divided."""
    simulated_data: bool
    """Whether the images are simulated."""
    backend: str
    """`keras`, or the runtime's back end."""
    precision: str
    """What really ran."""
    evaluation: Evaluation | None
    """Counts; None with several labels an image."""
    resampling: Resampling
    """What the 95 % intervals of all that follows come from."""
    scores: Scores
    reliability: Reliability
    operating_points: tuple[PointScores, ...]
    """Those of the model's spec, on these images."""


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    split: Split | None = None,
    positive: str | None = None,
    batch_size: int = 32,
    backend: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> ModelEvaluation:
    """Measure a model on labelled images; a Keras file runs in float32, whatever it was saved under.

    Args:
        model: a Keras file that carries a spec, or an artefact of medimg-export.
        data: a data set; its labels must be the model's, by name.
        split: the part to use; by default `test`, or everything where the data are not divided.
        positive: of two classes the one whose areas under the curves count; by default the last.
        batch_size: images at once.
        backend: the runtime's back end for an exported artefact.
        threads: processor threads; by default those this process may use.
        progress: shows how far it has come.

    Raises:
        DataError: the data lack that part, or hold a class that the model does not know.
        ImageError: an image cannot be read.
        ModelError: the model cannot be used.
        UsageError: the model has no class of that name.
    """
    model, threads, progress = Path(model), threads or usable_cpus(), progress or Progress()
    spec = ModelSpec.read(model)
    dataset, part = choose_part(read_data(data, task=spec.task), split, str(data))
    if positive is not None and positive not in spec.labels:
        raise UsageError(f"class {positive!r} is not one of the model's: {', '.join(spec.labels)}")
    answers = ask(
        model, spec, dataset, batch_size=batch_size, backend=backend, threads=threads, progress=progress
    )
    resamples = Resamples(answers.patients)
    return ModelEvaluation(
        str(model),
        str(data),
        part,
        is_simulated(data),
        answers.backend,
        answers.precision,
        _counts(answers),
        resamples.resampling,
        score(answers, resamples, positive),
        measure_reliability(answers, resamples),
        tuple(measure_point(answers, point, resamples) for point in spec.operating_points),
    )


def choose_part(dataset: DataSet, split: Split | None, name: str) -> tuple[DataSet, str]:
    """Choose the images to evaluate on.

    Args:
        dataset: the data.
        split: the part asked for, or None for `test`, or everything where nothing is divided.
        name: the data's name in messages.

    Raises:
        DataError: there is no such part.
    """
    parts = sorted({sample.split for sample in dataset.samples if sample.split})
    if split is None and not parts:
        return dataset, "all"
    wanted = dataset.part(split or "test")
    if not len(wanted):
        has = f"has {' and '.join(parts)}" if parts else "is not divided"
        raise DataError(f"{name}: has no part named {split or 'test'}; it {has} (see --split)")
    return wanted, split or "test"


def _counts(answers: Answers) -> Evaluation | None:
    if answers.task == "multilabel":
        return None
    return count(np.argmax(answers.shown, axis=1), np.argmax(answers.decided, axis=1), answers.labels)
