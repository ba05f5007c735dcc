"""Golden inputs of an export: some of the images that it was verified on, and Keras's answers."""

from pathlib import Path

import numpy as np

from medimg.export.verify import Trial
from medimg.runtime.engines.golden import SUFFIX, Golden, write_golden
from medimg.runtime.errors import UsageError


def write_trial(stem: Path, trial: Trial, count: int) -> Path:
    """Write images of a trial, evenly spread over it, as `<stem>.golden.npz`.

    Args:
        stem: the artefacts' path without the suffix.
        trial: what the artefacts are compared on, of known preprocessing.
        count: how many images at most.

    Raises:
        UsageError: the file cannot be written.
    """
    answered = np.flatnonzero(trial.answered)
    total = len(answered)
    places = answered[np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))]
    wanted, start = set(places.tolist()), 0
    images = []
    for batch in trial.batches():
        images += [image for offset, image in enumerate(batch) if start + offset in wanted]
        start += len(batch)
    path = stem.with_name(stem.name + SUFFIX)
    try:
        write_golden(path, Golden(np.stack(images).astype(np.uint8), trial.reference[places]))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    return path
