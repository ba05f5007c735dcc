"""What `fit` may be told."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from medimg.runtime.errors import UsageError
from medimg.runtime.spec import ImageRule, Intensity, JpegRule
from medimg.train.keras_setup import PolicyChoice
from medimg.train.progress import Progress
from medimg.train.store import ArrayStore

Arch: TypeAlias = Literal["vgg16", "vgg-bn"]
ClassWeights: TypeAlias = Literal["balanced", "none"]

ARCHS: tuple[Arch, ...] = get_args(Arch)
SMALLEST_IMAGE_PX = 32
"""Five poolings halve the image to one pixel."""


@dataclass(frozen=True)
class FitOptions:
    """How a model is trained; None leaves the choice to the architecture."""

    arch: Arch = "vgg16"
    """`vgg16`: pretrained, fine-tuned in two phases; `vgg-bn`: from scratch."""
    weights: str | None = None
    """`imagenet`, `none` or a file of VGG16 weights; by default `imagenet` for vgg16, `none` for vgg-bn."""
    image_size: int = 224
    """Side of the square network input, in pixels."""
    jpeg: JpegRule = "full"
    """`dct-scaled` decodes large JPEG files at a reduced scale, here and wherever the model is used."""
    epochs: int | None = None
    """At most, of the new head (vgg16) or of the whole network."""
    fine_tune_epochs: int = 6
    """At most, of the last block; 0 leaves the base as it is."""
    learning_rate: float = 1e-3
    """Of the new head (vgg16) or of the whole network."""
    fine_tune_rate: float = 3e-5
    """Of the last block; it stays fixed."""
    batch_size: int = 32
    dense_units: int | None = None
    """Units of vgg-bn's two dense layers (4096), or of one hidden layer of vgg16's head (none)."""
    dropout: float = 0.5
    """Share of units dropped before each dense layer of the head."""
    validation_fraction: float = 0.3
    """Share of the training part held out, where the data name no validation part."""
    seed: int = 0
    class_weights: ClassWeights = "balanced"
    """`balanced`: every class counts alike in the loss, however many images it has."""
    precision_policy: PolicyChoice = "auto"

    def __post_init__(self) -> None:
        checks = (
            (self.arch in ARCHS, f"arch {self.arch!r} is not one of {', '.join(ARCHS)}"),
            (
                SMALLEST_IMAGE_PX <= self.image_size <= 1024,
                f"image size {self.image_size} is not within {SMALLEST_IMAGE_PX} to 1024 pixels",
            ),
            (self.epochs is None or self.epochs >= 1, f"{self.epochs} epochs: at least one is needed"),
            (self.fine_tune_epochs >= 0, f"{self.fine_tune_epochs} epochs of fine-tuning"),
            (self.learning_rate > 0 and self.fine_tune_rate > 0, "a learning rate must be above 0"),
            (self.batch_size >= 1, f"batch size {self.batch_size}: at least 1 is needed"),
            (self.dense_units is None or self.dense_units >= 1, f"{self.dense_units} dense units"),
            (0 <= self.dropout < 1, f"dropout {self.dropout} is not from 0 to below 1"),
            (
                0 < self.validation_fraction < 1,
                f"validation fraction {self.validation_fraction} is not between 0 and 1",
            ),
            (
                self.arch == "vgg16" or self.weights in (None, "none"),
                f"weights {self.weights}: {self.arch} trains from scratch; only vgg16 takes weights",
            ),
        )
        for holds, message in checks:
            if not holds:
                raise UsageError(message)

    @property
    def pretrained(self) -> str | None:
        """Where pretrained weights come from: `imagenet`, a path, or None for none."""
        wanted = self.weights or ("imagenet" if self.arch == "vgg16" else "none")
        return None if wanted == "none" else wanted

    @property
    def image(self) -> ImageRule:
        """How images become the network's input array."""
        return ImageRule(self.image_size, self.image_size, jpeg=self.jpeg)

    @property
    def intensity(self) -> Intensity:
        """The arithmetic on the array: what the published VGG16 weights expect, or 0 to 1."""
        return Intensity.named("caffe" if self.arch == "vgg16" else "unit")

    @property
    def hidden_units(self) -> tuple[int, ...]:
        """Units of each dense layer before the last."""
        if self.arch == "vgg-bn":
            return (self.dense_units or 4096,) * 2
        return () if self.dense_units is None else (self.dense_units,)


@dataclass(frozen=True)
class Job:
    """What one run of `fit` works with."""

    options: FitOptions
    store: ArrayStore
    """For decoded images and frozen outputs."""
    threads: int
    progress: Progress
