"""Simulated B-mode ultrasound images: layered tissue, speckle, attenuation and lesions of several kinds.

The model is the usual one of fully developed speckle: scatterers of complex Gaussian amplitude, convolved
with the point spread function of the probe, then envelope detection and logarithmic compression. Sound is
weakened along each scan line by what lies above, so that a cyst brightens and a calcification darkens what
lies below.

Source:
    R. F. Wagner et al., Statistics of speckle in ultrasound B-scans, IEEE Transactions on Sonics and
    Ultrasonics 30 (1983), 156-163.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import UsageError
from medimg.train.progress import Progress
from medimg.train.simulation.secondary_capture import write_secondary_capture

Field: TypeAlias = NDArray[np.float32]
"""`(rows, columns)`: one value a place in the tissue, depth downwards."""
FileFormat: TypeAlias = Literal["png", "dicom"]

MARKER = "SIMULATED.txt"
"""The file in the top folder by which `fit` knows that the images are simulated."""

NOTICE = (
    "Simulated ultrasound images, made by `medimg-train simulate` (seed {seed}).\n"
    "They show no patient and no phantom; a model trained on them is for demonstration only.\n"
)


@dataclass(frozen=True)
class Lesion:
    """What sets one kind of lesion apart from the tissue around it."""

    echo: tuple[float, float]
    """Range of its scatterers' amplitude, relative to the tissue's."""
    attenuation: tuple[float, float]
    """Range of its extra attenuation, in nepers a tenth of the depth; negative brightens what lies below."""
    radius: tuple[float, float]
    """Range of its mean radius, as a share of the image's side."""
    roughness: float
    """Relative deviation of its outline from an ellipse."""
    rim: float
    """Amplitude of a bright outline, relative to the tissue's; 0 for none."""


LESIONS: dict[str, Lesion | None] = {
    "calcification": Lesion((6.0, 12.0), (1.5, 4.0), (0.02, 0.04), 0.15, 0.0),
    "cyst": Lesion((0.0, 0.06), (-0.6, -0.2), (0.05, 0.13), 0.02, 1.0),
    "normal": None,
    "solid": Lesion((0.10, 0.28), (0.15, 0.5), (0.06, 0.15), 0.18, 0.0),
}
"""The classes, in the order of their folders."""


@dataclass(frozen=True)
class SimulatedSet:
    """What `simulate` has written."""

    folder: str
    labels: tuple[str, ...]
    train: int
    """Training images a class."""
    test: int
    """Test images a class."""
    size_px: int
    seed: int


def simulate(
    folder: str | Path,
    *,
    train: int = 150,
    test: int = 50,
    size: int = 160,
    seed: int = 0,
    file_format: FileFormat = "png",
    progress: Progress | None = None,
) -> SimulatedSet:
    """Write a data set of simulated ultrasound images: `folder/{train,test}/<class>/`.

    The same seed gives the same images, whatever the counts.

    Args:
        folder: where to; it must be new or empty.
        train: training images a class.
        test: test images a class.
        size: side of the square images, in pixels.
        seed: of the generator.
        file_format: 8-bit grey PNG, or DICOM Secondary Capture.
        progress: shows how many are written.

    Raises:
        UsageError: the folder holds something already, or a number makes no sense.
    """
    folder = Path(folder)
    if train < 1 or test < 0 or not 32 <= size <= 2048:
        raise UsageError(
            f"cannot simulate {train} training and {test} test images of {size} px: sizes are 32 to 2048"
        )
    _make_empty(folder)
    (folder / MARKER).write_text(NOTICE.format(seed=seed), encoding="utf-8")
    wanted = [
        (split, kind, index)
        for split, count in (("train", train), ("test", test))
        for kind in LESIONS
        for index in range(count)
    ]
    for split, kind, index in (progress or Progress()).track(wanted, "simulate", len(wanted)):
        pixels = simulate_image(kind, size, _generator(seed, split, kind, index))
        _write(folder / split / kind, f"{kind}-{index:04d}", pixels, file_format, f"{seed}-{split}")
    return SimulatedSet(str(folder), tuple(LESIONS), train, test, size, seed)


def is_simulated(data: str | Path) -> bool:
    """Whether a data set, or the one that this folder is a part of, was written by `simulate`."""
    data = Path(data)
    return any((folder / MARKER).is_file() for folder in (data, data.absolute().parent))


