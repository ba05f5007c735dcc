"""TensorFlow to ONNX: the only place that knows tf2onnx."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from onnx import ModelProto

from medimg.export import large_weights
from medimg.runtime.optional import require

_LOG = logging.getLogger(__name__)
OPSET = 17
NETWORK_INPUT = "network_input"
NETWORK_OUTPUT = "network_output"


def traced(call: Callable[[Any], Any], shape: tuple[int, int, int]) -> Any:  # noqa: ANN401  TensorFlow's
    """Trace a network: a concrete function, which gives what it gives eagerly, and keeps less meanwhile.

    Args:
        call: computes the network's one output from a batch of images, with TensorFlow.
        shape: rows, columns and channels of an image.
    """
    tensorflow = require("tensorflow", "export")
    signature = [tensorflow.TensorSpec((None, *shape), tensorflow.float32, NETWORK_INPUT)]

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]  # no types
    def network(images: Any) -> Any:  # noqa: ANN401
        return tensorflow.identity(call(images), name=NETWORK_OUTPUT)

    # Functions inside of the network, as Keras compiles for grouped convolutions, become part of the trace.
    tensorflow.config.run_functions_eagerly(True)
    function = network.get_concrete_function()
    tensorflow.config.run_functions_eagerly(False)
    return function


def convert(function: Any, apart: BinaryIO) -> ModelProto:  # noqa: ANN401  TensorFlow's
    """Convert a network.

    The route is a traced function over a fixed signature: `from_keras` fails on nested Sequential models, and
    `from_function` takes constants that the trace captured for inputs.

    Args:
        function: as `traced` gives it.
        apart: a named file that takes the large weights.

    Returns:
        A model with the input `network_input`, `(batch, rows, columns, channels)` float32, and the output
        `network_output`, `(batch, units)` float32; its large weights are in the file, until `joined`.
    """
    definition, held = large_weights.freeze(function)
    output = function.outputs[0].name
    try:
        with _without_copies():
            model = _from_definition(definition, output, list(held))
    except Exception as error:  # noqa: BLE001  whatever an optimiser raises; the second way skips that one
        _LOG.warning("an optimiser of tf2onnx failed and is left out: %s", error)
        model = _from_definition(definition, output, list(held))
    del definition
    gc.collect()
    large_weights.put_apart(model, held, apart)
    return model


def _from_definition(definition: Any, output: str, weights: list[str]) -> ModelProto:  # noqa: ANN401
    tf2onnx = require("tf2onnx", "export")
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    converted, _ = tf2onnx.convert.from_graph_def(
        definition,
        input_names=[f"{NETWORK_INPUT}:0", *weights],
        output_names=[output],
        tensors_to_rename={f"{NETWORK_INPUT}:0": NETWORK_INPUT, output: NETWORK_OUTPUT},
        opset=OPSET,
    )
    proto: ModelProto = converted
    return proto


@contextmanager
def _without_copies() -> Iterator[None]:
    """Have tf2onnx optimise one graph in place: its copies, one an optimiser, take 2 GB for a VGG16."""
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    try:
        yield
    finally:
        del os.environ["TF2ONNX_CATCH_ERRORS"]
