"""Small simulated data, and small models trained on them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.data import DataSet, Sample, read_data
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import Intensity, ModelSpec
from medimg.runtime.tasks import TaskName
from medimg.train import FitOptions, FitResult, Usage, fit, simulate
from medimg.train.evaluation.answers import Answers, one_hot
from medimg.train.keras_files import save
from medimg.train.networks import options as network_options
from medimg.train.networks.options import NetworkOptions

COLORS = ("red", "green", "blue")
PUBLISHED = network_options._VGG
NARROW = {
    arch: tuple((filters // 8, count) for filters, count in blocks) for arch, blocks in PUBLISHED.items()
}


@contextmanager
def _widths(blocks: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_options, "_VGG", blocks)
        yield


@pytest.fixture(autouse=True)
def narrow_vgg(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both VGGs have an eighth of their filters here: their layers are the point, not 15 million weights.

    Tests on real weights and those that use `published_widths` see the published networks.
    """
    if request.node.get_closest_marker("real") or "published_widths" in request.fixturenames:
        yield
        return
    with _widths(NARROW):
        yield


@pytest.fixture(scope="session")
def narrowed() -> Callable[[], AbstractContextManager[None]]:
    """For fixtures that outlive a test, which are made before `narrow_vgg`."""
    return lambda: _widths(NARROW)


@pytest.fixture
def published_widths() -> None:
    """See `narrow_vgg`."""


@pytest.fixture(scope="session")
def tiny() -> FitOptions:
    """What trains in a second."""
    return FitOptions(arch="cnn", image_size=32, filters=8, dense_units=8, epochs=2, batch_size=8)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes with eight training images and two test images each."""
    folder = tmp_path_factory.mktemp("data") / "simulated"
    simulate(folder, train=8, test=2, size=64)
    return folder


@pytest.fixture(scope="session")
def base_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the narrow VGG16 in a file laid out as Keras's own."""
    path = tmp_path_factory.mktemp("weights") / "vgg16_notop.h5"
    with _widths(NARROW):
        write_weights(path)
    return path


