"""What a graph that is still in memory answers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from medimg.runtime.backends import choose_backend
from medimg.runtime.model.containers import Artefact
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.tasks import PROBABILITIES, Probabilities


def answers(
    model: ModelProto, spec: ModelSpec, batches: Iterable[NDArray[Any]], threads: int
) -> Probabilities:
    """Run a finished graph on the CPU, on the back end that `auto` takes.

    Args:
        model: a graph with the input `image` and the output `probabilities`.
        spec: its spec, which messages name it by.
        batches: arrays for the input.
        threads: processor threads.

    Returns:
        `(images, classes)` float32.
    """
    name = Path(spec.source.name if spec.source else "model")
    artefact = Artefact(name, spec, model.SerializeToString())
    backend = choose_backend(artefact.spec.precision, device="cpu").open(artefact, threads)
    found = np.concatenate([backend.infer(batch)[PROBABILITIES] for batch in batches])
    backend.close()
    return found
