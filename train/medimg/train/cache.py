"""Arrays kept in files while a model trains: images decoded once, frozen features computed once."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet, load_batches
from medimg.runtime.errors import UsageError
from medimg.runtime.preprocess import Images
from medimg.train.networks import Network
from medimg.train.options import Job

if TYPE_CHECKING:
    from medimg.train.batches import Batches

BATCH = 32


@contextlib.contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """Give a temporary folder, removed at the end.

    Args:
        parent: the folder it is made in; by default the system's for temporary files.

    Raises:
        UsageError: it cannot be made there.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="medimg-fit-", dir=parent)
    except OSError as error:
        reason = f"no cache can be kept there ({error.strerror})"
        raise UsageError(f"{parent}: {reason}: name another folder by --cache-dir") from None
    with folder as name:
        yield Path(name)


def cache_images(dataset: DataSet, job: Job, name: str) -> Images:
    """Decode every image into one memory-mapped array.

    Args:
        dataset: the images.
        job: image size, folder, threads.
        name: of the file, without suffix.

    Returns:
        `(images, rows, columns, 3)` uint8 RGB, in the data set's order.

    Raises:
        ImageError: an image cannot be read.
        UsageError: the file does not fit on its disk.
    """
    rule = job.options.image
    shape = (len(dataset), rule.rows, rule.columns, 3)
    cached = _new_array(job.folder / f"{name}.npy", shape, np.dtype(np.uint8))
    batches = load_batches(dataset.samples, rule, BATCH, job.threads)
    start = 0
    for batch in job.progress.track(batches, f"decode {name}", math.ceil(len(dataset) / BATCH)):
        cached[start : start + len(batch)] = batch
        start += len(batch)
    return cached


def cache_outputs(network: Network, batches: "Batches", job: Job, name: str) -> NDArray[Any]:
    """Run a network over batches once, and keep what it gives.

    Args:
        network: a Keras model.
        batches: its inputs, in order.
        job: the folder.
        name: of the file, without suffix.

    Returns:
        `(images, …)` in the precision that the network computes in.

    Raises:
        UsageError: the file does not fit on its disk.
    """
    cached: NDArray[Any] | None = None
    start = 0
    for inputs, *_ in job.progress.track(batches, f"compute {name}", len(batches)):
        outputs = network.predict_on_batch(inputs)
        if cached is None:
            shape = (batches.images, *outputs.shape[1:])
            cached = _new_array(job.folder / f"{name}.npy", shape, outputs.dtype)
        cached[start : start + len(outputs)] = outputs
        start += len(outputs)
    assert cached is not None
    assert start == batches.images
    return cached


def _new_array(path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Make a memory-mapped array; the file's own header knows no bfloat16, so it stores plain integers."""
    stored = np.dtype(f"u{kind.itemsize}")
    wanted = math.prod(shape) * kind.itemsize
    if wanted > (free := shutil.disk_usage(path.parent).free):
        raise UsageError(
            f"{path.parent.parent}: the cache needs {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "name a folder with room by --cache-dir"
        )
    return np.lib.format.open_memmap(path, "w+", stored, shape).view(kind)
