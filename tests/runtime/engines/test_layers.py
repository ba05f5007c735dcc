"""The precision of an engine's convolutions, read from layer lists as TensorRT's inspector writes them.

Proves that both layouts are read; a layout of another version would count as unknown, and be said to be.
"""

import json
from typing import Any

import pytest

from medimg.runtime.engines.layers import Executed, compare, read_layers

CLASSIC: dict[str, Any] = {
    # From the chapter on the engine inspector in TensorRT's documentation.
    "Name": "res4_branch2a + res4_branch2a_bn_1 + res4_branch2a_bn_2",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "in", "Dimensions": [16, 512, 28, 28],
                "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
    "Outputs": [{"Name": "out", "Dimensions": [16, 256, 28, 28],
                 "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_simple_t1r1s1",
}  # fmt: skip
COMPILED: dict[str, Any] = {
    # Recorded from TensorRT for RTX 1.7 on an INT8 graph.
    "Name": "conv2d_15/Conv_myl0_5",
    "LayerType": "correlation",
    "Inputs": [{"Name": "in", "Dimensions": [-1, 8, 16, 16], "Datatype": "Int8"}],
    "Constants": [
        {"Name": "w", "Dimensions": [16, 8, 3, 3], "Datatype": "Int8"},
        {"Name": "b", "Dimensions": [1, 16, 1, 1], "Datatype": "Float"},
    ],
    "Outputs": [{"Name": "out", "Dimensions": [-1, 16, 16, 16], "Datatype": "Float"}],
    "TacticName": "__myelin_CASK_STUB",
    "Metadata": "[ONNX Layer: conv2d_15/Conv][ONNX Layer: max_pooling2d_8/MaxPool:0_DequantizeLinear]",
}


def changed(layer: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    return [{**layer, **changes}]


@pytest.mark.parametrize(
    ("name", "layers", "precision"),
    [
        ("res4_branch2a", [CLASSIC], "int8"),
        ("res4_branch2a", changed(CLASSIC, Weights={"Type": "Half", "Count": 9}), "fp16"),
        # Weights tell it, whatever goes in and out.
        (
            "res4_branch2a",
            changed(CLASSIC, Weights={"Type": "Float", "Count": 9}, TacticName="f32f32_f32"),
            "fp32",
        ),
        (
            "res4_branch2a",
            changed(CLASSIC, Weights={"Type": "Float"}, TacticName="sm80_xmma_tf32f32"),
            "tf32",
        ),
        ("conv2d_15/Conv", [COMPILED], "int8"),
        ("conv2d_15/Conv", changed(COMPILED, Constants=[{"Dimensions": [4, 4], "Datatype": "Half"}]), "fp16"),
        ("conv2d_15/Conv", changed(COMPILED, Constants=[], Inputs=[{"Datatype": "BFloat16"}]), "bf16"),
        # The kernel that adds the bias is not the convolution.
        (
            "conv2d_15/Conv",
            [
                *changed(COMPILED, LayerType="kgen", Constants=[{"Dimensions": [16], "Datatype": "Float"}]),
                COMPILED,
            ],
            "int8",
        ),
        ("conv2d_15/Conv", [*changed(COMPILED, LayerType="Reformat", Inputs=[]), COMPILED], "int8"),
    ],
)
def test_the_precision_of_a_convolution(name: str, layers: list[dict[str, Any]], precision: str) -> None:
    assert compare({name: "fp16"}, layers) == Executed(
        precision, () if precision == "fp16" else (f"{name} ({precision} instead of fp16)",), ()
    )


@pytest.mark.parametrize(
    "layers",
    [
        [],
        changed(CLASSIC, Name="res4_branch2a_bn_9"),
        changed(CLASSIC, Weights=None, Inputs=[{"Format/Datatype": "N/A due to dynamic shapes"}]),
        changed(CLASSIC, Weights=None, Inputs=[]),
        changed(CLASSIC, LayerType="Reformat"),
    ],
)
def test_what_is_not_told(layers: list[dict[str, Any]]) -> None:
    assert compare({"res4_branch2a": "int8"}, layers) == Executed("unknown", (), ("res4_branch2a",))


def test_most_convolutions_decide() -> None:
    names = dict.fromkeys(("a", "b", "c"), "int8")
    layers = [
        {**CLASSIC, "Name": name, "Weights": {"Type": kind}}
        for name, kind in (("a", "Int8"), ("b", "Int8"), ("c", "Half"))
    ]
    assert compare(names, layers) == Executed("int8", ("c (fp16 instead of int8)",), ())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (json.dumps({"Layers": [CLASSIC], "Bindings": ["a"]}), [CLASSIC]),
        # Without detailed profiling information there are names alone.
        (json.dumps({"Layers": ["conv1 + relu", "fc"]}), []),
        ("", []),
        ("[]", []),
        ("null", []),
    ],
)
def test_the_inspectors_text(text: str, layers: list[dict[str, Any]]) -> None:
    assert read_layers(text) == layers
