"""What `fit` may be told."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from medimg.runtime.errors import UsageError
from medimg.runtime.images.rule import ImageRule, JpegRule
from medimg.runtime.model.spec import Intensity
from medimg.runtime.tasks import TaskName, task_of_head
from medimg.train.data.augmentation import NO_AUGMENTATION, Augmentation, Copies
from medimg.train.data.balance import Balance
from medimg.train.data.options import DataOptions
from medimg.train.errors import require
from medimg.train.keras_setup import PolicyChoice
from medimg.train.networks.options import ARCHS, BLOCKS, Arch, NetworkOptions

OptimizerName: TypeAlias = Literal["adam", "sgd"]
Schedule: TypeAlias = Literal["fixed", "cosine", "plateau"]

MOST_COPIES = 64

__all__ = ["ARCHS", "Arch", "Balance", "FitOptions", "OptimizerName", "Schedule"]


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
    augment: Augmentation = NO_AUGMENTATION
    """How far training images may change; validation images never do."""
    augment_copies: int = 4
    """Copies of each training image that frozen layers see, one an epoch by turns; the first is unchanged."""
    balance: Balance = "weights"
    """Classes of different size: `weights` lets them count alike in the loss, `sampling` shows them alike
    often, `none` takes them as they are, as multilabel always does."""
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
            copies_check(self.augment_copies),
            _one_of("optimizer", self.optimizer, OptimizerName),
            _one_of("schedule", self.schedule or "fixed", Schedule),
            _one_of("balance", self.balance, Balance),
        )

    @property
    def fine_tunes(self) -> bool:
        """Whether a second phase trains blocks of the pretrained base."""
        return self.fine_tune_epochs > 0 and self.unfreeze_blocks > 0


@dataclass(frozen=True)
class FitOptions(TrainingOptions, NetworkOptions, DataOptions):
    """What `fit` may be told: the network, its training, and the data; all are validated when made."""

    weights: str | None = None
    """`imagenet`, `none` or a file of VGG16 weights; by default `imagenet` for vgg16, else `none`."""
    jpeg: JpegRule = "full"
    """`dct-scaled` decodes large JPEG files at a reduced scale, here and wherever the model is used."""

    def __post_init__(self) -> None:
        NetworkOptions.__post_init__(self)
        TrainingOptions.__post_init__(self)
        DataOptions.__post_init__(self)
        require(
            (
                self.arch == "vgg16" or self.weights in (None, "none"),
                f"weights {self.weights}: {self.arch} trains from scratch; only vgg16 takes weights",
            ),
            (
                task_of_head(self.head).exclusive or self.balance != "sampling",
                "balance sampling draws images by their class, of which multilabel has several: take another",
            ),
        )

    @property
    def copies(self) -> Copies | None:
        """What frozen layers see of each training image, where it is more than the image."""
        if not self.augment.changes or self.augment_copies == 1:
            return None
        return Copies(self.augment, self.augment_copies, self.seed)

    @property
    def task(self) -> TaskName:
        """How many classes an image may show."""
        return task_of_head(self.head).name

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


def copies_check(number: int) -> tuple[bool, str]:
    """Check a number of copies: whether it is possible, and what to say if not."""
    return 1 <= number <= MOST_COPIES, f"{number} copies of each image: 1 to {MOST_COPIES} are possible"


def require_heeded(options: FitOptions, given: Collection[str]) -> None:
    """Check that nothing was asked for that would be passed over in silence.

    Args:
        options: all of them.
        given: the names of those that somebody chose, not the defaults.

    Raises:
        UsageError: one has no effect beside the others.
    """
    cnn, vgg16 = options.arch == "cnn", options.arch == "vgg16"
    heeded = {
        **dict.fromkeys(("filters", "blocks", "block_layers"), (cnn, "--arch cnn")),
        **dict.fromkeys(("fine_tune_epochs", "unfreeze_blocks", "fine_tune_rate"), (vgg16, "--arch vgg16")),
        "augment_copies": (vgg16 and options.augment.changes, "--arch vgg16 with --augment"),
        "dense_layers": (
            options.arch != "vgg-bn" and options.dense_units is not None,
            "--arch vgg16 or cnn with --dense-units",
        ),
        "momentum": (options.optimizer == "sgd", "--optimizer sgd"),
    }
    for name in given:
        require_effect(name, *heeded.get(name, (True, "")))


def require_effect(name: str, works: bool, where: str) -> None:
    """Check that an option that was given does something.

    Args:
        name: of the option's field.
        works: whether it has an effect beside the others.
        where: it would.

    Raises:
        UsageError: it has none.
    """
    if not works:
        raise UsageError(f"--{name.replace('_', '-')} has no effect here: it is for {where}; leave it out")


def _one_of(name: str, value: str, choices: object) -> tuple[bool, str]:
    allowed = get_args(choices)
    return value in allowed, f"{name} {value!r} is not one of {', '.join(allowed)}"
