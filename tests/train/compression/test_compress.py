"""`compress` from end to end on small chains; other rooms' commands are stand-ins but in the last test."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import h5py
import numpy as np
import pytest

from medimg.runtime.errors import DataError, MedimgError, ModelError, UsageError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import file_sha256, open_onnx
from medimg.runtime.model.plan import BatchProfile
from medimg.runtime.model.spec import Intensity, ModelSpec, OperatingPoint
from medimg.train import CompressOptions, compress
from medimg.train.compression import device, parent, passes, workshop
from medimg.train.compression.chain import build, read_chain, weights_of
from medimg.train.compression.gate import judge
from medimg.train.compression.options import read_ratio
from medimg.train.compression.result import CompressResult
from medimg.train.compression.summary import compress_lines
from medimg.train.data.array_store import ArrayStore
from medimg.train.data.augmentation import read_augmentation
from medimg.train.data.parts import Parts
from medimg.train.errors import ChainError, TargetError
from medimg.train.evaluation import keras_process
from medimg.train.evaluation.summary import WIDTH
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.keras_files import load_float32, save
from medimg.train.progress import Progress

pytestmark = pytest.mark.long

Run = Callable[..., "CompletedProcess[str]"]
LABELS = ("blue", "green", "red")
SIDE = 16
QUICK = CompressOptions(macs=(2.0, 4.0), max_drop=0.25, epochs=2, widths="macs", multiple=2)


@pytest.fixture(autouse=True, scope="module")
def one_process() -> Iterator[None]:
    """Keras's own process, which each compression starts anew, is kept for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_process, "_end", lambda: None)
        yield
    keras_process._end()


def parameters(path: Path) -> int:
    """Count the weights of the layers in a Keras file, without Keras."""
    file = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5")) if path.suffix == ".keras" else path
    sizes: list[int] = []

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        # Beside them lie the optimiser's state and the seeds of Dropout, which are whole numbers.
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and not name.startswith("optimizer"):
            sizes.append(item.size)

    with h5py.File(file) as weights:
        weights.visititems(add)
    return sum(sizes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with a colour; a tenth of the labels is wrong, so that nothing is right always."""
    import cv2

    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = ["path,label,split"]
    for split, images in (("train", 90), ("val", 60), ("test", 90)):
        for number in range(images):
            pixels = random.normal(128, 40, (SIDE, SIDE, 3))
            pixels[..., number % 3] += 60
            name = f"{split}{number}.png"
            assert cv2.imwrite(str(folder / name), np.clip(pixels, 0, 255).astype(np.uint8))
            label = LABELS[(number + (random.random() < 0.1)) % 3]
            rows.append(f"{name},{label},{split}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder / "table.csv"


@pytest.fixture(scope="module")
def network(data: Path) -> Any:
    """A small chain, trained."""
    import keras

    from medimg.runtime.data import read_data

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.3),
            layers.Dense(3, activation="softmax", name="probabilities"),
        ]
    )
    train = read_data(data).part("train")
    images = np.stack([sample.load(ImageRule(SIDE, SIDE)) for sample in train.samples]) / 255
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(images, train.truth, epochs=30, batch_size=16, verbose=0)
    return model


@pytest.fixture(scope="module")
def source(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That chain with a spec."""
    path = tmp_path_factory.mktemp("source") / "model.keras"
    points = (OperatingPoint("red", 0.4, "sensitivity 0.9 on the part val"), OperatingPoint("blue", 0.3, "?"))
    spec = ModelSpec(LABELS, ImageRule(SIDE, SIDE), Intensity.named("unit"), operating_points=points)
    save(network, spec.with_(temperature=1.5), path)
    return path


@pytest.fixture
def model(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(source, tmp_path))


@contextmanager
def stand_ins() -> Iterator[list[Path]]:
    """For export and bench: the artefact is the Keras file, which takes a millisecond a thousand weights."""
    found: list[Path] = []

    def export(path: Path, *_arguments: Any) -> dict[str, Any]:
        found.append(path)
        return {"path": str(path)}

    import keras

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "export_int8", export)
        patch.setattr(device, "time_singles", lambda path, *_arguments: {"p50": parameters(path) / 1e3})
        # To compile a network first takes longer than its few steps here.
        at_once = property(lambda _self: True, lambda _self, _value: None)
        patch.setattr(keras.Model, "run_eagerly", at_once, raising=False)
        for module in (passes, parent, workshop):
            patch.setattr(module, "BATCH", 48)
        yield found


