"""A picture of training images beside their augmented copies."""

from itertools import chain, zip_longest
from pathlib import Path

import cv2
import numpy as np

from medimg.runtime.data import DataSet, Sample, read_data
from medimg.runtime.errors import UsageError
from medimg.runtime.files.writing import replaced
from medimg.runtime.images.load import Image
from medimg.runtime.images.rule import ImageRule
from medimg.train.data.augmentation import Augmentation, augment
from medimg.train.data.division import divide
from medimg.train.data.options import DataOptions

SIDE_PX = 160
GAP_PX = 4
HEADER_PX = 28
NOTE = "Holds patient images. The first of each row is the image itself."


def write_contact_sheet(
    data: str | Path,
    output: str | Path,
    augmentation: Augmentation,
    *,
    images: int = 6,
    copies: int = 7,
    image_size: int = 224,
    seed: int = 0,
) -> int:
    """Write a picture with a row an image: the image, and changed copies of it.

    Args:
        data: a data set; its training part is shown.
        output: a PNG file. It holds patient images, and says so.
        augmentation: what may change.
        images: rows; the classes are taken by turns.
        copies: changed copies in each row.
        image_size: side of the network's input, in pixels.
        seed: of the split and of the changes.

    Returns:
        How many images are shown.

    Raises:
        DataError: the data cannot be understood.
        ImageError: an image cannot be read.
        UsageError: the file cannot be written.
    """
    output = Path(output)
    if output.suffix != ".png":
        raise UsageError(f"{output}: a contact sheet ends in .png")
    rule = ImageRule(image_size, image_size)
    samples = _by_turns(divide(read_data(data), DataOptions(seed=seed)).train)[:images]
    sheet = np.vstack(
        [_row(sample, rule, augmentation, copies, (seed, row)) for row, sample in enumerate(samples)]
    )
    header = np.zeros((HEADER_PX, sheet.shape[1], 3), np.uint8)
    cv2.putText(header, NOTE, (GAP_PX, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    _, encoded = cv2.imencode(".png", cv2.cvtColor(np.vstack([header, sheet]), cv2.COLOR_RGB2BGR))
    try:
        with replaced(output, private=True) as temporary:
            temporary.write_bytes(encoded.tobytes())
    except OSError as error:
        raise UsageError(f"{output}: cannot be written ({error.strerror})") from None
    return len(samples)


def _by_turns(dataset: DataSet) -> list[Sample]:
    """Order samples so that every class has its turn."""
    classes = (
        [sample for sample in dataset.samples if sample.label == label]
        for label in range(len(dataset.labels))
    )
    return [sample for sample in chain(*zip_longest(*classes)) if sample is not None]


def _row(
    sample: Sample, rule: ImageRule, augmentation: Augmentation, copies: int, seed: tuple[int, int]
) -> Image:
    image = sample.load(rule)[None]
    changed = augment(image.repeat(copies, axis=0), augmentation, [(*seed, copy) for copy in range(copies)])
    size = (SIDE_PX, SIDE_PX)
    cells = np.stack([cv2.resize(cell, size, interpolation=cv2.INTER_AREA) for cell in (*image, *changed)])
    gap = (GAP_PX // 2, GAP_PX // 2)
    return np.hstack(list(np.pad(cells, ((0, 0), gap, gap, (0, 0)))))
