"""INT8 in the one form that every back end accepts, and the linter that proves it.

Symmetric int8, zero point 0, one scale a channel of the weights on axis 0, float bias; a Q/DQ pair on the
input and int8 weights behind a DequantizeLinear at every Conv, Gemm and MatMul, and nowhere else. Weights
that are stored in int8 make the file a quarter of the size, and TensorRT takes them as it takes pairs
("Quantized Weights" in the chapter on explicit quantization of its documentation).
"""

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from medimg.export.calibration import QUANTIZED_OPS
from medimg.export.graph import is_float_node


def to_int8(
    model: ModelProto, thresholds: Mapping[str, float], float_nodes: tuple[str, ...] = ()
) -> ModelProto:
    """Quantise a float32 graph with ONNX Runtime's quantiser.

    Args:
        model: a checked float32 graph.
        thresholds: the largest magnitude that each activation keeps.
        float_nodes: names of Conv, Gemm and MatMul nodes that stay in float32.

    Claim: `lint` finds nothing.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = ModelProto()
    copy.CopyFrom(model)
    chosen = [node.name for node in _candidates(copy) if node.name not in float_nodes]
    ranges = {
        name: TensorData(lowest=np.float32(-limit), highest=np.float32(limit))
        for name, limit in thresholds.items()
    }
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=chosen,
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTIZED_OPS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(QUANTIZED_OPS),
            "QDQKeepRemovableActivations": True,
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: ModelProto = quantizer.model.model
    faults = lint(quantized, float_nodes)
    assert not faults, "; ".join(faults)
    return quantized


def lint(model: ModelProto, float_nodes: tuple[str, ...] = ()) -> list[str]:
    """Check the portable form of a quantised graph.

    Args:
        model: a graph with explicit Q/DQ pairs.
        float_nodes: names of Conv, Gemm and MatMul nodes that may stay in float32.

    Returns:
        What is wrong, a line a fault; empty if nothing is.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {item.name: item for item in model.graph.initializer}
    faults = [
        fault
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for fault in _zero_point_faults(node, constants)
    ]
    for node in _candidates(model):
        if node.name not in float_nodes:
            faults += _operand_faults(node, producers, constants)
    return faults


def _candidates(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type in QUANTIZED_OPS and not is_float_node(node)]


def _zero_point_faults(node: NodeProto, constants: Mapping[str, TensorProto]) -> list[str]:
    if len(node.input) < 3 or node.input[2] not in constants:
        return [f"{node.name}: its zero point is not a constant"]
    zero_point = constants[node.input[2]]
    faults = []
    if zero_point.data_type != TensorProto.INT8:
        faults.append(f"{node.name}: quantises to another type than int8")
    if numpy_helper.to_array(zero_point).any():
        faults.append(f"{node.name}: its zero point is not 0")
    return faults


def _operand_faults(
    node: NodeProto, producers: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]
) -> list[str]:
    faults = []
    for place, name in enumerate(node.input[:2]):
        dequantize = producers.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            faults.append(f"{node.name}: operand {place} is not quantised")
            continue
        source = dequantize.input[0]
        quantize = producers.get(source)
        if source not in constants and (quantize is None or quantize.op_type != "QuantizeLinear"):
            faults.append(f"{node.name}: operand {place} is neither a constant nor behind QuantizeLinear")
        axes = [attribute.i for attribute in dequantize.attribute if attribute.name == "axis"]
        if place == 1 and axes != [0]:
            faults.append(f"{node.name}: its weights are not quantised on axis 0")
    if len(node.input) > 2 and node.input[2] not in constants:
        faults.append(f"{node.name}: its bias is not a float constant")
    return faults
