"""Verbs that measure a model: evaluate, calibrate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import BACKENDS, PathArgument, standard_options
from medimg.runtime.data import Split
from medimg.runtime.errors import UsageError
from medimg.train.intended_use import CalibrationPart
from medimg.train.verbs.answer import show
from medimg.train.verbs.terminal_progress import terminal_progress
from medimg.train.verbs.usage_flags import usage_options

positive = click.IntRange(min=1)


@click.command()
@click.argument("model", type=PathArgument)
@click.argument("data", type=PathArgument)
@click.option(
    "--split",
    type=click.Choice(get_args(Split)),
    help="The part of DATA to use.  [default: test, or everything where DATA are not divided]",
)
@click.option(
    "--positive",
    metavar="LABEL",
    help="The one of two classes whose areas under the curves count.  [default: the last]",
)
@click.option(
    "--subgroup",
    "subgroups",
    multiple=True,
    metavar="COLUMN",
    help="Column of a CSV whose values are measured apart, such as sex; may be repeated.",
)
@click.option(
    "--group-by",
    metavar="PATTERN",
    help="Regular expression that finds the patient in an image's path, as fit takes it.",
)
@click.option("--report", type=PathArgument, help="Write an HTML page with plots to this file.")
@click.option(
    "--with-images",
    is_flag=True,
    help="Show the worst mistakes in the report, with heat maps where the head allows; they show patients.",
)
@click.option("--batch-size", type=positive, default=32, show_default=True, help="Images at once.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="What runs an exported model.",
)
@commandline.JSON_OPTION
@standard_options
def evaluate(
    model: Path,
    data: Path,
    json_file: str | None,
    threads: int,
    **options: Any,  # noqa: ANN401  each is a field of EvaluateOptions
) -> int:
    """Measure MODEL, a Keras file or an exported artefact, on the labelled images of DATA.

    Each figure has a 95 % interval, from the bootstrap over patients where DATA name them, else over images.
    Images for which MODEL gives no number are named, counted in no figure, and make the exit status 1.
    """
    from medimg.train.evaluation.evaluate import evaluate as run_evaluate
    from medimg.train.evaluation.options import EvaluateOptions
    from medimg.train.evaluation.summary import evaluation_lines

    chosen = EvaluateOptions(**options)
    result = run_evaluate(model, data, chosen, threads=threads, progress=terminal_progress())
    show(result, evaluation_lines(result), json_file)
    return 1 if result.failed else 0


@click.command()
@click.argument("model", type=PathArgument)
@click.argument("data", type=PathArgument)
@click.option("--output", type=PathArgument, help="The file to write.  [default: MODEL itself]")
@click.option(
    "--split",
    "part",
    type=click.Choice(get_args(CalibrationPart)),
    default="val",
    show_default=True,
    help="val: the part named so, or what fit holds out; all: DATA are validation images.",
)
@click.option("--use-test", is_flag=True, help="Let images of a part named test choose.")
@click.option(
    "--sensitivity",
    "sensitivities",
    multiple=True,
    metavar="LABEL=SHARE",
    callback=lambda _context, _option, values: _sensitivities(values),
    help="Choose a threshold that finds this share of a class, such as tumour=0.95; may be repeated.",
)
@click.option("--no-temperature", is_flag=True, help="Leave the temperature as it is.")
@usage_options
@click.option("--group-by", metavar="PATTERN", help="As given to fit.  [default: what MODEL says]")
@click.option("--validation-fraction", type=float, help="As given to fit.  [default: what MODEL says]")
@click.option("--seed", type=int, help="As given to fit.  [default: what MODEL says]")
@click.option("--batch-size", type=positive, default=32, show_default=True, help="Images at once.")
@commandline.JSON_OPTION
@standard_options
def calibrate(
    model: Path,
    data: Path,
    no_temperature: bool,
    json_file: str | None,
    **options: Any,  # noqa: ANN401  those of the function
) -> None:
    """Make the probabilities of MODEL, a Keras file, mean what they say, on validation images of DATA.

    A temperature, thresholds for wanted sensitivities and the intended use are written into the file; export
    puts the temperature into the graph.
    """
    from medimg.train.evaluation.calibrate import calibrate as run_calibrate
    from medimg.train.evaluation.summary import calibration_lines

    result = run_calibrate(
        model, data, fit_the_temperature=not no_temperature, progress=terminal_progress(), **options
    )
    show(result, calibration_lines(result), json_file)


def _sensitivities(texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        label, _, share = text.rpartition("=")
        if label in found:
            raise UsageError(f"--sensitivity {text}: one is given already for {label}")
        try:
            found[label] = float(share)
        except ValueError:
            raise UsageError(f"--sensitivity {text}: LABEL=SHARE is wanted, such as tumour=0.95") from None
    return found
