"""TensorRT's own parser and builder take the three precisions; no GPU runs anything here.

This proves that the graphs are accepted and that engines build; not that the engines give the right answers.
"""

from pathlib import Path

import pytest

from medimg.export import export_model
from medimg.runtime.containers import open_onnx


def build(content: bytes) -> int:
    """Parse a graph into a strongly typed network, build it for up to 16 images, give the engine's size."""
    import tensorrt_rtx_bindings as tensorrt
    import tensorrt_rtx_libs  # noqa: F401  loads the libraries

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    assert parser.parse(content), [str(parser.get_error(place)) for place in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    image = network.get_input(0)
    profile.set_shape(image.name, *((batch, *image.shape[1:]) for batch in (1, 4, 16)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    return int(engine.nbytes)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_small_network(small_model: Path, pictures: Path, tmp_path: Path, precision: str) -> None:
    result = export_model(small_model, output=tmp_path, precisions=(precision,), calibration=pictures)
    assert build(open_onnx(result.artefacts[0].path).content) > 0


@pytest.mark.real
def test_vgg16(brain_artefacts: dict[str, Path]) -> None:
    sizes = {name: build(open_onnx(brain_artefacts[name]).content) for name in ("fp32", "fp16", "int8")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.35 * sizes["fp32"]
