"""Which scaling a network's images get: as the user or the file says, or as its first layers show."""

from medimg.export.sources.base import Source
from medimg.export.sources.scaling import Scaling
from medimg.runtime.errors import UsageError
from medimg.runtime.model.spec import Intensity

_TWICE = "its first layers ({layers}) scale values from 0 to 255 already"


def check_scaling(source: Source, intensity: Intensity) -> list[str]:
    """Hold a scaling that was told against the network's own.

    Returns:
        Warnings that name the layer.

    Raises:
        UsageError: the network takes whole numbers, of which the scaling would leave nothing.
    """
    path, scaling = source.origin.path, source.scaling
    if _takes_whole_numbers(source) and not intensity.is_raw:
        raise UsageError(
            f"{path}: its input is of {source.input_dtype}, whole numbers, to which Keras cuts off scaled "
            f"values: --preprocessing raw, not {intensity.rule}"
        )
    if scaling is None:
        return []
    layers = ", ".join(scaling.layers)
    if scaling.is_for_bytes and not intensity.is_raw:
        return [
            f"{_TWICE.format(layers=layers)}, and --preprocessing {intensity.rule} scales them twice: right "
            "only if training did so; else --preprocessing raw"
        ]
    if scaling.is_for_fractions and intensity.is_raw:
        return [
            f"its first layers ({layers}) take values near {_centre(scaling)}, and --preprocessing raw gives "
            "0 to 255: right only if training did so; else --preprocessing unit or tf"
        ]
    return []


def infer_scaling(source: Source) -> tuple[Intensity | None, list[str]]:
    """Find the scaling that the network itself shows, if it shows one, and say why."""
    channels = source.input_shape[2]
    if _takes_whole_numbers(source):
        why = f"its input is of {source.input_dtype}"
    elif source.scaling is not None and source.scaling.is_for_bytes:
        why = _TWICE.format(layers=", ".join(source.scaling.layers))
    else:
        return None, []
    raw = Intensity.named("raw", channels=1 if channels == 1 else 3)
    order = ", with channels in the order RGB (--preprocessing raw --color-order bgr otherwise)"
    return raw, [f"{why}: images are given to it as --preprocessing raw{order if channels == 3 else ''}"]


def _takes_whole_numbers(source: Source) -> bool:
    return source.input_dtype.startswith(("int", "uint"))


def _centre(scaling: Scaling) -> str:
    return f"{float((-scaling.offset / scaling.gain).mean()):.2g}"
