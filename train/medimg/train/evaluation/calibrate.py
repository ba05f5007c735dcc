"""`calibrate`: a temperature, operating points and the intended use, written into a Keras file's spec."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medimg.runtime.data import DataSet
from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.spec import Allowed, HeldOut, ModelSpec, OperatingPoint
from medimg.runtime.statistics.bootstrap import Resamples, Resampling
from medimg.runtime.tasks import task_named
from medimg.train.data.division import divide, read_labelled
from medimg.train.data.options import DataOptions
from medimg.train.evaluation.answers import Answers, ask
from medimg.train.evaluation.operating_points import PointScores, choose_point, measure_point, require_wanted
from medimg.train.evaluation.reliability import Reliability, fit_temperature, measure_reliability
from medimg.train.intended_use import CalibrationPart, Usage
from medimg.train.keras_files import check_output, require_keras_file, rewrite_spec
from medimg.train.progress import Progress
from medimg.train.simulation.simulate import is_simulated

DEFAULTS = DataOptions()


@dataclass(frozen=True)
class CalibrationResult:
    """What was written into a model's spec, and what it does on the images that it was chosen on."""

    model: str
    output: str
    output_sha256: str
    data: str
    chosen_on: str
    """The images, in words."""
    images: int
    simulated_data: bool
    """Whether the images are simulated."""
    resampling: Resampling
    """What the intervals come from."""
    temperature: float
    before: Reliability
    """At temperature 1."""
    after: Reliability
    """At the temperature written."""
    operating_points: tuple[PointScores, ...]
    """Those chosen now; on the images that chose them, the sensitivity is flattered a little."""
    dropped_points: tuple[OperatingPoint, ...]
    """Earlier ones, which were thresholds on probabilities at another temperature."""
    intended_use: str | None
    allowed: Allowed


