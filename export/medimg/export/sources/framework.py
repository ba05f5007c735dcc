"""A source whose framework runs in a worker process."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from medimg.export.errors import SourceError
from medimg.export.large_weights import joined
from medimg.export.sources.base import Origin, Request, TensorShape, classifier_shape
from medimg.export.sources.heads import Ending, ending_of
from medimg.export.sources.scaling import Scaling, input_scaling
from medimg.runtime import protocol
from medimg.runtime.errors import ModelError
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.model.process import Message, ModelProcess, Reply

Framework: TypeAlias = Literal["keras", "tf_keras", "saved_model"]
NAMES: Mapping[Framework, str] = {"keras": "Keras", "tf_keras": "tf-keras", "saved_model": "TensorFlow"}
WORKER = "medimg.export.sources.worker"
PREDICTED_AT_ONCE = 64
"""Images in one message."""


class FrameworkSource:
    """A classifier that TensorFlow computes, in a worker process of its own."""

    def __init__(
        self,
        origin: Origin,
        framework: Framework,
        opened: Path,
        request: Request,
        imports: tuple[tuple[str, str], ...] = (),
        layers: Sequence[str] = (),
    ) -> None:
        """Start the worker and load the model.

        Args:
            origin: where the model comes from.
            framework: what loads it.
            opened: the file or folder that the framework opens; needed no more afterwards.
            request: what the user says.
            imports: names, each with its module, that the user let in.
            layers: names of a SavedModel's layers.
        """
        self.origin = origin
        self._worker = ModelProcess(WORKER, NAMES[framework], _environment(framework))
        self._held = ExitStack()
        try:
            told, _ = self._ask(
                {
                    "do": "open",
                    "path": str(opened.absolute()),
                    "framework": framework,
                    "allow_code": request.allow_code,
                    "imports": imports,
                    "layers": list(layers),
                    "output_name": request.output_name,
                    "threads": request.threads,
                    "float64": request.float64,
                }
            )
            self.input_shape, self.units = described(origin.path, told["inputs"], told["outputs"], request)
            self.input_dtype = str(told["inputs"][0]["dtype"])
        except SourceError:
            self._worker.close()
            raise
        self._layers = tuple(told["layers"])

    @cached_property
    def ending(self) -> Ending:
        """What the outputs are, as far as the graph tells."""
        return ending_of(self._converted)

    @cached_property
    def scaling(self) -> Scaling | None:
        """What the first layers make of an image's values."""
        return input_scaling(self._converted, self._layers)

    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers, those of nested models included."""
        return self._layers

    def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the framework; see `Source.predict`."""
        parts = []
        for start in range(0, len(network_input), PREDICTED_AT_ONCE):
            blob = protocol.array_bytes(network_input[start : start + PREDICTED_AT_ONCE])
            _, blobs = self._ask({"do": "predict"}, blob)
            parts.append(protocol.bytes_array(blobs[0]))
        return np.concatenate(parts)

    def convert(self) -> ModelProto:
        """Give the network as ONNX; see `Source.convert`."""
        return joined(self._converted)

    def stop(self) -> None:
        """End the worker; see `Source.stop`."""
        assert self._converted
        self._worker.close()

    def close(self) -> None:
        """End the worker, and remove what it left."""
        self._worker.close()
        self._held.close()

    def _ask(self, message: Message, *blobs: bytes) -> Reply:
        try:
            return self._worker.ask(self.origin.path, message, *blobs)
        except ModelError as error:
            raise SourceError(str(error)) from None

    @cached_property
    def _converted(self) -> ModelProto:
        """The network, with its large weights in a file apart."""
        folder = self._held.enter_context(temporary_folder("weights"))
        apart = str((folder / "weights").absolute())
        _, blobs = self._ask({"do": "convert", "shape": self.input_shape, "apart": apart})
        model: ModelProto = ModelProto.FromString(blobs[0])
        return model


def described(
    path: Path, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], request: Request
) -> tuple[tuple[int, int, int], int]:
    """Check that what a file says of its tensors is a classifier; see `classifier_shape`."""
    taken, given = (
        [TensorShape(item["name"], tuple(item["dims"]), item["dtype"]) for item in side]
        for side in (inputs, outputs)
    )
    return classifier_shape(path, taken, given, request)


def _environment(framework: Framework) -> dict[str, str]:
    # A fixed hash seed: the order of sets shows in what the converter gives.
    chosen = {**os.environ, "PYTHONHASHSEED": "0"}
    if framework == "tf_keras":
        chosen["TF_USE_LEGACY_KERAS"] = "1"
    else:
        chosen.pop("TF_USE_LEGACY_KERAS", None)
    return chosen
