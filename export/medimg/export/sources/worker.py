"""The process that a framework runs in: `python -m medimg.export.sources.worker`.

It holds one model, and answers `open`, `predict` and `convert` on its standard input until that ends.
Keras 3, tf-keras and SavedModels cannot share a process; and a file that brings a framework down brings down
this process only. What goes wrong is one message, and the end of the process.
"""

import ctypes
import functools
import gc
import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medimg.export.errors import SourceError
from medimg.export.sources.base import is_flat
from medimg.export.to_onnx import convert, traced
from medimg.runtime import protocol
from medimg.runtime.model.process import Message, Reply, opening, serve
from medimg.runtime.optional import hidden

_MARKED = re.compile(r"\.(_\d+)?$")
"""The end of a scope that carries a layer's name."""
_SCOPE = re.compile(r"[A-Za-z0-9_.\\/>-]*")
BATCH, BATCH_PIXELS = 8, 2**17
"""Images, and pixels of them, that a framework gets at once: it keeps every layer's output until the last."""
_M_MMAP_THRESHOLD = -3
"""As `malloc.h` has it."""
SMALL_PIECES, LARGE_PIECES = 2**16, 2**22
"""From how many bytes on the allocator takes a piece from the system, and gives it back, alone: to convert,
which makes many copies, and otherwise, so that what large layers gave does not stay."""


class Network(Protocol):
    """A model as a framework holds it."""

    def describe(self) -> dict[str, Any]:
        """Give `inputs` and `outputs` (name, dims, dtype), `layers` (names) and the framework's `version`."""

    def call(self, images: Any) -> Any:  # noqa: ANN401  tensors
        """Compute the outputs of a batch of float32 images, `(batch, rows, columns, channels)`."""


class KerasNetwork:
    """A model of Keras 3 or tf-keras."""

    def __init__(
        self,
        keras: Any,  # noqa: ANN401
        path: Path,
        custom_objects: dict[str, Any],
        *,
        allow_code: bool,
        float64: bool,
        output_name: str | None,
    ) -> None:
        self._keras, self._tensorflow = keras, importlib.import_module("tensorflow")
        self._model = keras.models.load_model(
            path, custom_objects=custom_objects, compile=False, safe_mode=not allow_code
        )
        if float64:
            with keras.utils.custom_object_scope(custom_objects):
                self._model = _in_float64(self._model)
        self._inputs, self._outputs = _named_inputs(self._model), _named_outputs(self._model)
        self._flat = len(self._inputs) == 1 and is_flat(self._inputs[0]["dims"])
        names = [item["name"] for item in self._outputs]
        self._place = names.index(output_name) if output_name in names else 0
        layers = _flattened(self._model)
        self._layers = [layer.name for layer in layers]
        _prepare(layers)
        if keras.__name__ == "tf_keras":
            _fix_crops(layers, keras)

    def describe(self) -> dict[str, Any]:
        """Describe the model."""
        return {
            "inputs": self._inputs,
            "outputs": self._outputs,
            "layers": self._layers,
            "version": self._keras.__version__,
        }

    def call(self, images: Any) -> Any:  # noqa: ANN401  tensors
        """Run the model as for inference, on the type that it takes, and give the output that is meant."""
        taken = self._tensorflow.cast(images, self._model.inputs[0].dtype)
        if self._flat:
            taken = self._tensorflow.squeeze(taken, -1)
        return self._tensorflow.nest.flatten(self._model(taken, training=False))[self._place]


@dataclass
class Traced:
    """A model, and its trace for images of one size."""

    network: Network
    _function: Any = None

    def function(self, shape: tuple[int, int, int]) -> Any:  # noqa: ANN401  TensorFlow's
        """Trace the network when that is first asked for."""
        if self._function is None:
            self._function = traced(self.network.call, shape)
        return self._function