def calibrate(
    model: str | Path,
    data: str | Path,
    *,
    output: str | Path | None = None,
    part: CalibrationPart = "val",
    use_test: bool = False,
    fit_the_temperature: bool = True,
    sensitivities: Mapping[str, float] | None = None,
    usage: Usage | None = None,
    validation_fraction: float | None = None,
    seed: int | None = None,
    group_by: str | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Fit a temperature and choose operating points on validation images; write them into the model's spec.

    Export folds the temperature into the graph, so the points hold for the artefacts too.

    Args:
        model: a Keras file that carries a spec.
        data: the data that it was trained on, or a set of validation images alone (with `part="all"`).
        output: the file to write; by default the model itself, replaced whole.
        part: `val`, as `fit` takes it: the part named so, or what it holds out of the training part; `all`.
        use_test: whether images of a part named test may choose; figures on them mean little afterwards.
        fit_the_temperature: otherwise the spec's own stays.
        sensitivities: the wanted sensitivity of each class that gets an operating point.
        usage: intended use and what the model may be given.
        validation_fraction: as given to `fit`; by default what the model's spec says, as for the next two.
        seed: as given to `fit`.
        group_by: as given to `fit`.
        batch_size: images at once.
        threads: processor threads; by default those this process may use.
        progress: shows how far it has come.

    Raises:
        DataError: the data lack that part, or cannot tell a temperature or a threshold.
        ImageError: an image cannot be read.
        ModelError: the model cannot be used.
        UsageError: options make no sense, or the output cannot be written.
    """
    model, threads = Path(model), threads or usable_cpus()
    output = Path(output) if output else model
    _check(model, output, part, use_test=use_test)
    spec = ModelSpec.read(model)
    held_out = _held_out(spec, {"fraction": validation_fraction, "seed": seed, "group_by": group_by})
    options = DataOptions(
        validation_fraction=held_out.fraction,
        seed=held_out.seed,
        group_by=held_out.group_by,
        allow_unlisted=True,
    )
    found = read_labelled(Path(data), options, threads, spec.task)
    dataset, chosen_on = _choose(found, part, options, use_test=use_test)
    wanted = dict(sensitivities or {})
    for label, sensitivity in wanted.items():
        require_wanted(spec.labels, label, sensitivity)
    plain = ask(
        model,
        spec.with_(temperature=1.0),
        dataset,
        batch_size=batch_size,
        backend="auto",
        threads=threads,
        progress=progress or Progress(),
    )
    temperature = fit_temperature(plain) if fit_the_temperature else spec.temperature
    tempered = _at(plain, spec.with_(temperature=temperature))
    points = tuple(
        choose_point(tempered, label, sensitivity, chosen_on) for label, sensitivity in wanted.items()
    )
    spec, dropped = _with_points(spec, temperature, points)
    spec = (usage or Usage()).applied(spec)
    rewrite_spec(model, spec, output)
    resamples = Resamples(plain.patients)
    return CalibrationResult(
        model=str(model),
        output=str(output),
        output_sha256=file_sha256(output),
        data=str(data),
        chosen_on=chosen_on,
        images=len(dataset),
        simulated_data=is_simulated(data),
        resampling=resamples.resampling,
        temperature=temperature,
        before=measure_reliability(plain, resamples),
        after=measure_reliability(tempered, resamples),
        operating_points=tuple(measure_point(tempered, point, resamples) for point in points),
        dropped_points=dropped,
        intended_use=spec.intended_use,
        allowed=spec.allowed,
    )


def _check(model: Path, output: Path, part: CalibrationPart, *, use_test: bool) -> None:
    """Refuse before the work what cannot end well."""
    require_keras_file(model, "changed: calibrate the Keras file, and export it again")
    if output.suffix != model.suffix:
        raise UsageError(f"{output}: must end in {model.suffix}, as {model} does")
    if part == "test" and not use_test:
        raise UsageError(
            "what is chosen on the part test makes every figure on it too good: "
            "use validation images, or say --use-test"
        )
    check_output(output)


def _held_out(spec: ModelSpec, given: Mapping[str, float | str | None]) -> HeldOut:
    """Find out what `fit` held out: what the spec says, or what is given where it says nothing."""
    given = {name: value for name, value in given.items() if value is not None}
    if not spec.held_out:
        return replace(HeldOut(DEFAULTS.validation_fraction, DEFAULTS.seed), **given)  # type: ignore[arg-type]
    for name, value in given.items():
        if value != (fitted := getattr(spec.held_out, name)):
            raise UsageError(
                f"{name} {value} is not what the model was trained with, {fitted}: "
                "images that it learned from would choose; leave it out"
            )
    return spec.held_out


def _choose(
    dataset: DataSet, part: CalibrationPart, options: DataOptions, *, use_test: bool
) -> tuple[DataSet, str]:
    """Choose the images to calibrate on, and say which they are."""
    if part == "val":
        division = divide(dataset, options)
        held_out = f"validation images held out with seed {options.seed}"
        return division.validation, "the part val" if division.validation_from == "val" else held_out
    if part == "all":
        if len(dataset.part("test")) and not use_test:
            raise UsageError("the data have a part named test, which may not choose anything: say --use-test")
        return dataset, "all images given"
    chosen = dataset.part(part)
    if not len(chosen):
        raise DataError(f"the data have no part named {part}")
    return chosen, f"the part {part}"


def _at(answers: Answers, spec: ModelSpec) -> Answers:
    return replace(
        answers, probabilities=task_named(spec.task).tempered(answers.probabilities, spec.temperature)
    )


def _with_points(
    spec: ModelSpec, temperature: float, points: tuple[OperatingPoint, ...]
) -> tuple[ModelSpec, tuple[OperatingPoint, ...]]:
    """Put a temperature and points into a spec; give what is dropped: points of another temperature."""
    new = {point.label: point for point in points}
    if temperature == spec.temperature:
        earlier = {point.label: point for point in spec.operating_points}
        return spec.with_(operating_points=tuple({**earlier, **new}.values())), ()
    dropped = tuple(point for point in spec.operating_points if point.label not in new)
    return spec.with_(temperature=temperature, operating_points=points), dropped
