"""Trainings on prepared images: heads, depth of unfreezing, rates, devices."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from medimg.runtime.data import read_data
from medimg.runtime.errors import UsageError
from medimg.runtime.model.spec import ModelSpec
from medimg.train import FitOptions, fit
from medimg.train.data.array_store import open_store
from medimg.train.data.augmentation import read_augmentation
from medimg.train.data.division import divide
from medimg.train.fitting.job import Job
from medimg.train.fitting.preparation import Prepared, prepare
from medimg.train.fitting.pretrained_base import PretrainedBase
from medimg.train.keras_files import load_float32
from medimg.train.networks import options as network_options
from medimg.train.progress import Progress

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def options(base_weights: Path) -> FitOptions:
    """A head on a frozen base."""
    return FitOptions(
        weights=str(base_weights),
        image_size=32,
        epochs=3,
        fine_tune_epochs=0,
        batch_size=8,
        precision_policy="float32",
    )


@pytest.fixture(scope="module")
def job(options: FitOptions) -> Iterator[Job]:
    with open_store(None) as store:
        yield Job(store, 2, Progress(), options)


@pytest.fixture(scope="module")
def prepared(simulated: Path, job: Job, narrowed: Callable[[], AbstractContextManager[None]]) -> Prepared:
    with narrowed():
        return prepare(divide(read_data(simulated), job.options), job)


def with_(job: Job, **changes: object) -> Job:
    return replace(job, options=replace(job.options, **changes))  # type: ignore[arg-type]


def rebuilt(prepared: Prepared, options: FitOptions) -> Prepared:
    """The same with a base that has not been built yet."""
    assert options.pretrained
    return replace(prepared, base=PretrainedBase(Path(options.pretrained), options, "float32"))


@pytest.mark.parametrize("pooling", ["average", "flatten"])
def test_a_head_is_trained_without_the_base_to_the_same_numbers(
    pooling: str, prepared: Prepared, job: Job
) -> None:
    from medimg.train.fitting.finetune import assemble, train
    from medimg.train.fitting.fit import judge

    trial = with_(job, pooling=pooling, dense_units=6, activation="gelu")
    first = train(prepared, trial)
    unbuilt = rebuilt(prepared, trial.options)
    again = train(unbuilt, trial)
    assert "_built" not in vars(unbuilt.base)
    assert [phase.epochs for phase in first.phases] == [phase.epochs for phase in again.phases]
    np.testing.assert_array_equal(first.validation_probabilities(), again.validation_probabilities())
    network = assemble(first, prepared)
    from medimg.train.fitting.finetune import image_transform

    images = image_transform(trial.options)(prepared.images.validation.inputs)
    np.testing.assert_allclose(
        network.predict(images, verbose=0), first.validation_probabilities(), atol=1e-4
    )
    accuracy = np.mean(first.validation_probabilities().argmax(axis=1) == prepared.images.validation.truth)
    assert judge(network, prepared, trial).accuracy == accuracy


@pytest.mark.parametrize("blocks", [2, 5])
def test_only_the_blocks_asked_for_are_unfrozen(blocks: int, prepared: Prepared, job: Job) -> None:
    from medimg.train.fitting.finetune import assemble, train

    trial = with_(
        job, fine_tune_epochs=1, epochs=1, unfreeze_blocks=blocks, optimizer="sgd", fine_tune_rate=1e-7
    )
    trained = train(prepared, trial)
    assert trained.phases[1].name == f"last {blocks} blocks"
    assert prepared.base is not None
    before, after = prepared.base.network, assemble(trained, prepared)
    tuned = trained.phases[1].best_epoch > 0
    for layer in before.layers:
        for old, new in zip(layer.get_weights(), after.get_layer(layer.name).get_weights(), strict=True):
            moved = tuned and int(layer.name[5]) > 5 - blocks
            assert np.array_equal(old, new) != moved, layer.name


def test_a_penalty_keeps_the_head_small(prepared: Prepared, job: Job) -> None:
    from medimg.train.fitting.finetune import train

    def size(**penalty: float) -> float:
        trained = train(prepared, with_(job, epochs=10, learning_rate=1e-2, **penalty))
        return float(np.abs(trained.network.get_layer("probabilities").get_weights()[0]).sum())

    assert size(l1=1.0, l2=1.0) < size() / 2


def test_frozen_layers_see_copies_by_turns(prepared: Prepared, job: Job) -> None:
    from medimg.train.fitting.finetune import train

    changes = {"augment": read_augmentation("ultrasound"), "augment_copies": 3}
    assert prepared.base is not None
    trial = with_(job, **changes)
    features = prepared.base.outputs(prepared.images, "pool", trial)
    plain = prepared.base.outputs(prepared.images, "pool", job)
    assert features.train.copies == 3
    np.testing.assert_array_equal(features.train.inputs[: len(plain.train)], plain.train.inputs)
    np.testing.assert_array_equal(features.validation.inputs, plain.validation.inputs)
    first, other = (train(prepared, with_(job, epochs=2, **made)).phases[0].epochs for made in (changes, {}))
    # The standardisation is of all copies, so that even the first epoch differs.
    assert first != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 64}, "prepared at 32 pixels"),
        ({"head": "sigmoid"}, "one unit for two classes, the data have 4"),
        ({"head": "multilabel"}, "the data have one"),
    ],
)
def test_options_that_the_images_were_not_prepared_for(
    changes: dict[str, object], message: str, prepared: Prepared, job: Job
) -> None:
    from medimg.train.fitting.finetune import train

    with pytest.raises(UsageError, match=message):
        train(prepared, with_(job, **changes))


def test_a_one_unit_sigmoid_for_two_classes(simulated: Path, tmp_path: Path) -> None:
    for kind in ("cyst", "solid"):
        (tmp_path / "data" / kind).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / kind).symlink_to(simulated / "train" / kind)
    options = FitOptions(
        arch="cnn", head="sigmoid", image_size=32, filters=8, blocks=2, epochs=8, batch_size=4
    )
    result = fit(tmp_path / "data", tmp_path / "model.keras", options)
    assert ModelSpec.read(result.output).head == "sigmoid"
    model = load_float32(Path(result.output))
    assert model.output_shape == (None, 1)
    assert model.layers[-1].activation.__name__ == "sigmoid"
    best = result.phases[0].epochs[result.phases[0].best_epoch - 1]
    assert result.validation.accuracy == pytest.approx(best.val_accuracy, abs=0.26)
    assert len(result.validation.per_class) == 2


@pytest.fixture(scope="module")
def several_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a bright left, a bright top, both or neither; which may be seen from any of them."""
    folder = tmp_path_factory.mktemp("several")
    random = np.random.default_rng(0)
    rows = []
    for number in range(48):
        left, top = number % 2, number // 2 % 2
        image = random.integers(0, 60, (32, 32), dtype=np.uint8)
        image[:, :16] += np.uint8(90 * left)
        image[:16] += np.uint8(90 * top)
        cv2.imwrite(str(folder / f"{number}.png"), image)
        rows.append((f"{number}.png", "|".join(["left"] * left + ["top"] * top)))
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return folder / "data.csv"


