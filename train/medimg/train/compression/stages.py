"""What a chain of layers costs, as numbers alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A layer that mixes channels, convolution or dense, at one image size."""

    name: str
    inputs: int
    """Input channels at full width."""
    width: int
    """Output channels at full width."""
    taps: int
    """Kernel weights of one input and one output channel; the pixels of a channel after flattening count."""
    positions: int
    """Output pixels of a channel."""


def macs(stages: Sequence[Stage], widths: Sequence[int]) -> tuple[int, ...]:
    """Count multiply-accumulates of each stage for one image.

    Args:
        stages: the chain.
        widths: output channels of each stage.
    """
    before = (stages[0].inputs, *widths[:-1])
    return tuple(
        stage.positions * stage.taps * inputs * width
        for stage, inputs, width in zip(stages, before, widths, strict=True)
    )


def total_macs(stages: Sequence[Stage], widths: Sequence[int]) -> int:
    """Count the multiply-accumulates of the chain for one image."""
    return sum(macs(stages, widths))


def full_widths(stages: Sequence[Stage]) -> tuple[int, ...]:
    """Give the widths of the chain as it is."""
    return tuple(stage.width for stage in stages)


def step_of(width: int, multiple: int) -> int:
    """Give what a width is a multiple of: narrow layers keep at least four choices."""
    return max(1, min(multiple, width // 4))


def narrowed(stages: Sequence[Stage], share: float, multiple: int) -> tuple[int, ...]:
    """Give widths of about one share of the full ones, in multiples; the last stage keeps its classes."""
    found = []
    for stage in stages[:-1]:
        step = step_of(stage.width, multiple)
        wanted = math.floor(share * stage.width / step + 0.5) * step
        found.append(stage.width if share >= 1 else min(stage.width, max(step, wanted)))
    return (*found, stages[-1].width)
