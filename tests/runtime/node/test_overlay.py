"""Overlays: valid, marked as what they are, bound to their source, and never taken for images."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medimg.runtime.backends import NAMES
from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import ModelError
from medimg.runtime.node.config import Delivery, DicomDestination
from medimg.runtime.node.overlay import draw, overlay_uid
from medimg.runtime.tasks import task_named

from .conftest import Start, free_port, make_config, make_series, series_of, storescu, uid_of, wait_for
from .tiny_model import write_tiny_model

pytestmark = pytest.mark.long

DRAWN = Delivery(overlay=True)


@pytest.fixture(scope="session")
def mapping_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("mapping") / "tiny.onnx", heatmap=True)


def reported(node: Any, series: str) -> str:
    """Wait for a series' report, and give its UID."""
    return str(wait_for(lambda: node.store.latest_report(series))[0])


def test_an_overlay_is_valid_marked_and_bound_to_its_source(
    start: Start, tmp_path: Path, mapping_model: Path
) -> None:
    node = start(make_config(tmp_path, deliver=DRAWN), mapping_model)
    images = make_series(tmp_path / "series", 3)
    storescu(node.receiver.port, *images)
    report = reported(node, series_of(images[0]))
    path = node.store.overlay_path(report)
    validated = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    assert "Error" not in validated.stderr + validated.stdout, validated.stderr
    drawn, source = pydicom.dcmread(path), pydicom.dcmread(images[0])
    assert drawn.SOPInstanceUID == overlay_uid(report)
    assert drawn.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (drawn.BurnedInAnnotation, drawn.ImageComments) == ("YES", "Not for diagnostic use")
    assert (drawn.StudyInstanceUID, drawn.PatientName) == (source.StudyInstanceUID, source.PatientName)
    assert drawn.SeriesInstanceUID not in (
        source.SeriesInstanceUID,
        pydicom.dcmread(node.store.report_path(report)).SeriesInstanceUID,
    )
    (reference,) = drawn.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID in {uid_of(image) for image in images}
    assert drawn.pixel_array.shape[1:] == (512, 3)

    # Sent back by an archive, it is no image of a scanner.
    assert "CannotUnderstand" in storescu(node.receiver.port, path).stderr


def test_the_same_report_gives_the_same_overlay(start: Start, tmp_path: Path, mapping_model: Path) -> None:
    node = start(make_config(tmp_path, deliver=DRAWN), mapping_model)
    images = make_series(tmp_path / "series", 2)
    storescu(node.receiver.port, *images)
    path = node.store.overlay_path(reported(node, series_of(images[0])))
    written = path.read_bytes()
    path.unlink()
    node.store.report_path(path.name.removesuffix(".overlay.dcm")).unlink()
    node._series._report(series_of(images[0]))
    assert path.read_bytes() == written


@pytest.mark.parametrize("wanted", [True, False])
def test_a_destination_gets_it_only_where_it_is_configured(
    start: Start, tmp_path: Path, tiny_model: Path, wanted: bool
) -> None:
    """Also of a model without heat maps; the report itself comes in any case."""
    port, kept = free_port(), tmp_path / "kept"
    kept.mkdir()
    with subprocess.Popen(["storescp", "-aet", "ORTHANC", "-od", kept, str(port)]) as storescp:
        archive = DicomDestination("archive", "ORTHANC", "127.0.0.1", port)
        deliver = Delivery((archive,), overlay=wanted, first_retry_s=0.2, max_retry_s=0.4)
        node = start(make_config(tmp_path, deliver=deliver), tiny_model)
        storescu(node.receiver.port, *make_series(tmp_path / "series", 2))
        wait_for(lambda: node.counters.total("delivered") == 1)
        storescp.terminate()
    kinds = sorted(str(pydicom.dcmread(path).Modality) for path in kept.iterdir())
    assert kinds == (["OT", "SR"] if wanted else ["SR"])
    assert len(list(node.store.reports.iterdir())) == len(kinds)


def test_what_is_not_classified_has_no_overlay(start: Start, tmp_path: Path, mapping_model: Path) -> None:
    node = start(make_config(tmp_path, deliver=DRAWN), mapping_model)
    images = make_series(tmp_path / "series", 1)
    broken = pydicom.dcmread(images[0])
    broken.PixelData = b"short"
    broken.save_as(images[0])
    storescu(node.receiver.port, images[0])
    report = reported(node, series_of(images[0]))
    assert not node.store.overlay_path(report).exists()


def test_evidence_and_its_drawing() -> None:
    """What speaks for all classes alike speaks for none of those that exclude each other."""
    maps = np.zeros((2, 2, 3), np.float32)
    maps[0, 0] = (4, 1, 1)
    maps[1, 1] = (5, 5, 5)
    heat = task_named("multiclass").evidence(maps, 0)
    assert heat.tolist() == [[1, 0], [0, 0]]
    assert task_named("multilabel").evidence(maps, 0)[1, 1] == 1
    grey = np.full((32, 16, 3), 90, np.uint8)
    plain, hot = draw(grey, None, ["x" * 100, "naïve"]), draw(grey, heat, ["x" * 100, "naïve"])
    assert plain.shape == hot.shape
    changed = (plain != hot).any(axis=2)
    assert changed[:128, :128].mean() > 0.5
    assert not changed[384:].any()
    assert plain[512:].max() == 255


@pytest.mark.parametrize("backend", NAMES)
def test_the_mean_of_a_heat_map_is_the_logit(mapping_model: Path, backend: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    with Classifier(mapping_model, backend=backend, threads=1) as classifier:
        logits = classifier.activation_map(image).mean(axis=(0, 1))
        shares = np.exp(logits - logits.max())
        expected = classifier.probabilities(image[np.newaxis])[0]
    np.testing.assert_allclose(shares / shares.sum(), expected, atol=1e-4)


def test_a_model_without_heat_maps_says_so(tiny_model: Path) -> None:
    with Classifier(tiny_model, threads=1) as classifier, pytest.raises(ModelError, match="--heatmap"):
        classifier.activation_map(np.zeros((32, 32, 3), np.uint8))
