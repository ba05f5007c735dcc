"""A search as lines for a terminal."""

import shlex
import textwrap
from dataclasses import fields

from medimg.runtime.files.text import printable
from medimg.train.data.summary import duplicate_lines, unreadable_lines
from medimg.train.fitting.options import FitOptions
from medimg.train.terminal import SIMULATED, table
from medimg.train.tuning.result import TrialResult, TuneResult
from medimg.train.tuning.search_space import NONE

WIDTH = 80
SHOWN = 20
"""Trials in the table; all are in the JSON."""
UNUSABLE = "below 0: over the budget, or not exported: over 0.02 below the best so far"
SHORT = {"val-accuracy": "acc", "val-auc": "AUC", "val-loss": "loss", "int8-accuracy": "INT8"}


def fit_arguments(options: FitOptions) -> list[str]:
    """Give what `medimg-train fit` must be told to train with these options."""
    usual = FitOptions()
    words: list[str] = []
    for field in fields(FitOptions):
        value = getattr(options, field.name)
        if value == getattr(usual, field.name) or value is None:
            continue
        name = field.name.replace("_", "-")
        words += (
            [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
        )
    return words


def tune_lines(result: TuneResult) -> list[str]:
    """Show the trials, what failed, and what to type next; only names and commands exceed 80 columns."""
    lines = [
        *textwrap.wrap(_headline(result), WIDTH),
        "",
        *_table(result),
        *_failures(result),
    ]
    if result.fit is None:
        return [*lines, "", "This was a worker: the chief has all trials, and trains and saves the best."]
    if notes := [*unreadable_lines(result.fit.unreadable), *duplicate_lines(result.fit.duplicates)]:
        lines += ["", *notes]
    if result.fit.simulated_data:
        lines += ["", SIMULATED]
    model, data = shlex.quote(result.fit.output), shlex.quote(result.data)
    return [
        *lines,
        "",
        f"best:  trial {result.trials[0].name}, trained again: accuracy "
        f"{result.fit.validation.accuracy:.3f} on {result.fit.validation.images} validation images",
        f"saved: {result.fit.output}",
        f"plot:  {result.picture}",
        f"same:  {result.command}",
        f"next:  medimg-train evaluate {model} {data}",
        f"       medimg-export {model} --precision int8 --calibration {data}",
    ]


def _headline(result: TuneResult) -> str:
    count, tuning = len(result.trials), result.tuning
    again = ", going on with an earlier run" if result.resumed else ""
    whole = f" of {result.space.combinations:,} combinations" if tuning.tuner == "grid" else ""
    return (
        f"{count} trials by {tuning.tuner}{whole} for {tuning.objective} in {result.seconds:.0f} s{again}, "
        f"of which {result.prepare_seconds:.0f} s went into what all trials share"
    )


def _table(result: TuneResult) -> list[str]:
    """Lay out the best trials; where the columns do not fit, the rest follow in a table of their own."""
    shown = [trial for trial in result.trials if trial.score is not None][:SHOWN]
    if not shown:
        return []
    columns = [*_figure_columns(result, shown), *_parameter_columns(result, shown)]
    names = [f"{trial.name}" for trial in shown]
    lines: list[str] = []
    while columns:
        taken = 1
        while taken < len(columns) and _width([names, *columns[: taken + 1]]) <= WIDTH:
            taken += 1
        head = ["trial", *(column[0] for column in columns[:taken])]
        body = zip(names, *(column[1:] for column in columns[:taken]), strict=True)
        lines += [*([""] if lines else []), *table([tuple(head), *body])]
        columns = columns[taken:]
    hidden = len(result.trials) - len(result.failed) - len(shown)
    lines += [f"… and {hidden} more, in --json"] if hidden else []
    unusable = result.tuning.objective == "deployed" and any((trial.score or 0) < 0 for trial in shown)
    return lines + ([UNUSABLE] if unusable else [])


def _figure_columns(result: TuneResult, trials: list[TrialResult]) -> list[list[str]]:
    """Give the score and the other figures, each a column with its head."""
    objective = result.tuning.objective
    columns = [[SHORT.get(objective, objective), *(f"{trial.score:.4f}" for trial in trials)]]
    for name in ("val-accuracy", "val-auc", "int8-accuracy"):
        if name != objective and any(name in trial.figures for trial in trials):
            columns.append([SHORT[name], *(_figure(trial, name, ".4f") for trial in trials)])
    for name, head in (("latency-ms", "ms"), ("seconds", "s"), ("export-seconds", "export s")):
        if any(name in trial.figures for trial in trials):
            columns.append([head, *(_figure(trial, name, ".1f") for trial in trials)])
    return columns


def _parameter_columns(result: TuneResult, trials: list[TrialResult]) -> list[list[str]]:
    return [
        [name, *(_value(trial.values.get(name, "")) for trial in trials)] for name in result.space.parameters
    ]


def _failures(result: TuneResult) -> list[str]:
    """Say of each failed trial why."""
    lines: list[str] = []
    for trial in result.failed:
        text = printable(f"trial {trial.name} failed: {trial.failure}")
        lines += ["", *textwrap.wrap(text, WIDTH, subsequent_indent="    ")]
    return lines


def _width(columns: list[list[str]]) -> int:
    first, *others = (max(map(len, column)) for column in columns)
    return max(first, len("trial")) + sum(width + 2 for width in others)


def _figure(trial: TrialResult, name: str, form: str) -> str:
    return format(trial.figures[name], form) if name in trial.figures else "-"


def _value(value: object) -> str:
    return NONE if value is None else f"{value:.3g}" if isinstance(value, float) else printable(str(value))