def test_several_classes_an_image(several_classes: Path, tmp_path: Path) -> None:
    options = FitOptions(
        arch="cnn", head="multilabel", image_size=32, filters=8, blocks=2, pooling="flatten",
        epochs=10, batch_size=8, learning_rate=3e-3, dropout=0.0,
    )  # fmt: skip
    result = fit(several_classes, tmp_path / "model.h5", options)
    spec = ModelSpec.read(result.output)
    assert (spec.task, spec.head, spec.labels) == ("multilabel", "multilabel", ("left", "top"))
    assert result.validation.confusion == ()
    assert result.validation.accuracy > 0.8
    assert min(row.recall for row in result.validation.per_class) > 0.8


DEVICES = """
import json, sys
from pathlib import Path
import tensorflow as tf
from medimg.train.networks import options as network_options
network_options._VGG = json.loads(sys.argv[3])
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from dataclasses import replace
from medimg.runtime.data import read_data
from medimg.train.data.division import divide
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.preparation import prepare
from medimg.train.progress import Progress
from medimg.train.data.array_store import open_store

options = FitOptions(
    weights=sys.argv[2], image_size=32, epochs=3, fine_tune_epochs=2, fine_tune_rate=1e-6, batch_size=6,
    precision_policy="float32", dropout=0,
)
losses = []
with open_store(None) as store:
    job = Job(store, 2, Progress(), options)
    prepared = prepare(divide(read_data(sys.argv[1]), options), job)
    from medimg.train.fitting.finetune import assemble, train
    for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        on = replace(prepared, strategy=strategy)
        trained = train(on, job)
        assert on.devices == (2 if strategy else 1)
        losses.append([(e.loss, e.val_loss) for phase in trained.phases for e in phase.epochs])
        total = float(sum(abs(w).sum() for w in assemble(trained, on).get_weights()))
        losses[-1].append((total, 0))
    try:
        train(on, replace(job, options=replace(options, batch_size=7)))
    except Exception as error:
        print(json.dumps([losses, str(error)]))
"""


def test_two_devices_give_the_loss_curve_of_one(simulated: Path, base_weights: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", DEVICES]
    done = subprocess.run(
        [*command, str(simulated), str(base_weights), json.dumps(network_options._VGG)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (one, two), refused = json.loads(done.stdout.splitlines()[-1])
    assert len(one) >= 5
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-4)
    assert "batch size 7: cannot be shared evenly among 2 devices" in refused


def test_logs_for_tensorboard(simulated: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    options = FitOptions(arch="cnn", image_size=32, filters=4, blocks=2, epochs=1, batch_size=8)
    fit(simulated, tmp_path / "model.h5", options, tensorboard=tmp_path / "logs")
    assert list((tmp_path / "logs" / "whole-network").rglob("events.out.tfevents.*"))
