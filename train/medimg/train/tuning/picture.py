"""The picture of a search: each trial's score by each parameter."""

import math
from pathlib import Path
from typing import Any

from medimg.runtime.files.text import printable
from medimg.runtime.files.writing import written_whole
from medimg.runtime.optional import require
from medimg.runtime.report import svg_of
from medimg.train.tuning.options import TuneOptions
from medimg.train.tuning.result import TrialResult
from medimg.train.tuning.search_space import NONE, Parameter, Range, SearchSpace

COLUMNS = 3
COLOR, BEST_COLOR, FAILED_COLOR = "#4c78a8", "#d9480f", "#9aa3ad"


def draw(trials: tuple[TrialResult, ...], space: SearchSpace, tuning: TuneOptions, path: Path) -> None:
    """Write the picture: a panel a parameter, the best trial in orange, failed ones as crosses at the foot.

    Args:
        trials: best first.
        space: what the search chose from.
        tuning: names the objective.
        path: an `.svg` file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "train")
    rows = math.ceil(len(space.parameters) / COLUMNS)
    columns = min(COLUMNS, len(space.parameters))
    figure = figures.Figure(figsize=(3.2 * columns + 0.4, 2.7 * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for panel, (name, parameter) in zip(panels, space.parameters.items(), strict=False):
        _draw_panel(panel, name, parameter, trials)
    for panel in panels[len(space.parameters) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel(tuning.objective)
    crosses = ", failed ones as crosses" if any(trial.score is None for trial in trials) else ""
    figure.suptitle(f"{tuning.objective} of {len(trials)} trials, the best in orange{crosses}", fontsize=11)
    with written_whole(path) as temporary:
        temporary.write_text(svg_of(figure, text_stays=True), encoding="utf-8")


def _draw_panel(panel: Any, name: str, parameter: Parameter, trials: tuple[TrialResult, ...]) -> None:  # noqa: ANN401  matplotlib is untyped
    drawn = [trial for trial in trials if name in trial.values]
    scored = [trial for trial in drawn if trial.score is not None]
    failed = [trial for trial in drawn if trial.score is None]
    place = _places(parameter)
    # The best is drawn last, so that nothing hides it.
    for trial in reversed(scored):
        color, size = (BEST_COLOR, 60) if trial is trials[0] else (COLOR, 22)
        panel.scatter(place(trial.values[name]), trial.score, s=size, color=color, alpha=0.85, linewidths=0)
    foot = panel.get_xaxis_transform()
    for trial in failed:
        panel.scatter(place(trial.values[name]), 0.03, marker="x", color=FAILED_COLOR, transform=foot)
    if isinstance(parameter, Range):
        _mark_range(panel, parameter)
    else:
        # A dollar sign in a label would start a formula.
        labels = [printable(str(choice)).replace("$", r"\$") for choice in parameter.choices]
        panel.set_xticks(range(len(labels)), labels, rotation=30 if max(map(len, labels)) > 5 else 0)
        panel.set_xlim(-0.5, len(labels) - 0.5)
    panel.set_xlabel(name.replace("_", " "))
    panel.grid(visible=True, axis="y", color="#e6e9ee")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _mark_range(panel: Any, parameter: Range) -> None:  # noqa: ANN401
    """Show the whole range; its ends and its middle are marked, which never run into one another."""
    panel.set_xscale(parameter.sampling)
    panel.minorticks_off()
    low, high = parameter.low, parameter.high
    if parameter.sampling == "log":
        middle, edge = math.sqrt(low * high), (high / low) ** 0.08
        panel.set_xlim(low / edge, high * edge)
    else:
        middle, edge = (low + high) / 2, 0.08 * (high - low)
        panel.set_xlim(low - edge, high + edge)
    panel.set_xticks([low, middle, high], [f"{value:.3g}" for value in (low, middle, high)])


def _places(parameter: Parameter) -> Any:  # noqa: ANN401  a function from a value to where it is drawn
    if isinstance(parameter, Range):
        return float
    order = [None if choice == NONE else choice for choice in parameter.choices]
    return order.index
