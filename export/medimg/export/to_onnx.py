"""TensorFlow to ONNX: the only place that knows tf2onnx."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from onnx import ModelProto

from medimg.runtime.optional import require

_LOG = logging.getLogger(__name__)
OPSET = 17
NETWORK_INPUT = "network_input"
NETWORK_OUTPUT = "network_output"


def convert(call: Callable[[Any], Any], shape: tuple[int, int, int], opset: int = OPSET) -> ModelProto:
    """Convert a network.

    The route is a traced function over a fixed signature: `from_keras` fails on nested Sequential models, and
    `from_function` takes constants that the trace captured for inputs.

    Args:
        call: computes the network's one output from a batch of images, with TensorFlow.
        shape: rows, columns and channels of an image.
        opset: the default domain's version.

    Returns:
        A model with the input `network_input`, `(batch, rows, columns, channels)` float32, and the output
        `network_output`, `(batch, units)` float32.
    """
    tensorflow = require("tensorflow", "export")
    freezing = require("tensorflow.python.framework.convert_to_constants", "export")
    tf2onnx = require("tf2onnx", "export")
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    signature = [tensorflow.TensorSpec((None, *shape), tensorflow.float32, NETWORK_INPUT)]

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]  # no types
    def network(images: Any) -> Any:  # noqa: ANN401
        return tensorflow.identity(call(images), name=NETWORK_OUTPUT)

    # Functions inside of the network, as Keras compiles for grouped convolutions, become part of the trace.
    tensorflow.config.run_functions_eagerly(True)
    traced = network.get_concrete_function()
    tensorflow.config.run_functions_eagerly(False)
    frozen = freezing.convert_variables_to_constants_v2(
        traced, lower_control_flow=False, aggressive_inlining=True
    )
    definition, output = frozen.graph.as_graph_def(add_shapes=True), frozen.outputs[0].name
    # Each of them holds the weights once more.
    del frozen, traced
    gc.collect()

    def from_definition() -> ModelProto:
        converted, _ = tf2onnx.convert.from_graph_def(
            definition,
            input_names=[f"{NETWORK_INPUT}:0"],
            output_names=[output],
            tensors_to_rename={f"{NETWORK_INPUT}:0": NETWORK_INPUT, output: NETWORK_OUTPUT},
            opset=opset,
        )
        proto: ModelProto = converted
        return proto

    try:
        with _without_copies():
            return from_definition()
    except Exception as error:  # noqa: BLE001  whatever an optimiser raises; the second way skips that one
        _LOG.warning("an optimiser of tf2onnx failed and is left out: %s", error)
        return from_definition()


@contextmanager
def _without_copies() -> Iterator[None]:
    """Have tf2onnx optimise one graph in place: its copies, one an optimiser, take 2 GB for a VGG16."""
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    try:
        yield
    finally:
        del os.environ["TF2ONNX_CATCH_ERRORS"]