def main() -> None:
    """Answer requests until standard input ends."""
    networks: list[Traced] = []

    def answer(message: Message, blobs: list[bytes]) -> Reply:
        if message["do"] == "open":
            network = _open(message)
            networks[:] = [Traced(network)]
            return network.describe(), []
        (opened,) = networks
        if message["do"] == "predict":
            return {}, [protocol.array_bytes(_predict(opened, protocol.bytes_array(blobs[0])))]
        return {}, [_convert(opened, tuple(message["shape"]), Path(message["apart"]))]

    serve(answer)


def _open(message: dict[str, Any]) -> Network:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    path, framework = Path(message["path"]), message["framework"]
    # Loaded for what nothing here uses: two fifths of the start, and a fifth of its memory.
    with hidden("sklearn", "matplotlib", "pandas", "pyarrow", "scipy", "cv2", "PIL"):
        tensorflow = importlib.import_module("tensorflow")
        keras = None if framework == "saved_model" else importlib.import_module(framework)
    # Without its optimisers TensorFlow runs the operations as they are, as it does eagerly.
    tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if framework == "keras":
        # Else Keras reads all arrays into memory before it gives them to the layers.
        vars(importlib.import_module("keras.src.saving.saving_lib"))["is_memory_sufficient"] = lambda _: False
    if message["threads"]:
        tensorflow.config.threading.set_intra_op_parallelism_threads(message["threads"])
    with opening(_bytes_of(path)):
        network = _network(message, path, tensorflow, keras)
    _give_memory_back()
    return network


def _network(message: dict[str, Any], path: Path, tensorflow: Any, keras: Any) -> Network:  # noqa: ANN401
    if keras is None:
        from medimg.export.sources.saved_model import SignatureNetwork

        if message["float64"]:
            raise SourceError("holds a graph of float32")
        return SignatureNetwork(tensorflow, path, message["layers"], message["output_name"])
    allow_code = bool(message["allow_code"])
    custom = _custom_objects(keras, tensorflow, message["imports"]) if allow_code else {}
    return KerasNetwork(
        keras,
        path,
        custom,
        allow_code=allow_code,
        float64=message["float64"],
        output_name=message["output_name"],
    )


def _bytes_of(path: Path) -> int:
    """Add up a model's files."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _custom_objects(keras: Any, tensorflow: Any, imports: list[list[str]]) -> dict[str, Any]:  # noqa: ANN401
    """Import what the user let in, and give Lambda layers the names that their code was written with."""
    names = {"tf": tensorflow, "tensorflow": tensorflow, "keras": keras, "np": np, "numpy": np}
    names["K"] = keras.backend
    if keras.__name__ == "keras":
        # Keras 3 runs a Lambda's code with these names alone, and takes no others by any argument.
        vars(importlib.import_module("keras.src.utils.python_utils")).update(names)
    custom = dict(names)
    for name, module in imports:
        try:
            custom[name] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SourceError(f"needs {name} of {module} ({error}): put its folder on PYTHONPATH") from error
    return custom


def _predict(opened: Traced, images: NDArray[np.float32]) -> NDArray[np.float32]:
    function = opened.function(images.shape[1:])
    tensorflow = importlib.import_module("tensorflow")
    batch = max(1, min(BATCH, BATCH_PIXELS // (images.shape[1] * images.shape[2])))
    parts = [
        np.asarray(function(tensorflow.constant(images[start : start + batch])), np.float32)
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def _convert(opened: Traced, shape: tuple[int, int, int], apart: Path) -> bytes:
    _take_pieces_from(SMALL_PIECES)
    with apart.open("wb") as file:
        model = convert(opened.function(shape), file)
    for node in model.graph.node:
        node.name = "/".join(_MARKED.sub("", scope) for scope in node.name.split("/"))
    content: bytes = model.SerializeToString(deterministic=True)
    del model
    _give_memory_back()
    _take_pieces_from(LARGE_PIECES)
    return content


def _take_pieces_from(size: int) -> None:
    """Have the allocator take pieces of so many bytes from the system, and give them back, one by one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's own
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)