@pytest.fixture
def exported() -> Iterator[list[Path]]:
    """What the stand-in for export was given."""
    with stand_ins() as found:
        yield found


@pytest.fixture(scope="module")
def whole(source: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressResult:
    """Two points, without a break."""
    folder = tmp_path_factory.mktemp("whole")
    with stand_ins():
        return compress(source, data, folder / "small.h5", QUICK, threads=1, plot=folder / "plot.svg")


def test_the_fastest_point_that_passes_is_a_smaller_model_of_the_same_spec(
    whole: CompressResult, source: Path, data: Path
) -> None:
    found, before = whole, ModelSpec.read(source)
    assert found.output is not None
    output = Path(found.output)
    assert [item.name for item in found.points] == ["2x", "4x"]
    assert (found.kept, output.name, found.not_tried) == ("4x", "small.h5", ())
    for item, ratio in zip(found.points, (2, 4), strict=True):
        assert item.macs <= found.macs / ratio
        assert item.gate.images == 90
        assert item.gate.accuracy_reference.value > 0.75
        assert item.training is not None
        assert len(item.training.epochs) == 2
        assert item.notes == ("the threshold of blue names no sensitivity to keep: choose one by calibrate",)
    small, spec = load_float32(output), ModelSpec.read(output)
    assert [type(layer).__name__ for layer in small.layers[1:]] == [
        type(layer).__name__ for layer in load_float32(source).layers
    ]
    assert small.count_params() < load_float32(source).count_params() / 3
    assert (spec.labels, spec.head, spec.image, spec.intensity) == (
        *(before.labels, before.head, before.image, before.intensity),
    )
    assert spec.temperature == found.points[1].temperature
    assert [item.label for item in spec.operating_points] == ["red"]
    assert spec.operating_points[0].threshold != 0.4
    record, gate = spec.compression, found.points[1].gate
    assert record is not None
    assert record.parent_sha256 == file_sha256(source)
    assert (record.macs, record.parent_macs) == (found.points[1].macs, found.macs)
    assert (record.verdict, record.images) == (gate.verdict, 90)
    assert record.accuracy_drop_ci95 == gate.accuracy_drop_ci95
    assert "distillation" in record.method
    long = [line for line in compress_lines(found) if len(line) > WIDTH]
    paths = (source, output, data)
    assert all(any(str(path) in line for path in paths) for line in long), long
    assert ">4x<" in output.with_name("plot.svg").read_text()
    assert not list(output.parent.glob("*.training"))


def test_a_point_that_fails_ends_the_ladder_and_nothing_is_written(
    model: Path, data: Path, tmp_path: Path, exported: list[Path]
) -> None:
    options = replace(QUICK, macs=(8.0, 2.0, 12.0), epochs=0, reconstruct=False, max_drop=0.05)
    found = compress(model, data, tmp_path / "small.h5", options, threads=1)
    verdicts = [item.gate.verdict for item in found.points]
    assert verdicts[-1] == "failed"
    assert found.not_tried
    assert len(found.points) + len(found.not_tried) == 3
    if found.kept is None:
        assert not (tmp_path / "small.h5").exists()
    # The original is exported once, and each point once.
    assert len(exported) == 1 + len(found.points)


@pytest.mark.usefixtures("exported")
def test_least_squares_keep_what_plain_pruning_loses(model: Path, data: Path, tmp_path: Path) -> None:
    areas = []
    for reconstruct in (True, False):
        options = replace(QUICK, macs=(4.0, 8.0), epochs=0, reconstruct=reconstruct, max_drop=0.9)
        points = compress(model, data, tmp_path / "small.h5", options, threads=1).points
        areas.append(sum(item.gate.roc_auc.value for item in points))
    assert areas[0] > areas[1]


@pytest.mark.usefixtures("exported")
def test_after_a_kill_it_goes_on_to_the_same_model(
    whole: CompressResult, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole.output is not None
    made: list[str] = []

    def killed(*arguments: Any) -> Any:
        made.append("judged")
        if len(made) == 2:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr("medimg.train.compression.point.judge", killed)
    with pytest.raises(KeyboardInterrupt):
        compress(model, data, tmp_path / "small.keras", QUICK, threads=1)
    assert not (tmp_path / "small.keras").exists()
    with pytest.raises(UsageError, match="--resume"):
        compress(model, data, tmp_path / "small.keras", QUICK, threads=1)
    with pytest.raises(UsageError, match="another epochs"):
        compress(model, data, tmp_path / "small.keras", replace(QUICK, epochs=3), threads=1, resume=True)
    found = compress(model, data, tmp_path / "small.keras", QUICK, threads=1, resume=True)
    assert made == ["judged"] * 3, "the first point was not made again"
    assert [item.widths for item in found.points] == [item.widths for item in whole.points]
    for one, other in zip(
        load_float32(tmp_path / "small.keras").get_weights(),
        load_float32(Path(whole.output)).get_weights(),
        strict=True,
    ):
        assert np.array_equal(one, other)


@pytest.mark.usefixtures("exported")
def test_with_a_cache_the_original_is_asked_once(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(QUICK, macs=(4.0,), epochs=0)
    (tmp_path / "cache").mkdir()

    def run(output: str) -> Any:
        (item,) = compress(
            model, data, tmp_path / output, options, threads=1, cache_dir=tmp_path / "cache"
        ).points
        return item.widths, item.gate

    def asked(*_arguments: Any) -> Any:
        raise AssertionError
        yield

    first = run("one.keras")
    for name in ("logits", "grams", "layer_answers"):
        monkeypatch.setattr(parent, name, asked)
    assert run("two.keras") == first


def test_with_a_cache_only_the_original_and_the_points_are_timed_again(
    model: Path, data: Path, tmp_path: Path, exported: list[Path]
) -> None:
    options = replace(QUICK, macs=(4.0,), widths="latency", epochs=0, max_drop=0.9)
    (tmp_path / "cache").mkdir()
    for output in ("one.keras", "two.keras"):
        exported.clear()
        compress(model, data, tmp_path / output, options, threads=1, cache_dir=tmp_path / "cache")
    assert len(exported) == 2


def test_what_is_timed_is_known_by_its_layers_and_by_where_it_ran(
    network: Any, source: Path, tmp_path: Path, exported: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, spec = ArrayStore(tmp_path, kept=True), ModelSpec.read(source)
    timer = device.Device(QUICK, Job(store, 1, Progress(), FitOptions()), source, tmp_path)
    weights = weights_of(read_chain(network, "model"))

    def timed(share: float) -> int:
        """Time the network with a share of its weights; how many exports there were since the first."""
        given = {name: [share * array for array in arrays] for name, arrays in weights.items()}
        own = build(read_chain(load_float32(source), "model"), (SIDE, SIDE))
        timer.time_probe(device.Probe(own, lambda: given, spec), store)
        return len(exported)

    assert (timed(1), timed(1), timed(0.99)) == (1, 1, 1)
    monkeypatch.setattr(device, "installed_version", lambda package: f"another {package}")
    assert timed(1) == 2
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset({"another processor's"}))
    assert timed(1) == 3


@pytest.mark.usefixtures("exported")
def test_a_timing_that_other_work_disturbed_does_not_count(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed = cycle([1, 3, 1, 3, 1])

    def timed(path: Path, *_arguments: Any) -> dict[str, float]:
        return {"p50": next(disturbed) * parameters(path) / 1e3}

    monkeypatch.setattr(device, "time_singles", timed)
    options = replace(QUICK, macs=(2.0,), widths="latency", epochs=0, max_drop=0.9)
    found = compress(model, data, tmp_path / "small.h5", options, threads=1)
    assert found.latency_model is not None
    assert found.latency_ms == parameters(model) / 1e3
    assert found.latency_model.timings[0].latency_ms == found.latency_ms
    assert found.latency_model.scatter > 0.3
    assert any("timings of one network scattered by" in line for line in compress_lines(found))


@pytest.mark.usefixtures("exported")
def test_a_kill_while_networks_are_timed_loses_no_round_that_was_over(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(QUICK, macs=(2.0,), widths="latency", epochs=0, max_drop=0.9)
    timed: list[str] = []

    def killed(path: Path, *_arguments: Any) -> dict[str, float]:
        if timed.count(path.name) == device.ROUNDS - 1:
            raise KeyboardInterrupt
        timed.append(path.name)
        return {"p50": float(len(timed))}

    with monkeypatch.context() as patch:
        patch.setattr(device, "time_singles", killed)
        with pytest.raises(KeyboardInterrupt):
            compress(model, data, tmp_path / "small.h5", options, threads=1)
    networks = len(set(timed))
    assert len(timed) == (device.ROUNDS - 1) * networks
    later: list[str] = []

    def kept(path: Path, *_arguments: Any) -> dict[str, float]:
        later.append(path.name)
        return {"p50": 1e3}

    monkeypatch.setattr(device, "time_singles", kept)
    found = compress(model, data, tmp_path / "small.h5", options, threads=1, resume=True)
    assert found.latency_model is not None
    # The last round, and the two that the original and the point each take by themselves.
    assert len(later) == networks + 2 * device.TIMED
    assert found.latency_model.timings[0].latency_ms == 1


@pytest.mark.usefixtures("exported")
def test_a_latency_is_reached_as_measured_or_said_to_be_out_of_reach(
    model: Path, data: Path, tmp_path: Path
) -> None:
    options = replace(QUICK, macs=(), widths="latency", epochs=0, max_drop=0.9, multiple=None)
    whole = parameters(model) / 1e3
    found = compress(model, data, tmp_path / "small.h5", replace(options, latency_ms=0.5 * whole), threads=1)
    assert found.latency_ms == whole
    assert found.points[0].latency_ms <= 0.5 * whole
    assert found.latency_model is not None
    assert found.points[0].modelled_ms is not None
    (tmp_path / "small.h5").unlink()
    with pytest.raises(TargetError, match="narrowing comes down to"):
        compress(model, data, tmp_path / "small.h5", replace(options, latency_ms=1e-3), threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.usefixtures("exported")
def test_smaller_images_cost_less_at_the_same_widths(model: Path, data: Path, tmp_path: Path) -> None:
    options = replace(QUICK, macs=(4.0,), image_size=12, max_drop=0.9, epochs=1)
    found = compress(model, data, tmp_path / "small.h5", options, threads=1)
    with pytest.raises(UsageError, match="--image-size 20: the original takes 16x16"):
        compress(model, data, tmp_path / "small.h5", replace(options, image_size=20), threads=1)
    assert ModelSpec.read(tmp_path / "small.h5").image.rows == 12
    assert found.points[0].macs <= found.macs / 4


@pytest.mark.usefixtures("exported")
def test_the_original_is_asked_about_every_copy(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Parts] = []

    def watched(network: Any, parts: Parts, *arguments: Any, **options: Any) -> Any:
        seen.append(parts)
        return distil(network, parts, *arguments, **options)

    from medimg.train.compression.distillation import distil

    monkeypatch.setattr("medimg.train.compression.point.distil", watched)
    changes = {"augment": read_augmentation("xray"), "augment_copies": 3}
    compress(model, data, tmp_path / "small.h5", replace(QUICK, macs=(2.0,), **changes), threads=1)  # type: ignore[arg-type]
    train, validation = seen[0].train, seen[0].validation
    assert (len(train), train.copies, len(validation), validation.copies) == (90, 3, 60, 1)
    first, second, third = np.split(train.inputs, 3)
    assert (first != second).any()
    assert (second != third).any()
    shown = train.truth[:90, -3:]
    # Every class counts alike, as in fit.
    np.testing.assert_allclose(train.weights @ shown, 30, rtol=1e-5)
    np.testing.assert_array_equal(
        validation.weights,
        (30 / shown.sum(axis=0))[validation.truth[:, -3:].argmax(axis=1)].astype(np.float32),
    )
    labels = np.split(train.truth[:, -3:], 3)
    assert np.array_equal(labels[0], labels[1])
    probabilities = load_float32(model).predict(train.inputs / np.float32(255), verbose=0)
    logits = train.truth[:, :3].astype(np.float64)
    given = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(given, probabilities, atol=1e-5)
    record = ModelSpec.read(tmp_path / "small.h5").compression
    assert record is not None
    assert "distillation with 3 copies of each image (rotation=7" in record.method


@pytest.mark.usefixtures("exported")
def test_a_model_of_other_origin_is_told_its_preprocessing(network: Any, data: Path, tmp_path: Path) -> None:
    network.save(tmp_path / "foreign.h5")
    options = replace(QUICK, macs=(2.0,), epochs=0, max_drop=0.9)
    with pytest.raises(UsageError, match=r"carries no spec.*--preprocessing"):
        compress(tmp_path / "foreign.h5", data, tmp_path / "small.h5", options, threads=1)
    compress(
        tmp_path / "foreign.h5",
        data,
        tmp_path / "small.h5",
        replace(options, preprocessing="unit"),
        threads=1,
    )
    assert ModelSpec.read(tmp_path / "small.h5").labels == LABELS


def branched(_network: Any) -> Any:
    import keras

    start = keras.Input((SIDE, SIDE, 3))
    values = keras.layers.Conv2D(3, 3, padding="same")(start)
    values = keras.layers.GlobalAveragePooling2D()(keras.layers.Add(name="shortcut")([start, values]))
    return keras.Model(start, keras.layers.Dense(3, activation="softmax")(values))


def untrained(network: Any) -> Any:
    import keras

    fresh = keras.models.clone_model(network)
    dense = fresh.get_layer("probabilities")
    dense.set_weights([0 * array for array in dense.get_weights()])
    return fresh


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (branched, {}, ChainError, "'shortcut' \\(Add\\) joins branches"),
        (untrained, {}, ModelError, "which chance may give \\(0.333\\): train it first"),
        (None, {"max_drop": 0.01}, DataError, "has 90 images, and the gate needs at least 381"),
        (None, {"macs": (1e6,)}, TargetError, "narrowing comes down to"),
    ],
)
@pytest.mark.usefixtures("exported")
def test_what_cannot_end_well_is_one_message_and_nothing_is_written(
    make: Any, options: dict[str, Any], error: type[MedimgError], message: str, model: Path, data: Path,
    network: Any, tmp_path: Path,
) -> None:  # fmt: skip
    if make:
        save(make(network), ModelSpec.read(model), model)
    with pytest.raises(error, match=message):
        compress(model, data, tmp_path / "small.h5", replace(QUICK, **options), threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_data_without_a_test_part_or_with_few_images_are_refused(
    model: Path, data: Path, tmp_path: Path
) -> None:
    rows = data.read_text().splitlines()
    table = data.with_name("no-test.csv")
    table.write_text("\n".join(row for row in rows if not row.endswith(",test")))
    with pytest.raises(DataError, match=r"no-test.csv: has no part named test"):
        compress(model, table, tmp_path / "small.h5", replace(QUICK, allow_unlisted=True), threads=1)
    few = [row for row in rows if not row.endswith(",train")]
    few += [row for row in rows if row.endswith(",train")][:12]
    table = data.with_name("few.csv")
    table.write_text("\n".join(few))
    with pytest.raises(DataError, match=r"12 training images are too few .* at least 16 are needed"):
        compress(model, table, tmp_path / "small.h5", replace(QUICK, allow_unlisted=True), threads=1)
    table = data.with_name("patients.csv")
    # Thirty patients a part have three images each.
    owners = ["patient", *(f"{row.rsplit(',')[-1]}-{number % 30}" for number, row in enumerate(rows[1:]))]
    table.write_text("\n".join(map(",".join, zip(rows, owners, strict=True))))
    with pytest.raises(DataError, match="part test has 30 patients, and the gate needs at least 381"):
        compress(model, table, tmp_path / "small.h5", replace(QUICK, max_drop=0.01), threads=1)
    with pytest.raises(UsageError, match="is the original itself"):
        compress(model, data, model, QUICK, threads=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small.onnx", "an exported artefact is not compressed: give the Keras file"),
        ("saved_model", r"not a Keras file \(\.keras, \.h5, \.hdf5 are\)"),
        ("absent.keras", "no such file"),
        ("foreign.h5", "carries no spec"),
    ],
)
def test_what_the_file_alone_shows_is_said_before_keras_starts(
    name: str, message: str, network: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_arguments: Any) -> None:
        raise AssertionError

    network.save(tmp_path / "foreign.h5")
    (tmp_path / "small.onnx").touch()
    monkeypatch.setattr("medimg.train.compression.parent.start_keras", started)
    with pytest.raises(MedimgError, match=message):
        compress(tmp_path / name, data, tmp_path / "small.h5", QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": (0.5,)}, "must be 1x or more"),
        ({"macs": (2.0,), "latency_ms": 3.0}, "not both"),
        ({"latency_ms": 0.0}, "above 0"),
        ({"max_drop": 1.0}, "not between 0 and 1"),
        ({"multiple": 0}, "--multiple 0"),
        ({"augment_copies": 0}, "0 copies of each image: 1 to 64"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompressOptions(**options)


def test_ratios_are_read_as_they_are_typed() -> None:
    assert (read_ratio("8x"), read_ratio("2.5")) == (8.0, 2.5)
    with pytest.raises(UsageError, match="such as 8x"):
        read_ratio("eight")
    assert CompressOptions().names == ("2x", "4x", "8x", "16x")


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_compressed_model_exports_predicts_and_is_timed_by_the_same_commands(
    network: Any, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx_bindings as tensorrt
    import tensorrt_rtx_libs  # noqa: F401  loads the libraries

    from medimg.runtime.engines import builder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = ModelSpec(LABELS, ImageRule(SIDE, SIDE), Intensity.named("unit"))
    save(network, spec, tmp_path / "model.keras")
    options = "--output small.h5 --macs 2x --max-drop 0.2 --epochs 1 --multiple 2 --json found.json"
    done = run("medimg-train", "compress", "model.keras", data, *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["points"][0]["gate"]["backend"] in ("openvino", "onnxruntime")
    precisions = "--precision fp32 --precision fp16 --precision int8 --force"
    done = run(
        *("medimg-export", "small.h5", *precisions.split(), "--calibration", data, "--validation", data),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for name in ("small.onnx", "small.fp16.onnx", "small.int8.onnx"):
        assert (
            ModelSpec.read(tmp_path / name).compression == ModelSpec.read(tmp_path / "small.h5").compression
        )
        assert run("medimg-run", "predict", name, data.parent / "test0.png", cwd=tmp_path).returncode == 0
        assert "compressed" in run("medimg-run", "inspect", name, cwd=tmp_path).stdout
        profile = builder.BuildOptions(BatchProfile(1, 4, 16), workspace_mib=512)
        assert builder.build(tensorrt, open_onnx(tmp_path / name), profile, gpu="none").engine
    timed = run("medimg-bench", "run", "small.int8.onnx", "--duration", "1", "--json", "t.json", cwd=tmp_path)
    assert timed.returncode == 0, timed.stderr
