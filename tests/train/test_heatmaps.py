"""Heat maps: exact where they are claimed to be, and refused elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import Intensity, ModelSpec
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.heatmaps import NO_POOLED_HEAD, found_maps, keras_maps
from medimg.train.evaluation.mistakes import overlay, worst_mistakes

Made = Callable[..., Answers]
UNIT = Intensity.named("unit")


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("separate", [False, True])
def test_the_mean_of_a_map_is_the_logit(units: int, separate: bool) -> None:
    import keras

    layers = keras.layers
    activation = "sigmoid" if units == 1 else "softmax"
    last = (
        [layers.Dense(units), layers.Activation(activation)]
        if separate
        else [layers.Dense(units, activation)]
    )
    network = keras.Sequential(
        [
            *(layers.Input((16, 16, 3)), layers.Conv2D(6, 3), layers.MaxPooling2D()),
            *(layers.GlobalAveragePooling2D(), layers.Dropout(0.5), *last),
        ]
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    maps = keras_maps(network, UNIT)
    assert callable(maps)
    found = maps(images)
    assert found.shape == (2, 7, 7, max(2, units))
    outputs = np.asarray(network(to_network_input(images, UNIT)))
    logits = found.mean(axis=(1, 2))
    if units == 1:
        np.testing.assert_allclose(logits[:, 1], np.log(outputs / (1 - outputs))[:, 0], atol=1e-5)
        np.testing.assert_allclose(logits[:, 0], -logits[:, 1], atol=1e-6)
    else:
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(expected, outputs, atol=1e-6)


@pytest.mark.parametrize("kind", ["flatten", "hidden", "maximum"])
def test_other_heads_have_none_and_it_is_said(kind: str) -> None:
    import keras

    layers = keras.layers
    pooling = {"flatten": layers.Flatten, "maximum": layers.GlobalMaxPooling2D}
    head = [pooling.get(kind, layers.GlobalAveragePooling2D)()]
    if kind == "hidden":
        head.append(layers.Dense(4, activation="relu"))
    network = keras.Sequential(
        [layers.Input((16, 16, 3)), layers.Conv2D(6, 3), *head, layers.Dense(2, activation="softmax")]
    )
    assert keras_maps(network, UNIT) == NO_POOLED_HEAD


def test_an_artefact_without_the_output_says_how_to_get_it(colored_model: Path) -> None:
    with found_maps(Path("model.onnx"), ModelSpec.read(colored_model)) as reason:
        assert "medimg-export --heatmap" in str(reason)


def test_the_colours_say_which_way_and_how_strongly() -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    evidence = np.zeros((4, 4), np.float32)
    evidence[0, 0], evidence[3, 3], evidence[1, 1] = 2, -2, 0.5
    found = overlay(image, evidence).astype(int)
    assert found[0, 0, 0] > found[0, 0, 2]
    assert found[3, 3, 2] > found[3, 3, 0]
    assert found[0, 0, 0] > found[1, 1, 0] > 100
    assert (found[2, 2] == 100).all()
    assert (overlay(image, np.zeros((2, 2), np.float32)) == 100).all()


def test_the_worst_mistakes_are_those_that_the_model_was_surest_of(made: Made) -> None:
    answers = made(3, 200, seed=1)
    found = worst_mistakes(answers, 1000)
    wrong = np.flatnonzero((answers.shown != answers.decided).any(axis=1))
    assert sorted(item.place for item in found) == wrong.tolist()
    assert [item.surprise for item in found] == sorted((item.surprise for item in found), reverse=True)
    for item in found:
        assert item.decided == answers.probabilities[item.place].argmax()
        assert answers.shown[item.place, item.true]
    assert worst_mistakes(replace(answers, shown=answers.decided)) == []


def test_a_mistake_among_several_labels_is_one_label(made: Made) -> None:
    answers = made(3, 100, seed=2, task="multilabel")
    found = worst_mistakes(answers, 1000)
    assert len(found) == (answers.shown != answers.decided).sum()
    for item in found:
        assert (item.decided is None) != (item.true is None)
        column = item.true if item.decided is None else item.decided
        assert answers.shown[item.place, column] == (item.decided is None)
