"""How wide each layer is to be: least error for what the layer's time is worth."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from medimg.train.compression.selection import Ranking
from medimg.train.compression.stages import Stage, full_widths, narrowed, step_of
from medimg.train.errors import TargetError

Widths: TypeAlias = tuple[int, ...]
Cost: TypeAlias = Callable[[Widths], float]
LEVELS = 400
MACS = "multiply-accumulates"


def by_error(
    stages: Sequence[Stage],
    rankings: Sequence[Ranking],
    *,
    price: Cost,
    cost: Cost,
    target: float,
    multiple: int,
    unit: str = MACS,
) -> Widths:
    """Narrow the chain step by step, each time where the least error is added for the price saved.

    Args:
        stages: the chain.
        rankings: of the boundary behind each stage but the last.
        price: what narrowing is to save, such as modelled milliseconds.
        cost: what has a target, in its own unit.
        target: the cost to come down to.
        multiple: what widths are multiples of.
        unit: of the cost, for the message.

    Raises:
        TargetError: the narrowest chain still costs more.
    """
    widths = full_widths(stages)
    while cost(widths) > target:
        now, best = price(widths), (math.inf, widths)
        for place, ranking in enumerate(rankings):
            step = step_of(stages[place].width, multiple)
            width = (widths[place] - 1) // step * step
            if width < step:
                continue
            narrower = (*widths[:place], width, *widths[place + 1 :])
            added = ranking.errors[width] - ranking.errors[widths[place]]
            best = min(best, (float(added) / max(now - price(narrower), 1e-9 * now), narrower))
        if best[1] == widths:
            raise TargetError(cost(widths), target, unit)
        widths = best[1]
    return widths


def uniform(stages: Sequence[Stage], *, cost: Cost, target: float, multiple: int, unit: str = MACS) -> Widths:
    """Narrow every layer by the same share, as little as the target allows.

    Raises:
        TargetError: the narrowest chain still costs more.
    """
    for level in range(LEVELS, -1, -1):
        widths = narrowed(stages, level / LEVELS, multiple)
        if cost(widths) <= target:
            return widths
    raise TargetError(cost(widths), target, unit)
