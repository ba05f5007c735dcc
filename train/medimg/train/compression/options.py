"""What a compression may be told."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from medimg.runtime.errors import UsageError
from medimg.runtime.model.spec import ColorOrder, IntensityName
from medimg.train.data.augmentation import NO_AUGMENTATION, Augmentation
from medimg.train.data.balance import CountsOfClasses
from medimg.train.data.options import DataOptions
from medimg.train.errors import require
from medimg.train.fitting.options import copies_check

WidthRule: TypeAlias = Literal["latency", "macs", "uniform"]
_RATIO = re.compile(r"(\d+(?:\.\d+)?)x?")


@dataclass(frozen=True)
class CompressOptions(DataOptions):
    """What `compress` may be told; all is validated when made."""

    macs: tuple[float, ...] = ()
    """How many times fewer multiply-accumulates each point has; by default 2, 4, 8 and 16."""
    latency_ms: float | None = None
    """Instead: what the median of single images is to take on this device, in INT8."""
    image_size: int | None = None
    """Side of a smaller square input, in pixels; by default the original's."""
    max_drop: float = 0.01
    """The largest loss of accuracy, and of the area under the ROC curve, that is accepted."""
    strict: bool = False
    """Whether a point passes only if it is proven."""
    epochs: int = 8
    """Of distillation; 0 leaves each point as least squares made it."""
    learning_rate: float = 1e-4
    """Adam's, at its highest: it rises over the first quarter of the epochs, then falls to nothing."""
    batch_size: int = 16
    widths: WidthRule = "latency"
    """What narrowing is to save at least error: time as modelled for this device, or multiply-accumulates;
    `uniform` narrows every layer by the same share."""
    multiple: int | None = None
    """What widths are multiples of; by default the one of 16, 32 and 64 that suits the hardware."""
    reconstruct: bool = True
    """Whether least squares let the next layer make up for the channels that are left out."""
    balance: CountsOfClasses = "weights"
    """As the original was trained: whether classes of different size count alike, which is fit's default."""
    distil: bool = True
    """Whether training follows the original's answers; if not, the labels alone."""
    augment: Augmentation = NO_AUGMENTATION
    """How far training images may change; the original is asked about every copy."""
    augment_copies: int = 4
    """Copies of each training image, one an epoch by turns; the first is unchanged."""
    seed: int = 0
    preprocessing: IntensityName | None = None
    """Of a model that carries no spec."""
    color_order: ColorOrder | None = None
    """Of a model that carries no spec."""
    backend: str = "auto"
    """What runs the INT8 artefacts."""
    device: str = "auto"

    def __post_init__(self) -> None:
        DataOptions.__post_init__(self)
        require(
            (all(ratio >= 1 for ratio in self.macs), "--macs must be 1x or more: 8x has an eighth of them"),
            (not (self.macs and self.latency_ms), "give --macs or --latency-ms, not both"),
            (self.latency_ms is None or self.latency_ms > 0, "--latency-ms must be above 0"),
            (
                self.image_size is None or self.image_size >= 8,
                f"image size {self.image_size}: 8 at least is needed",
            ),
            (0 < self.max_drop < 1, f"--max-drop {self.max_drop} is not between 0 and 1"),
            (self.epochs >= 0, f"{self.epochs} epochs"),
            (self.learning_rate > 0, "the learning rate must be above 0"),
            (self.batch_size >= 1, f"batch size {self.batch_size}: at least 1 is needed"),
            copies_check(self.augment_copies),
            (
                self.epochs > 0 or not self.augment.changes,
                "--augment changes what is trained on, and with --epochs 0 nothing is",
            ),
            (self.multiple is None or self.multiple >= 1, f"--multiple {self.multiple}: 1 at least"),
            (self.widths in get_args(WidthRule), f"--widths {self.widths!r} is not known"),
            (self.balance in get_args(CountsOfClasses), f"--balance {self.balance!r}: weights or none"),
            (self.seed >= 0, f"seed {self.seed} is negative"),
        )

    @property
    def ratios(self) -> tuple[float, ...]:
        """The points of the ladder, the least compressed first."""
        return tuple(sorted(set(self.macs or (2.0, 4.0, 8.0, 16.0))))

    @property
    def names(self) -> tuple[str, ...]:
        """What the points are called."""
        if self.latency_ms:
            return (f"{self.latency_ms:g}ms",)
        return tuple(f"{ratio:g}x" for ratio in self.ratios)

    @property
    def models_latency(self) -> bool:
        """Whether times of other widths must be known."""
        return self.widths == "latency" or self.latency_ms is not None


def read_ratio(text: str) -> float:
    """Read how many times fewer multiply-accumulates are wanted, `8x` or `8`.

    Raises:
        UsageError: it is no such number.
    """
    found = _RATIO.fullmatch(text.strip())
    if not found:
        raise UsageError(f"--macs {text}: how many times fewer is wanted, such as 8x")
    return float(found[1])
