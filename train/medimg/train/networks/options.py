"""What a network looks like."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from medimg.train.errors import require
from medimg.train.tasks import TrainedHead

Arch: TypeAlias = Literal["vgg16", "vgg-bn", "cnn"]
Pooling: TypeAlias = Literal["average", "flatten"]
Padding: TypeAlias = Literal["same", "valid"]
Activation: TypeAlias = Literal["relu", "elu", "gelu", "silu"]

ARCHS: tuple[Arch, ...] = get_args(Arch)
BLOCKS = 5
"""Of vgg16 and vgg-bn."""
SMALLEST_PX = 32
"""Five poolings halve the image to one pixel."""
LARGEST_PX = 1024

_VGG: dict[Arch, tuple[tuple[int, int], ...]] = {
    "vgg16": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "vgg-bn": ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)),
}


@dataclass(frozen=True)
class NetworkOptions:
    """What a network looks like; None leaves the choice to the architecture."""

    arch: Arch = "vgg16"
    """`vgg16`: pretrained, fine-tuned in two phases; `vgg-bn` and the small `cnn`: from scratch."""
    image_size: int = 224
    """Side of the square network input, in pixels."""
    head: TrainedHead = "softmax"
    """`sigmoid`: one unit for two classes; `multilabel`: a sigmoid a class, of which several may be true."""
    pooling: Pooling = "average"
    """Features of the whole image: each channel's average, or every pixel of every channel."""
    dense_units: int | None = None
    """Units of vgg-bn's two dense layers (4096), or of each hidden layer of another head (none)."""
    dense_layers: int = 1
    """Hidden layers of `dense_units` units each, in another head than vgg-bn's."""
    activation: Activation = "relu"
    """Of hidden dense layers, and of the convolutions of vgg-bn and cnn."""
    dropout: float = 0.5
    """Share of units dropped before each dense layer of the head."""
    l1: float = 0.0
    """Penalty on the absolute values of the dense layers' kernels."""
    l2: float = 0.0
    """Penalty on the squares of the dense layers' kernels."""
    padding: Padding = "same"
    """Of the convolutions of vgg-bn and cnn."""
    filters: int = 32
    """Of cnn's first block; every further block has twice as many, at most 512."""
    blocks: int = 4
    """Of cnn, each ending in a pooling that halves the image."""
    block_layers: int = 1
    """Convolutions in each block of cnn."""

    def __post_init__(self) -> None:
        require(
            (self.arch in ARCHS, f"arch {self.arch!r} is not one of {', '.join(ARCHS)}"),
            (
                self.head in get_args(TrainedHead),
                f"head {self.head!r} is not one of {', '.join(get_args(TrainedHead))}",
            ),
            (
                SMALLEST_PX <= self.image_size <= LARGEST_PX,
                f"image size {self.image_size} is not within {SMALLEST_PX} to {LARGEST_PX} pixels",
            ),
            (self.dense_units is None or self.dense_units >= 1, f"{self.dense_units} dense units"),
            (0 <= self.dense_layers <= 8, f"{self.dense_layers} dense layers: 0 to 8 are possible"),
            (0 <= self.dropout < 1, f"dropout {self.dropout} is not from 0 to below 1"),
            (self.l1 >= 0 and self.l2 >= 0, f"penalties l1 {self.l1} and l2 {self.l2}: none may be negative"),
            (self.filters >= 1, f"{self.filters} filters: at least one is needed"),
            (1 <= self.blocks <= 8, f"{self.blocks} blocks: 1 to 8 are possible"),
            (1 <= self.block_layers <= 8, f"{self.block_layers} layers a block: 1 to 8 are possible"),
            (
                self.arch != "vgg16" or self.padding == "same",
                "padding valid: vgg16's weights are for padding same; vgg-bn and cnn take either",
            ),
        )
        require(
            (
                self.last_side >= 1,
                f"image size {self.image_size}: nothing is left of the image after {len(self.convolutions)} "
                f"blocks of {self.arch} with padding {self.padding}: take larger images or fewer blocks",
            )
        )

    @property
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """Filters and number of the 3-by-3 convolutions of each block."""
        if self.arch == "cnn":
            return tuple((min(self.filters << block, 512), self.block_layers) for block in range(self.blocks))
        return _VGG[self.arch]

    @property
    def hidden_units(self) -> tuple[int, ...]:
        """Units of each dense layer before the last."""
        if self.arch == "vgg-bn":
            return (self.dense_units or 4096,) * 2
        return () if self.dense_units is None else (self.dense_units,) * self.dense_layers

    @property
    def last_side(self) -> int:
        """Side of the last block's output, in pixels; below 1 where the image is too small."""
        side = self.image_size
        for _, count in self.convolutions:
            side -= 2 * count if self.padding == "valid" else 0
            side //= 2
        return side
