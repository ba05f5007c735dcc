"""Pictures that the export tests share."""

from pathlib import Path

import cv2
import numpy as np
import pytest

LABELS = ("cyst", "normal", "solid")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, each with pictures of one texture."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for place, label in enumerate(LABELS):
        (folder / label).mkdir()
        for number in range(8):
            noise = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / label / f"{number}.png"), cv2.GaussianBlur(noise, (0, 0), 1 + 2 * place))
    return folder