def simulate_image(kind: str, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Simulate one image.

    Args:
        kind: one of `LESIONS`.
        size: side, in pixels.
        rng: where its chances come from.

    Returns:
        `(size, size)` uint8, logarithmically compressed.
    """
    echo, attenuation = _tissue(size, rng)
    lesion = LESIONS[kind]
    if lesion is not None:
        _insert(lesion, echo, attenuation, rng)
    transmitted = np.exp(-np.cumsum(attenuation, axis=0) * (10 / size))
    return _compress(_envelope(echo, rng) * cv2.blur(transmitted, (3, 1)), rng)


def _tissue(size: int, rng: np.random.Generator) -> tuple[Field, Field]:
    """Lay skin, fat, gland and muscle under one another, with wavy borders; returns echo and attenuation."""
    depth = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    echo = np.full((size, size), rng.uniform(0.8, 1.2), np.float32)
    fat_ends = rng.uniform(0.12, 0.22) + _wave(size, rng, 0.03)
    muscle_starts = rng.uniform(0.74, 0.88) + _wave(size, rng, 0.03)
    echo[depth < fat_ends] *= rng.uniform(0.4, 0.7)
    echo[depth > muscle_starts] *= rng.uniform(0.4, 0.8)
    for border in (fat_ends, muscle_starts):
        echo[np.abs(depth - border) < rng.uniform(0.004, 0.010)] = rng.uniform(1.5, 3.0)
    echo[depth[:, 0] < rng.uniform(0.02, 0.04)] = rng.uniform(1.5, 2.5)
    echo *= np.exp(_smooth_noise(size, rng, 0.06) * rng.uniform(0.10, 0.30))
    # What the time gain compensation leaves, in either direction.
    attenuation = np.full((size, size), rng.uniform(-0.05, 0.15), np.float32)
    return echo, attenuation


def _insert(lesion: Lesion, echo: Field, attenuation: Field, rng: np.random.Generator) -> None:
    """Put a lesion somewhere between skin and muscle, in place."""
    size = len(echo)
    inside = _outline(size, lesion, rng)
    if lesion.rim:
        rim = cv2.GaussianBlur(inside, (0, 0), size * 0.006)
        echo += lesion.rim * rng.uniform(0.5, 1.5) * 4 * rim * (1 - rim)
    echo *= 1 + inside * (np.float32(rng.uniform(*lesion.echo)) - 1)
    attenuation += inside * np.float32(rng.uniform(*lesion.attenuation))


def _outline(size: int, lesion: Lesion, rng: np.random.Generator) -> Field:
    """Draw the lesion's inside, 0 to 1: an ellipse whose radius is disturbed by a few harmonics."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    rows -= np.float32(rng.uniform(0.32, 0.65))
    columns -= np.float32(rng.uniform(0.2, 0.8))
    flatness = rng.uniform(0.75, 1.25)
    angle = np.arctan2(rows, columns)
    radius = np.full_like(rows, rng.uniform(*lesion.radius))
    for harmonic in range(2, 8):
        depth = lesion.roughness * rng.normal() / np.sqrt(harmonic)
        radius *= 1 + np.float32(depth) * np.cos(harmonic * angle + np.float32(rng.uniform(0, 2 * np.pi)))
    distance = np.hypot(rows * np.sqrt(flatness), columns / np.sqrt(flatness))
    inside: Field = np.clip((radius - distance) * (size / 2) + 0.5, 0, 1)
    return inside


def _envelope(echo: Field, rng: np.random.Generator) -> Field:
    """Convolve random scatterers with the point spread function, wider off the focus; take the modulus."""
    size = len(echo)
    scale = size / 160
    scatterers = rng.standard_normal((2, size, size), np.float32) * echo
    away = np.abs(np.linspace(0, 1, size, dtype=np.float32) - np.float32(rng.uniform(0.3, 0.7)))[:, None]
    power = np.zeros_like(echo)
    for part in scatterers:
        narrow, wide = (_blur(part, lateral * scale, 0.8 * scale) for lateral in (1.2, 3.0))
        power += (narrow + (wide - narrow) * away) ** 2
    return np.sqrt(power)


def _blur(values: Field, lateral: float, axial: float) -> Field:
    """Convolve with a Gaussian of unit energy, so that the speckle keeps its power."""
    blurred = cv2.GaussianBlur(values, (0, 0), sigmaX=lateral, sigmaY=axial)
    return np.asarray(blurred * np.float32(2 * np.sqrt(np.pi * lateral * axial)), np.float32)


def _compress(envelope: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Map decibels to grey, with the gain and dynamic range an operator might have set."""
    dynamic_range = rng.uniform(45, 60)
    noise = np.float32(10 ** (-dynamic_range * rng.uniform(0.75, 1.0) / 20))
    decibels = 20 * np.log10(envelope + noise) + rng.uniform(-6, 6)
    grey = 255 * (decibels / dynamic_range + 0.6)
    return np.asarray(np.clip(np.rint(grey), 0, 255), np.uint8)


def _wave(size: int, rng: np.random.Generator, amplitude: float) -> Field:
    """A border's height along the probe: a few random harmonics."""
    across = np.linspace(0, 2 * np.pi, size, dtype=np.float32)
    harmonics = [rng.normal() / k * np.sin(k * across / 2 + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 5)]
    return np.asarray(amplitude * np.sum(harmonics, axis=0), np.float32)


def _smooth_noise(size: int, rng: np.random.Generator, grain: float) -> Field:
    """Gaussian noise of unit deviation whose grains are this share of the side."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), size * grain)
    return np.asarray(noise / noise.std(), np.float32)


def _generator(seed: int, split: str, kind: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, split == "test", list(LESIONS).index(kind), index])


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be used as a folder ({error.strerror})") from None
    if occupied:
        raise UsageError(f"{folder}: is not empty: name a new folder, or remove this one")


def _write(folder: Path, name: str, pixels: NDArray[np.uint8], file_format: FileFormat, patient: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if file_format == "dicom":
        write_secondary_capture(folder / f"{name}.dcm", pixels, f"{patient}-{name}")
    elif not cv2.imwrite(str(folder / f"{name}.png"), pixels):
        raise UsageError(f"{folder / name}.png: cannot be written")
