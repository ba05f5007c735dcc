"""TensorFlow to ONNX: the only place that knows tf2onnx."""

import logging
from collections.abc import Callable
from typing import Any

from onnx import ModelProto

from medimg.runtime.optional import require

OPSET = 17
NETWORK_INPUT = "network_input"
NETWORK_OUTPUT = "network_output"


def convert_network(
    call: Callable[[Any], Any], shape: tuple[int, int, int], opset: int = OPSET
) -> ModelProto:
    """Convert a network.

    The route is a traced function over a fixed signature: `from_keras` fails on nested Sequential models.

    Args:
        call: computes the network's one output from a batch of images, with TensorFlow.
        shape: rows, columns and channels of an image.
        opset: the default domain's version.

    Returns:
        A model with the input `network_input`, `(batch, rows, columns, channels)` float32, and the output
        `network_output`, `(batch, units)` float32.
    """
    tensorflow = require("tensorflow", "export")
    tf2onnx = require("tf2onnx", "export")
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    signature = [tensorflow.TensorSpec((None, *shape), tensorflow.float32, NETWORK_INPUT)]

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]  # no types
    def network(images: Any) -> Any:  # noqa: ANN401
        return tensorflow.identity(call(images), name=NETWORK_OUTPUT)

    converted, _ = tf2onnx.convert.from_function(network, input_signature=signature, opset=opset)
    proto: ModelProto = converted
    return proto


def convert(model: Any, opset: int = OPSET) -> ModelProto:  # noqa: ANN401  keras has no types
    """Convert a Keras model."""
    return convert_network(lambda images: model(images, training=False), tuple(model.input_shape[1:]), opset)