def _give_memory_back() -> None:
    """Return what a step leaves, in cycles and in the allocator, before the next."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def _in_float64(model: Any) -> Any:  # noqa: ANN401  a Keras model
    """Rebuild a model in float64 with its own weights."""
    exact = type(model).from_config(_with_float64(model.get_config()))
    exact.set_weights(model.get_weights())
    return exact


def _with_float64(config: Any) -> Any:  # noqa: ANN401  any part of a configuration
    if isinstance(config, dict):
        return {key: "float64" if key == "dtype" else _with_float64(part) for key, part in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_with_float64(part) for part in config)
    return config


def _prepare(layers: list[Any]) -> None:
    """Make layers ready for the conversion: names that stay, and forms that ONNX has.

    Each name ends in a full stop. TensorFlow numbers scopes that come again, so that the second `conv2d` has
    the scope of the first `conv2d_1`; behind the mark a number is TensorFlow's, before it the layer's own.
    tf-keras's layer normalisation borrows an operator of batch normalisation, which ONNX has not; its plain
    form computes the same.
    """
    for layer in layers:
        if type(layer).__name__ != "InputLayer" and not _SCOPE.fullmatch(layer.name):
            raise SourceError(
                f"{layer.name!r} is not a valid root scope name, as a layer's must be (letters, "
                "digits and _.\\/>-): rename the layer and save the model again"
            )
        setattr(layer, "_name" if hasattr(layer, "_name") else "name", f"{layer.name}.")
        if hasattr(layer, "_fused_can_be_used"):
            layer._fused = False


def _fix_crops(layers: list[Any], keras: Any) -> None:  # noqa: ANN401
    """Decide between cropping and resizing by the known image size, where tf-keras decides in its graph.

    At inference CenterCrop crops an image that is large enough; otherwise, and in RandomCrop, the largest
    part of the wanted shape is resized.
    """
    for layer in layers:
        if type(layer).__name__ in ("CenterCrop", "RandomCrop"):
            layer.call = functools.partial(
                _crop,
                size=(layer.height, layer.width),
                cuts=type(layer).__name__ == "CenterCrop",
                resize=keras.preprocessing.image.smart_resize,
            )


def _crop(
    images: Any,  # noqa: ANN401  tensors
    *,
    size: tuple[int, int],
    cuts: bool,
    resize: Callable[..., Any],
    training: bool = False,
) -> Any:  # noqa: ANN401
    """Crop or resize a batch, `(batch, rows, columns, channels)`, to rows and columns."""
    assert not training, "a worker only answers"
    spare = [have - wanted for have, wanted in zip(images.shape[1:3], size, strict=True)]
    if not cuts or min(spare) < 0:
        return resize(images, size)
    top, left = (rest // 2 for rest in spare)
    return images[:, top : top + size[0], left : left + size[1]]


def _named_inputs(model: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    names = getattr(model, "input_names", None) or [tensor.name for tensor in model.inputs or ()]
    return [_tensor(name, tensor) for name, tensor in zip(names, model.inputs or (), strict=True)]


def _named_outputs(model: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Describe the outputs in order, by their names in a dictionary, else by their layers'."""
    outputs = model.outputs or ()
    struct = getattr(
        model, "_outputs_struct" if hasattr(model, "_outputs_struct") else "_nested_outputs", None
    )
    if isinstance(struct, dict) and len(struct) == len(outputs):
        names = sorted(struct)
    else:
        names = getattr(model, "output_names", None) or [model.layers[-1].name for _ in outputs]
    return [_tensor(name, tensor) for name, tensor in zip(names, outputs, strict=True)]


def _tensor(name: str, tensor: Any) -> dict[str, Any]:  # noqa: ANN401
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    return {"name": name, "dims": list(tensor.shape), "dtype": str(dtype)}


def _flattened(model: Any) -> list[Any]:  # noqa: ANN401
    """List the layers in order, those of nested models in place of them."""
    return [
        leaf
        for layer in model.layers
        for leaf in (_flattened(layer) if getattr(layer, "layers", None) else [layer])
    ]


if __name__ == "__main__":
    main()
