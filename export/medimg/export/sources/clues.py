"""What a Keras file tells beside the network itself: the loss that it was trained with."""

import json
from dataclasses import dataclass

QUANTITY_LOSSES = frozenset(
    [
        *("mean_squared_error", "mse", "mean_absolute_error", "mae", "huber", "log_cosh", "logcosh"),
        *("mean_absolute_percentage_error", "mape", "mean_squared_logarithmic_error", "msle"),
        *("cosine_similarity", "poisson", "tversky", "dice"),
    ]
)
"""Losses, in snake case, of networks that give quantities or regions."""
_WRAPPERS = frozenset(["LossFunctionWrapper", "function"])
"""Classes that carry a loss by the name of its function."""


@dataclass(frozen=True)
class Clues:
    """What a file says of its training; nothing where it does not say."""

    loss: str | None = None
    """In snake case, such as `categorical_crossentropy`."""
    from_logits: bool = False
    """Whether the loss took the outputs for logits."""


def read_clues(text: str) -> Clues:
    """Read the loss from the JSON of a model's configuration, or of its training's."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return Clues()
    training = config.get("compile_config", config) if isinstance(config, dict) else None
    loss = training.get("loss") if isinstance(training, dict) else None
    # Of a model with one output, a list or a dictionary holds one loss.
    while isinstance(loss, list) or (isinstance(loss, dict) and "class_name" not in loss):
        losses = list(loss.values() if isinstance(loss, dict) else loss)
        loss = losses[0] if len(losses) == 1 else None
    settings = loss.get("config") if isinstance(loss, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    name = loss.get("class_name") if isinstance(loss, dict) else loss
    if name in _WRAPPERS:
        name = settings.get("fn") or settings.get("name") or (loss or {}).get("config")
    known = _snake_case(name) if isinstance(name, str) else None
    return Clues(known, settings.get("from_logits") is True)


def _snake_case(name: str) -> str:
    """Write `CategoricalCrossentropy` as `categorical_crossentropy`."""
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
