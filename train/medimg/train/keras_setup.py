"""Bringing Keras up: quietly, with the wanted threads, seed and precision."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from medimg.runtime.machine.cpus import cpu_flags
from medimg.runtime.optional import hidden, require

PolicyChoice: TypeAlias = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
Policy: TypeAlias = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Capability: TypeAlias = tuple[int, int]
"""CUDA's compute capability of a GPU: (8, 0) for an A100."""

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What x86 and aarch64 call their bfloat16 units."""

_LOG = logging.getLogger(__name__)


def start_keras(threads: int | None = None, seed: int | None = None) -> Any:  # noqa: ANN401  an untyped module
    """Import Keras on TensorFlow.

    Args:
        threads: processor threads; a process in which TensorFlow has run already keeps its own.
        seed: of Python's, NumPy's and TensorFlow's generators; None leaves them alone.

    Returns:
        The module `keras`.

    Raises:
        MissingDependencyError: Keras or TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # Keras loads them for wrappers that nothing here uses: two fifths of its start.
    with _native_messages_hidden(), hidden("sklearn", "matplotlib"):
        tensorflow = require("tensorflow", "train")
        keras = require("keras", "train")
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Advice to whoever wrote a model's code, given anew for each file.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"keras\.src\.(layers|models)\.")
    if threads:
        _set_threads(tensorflow, threads)
    if seed is not None:
        keras.utils.set_random_seed(seed)
    return keras


def choose_policy(choice: PolicyChoice, gpus: Sequence[Capability] = (), root: Path = Path("/")) -> Policy:
    """Decide the precision that layers compute in; variables are float32 either way.

    Args:
        choice: `auto` takes what the device has units for: `mixed_bfloat16` or, on GPUs of the generations
            7.x, `mixed_float16`.
        gpus: those that will be used; none means the CPU.
        root: where `proc` lies.
    """
    if choice != "auto":
        return choice
    if gpus:
        return (
            "mixed_bfloat16" if min(gpus) >= (8, 0) else "mixed_float16" if min(gpus) >= (7, 0) else "float32"
        )
    return "mixed_bfloat16" if cpu_flags(root) & BF16_FLAGS else "float32"


def gpu_capabilities() -> list[Capability]:
    """List the GPUs that TensorFlow will use."""
    config = require("tensorflow", "train").config
    details = (config.experimental.get_device_details(gpu) for gpu in config.list_physical_devices("GPU"))
    return [tuple(detail.get("compute_capability", (0, 0))) for detail in details]


def choose_strategy() -> Any:  # noqa: ANN401  TensorFlow is untyped
    """Give a `tf.distribute.MirroredStrategy` where there are several GPUs, else None."""
    tensorflow = require("tensorflow", "train")
    gpus = [device.name for device in tensorflow.config.list_logical_devices("GPU")]
    return tensorflow.distribute.MirroredStrategy(gpus) if len(gpus) > 1 else None


def _set_threads(tensorflow: Any, threads: int) -> None:  # noqa: ANN401
    threading = tensorflow.config.threading
    try:
        threading.set_intra_op_parallelism_threads(threads)
        threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        used = threading.get_intra_op_parallelism_threads()
        if used != threads:
            _LOG.warning("TensorFlow runs in this process already, with its own number of threads (%s)", used)


@contextlib.contextmanager
def _native_messages_hidden() -> Iterator[None]:
    """Discard what TensorFlow's libraries write past every log level while they load."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
