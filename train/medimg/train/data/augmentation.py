"""Changed copies of training images: seeded for each image and copy, so that any copy can be made again.

The geometry is one affine map, so that an image is resampled once; what lies outside of it is black.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import UsageError
from medimg.runtime.images.load import Image
from medimg.runtime.model.preprocess import Images

Preset: TypeAlias = Literal["none", "xray", "microscopy", "ultrasound"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True)
class Augmentation:
    """How far copies of an image may differ from it; 0 and False leave it as it is."""

    flip_horizontal: bool = False
    """Half of the copies swap left and right; never where the side of the body matters."""
    flip_vertical: bool = False
    """Half of the copies swap top and bottom."""
    rotation: float = 0.0
    """To either side, in degrees at most."""
    zoom: float = 0.0
    """In or out, as a share at most."""
    translation: float = 0.0
    """In each direction, as a share of the side at most."""
    crop: float = 0.0
    """Share of the side, at most, that is cut away before the rest is enlarged again."""
    brightness: float = 0.0
    """Added or taken away, as a share of the whole range at most."""
    contrast: float = 0.0
    """More or less around the image's mean, as a share at most."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise at most, as a share of the whole range."""

    def __post_init__(self) -> None:
        limits = {"rotation": 180.0, "zoom": 0.9, "translation": 0.9, "crop": 0.9, "contrast": 1.0}
        for field in fields(self):
            value, limit = getattr(self, field.name), limits.get(field.name, 1.0)
            if not 0 <= value <= limit:
                raise UsageError(f"augmentation {field.name} {value:g} is not within 0 to {limit:g}")

    @property
    def changes(self) -> bool:
        """Whether copies differ from the image at all."""
        return self != NO_AUGMENTATION

    def __str__(self) -> str:
        """Write it as `read_augmentation` understands it."""
        chosen = ((name, value) for name, value in vars(self).items() if value)
        words = (f"{name}={'yes' if value is True else value}" for name, value in chosen)
        return ",".join(words) or "none"


NO_AUGMENTATION = Augmentation()
_PRESETS: dict[Preset, Augmentation] = {
    "none": NO_AUGMENTATION,
    # The heart is on the left: nothing here swaps the sides.
    "xray": Augmentation(rotation=7, zoom=0.1, translation=0.05, brightness=0.1, contrast=0.2, noise=0.02),
    "microscopy": Augmentation(
        flip_horizontal=True,
        flip_vertical=True,
        rotation=180,
        zoom=0.1,
        brightness=0.1,
        contrast=0.2,
        noise=0.02,
    ),
    # Depth runs downwards, the probe may be held either way round.
    "ultrasound": Augmentation(
        flip_horizontal=True,
        rotation=10,
        zoom=0.1,
        translation=0.05,
        brightness=0.15,
        contrast=0.3,
        noise=0.04,
    ),
}


def read_augmentation(text: str) -> Augmentation:
    """Understand a preset, settings, or a preset with other settings: `xray,rotation=5,flip_vertical=yes`.

    Raises:
        UsageError: a word is neither, or more than one preset is named.
    """
    words = [word.strip() for word in text.split(",")]
    presets = [word for word in words if "=" not in word]
    if unknown := [word for word in presets if word not in PRESETS]:
        names = ", ".join(field.name for field in fields(Augmentation))
        raise UsageError(
            f"augmentation {unknown[0]!r} is neither a preset ({', '.join(PRESETS)}) "
            f"nor KEY=VALUE with one of the keys {names}"
        )
    if len(presets) > 1:
        raise UsageError(f"augmentation by {presets[0]} and by {presets[1]}: name one preset")
    chosen = vars(_PRESETS[presets[0]] if presets else NO_AUGMENTATION)  # type: ignore[index]  # checked above
    return Augmentation(**(chosen | dict(map(_setting, (word for word in words if "=" in word)))))


@dataclass(frozen=True)
class Copies:
    """The fixed set of copies that frozen layers see of a training image; the first is the image itself."""

    augmentation: Augmentation
    number: int
    seed: int

    def batches(self, images: Images, size: int) -> Iterator[Images]:
        """Give the first copy of every image, then the second, and so on."""
        for copy in range(self.number):
            for start in range(0, len(images), size):
                batch = images[start : start + size]
                seeds = [(self.seed, copy, start + index) for index in range(len(batch))]
                yield augment(batch, self.augmentation, seeds) if copy else batch


def augment(images: Images, augmentation: Augmentation, seeds: Sequence[Sequence[int]]) -> Images:
    """Make a changed copy of each image.

    Args:
        images: `(images, rows, columns, 3)` uint8 RGB.
        augmentation: what may change.
        seeds: the numbers that an image's copy depends on, such as seed, epoch and index.
    """
    pairs = zip(images, seeds, strict=True)
    return np.stack([_augment(image, augmentation, np.random.default_rng(seed)) for image, seed in pairs])


def _augment(image: Image, augmentation: Augmentation, random: np.random.Generator) -> Image:
    rows, columns = image.shape[:2]
    matrix = _affine(augmentation, random, rows, columns)
    values = cv2.warpAffine(image, matrix, (columns, rows), flags=cv2.INTER_LINEAR).astype(np.float32)
    contrast = 1 + augmentation.contrast * random.uniform(-1, 1)
    brightness = 255 * augmentation.brightness * random.uniform(-1, 1)
    mean = values.mean()
    values = (values - mean) * contrast + mean + brightness
    deviation = 255 * augmentation.noise * random.uniform()
    # The channels get the same noise, so that a grey image stays grey.
    values += deviation * random.standard_normal((rows, columns, 1), np.float32)
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _affine(
    augmentation: Augmentation, random: np.random.Generator, rows: int, columns: int
) -> NDArray[np.float64]:
    """Draw the map from the image to its copy, `(2, 3)`: flips, turn and scale about the centre, a shift."""
    flipped = (random.random(2) < 0.5) & (augmentation.flip_horizontal, augmentation.flip_vertical)
    angle = np.deg2rad(augmentation.rotation * random.uniform(-1, 1))
    scale = 1 + augmentation.zoom * random.uniform(-1, 1)
    kept = 1 - augmentation.crop * random.uniform()
    shift = augmentation.translation * random.uniform(-1, 1, 2) * (columns, rows)
    # A crop takes a part from anywhere inside and enlarges it to the whole.
    shift += (1 - kept) / kept / 2 * random.uniform(-1, 1, 2) * (columns, rows)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag(np.where(flipped, -1, 1)) * scale / kept
    centre = np.array([columns - 1, rows - 1]) / 2
    return np.column_stack([turn, centre + shift - turn @ centre])


def _setting(word: str) -> tuple[str, float | bool]:
    name, _, text = word.partition("=")
    kinds = {field.name: field.type for field in fields(Augmentation)}
    if name not in kinds:
        raise UsageError(f"augmentation {word!r}: there is no {name!r}; there are {', '.join(kinds)}")
    if kinds[name] is bool:
        if text not in ("yes", "no"):
            raise UsageError(f"augmentation {word!r}: say {name}=yes or {name}=no")
        return name, text == "yes"
    try:
        return name, float(text)
    except ValueError:
        raise UsageError(f"augmentation {word!r}: {text!r} is no number") from None
