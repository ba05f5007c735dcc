"""The spec: round trips, refusals, and the named intensity rules against Keras."""

import json
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg.runtime.errors import ModelError
from medimg.runtime.files.plain import from_plain, to_plain
from medimg.runtime.images.rule import ImageRule, ResizeRule
from medimg.runtime.model.describe import describe
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import (
    SCHEMA,
    Allowed,
    ColorOrder,
    Intensity,
    IntensityName,
    ModelSpec,
    OperatingPoint,
    Precision,
    Source,
    Verification,
)
from medimg.runtime.statistics.verdict import Verdict
from medimg.runtime.tasks import Head, TaskName, task_of_head

SMALL = ModelSpec(("a", "b"), ImageRule(4, 5), Intensity.named("caffe"))
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
class_names = words.filter(lambda name: name.isprintable() and name.strip())
numbers = st.floats(-1e6, 1e6, allow_nan=False)
shares = st.floats(0, 1)

rules = st.builds(
    ImageRule,
    st.integers(1, 8192),
    st.integers(1, 8192),
    st.sampled_from(get_args(ResizeRule)),
    st.sampled_from(["full-range", "min-max"]),
    st.sampled_from(["apply", "ignore"]),
    st.sampled_from(["first", "min-max"]),
)
intensities = st.builds(
    Intensity,
    st.sampled_from(get_args(IntensityName)),
    st.sampled_from(get_args(ColorOrder)),
    st.just(3),
    st.floats(0.1, 300),
    st.one_of(st.tuples(numbers), st.tuples(numbers, numbers, numbers)),
    st.tuples(st.floats(0.01, 10)),
)
verifications = st.builds(
    Verification,
    st.integers(0, 10**6),
    st.sampled_from(["synthetic", "calibration", "validation"]),
    shares,
    shares,
    st.sampled_from(get_args(Verdict)),
    st.none() | shares,
    st.none() | shares,
    st.none() | st.floats(-1, 1),
    st.none() | st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
specs = st.builds(
    lambda head, **fields: ModelSpec(task=task_of_head(head).name, head=head, **fields),
    labels=st.lists(class_names, min_size=1, max_size=6, unique=True).map(tuple),
    image=rules,
    intensity=intensities,
    head=st.sampled_from(get_args(Head)),
    precision=st.sampled_from(get_args(Precision)),
    temperature=st.floats(0.01, 100),
    operating_points=st.lists(st.builds(OperatingPoint, words, shares, words), max_size=3).map(tuple),
    intended_use=st.none() | words,
    allowed=st.builds(Allowed, st.lists(words, max_size=2).map(tuple)),
    simulated_data=st.booleans(),
    source=st.none() | st.builds(Source, words, words, st.none() | words),
    tools=st.dictionaries(words, words, max_size=3),
    float_layers=st.lists(words, max_size=3).map(tuple),
    verification=st.none() | verifications,
    artefact_sha256=st.none() | words,
)


@given(specs)
def test_a_spec_survives_its_json(spec: ModelSpec) -> None:
    text = spec.to_json()
    assert ModelSpec.from_json(text) == spec
    assert ModelSpec.from_json(text.encode()) == spec
    assert text.startswith('{"schema":1,')
    assert ModelSpec.from_json(text).to_json() == text


@pytest.mark.parametrize(
    ("task", "head"), [("multilabel", "softmax"), ("multilabel", "logits"), ("multiclass", "multilabel")]
)
def test_a_head_of_another_task(task: TaskName, head: Head) -> None:
    with pytest.raises(ModelError, match=f"a {task} model has no head '{head}'"):
        ModelSpec(("a", "b"), ImageRule(8, 8), Intensity.named("raw"), task=task, head=head)


POINT = {"label": "a", "threshold": 0.5, "chosen_for": "tests"}
VERIFIED = {
    "images": 1,
    "images_from": "synthetic",
    "max_abs_diff": 0.1,
    "top1_agreement": 1.0,
    "verdict": "proven",
    "accuracy": 0.5,
}
SMALLER = {
    "parent_sha256": "x",
    "method": "m",
    "macs": 5,
    "parent_macs": 10,
    "images": 1,
    "accuracy_drop": 0,
    "accuracy_drop_ci95": [0, 0],
    "roc_auc_drop": 0,
    "roc_auc_drop_ci95": [0, 0],
    "max_drop": 0.1,
    "verdict": "proven",
}


def changed(**fields: Any) -> str:
    return json.dumps({"schema": SCHEMA, **to_plain(SMALL), **fields})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no schema number"),
        ("{}", "has no schema number"),
        ('{"schema": "1"}', "has no schema number"),
        (
            changed(schema=SCHEMA + 1),
            f"written with schema {SCHEMA + 1}, this version reads up to {SCHEMA}: pip install",
        ),
        (changed(labels=[]), "at least one label"),
        (changed(labels=["a", "a"]), "labels repeat: a, a"),
        (changed(labels="ab"), r"spec\.labels: expected a list"),
        (changed(labels=[1, 2]), r"spec\.labels: expected str, got 1"),
        (changed(image=None), r"spec\.image: expected a table"),
        (changed(image={"rows": 4}), r"spec\.image: .*missing.*columns"),
        (changed(image={"rows": 0, "columns": 4}), "image size 0x4"),
        (changed(image={"rows": 4.5, "columns": 4}), r"spec\.image\.rows: expected int, got 4\.5"),
        (changed(image={"rows": True, "columns": 4}), r"spec\.image\.rows: expected int, got True"),
        (changed(image={"rows": 4, "columns": 4, "resize": "zoom"}), "'zoom' is not one of stretch-linear"),
        (changed(speed=3), "unknown field 'speed'"),
        (changed(temperature=0), "temperature 0.0 is not positive"),
        (changed(temperature=math.nan), "temperature nan is not positive"),
        (changed(temperature=math.inf), "temperature inf is not positive and finite"),
        (changed(intensity={"rule": "unit", "divisor": 0.0}), "divisor and std must not be 0"),
        (changed(intensity={"rule": "unit", "divisor": math.nan}), "divisor, mean and std must be finite"),
        (changed(intensity={"rule": "unit", "mean": [1.0, 2.0]}), "mean has 2 values for 3 channels"),
        (changed(verification={"images": 1}), r"spec\.verification: .*missing"),
        (changed(tools={"keras": 3}), r"spec\.tools\.keras: expected str"),
        (changed(temperature=10**400), r"spec\.temperature: a whole number of more than 64 bits"),
        (changed(temperature="T").replace('"T"', "-1" + "0" * 5000), "is not JSON"),
        (changed(image={"rows": 4, "columns": 10**400}), r"spec\.image\.columns: .*more than 64 bits"),
        (changed(image={"rows": 4, "columns": "9" * 10**6}), r"columns: expected int, got '9{199}…$"),
        (changed(image={"rows": 4, "columns": 4, "resize": 10**400}), "more than 64 bits is not one of"),
        (changed(intensity={"rule": "unit", "channels": True}), "True is not one of 1, 3"),
        (changed(intensity={"rule": "unit", "channels": 3.0}), r"3\.0 is not one of 1, 3"),
        (changed(operating_points=[POINT | {"threshold": math.nan}]), "nan is not a finite number"),
        (
            changed(operating_points=[POINT | {"threshold": "1e999"}]).replace('"1e999"', "1e999"),
            "inf is not",
        ),
        (changed(labels=["\ud800", "b"]), "half of a surrogate pair|not UTF-8 text"),
        (changed(tools={"\udfff": "b"}), "half of a surrogate pair|not UTF-8 text"),
        (changed()[:-1] + ',"labels":["b","a"]}', "a name stands twice"),
        (changed(compression=SMALLER | {"macs": 0}), "no network has 0 multiply-accumulates"),
        (changed(verification=VERIFIED | {"images": -1}), "no comparison has -1 images"),
        (changed(verification=VERIFIED | {"top1_agreement": -5.0}), "agreement -5"),
        (" " * (4 * 1024 * 1024 + 1), "is larger than"),
    ],
)
def test_entries_that_are_wrong(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        ModelSpec.from_json(text)


@given(
    st.recursive(
        st.none() | st.booleans() | numbers | words,
        lambda inner: st.lists(inner) | st.dictionaries(words, inner),
    )
)
def test_any_json_is_a_spec_or_an_error(value: Any) -> None:
    for candidate in (value, {"schema": 1, "labels": value, "image": value, "intensity": value}):
        with pytest.raises(ModelError):
            ModelSpec.from_json(json.dumps(candidate))


def test_every_spec_that_is_read_can_be_described() -> None:
    entry = changed(verification=VERIFIED | {"accuracy_drop_ci95": [0, 1]}, compression=SMALLER)
    lines = describe(ModelSpec.from_json(entry))
    assert any("2.0x fewer multiply-accumulates" in line for line in lines)
    assert lines[-1].endswith("top-1 agreement 1.0000")


def test_missing_fields_take_their_defaults() -> None:
    found = from_plain(ImageRule, {"rows": 3, "columns": 9})
    assert found == ImageRule(3, 9, "stretch-linear", "full-range", "apply", "first", "full")
    assert SMALL.classes == 2
    assert SMALL.with_(precision="int8").precision == "int8"


@pytest.mark.parametrize("window", ["", "second", "window-0", "window-100", "window-", "min-max "])
def test_a_window_that_is_none_is_an_error(window: str) -> None:
    assert ImageRule(3, 9, dicom_window="window-12").dicom_window == "window-12"
    with pytest.raises(ModelError, match="is none of first, min-max and window-1 to window-99"):
        from_plain(ImageRule, {"rows": 3, "columns": 9, "dicom_window": window})


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), np.uint8)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["caffe", "torch", "tf"])
def test_named_rules_are_those_of_keras(mode: Any) -> None:
    from keras.applications import imagenet_utils

    expected = imagenet_utils.preprocess_input(
        IMAGES.astype(np.float32), data_format="channels_last", mode=mode
    )
    found = to_network_input(IMAGES, Intensity.named(mode))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= (2e-5 if mode == "caffe" else 1e-6)


