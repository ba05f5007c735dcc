"""What export concludes from a model: its head, its scaling, its answers; each held against Keras itself."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from numpy.typing import NDArray
from onnx import ModelProto

from medimg.export.errors import SourceError
from medimg.export.guard import unsafe_tensors
from medimg.export.large_weights import joined
from medimg.export.options import ExportOptions, make_spec
from medimg.export.pipeline import convert_network
from medimg.export.sources.base import Origin
from medimg.export.sources.clues import Clues, read_clues
from medimg.export.sources.heads import Ending, ending_of
from medimg.export.sources.scaling import Scaling, input_scaling
from medimg.export.sources.worker import _MARKED, _flattened, _prepare
from medimg.export.synthetic import synthetic_images
from medimg.export.to_fp16 import to_fp16
from medimg.export.to_onnx import convert, traced
from medimg.runtime.backends import choose_backend
from medimg.runtime.errors import MedimgError, UsageError
from medimg.runtime.model.containers import Artefact
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.tasks import Probabilities, task_named, task_of_head

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore:You are using a softmax over axis")]
Tensor = Any
IMAGES = synthetic_images(16, 16, 8)


class KerasSource:
    """A `Source` whose Keras model lives in this process: what a worker would answer, at once."""

    def __init__(self, model: Any, clues: Clues | None = None) -> None:
        self._model = model
        layers = _flattened(model)
        self._layers = tuple(layer.name for layer in layers)
        _prepare(layers)
        self.input_shape: tuple[int, int, int] = tuple(model.input_shape[1:])
        self.input_dtype, self.units = str(model.inputs[0].dtype), model.output_shape[1]
        self.origin = Origin(Path("model.keras"), ".keras", "0" * 64, clues=clues or Clues())
        with tempfile.TemporaryDirectory() as folder, Path(folder, "weights").open("wb") as apart:
            self._converted = joined(convert(traced(self._call, self.input_shape), apart))
        for node in self._converted.graph.node:
            node.name = "/".join(_MARKED.sub("", scope) for scope in node.name.split("/"))

    def _call(self, images: Any) -> Any:
        return self._model(tf.cast(images, self.input_dtype), training=False)

    @property
    def ending(self) -> Ending:
        return ending_of(self._converted)

    @property
    def scaling(self) -> Scaling | None:
        return input_scaling(self._converted, self._layers)

    def layer_names(self) -> tuple[str, ...]:
        return self._layers

    def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._call(network_input), np.float32)

    def convert(self) -> ModelProto:
        copy = ModelProto()
        copy.CopyFrom(self._converted)
        return copy

    def stop(self) -> None:
        """Nothing to let go of."""

    def close(self) -> None:
        """Nothing to let go of."""


def artefact_answers(
    network: ModelProto, spec: ModelSpec, images: NDArray[Any], backend: str = "onnxruntime"
) -> Probabilities:
    """Run a finished graph on one back end."""
    artefact = Artefact(Path("model.onnx"), spec, network.SerializeToString())
    opened = choose_backend(spec.precision, backend, "cpu").open(artefact, 1)
    found = opened.infer(images)["probabilities"]
    opened.close()
    return found


def image(dtype: str = "float32") -> Tensor:
    return keras.Input((16, 16, 3), dtype=dtype)


def features(taken: Tensor) -> Tensor:
    return layers.Conv2D(4, 3, activation="relu")(taken)


def dense(taken: Tensor, units: int = 3, activation: str | None = "softmax") -> Tensor:
    return layers.Dense(units, activation=activation)(layers.GlobalAveragePooling2D()(features(taken)))


def several(taken: Tensor, count: int, units: int = 3, activation: str | None = "softmax") -> list[Tensor]:
    return [dense(taken, units, activation) for _ in range(count)]


def map_of(taken: Tensor, activation: str, units: int = 3) -> Tensor:
    return layers.Conv2D(units, 1, activation=activation)(features(taken))


def patches(taken: Tensor, activation: str = "softmax") -> Tensor:
    parts = layers.Reshape((16, 4))(layers.Conv2D(4, 4, strides=4)(taken))
    return layers.GlobalAveragePooling1D()(
        layers.TimeDistributed(layers.Dense(3, activation=activation))(parts)
    )


def attention(taken: Tensor, activation: str | None) -> Tensor:
    places = layers.Reshape((196, 4))(features(taken))
    weights = layers.Softmax(axis=1)(layers.Dense(1)(places))
    return ops.sum(weights * layers.Dense(3, activation=activation)(places), axis=1)


def gated(taken: Tensor) -> Tensor:
    gate = layers.Reshape((1, 2))(dense(taken, 2))
    return layers.Flatten()(ops.matmul(gate, ops.stack(several(taken, 2), axis=1)))


def merged(taken: Tensor) -> Tensor:
    return ops.matmul(dense(taken, 5), np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2]])


def both_sides(taken: Tensor) -> Tensor:
    right = dense(taken, 1, "sigmoid")
    return layers.Concatenate()([1 - right, right])


def own_softmax(taken: Tensor) -> Tensor:
    raised = ops.exp(dense(taken, activation=None) / 100)
    return raised / ops.sum(raised, axis=-1, keepdims=True)


ENDS: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "patches that vote": (patches, "softmax"),
    "patches that vote by sigmoids": (lambda i: patches(i, "sigmoid"), "multilabel"),
    "softmax map": (lambda i: layers.GlobalAveragePooling2D()(map_of(i, "softmax")), "softmax"),
    "softmax map, pooled by windows": (
        lambda i: layers.Flatten()(layers.AveragePooling2D(14)(map_of(i, "softmax"))),
        "softmax",
    ),
    "sigmoid map": (lambda i: layers.GlobalAveragePooling2D()(map_of(i, "sigmoid")), "multilabel"),
    "one sigmoid map": (lambda i: layers.GlobalAveragePooling2D()(map_of(i, "sigmoid", 1)), "sigmoid"),
    "largest of a sigmoid map": (lambda i: layers.GlobalMaxPooling2D()(map_of(i, "sigmoid")), "multilabel"),
    "largest of a softmax map": (lambda i: layers.GlobalMaxPooling2D()(map_of(i, "softmax")), None),
    "stacked ensemble": (lambda i: ops.mean(ops.stack(several(i, 2), axis=0), axis=0), "softmax"),
    "averaged ensemble": (lambda i: layers.Average()(several(i, 3)), "softmax"),
    "averaged sigmoids": (lambda i: layers.Average()(several(i, 2, 3, "sigmoid")), "multilabel"),
    "averaged single sigmoids": (lambda i: layers.Average()(several(i, 2, 1, "sigmoid")), "sigmoid"),
    "weighted ensemble": (lambda i: 0.7 * dense(i) + 0.3 * dense(i), "softmax"),
    "added, not averaged": (lambda i: layers.Add()(several(i, 2)), None),
    "multiplied": (lambda i: layers.Multiply()(several(i, 2)), None),
    "mixture of experts": (gated, "softmax"),
    "merged classes": (merged, "softmax"),
    "counted votes": (lambda i: ops.sum(map_of(i, "softmax"), axis=(1, 2)), None),
    "attention over votes": (lambda i: attention(i, "softmax"), "softmax"),
    "attention over sigmoids": (lambda i: attention(i, "sigmoid"), None),
    "attention over features": (lambda i: layers.Dense(3)(attention(i, None)), "logits"),
    "both sides of a sigmoid": (both_sides, "softmax"),
    "cut-off softmax": (lambda i: ops.clip(dense(i), 1e-7, 1 - 1e-7), "softmax"),
    "smoothed softmax": (lambda i: dense(i) * 0.9 + 0.1 / 3, "softmax"),
    "softmax with a temperature": (lambda i: layers.Softmax()(dense(i, activation=None) / 1.5), "softmax"),
    "softmax by hand": (own_softmax, "softmax"),
    "log-softmax": (lambda i: dense(i, activation="log_softmax"), "logits"),
    "linear": (lambda i: dense(i, activation=None), "logits"),
    "linear map": (lambda i: layers.GlobalAveragePooling2D()(map_of(i, "linear")), "logits"),
    "linear ensemble": (lambda i: layers.Average()(several(i, 2, 3, None)), "logits"),
    "rectified map": (lambda i: layers.GlobalAveragePooling2D()(map_of(i, "relu")), None),
    "linear, but from 0 to 1": (
        lambda i: layers.Dense(
            3, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(0.3)
        )(layers.Flatten()(i)),
        None,
    ),
    "softmax over one unit": (lambda i: dense(i, 1), None),
    "tanh": (lambda i: dense(i, activation="tanh"), None),
}


def built(end: Callable[[Tensor], Tensor], dtype: str = "float32", clues: Clues | None = None) -> KerasSource:
    keras.utils.set_random_seed(1)
    taken = image(dtype)
    return KerasSource(keras.Model(taken, end(taken)), clues)


@pytest.mark.parametrize("name", ENDS)
def test_the_head_is_what_keras_shows_or_asked_for(name: str) -> None:
    end, head = ENDS[name]
    source = built(end)
    options = ExportOptions(preprocessing="raw")
    if head is None:
        with pytest.raises(SourceError, match=r"--head softmax\|sigmoid|cannot tell classes apart"):
            make_spec(source, options, None)
        return
    spec, _ = make_spec(source, options, None)
    assert spec.head == head
    assert spec.task == ("multilabel" if head == "multilabel" else "multiclass")
    expected = task_of_head(spec.head).finish(source.predict(IMAGES.astype(np.float32)), spec.head)
    if head in ("softmax", "multilabel"):
        np.testing.assert_array_equal(expected, source.predict(IMAGES.astype(np.float32)))
    for temperature in (1.0, 1.7):
        spec = spec.with_(temperature=temperature)
        network = convert_network(source, spec)
        found = artefact_answers(network, spec, IMAGES)
        limit = 1e-5 if temperature == 1 else 2e-4
        np.testing.assert_allclose(
            found, task_named(spec.task).tempered(expected, spec.temperature), atol=limit
        )
    half = spec.with_(precision="fp16")
    assert np.isfinite(artefact_answers(to_fp16(network), half, IMAGES)).all()


def test_a_softmax_over_one_unit_is_refused_whatever_is_said_of_it() -> None:
    source = built(lambda i: dense(i, 1))
    for head in ("sigmoid", "logits"):
        with pytest.raises(SourceError, match="cannot tell classes apart"):
            make_spec(source, ExportOptions(head=head), None)


@pytest.mark.parametrize(
    ("units", "loss", "from_logits", "outcome"),
    [
        (3, "categorical_crossentropy", True, "logits"),
        (1, "binary_crossentropy", True, "logits"),
        (3, "binary_crossentropy", True, "do not exclude one another"),
        (3, "mean_squared_error", False, "quantities, not classes"),
        (1, None, False, "a quantity, or a logit"),
    ],
)
def test_the_loss_tells_logits_from_quantities(
    units: int, loss: str | None, from_logits: bool, outcome: str
) -> None:
    source = built(lambda i: dense(i, units, None), clues=Clues(loss, from_logits))
    if outcome == "logits":
        assert make_spec(source, ExportOptions(), None)[0].head == "logits"
        return
    with pytest.raises(SourceError, match=outcome):
        make_spec(source, ExportOptions(), None)


@pytest.mark.parametrize(
    "loss",
    ["categorical_crossentropy", keras.losses.CategoricalCrossentropy(from_logits=True), {"y": "mse"}, None],
)
def test_the_loss_is_read_as_keras_writes_it(loss: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="y")])
    model.compile(loss=loss)
    found = read_clues(json.dumps(model.get_compile_config() if loss else {}))
    wanted = {None: None, "y": "mse"}.get(
        loss if isinstance(loss, str) else "y" if isinstance(loss, dict) else None
    )
    assert found.loss == (wanted or (None if loss is None else "categorical_crossentropy"))
    assert found.from_logits == (not isinstance(loss, (str, dict, type(None))))


def normalised(mean: float, deviation: float) -> Callable[[Tensor], Tensor]:
    return lambda i: dense(layers.Normalization(mean=[mean] * 3, variance=[deviation**2] * 3)(i))


SCALED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "rescaling": (lambda i: dense(layers.Rescaling(1 / 255, name="to_unit")(i)), "to_unit"),
    "rescaling to -1 and 1": (lambda i: dense(layers.Rescaling(1 / 127.5, -1)(i)), "rescaling"),
    "division": (lambda i: dense(i / 255.0), "truediv"),
    "product and difference": (lambda i: dense(i * (2 / 255.0) - 1.0), "Mul"),
    "normalisation": (normalised(120, 60), "normalization"),
    "means of ImageNet": (lambda i: dense(keras.applications.vgg16.preprocess_input(i)), ""),
    "deviations of ImageNet": (
        lambda i: dense(keras.applications.imagenet_utils.preprocess_input(i, mode="torch")),
        "truediv",
    ),
    "in a nested model": (
        lambda i: dense(
            keras.Sequential([image(), layers.RandomFlip(), layers.Rescaling(1 / 255, name="inner")])(i)
        ),
        "inner",
    ),
    "behind a resize": (lambda i: dense(layers.Rescaling(1 / 255)(layers.Resizing(12, 12)(i))), "rescaling"),
}


@pytest.mark.parametrize("name", SCALED)
def test_a_scaling_inside_means_raw_and_names_the_layer(name: str) -> None:
    end, layer = SCALED[name]
    source = built(end)
    spec, said = make_spec(source, ExportOptions(), None)
    assert spec.intensity.rule == "raw"
    assert any(layer in text and "--preprocessing raw" in text for text in said), said
    told, warned = make_spec(source, ExportOptions(preprocessing="unit"), None)
    assert told.intensity.rule == "unit"
    assert any(layer in text and "scales them twice" in text for text in warned)


@pytest.mark.parametrize(
    "end", [dense, normalised(0.45, 0.22), lambda i: dense(layers.BatchNormalization()(i))]
)
def test_without_a_scaling_for_bytes_nothing_is_concluded(end: Callable[[Tensor], Tensor]) -> None:
    source = built(end)
    assert make_spec(source, ExportOptions(), None)[0].intensity.rule == "unspecified"
    assert not any(
        "twice" in text for text in make_spec(source, ExportOptions(preprocessing="unit"), None)[1]
    )


def test_a_normalisation_of_scaled_images_doubts_raw() -> None:
    _, said = make_spec(built(normalised(0.45, 0.22)), ExportOptions(preprocessing="raw"), None)
    assert any("normalization" in text and "--preprocessing unit or tf" in text for text in said)


def test_an_input_of_bytes_takes_bytes_as_keras_does() -> None:
    source = built(lambda i: dense(layers.Rescaling(1 / 255)(i)), "uint8")
    with pytest.raises(UsageError, match=r"whole numbers.*--preprocessing raw"):
        make_spec(source, ExportOptions(preprocessing="unit"), None)
    spec, _ = make_spec(source, ExportOptions(), None)
    assert spec.intensity.rule == "raw"
    found = artefact_answers(convert_network(source, spec), spec, IMAGES)
    np.testing.assert_allclose(found, source.predict(IMAGES.astype(np.float32)), atol=1e-6)


def test_arithmetic_on_bytes_which_wraps_in_keras_is_refused() -> None:
    source = built(lambda i: dense((i - 100) / 255), "uint8")
    spec, _ = make_spec(source, ExportOptions(), None)
    with pytest.raises(SourceError, match="computes with whole numbers"):
        convert_network(source, spec)


def own_range(taken: Tensor) -> Tensor:
    axes = {"axis": (1, 2, 3), "keepdims": True}
    low, high = ops.amin(taken, **axes), ops.amax(taken, **axes)
    return dense((taken - low) / (high - low))


def own_deviation(taken: Tensor) -> Tensor:
    axes = {"axis": (1, 2), "keepdims": True}
    return dense((taken - ops.mean(taken, **axes)) / ops.std(taken, **axes))


FAILING: dict[str, Callable[[Tensor], Tensor]] = {
    "own range": own_range,
    "own deviation": own_deviation,
    "own maximum": lambda i: dense(i / ops.amax(i, axis=(1, 2, 3), keepdims=True)),
    "logarithm": lambda i: dense(ops.log(i)),
    "root of a difference": lambda i: dense(ops.sqrt(i - 1)),
}
BLANK = np.concatenate([np.zeros((1, 16, 16, 3), np.uint8), IMAGES[:3]])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", FAILING)
def test_no_number_is_no_number_on_every_back_end(name: str, backend: str) -> None:
    source = built(FAILING[name])
    spec, _ = make_spec(source, ExportOptions(preprocessing="raw"), None)
    expected = source.predict(BLANK.astype(np.float32))
    assert np.isnan(expected[0]).any()
    network = convert_network(source, spec)
    for precision in ("fp32", "fp16"):
        graph = network if precision == "fp32" else to_fp16(network)
        found = artefact_answers(graph, spec.with_(precision=precision), BLANK, backend)
        np.testing.assert_array_equal(np.isfinite(found).all(axis=1), np.isfinite(expected).all(axis=1))
    np.testing.assert_allclose(
        artefact_answers(network, spec, BLANK, backend)[1:][np.isfinite(expected[1:]).all(axis=1)],
        expected[1:][np.isfinite(expected[1:]).all(axis=1)],
        atol=1e-5,
    )


SAFE: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": dense,
    "rescaling": lambda i: dense(layers.Rescaling(1 / 255)(i)),
    "layer normalisation": lambda i: dense(layers.LayerNormalization()(layers.Rescaling(1 / 255)(i))),
    "group normalisation": lambda i: dense(layers.GroupNormalization(2)(features(i))),
    "batch normalisation": lambda i: dense(layers.BatchNormalization()(i)),
    "softmax by hand": own_softmax,
    "range with an epsilon": lambda i: dense(
        i / (ops.amax(ops.abs(i), axis=(1, 2, 3), keepdims=True) + 1e-6)
    ),
}


@pytest.mark.parametrize("name", SAFE)
def test_a_network_that_cannot_fail_is_not_guarded(name: str) -> None:
    source = built(SAFE[name])
    spec, _ = make_spec(source, ExportOptions(preprocessing="raw"), None)
    network = convert_network(source, spec)
    assert unsafe_tensors(network) == ([] if name != "softmax by hand" else unsafe_tensors(network))
    assert not any("guard" in node.name for node in network.graph.node) or name == "softmax by hand"
    assert np.isfinite(artefact_answers(network, spec, BLANK)).all()


def test_weights_that_are_no_numbers_are_refused() -> None:
    source = built(dense)
    for layer in source._model.layers:
        layer.set_weights([np.full_like(array, np.nan) for array in layer.get_weights()])
    broken = KerasSource(source._model)
    with pytest.raises(MedimgError, match=r"weights hold NaN|no number"):
        convert_network(broken, make_spec(broken, ExportOptions(preprocessing="raw"), None)[0])
