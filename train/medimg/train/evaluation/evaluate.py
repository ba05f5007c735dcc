"""`evaluate`: the figures of a model, Keras file or exported artefact, on labelled images."""

from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.data import DataSet, Split, read_data
from medimg.runtime.data.patients import with_patients
from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.files.writing import require_writable, write_text
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics.bootstrap import Resamples, Resampling
from medimg.runtime.statistics.metrics import Evaluation
from medimg.train.evaluation.answers import Answers, ask
from medimg.train.evaluation.operating_points import PointScores, measure_point
from medimg.train.evaluation.options import EvaluateOptions
from medimg.train.evaluation.reliability import Reliability, measure_reliability
from medimg.train.evaluation.scores import Scores, score
from medimg.train.evaluation.subgroups import Subgroup, measure_subgroups, require_groups
from medimg.train.progress import Progress
from medimg.train.simulation.simulate import is_simulated
from medimg.train.tasks import train_task


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
    evaluation: Evaluation
    """Counts; with several labels an image there is no confusion matrix."""
    resampling: Resampling
    """What the 95 % intervals of all that follows come from."""
    scores: Scores
    reliability: Reliability
    operating_points: tuple[PointScores, ...]
    """Those of the model's spec, on these images."""
    subgroups: tuple[Subgroup, ...]
    failed: tuple[str, ...] = ()
    """Images for which the model gives no number; no figure counts them."""


def evaluate(
    model: str | Path,
    data: str | Path,
    options: EvaluateOptions | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ModelEvaluation:
    """Measure a model on labelled images; a Keras file runs in float32, whatever it was saved under.

    Args:
        model: a Keras file that carries a spec, or an artefact of medimg-export.
        data: a data set; its labels must be the model's, by name.
        options: what is measured, on which images, and how it is shown.
        threads: processor threads; by default those this process may use.
        progress: shows how far it has come.

    Raises:
        DataError: the data lack that part, or hold a class that the model does not know.
        ImageError: an image cannot be read.
        ModelError: the model cannot be used.
        NoNumberError: the model gives no number for any image.
        UsageError: the model has no class of that name, or the report cannot be written.
    """
    options = options or EvaluateOptions()
    positive, report = options.positive, options.report
    if report is not None:
        require_writable(report)
    model, threads, progress = Path(model), threads or usable_cpus(), progress or Progress()
    spec = ModelSpec.read(model)
    dataset, part = choose_part(read_data(data, task=spec.task), options.split, str(data))
    if positive is not None and positive not in spec.labels:
        raise UsageError(f"class {positive!r} is not one of the model's: {', '.join(spec.labels)}")
    for column in options.subgroups:
        require_groups(dataset.samples, column)
    dataset = with_patients(dataset, options.group_by, threads)
    answers = ask(
        model,
        spec,
        dataset,
        batch_size=options.batch_size,
        backend=options.backend,
        threads=threads,
        progress=progress,
        leave_out_failed=True,
    )
    resamples = Resamples(answers.patients)
    result = ModelEvaluation(
        model=str(model),
        data=str(data),
        part=part,
        simulated_data=is_simulated(data),
        backend=answers.backend,
        precision=answers.precision,
        evaluation=count(answers),
        resampling=resamples.resampling,
        scores=score(answers, resamples, positive),
        reliability=measure_reliability(answers, resamples),
        operating_points=tuple(measure_point(answers, point, resamples) for point in spec.operating_points),
        subgroups=tuple(
            group
            for column in options.subgroups
            for group in measure_subgroups(answers, column, spec.operating_points, positive)
        ),
        failed=answers.failed,
    )
    if report is not None:
        _write_report(result, answers, spec, Path(report), with_images=options.with_images)
    return result


def _write_report(
    result: ModelEvaluation, answers: Answers, spec: ModelSpec, path: Path, *, with_images: bool
) -> None:
    from medimg.train.evaluation.heatmaps import found_maps
    from medimg.train.evaluation.report import mistake_blocks, render

    if with_images:
        with found_maps(Path(result.model), spec) as maps:
            text = render(result, answers, spec, mistake_blocks(answers, spec.image, maps))
    else:
        text = render(result, answers, spec, ())
    write_text(path, text, private=with_images)


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


def count(answers: Answers) -> Evaluation:
    """Count right and wrong decisions."""
    return train_task(answers.task).count(answers.shown, answers.decided, answers.labels)