def test_unit_and_raw() -> None:
    assert np.array_equal(to_network_input(IMAGES, Intensity.named("raw")), IMAGES.astype(np.float32))
    assert np.array_equal(
        to_network_input(IMAGES, Intensity.named("unit")), IMAGES.astype(np.float32) / np.float32(255)
    )


@pytest.mark.parametrize("rule", ["caffe", "torch", "tf", "unit", "raw"])
def test_the_other_colour_order_swaps_every_channel(rule: Any) -> None:
    usual = Intensity.named(rule)
    other = Intensity.named(rule, color_order="rgb" if usual.color_order == "bgr" else "bgr")
    assert np.array_equal(to_network_input(IMAGES, usual)[..., ::-1], to_network_input(IMAGES, other))


def test_one_channel_is_grey_and_keeps_grey_as_it_is() -> None:
    grey = np.repeat(IMAGES[..., :1], 3, axis=3)
    found = to_network_input(grey, Intensity.named("raw", channels=1))
    assert found.shape == (3, 6, 5, 1)
    assert np.array_equal(found[..., 0], grey[..., 0])
    weighted = IMAGES @ np.array([0.299, 0.587, 0.114])
    assert (
        np.abs(to_network_input(IMAGES, Intensity.named("raw", channels=1))[..., 0] - weighted).max() <= 0.51
    )


@pytest.mark.parametrize("rule", ["caffe", "torch"])
def test_three_channel_rules_are_not_for_one(rule: Any) -> None:
    with pytest.raises(ModelError, match="is for three channels"):
        Intensity.named(rule, channels=1)


@pytest.mark.parametrize("rule", ["custom", "unspecified"])
def test_rules_without_numbers_of_their_own(rule: Any) -> None:
    with pytest.raises(ModelError, match="needs its own numbers"):
        Intensity.named(rule)


def test_unspecified_preprocessing_is_not_guessed() -> None:
    with pytest.raises(ModelError, match="the preprocessing is unspecified"):
        to_network_input(IMAGES, Intensity("unspecified"))