@pytest.fixture(scope="session")
def scratch(simulated: Path, tiny: FitOptions, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """The narrow vgg-bn trained from scratch in bfloat16, saved as `.h5`."""
    options = replace(tiny, arch="vgg-bn", precision_policy="mixed_bfloat16")
    usage = Usage("tests", modality=("US",))
    with _widths(NARROW):
        return fit(simulated, tmp_path_factory.mktemp("scratch") / "model.h5", options, usage=usage)


@pytest.fixture(scope="session")
def wide(scratch: FitResult, simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """The same with the published widths."""
    with _widths(PUBLISHED):
        return fit(simulated, tmp_path_factory.mktemp("wide") / "model.h5", scratch.options)


@pytest.fixture(scope="session")
def fine_tuned(simulated: Path, base_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """The narrow vgg16 fine-tuned in two phases in float32, saved as `.keras`."""
    options = FitOptions(
        weights=str(base_weights),
        image_size=32,
        epochs=3,
        fine_tune_epochs=1,
        fine_tune_rate=1e-6,
        batch_size=8,
        precision_policy="float32",
    )
    with _widths(NARROW):
        return fit(simulated, tmp_path_factory.mktemp("fine-tuned") / "model.keras", options)


def write_weights(path: Path) -> None:
    """Write random weights of every VGG16 convolution, of the size that keeps activations alive."""
    random = np.random.default_rng(0)
    channels = 3
    with h5py.File(path, "w") as file:
        for block, (filters, count) in enumerate(NetworkOptions().convolutions, start=1):
            for number in range(1, count + 1):
                name = f"block{block}_conv{number}"
                scale = np.sqrt(2 / (9 * channels))
                kernel = scale * random.standard_normal((3, 3, channels, filters), np.float32)
                group = file.create_group(name)
                group[f"{name}_W_1:0"] = kernel.astype(np.float32)
                group[f"{name}_b_1:0"] = np.float32(0.01) * random.standard_normal(filters, np.float32)
                channels = filters


@pytest.fixture(scope="session")
def made() -> Callable[..., Answers]:
    """Makes the answers of a model that knows the odds, and overstates them where `sharpness` is above 1."""

    def make(
        classes: int, images: int, seed: int, task: TaskName = "multiclass", sharpness: float = 1.0
    ) -> Answers:
        random = np.random.default_rng(seed)
        logits = 1.5 * random.normal(size=(images, classes))
        if task == "multilabel":
            shown = random.random((images, classes)) < 1 / (1 + np.exp(-logits))
            probabilities = 1 / (1 + np.exp(-sharpness * logits))
        else:
            odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            truth = (odds.cumsum(axis=1) < random.random((images, 1))).sum(axis=1)
            shown = one_hot(np.minimum(truth, classes - 1), classes)
            probabilities = odds**sharpness / (odds**sharpness).sum(axis=1, keepdims=True)
        samples = tuple(Sample(f"{number}.png", np.zeros((1, 1), np.uint8)) for number in range(images))
        labels = ("cyst", "normal", "solid")[:classes]
        return Answers(labels, task, shown, probabilities.astype(np.float32), samples, "keras", "fp32")

    return make


@pytest.fixture(scope="session")
def regression(real_data: Path) -> tuple[Answers, Answers]:
    """Logistic regression on the pixels of pneumoniamnist: its answers on the parts val and test."""
    from sklearn.linear_model import LogisticRegression

    data = read_data(real_data / "images" / "pneumoniamnist-subset.npz")

    def pixels(part: DataSet) -> NDArray[np.float64]:
        return np.stack([np.asarray(sample.source).ravel() for sample in part.samples]) / 255

    train = data.part("train")
    model = LogisticRegression(C=100, tol=1e-2, max_iter=1000).fit(pixels(train)[::4], train.truth[::4])

    def answers(part: DataSet) -> Answers:
        found = model.predict_proba(pixels(part)).astype(np.float32)
        return Answers(data.labels, "multiclass", part.targets > 0, found, part.samples, "sklearn", "fp64")

    return answers(data.part("val")), answers(data.part("test"))


@pytest.fixture(scope="session")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of noisy single-coloured images; the truth is drawn by the odds of four times the colour."""
    import cv2

    folder, random = tmp_path_factory.mktemp("colored"), np.random.default_rng(0)
    rows = ["path,label,patient,split,Sex"]
    for number in range(360):
        color = random.random(3)
        odds = np.exp(4 * color) / np.exp(4 * color).sum()
        pixels = np.clip(255 * (color + 0.05 * random.normal(size=(8, 8, 3))), 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), pixels[..., ::-1])
        label = COLORS[random.choice(3, p=odds)]
        patient = number // 2
        split = ("train", "val", "val", "test", "test")[patient % 5]
        rows.append(f"{number}.png,{label},p{patient},{split},{'FM'[number % 3 > 0]}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder / "table.csv"


@pytest.fixture(scope="session")
def colored_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Keras classifier of those images that is twice as sure as it should be."""
    import keras

    convolution = keras.layers.Conv2D(3, 1, use_bias=False)
    pooled = keras.layers.GlobalAveragePooling2D()
    dense = keras.layers.Dense(3, activation="softmax", name="probabilities")
    network = keras.Sequential(
        [keras.Input((8, 8, 3)), convolution, pooled, keras.layers.Dropout(0.5), dense]
    )
    convolution.set_weights([np.eye(3, dtype=np.float32)[None, None]])
    dense.set_weights([8 * np.eye(3, dtype=np.float32), np.zeros(3, np.float32)])
    path = tmp_path_factory.mktemp("colored-model") / "model.keras"
    save(network, ModelSpec(COLORS, ImageRule(8, 8), Intensity.named("unit")), path)
    return path
