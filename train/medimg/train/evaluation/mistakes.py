"""The mistakes that a model is surest of, as pictures."""

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.images.load import Image
from medimg.runtime.images.rule import ImageRule
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.heatmaps import MapImages
from medimg.train.tasks import Mistake, train_task

WORST = 12
LEAST_SIDE_PX = 192
"""Smaller images are enlarged by a whole number."""
RED, BLUE = (220, 30, 30), (40, 90, 230)
STRONGEST = 0.65
"""Share of the colour at the place that speaks most."""


def worst_mistakes(answers: Answers, count: int = WORST) -> list[Mistake]:
    """Choose the wrong decisions that the model was surest of, worst first."""
    probabilities = answers.probabilities.astype(np.float64)
    found = train_task(answers.task).mistakes(answers.shown, answers.decided, probabilities)
    return sorted(found, key=lambda mistake: -mistake.surprise)[:count]


def draw(mistake: Mistake, answers: Answers, rule: ImageRule, maps: MapImages | None) -> bytes:
    """Draw an image as the network takes it, and beside it where its decision comes from.

    Red speaks for what was decided, blue for what is true: the difference of the two classes' maps, whose
    mean is the difference of their logits.

    Args:
        mistake: the decision.
        answers: where it was made.
        rule: how the image becomes the network's input.
        maps: what makes the maps; None draws the image alone.

    Returns:
        A PNG file.
    """
    image = answers.samples[mistake.place].load(rule)
    panels = [image]
    if maps is not None:
        of_class = maps(image[None])[0].transpose(2, 0, 1)
        zero = np.zeros_like(of_class[0])
        decided = zero if mistake.decided is None else of_class[mistake.decided]
        true = zero if mistake.true is None else of_class[mistake.true]
        panels.append(overlay(image, decided - true))
    factor = max(1, -(-LEAST_SIDE_PX // min(image.shape[:2])))
    enlarged = [panel.repeat(factor, axis=0).repeat(factor, axis=1) for panel in panels]
    _, png = cv2.imencode(".png", np.hstack(enlarged)[..., ::-1])
    return png.tobytes()


def overlay(image: Image, evidence: NDArray[np.float32]) -> Image:
    """Colour an image: red where the evidence is positive, blue where it is negative, by its strength.

    Args:
        image: `(rows, columns, 3)` uint8 RGB.
        evidence: a map of any size.
    """
    rows, columns = image.shape[:2]
    fitted = np.asarray(cv2.resize(evidence, (columns, rows), interpolation=cv2.INTER_LINEAR))
    strength = (STRONGEST * np.abs(fitted) / max(float(np.abs(fitted).max()), 1e-12))[..., None]
    color = np.where(fitted[..., None] > 0, RED, BLUE)
    return np.asarray(np.rint(image * (1 - strength) + color * strength), np.uint8)
