"""What `fit` may be told."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from medimg.runtime.spec import ImageRule, Intensity, JpegRule
from medimg.train.keras_setup import PolicyChoice
from medimg.train.network_options import ARCHS, BLOCKS, Arch, NetworkOptions, require
from medimg.train.progress import Progress
from medimg.train.store import ArrayStore

ClassWeights: TypeAlias = Literal["balanced", "none"]
OptimizerName: TypeAlias = Literal["adam", "sgd"]
Schedule: TypeAlias = Literal["fixed", "cosine", "plateau"]

__all__ = ["ARCHS", "Arch", "ClassWeights", "FitOptions", "Job", "OptimizerName", "Schedule"]


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained; None leaves the choice to the architecture."""

    epochs: int | None = None
    """At most, of the new head (vgg16) or of the whole network."""
    fine_tune_epochs: int = 6
    """At most, of the last blocks of vgg16; 0 leaves the base as it is."""
    unfreeze_blocks: int = 1
    """How many of vgg16's five blocks, counted from the last, are fine-tuned; 0 leaves the base as it is."""
    learning_rate: float = 1e-3
    """Of the new head (vgg16) or of the whole network."""
    fine_tune_rate: float = 3e-5
    """Of vgg16's last blocks."""
    optimizer: OptimizerName = "adam"
    momentum: float = 0.9
    """Of sgd."""
    schedule: Schedule | None = None
    """Of the rate: `fixed` by default for fine-tuning, `cosine` from scratch; `plateau` lowers it by need."""
    batch_size: int = 32
    class_weights: ClassWeights = "balanced"
    """`balanced`: every class counts alike in the loss, however many images it has; not for multilabel."""
    seed: int = 0
    precision_policy: PolicyChoice = "auto"

    def __post_init__(self) -> None:
        require(
            (self.epochs is None or self.epochs >= 1, f"{self.epochs} epochs: at least one is needed"),
            (self.fine_tune_epochs >= 0, f"{self.fine_tune_epochs} epochs of fine-tuning"),
            (
                0 <= self.unfreeze_blocks <= BLOCKS,
                f"{self.unfreeze_blocks} blocks to unfreeze: vgg16 has 0 to {BLOCKS}",
            ),
            (self.learning_rate > 0 and self.fine_tune_rate > 0, "a learning rate must be above 0"),
            (0 <= self.momentum < 1, f"momentum {self.momentum} is not from 0 to below 1"),
            (self.batch_size >= 1, f"batch size {self.batch_size}: at least 1 is needed"),
            _one_of("optimizer", self.optimizer, OptimizerName),
            _one_of("schedule", self.schedule or "fixed", Schedule),
            _one_of("class_weights", self.class_weights, ClassWeights),
        )

    @property
    def fine_tunes(self) -> bool:
        """Whether a second phase trains blocks of the pretrained base."""
        return self.fine_tune_epochs > 0 and self.unfreeze_blocks > 0


@dataclass(frozen=True)
class FitOptions(TrainingOptions, NetworkOptions):
    """What `fit` may be told: the network, its training, and the data; all are validated when made."""

    weights: str | None = None
    """`imagenet`, `none` or a file of VGG16 weights; by default `imagenet` for vgg16, else `none`."""
    jpeg: JpegRule = "full"
    """`dct-scaled` decodes large JPEG files at a reduced scale, here and wherever the model is used."""
    validation_fraction: float = 0.3
    """Share of the training part held out, where the data name no validation part."""

    def __post_init__(self) -> None:
        NetworkOptions.__post_init__(self)
        TrainingOptions.__post_init__(self)
        require(
            (
                0 < self.validation_fraction < 1,
                f"validation fraction {self.validation_fraction} is not between 0 and 1",
            ),
            (
                self.arch == "vgg16" or self.weights in (None, "none"),
                f"weights {self.weights}: {self.arch} trains from scratch; only vgg16 takes weights",
            ),
        )

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


@dataclass(frozen=True)
class Job:
    """What one training works with."""

    options: FitOptions
    store: ArrayStore
    """For decoded images and frozen outputs."""
    threads: int
    progress: Progress


def _one_of(name: str, value: str, choices: object) -> tuple[bool, str]:
    allowed = get_args(choices)
    return value in allowed, f"{name} {value!r} is not one of {', '.join(allowed)}"
