"""The command `queue`, beside a node that works and one that does not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from medimg.runtime.errors import UsageError
from medimg.runtime.node.config import Delivery, DicomDestination, NodeConfig
from medimg.runtime.node.desk import Desk
from medimg.runtime.node.journal import read_lines
from medimg.runtime.node.service import Node

from .conftest import Run, Start, free_port, make_config, make_image, make_series, storescu, uid_of, wait_for

pytestmark = pytest.mark.long

CONFIG = """
folder = "state"
[[deliver.dicom]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {port}
"""


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """A node whose only destination is down."""
    port = free_port()
    (tmp_path / "node.toml").write_text(CONFIG.format(port=port))
    destination = DicomDestination("archive", "ARCHIVE", "127.0.0.1", port)
    return make_config(tmp_path, deliver=Delivery((destination,), first_retry_s=60.0))


def open_reports(node: Node) -> list[str]:
    return [one.report_uid for one in node.store.open_deliveries()]


def audited(node: Node, kind: str) -> list[dict[str, Any]]:
    node._audit.catch_up()
    lines = map(json.loads, read_lines(node.store.folder / "audit"))
    return [line for line in lines if line["event"] == kind]


def series_lines(node: Node) -> list[dict[str, Any]]:
    lines = map(json.loads, read_lines(node.store.folder / "results"))
    return [line for line in lines if line["kind"] == "series"]


def test_reports_are_listed_retried_and_skipped(
    start: Start, run: Run, tmp_path: Path, config: NodeConfig
) -> None:
    node = start(config)
    for number in range(2):
        storescu(node.receiver.port, *make_series(tmp_path / str(number), 1))
    first, second = wait_for(lambda: len(found := open_reports(node)) == 2 and found)
    wait_for(lambda: node.counters.total("delivery_failed"))
    options = ("--config", tmp_path / "node.toml")
    listed = run("medimg-run", "queue", "list", *options)
    assert listed.returncode == 0, listed.stderr
    assert f"{first}  archive  pending, 0 tries: ARCHIVE at 127.0.0.1" in listed.stdout
    found = json.loads(run("medimg-run", "queue", "list", *options, "--json", "-").stdout)
    assert [one["report_uid"] for one in found["deliveries"]] == [first, second]
    skipped = run("medimg-run", "queue", "skip", first, *options)
    assert skipped.stdout == "1 deliveries are given up\n"
    assert open_reports(node) == [second]
    assert [event["report_uid"] for event in audited(node, "delivery closed")] == [first]
    again = run("medimg-run", "queue", "skip", first, *options)
    assert (again.returncode, again.stderr) == (2, f"error: {first}: no such report is open\n")
    assert run("medimg-run", "queue", "skip", *options).returncode == 2
    retried = run("medimg-run", "queue", "retry", "--destination", "archive", *options)
    assert retried.stdout == "1 deliveries are tried again\n"
    unknown = run("medimg-run", "queue", "retry", "--destination", "elsewhere", *options)
    assert (unknown.returncode, unknown.stderr) == (2, "error: nothing waits for elsewhere\n")


def test_an_image_that_was_set_aside_is_classified_again(
    start: Start, tmp_path: Path, config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its series gets a new report that names the one before; the other image keeps its answer."""
    node = start(replace(config, deliver=Delivery()))
    good, bad = make_series(tmp_path / "series", 2)
    assert storescu(node.receiver.port, good).returncode == 0
    wait_for(lambda: node.counters.total("answered") == 1)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as broken:
        broken.setattr(node.models.current.classifier, "predict", fail)
        assert storescu(node.receiver.port, bad).returncode == 0
        wait_for(lambda: node.store.counts()["images_set_aside"] == 1)
    wait_for(lambda: not node.store.unreported_series())
    desk = Desk(Path(config.folder), ())
    (image,) = desk.queue().images
    assert (image.sop_instance_uid, image.outcome) == (uid_of(bad), "set aside")
    assert image.reason == "RuntimeError: the device is gone"
    before = set(node.store.reports.glob("2.25.*.dcm"))
    assert desk.reprocess((), ()).images == 1
    wait_for(lambda: node.store.counts()["images_set_aside"] == 0)
    (new,) = wait_for(lambda: set(node.store.reports.glob("2.25.*.dcm")) - before)
    assert desk.queue().images == ()
    desk.close()
    line = wait_for(lambda: next((one for one in series_lines(node) if one["report_uid"] == new.stem), None))
    assert line["predecessor"] in {path.stem for path in before}
    assert [answer["outcome"] for answer in line["answers"]] == ["classified"]
    assert [event["sop_instance_uid"] for event in audited(node, "reprocess")] == [uid_of(bad)]


def test_a_series_that_is_done_is_classified_again_and_says_nothing_new(
    start: Start, tmp_path: Path, config: NodeConfig
) -> None:
    node = start(replace(config, deliver=Delivery()))
    image = make_image(tmp_path / "a.dcm")
    storescu(node.receiver.port, image)
    wait_for(lambda: list(node.store.reports.glob("2.25.*.dcm")) and not node.store.unreported_series())
    assert node.store.fold(1e12, 1e12) == 1
    desk = Desk(Path(config.folder), ())
    with pytest.raises(UsageError, match="try --series"):
        desk.reprocess((uid_of(image),), ())
    with pytest.raises(UsageError, match="no such series"):
        desk.reprocess((), ("1.2.3",))
    series = str(pydicom.dcmread(image).SeriesInstanceUID)
    assert desk.reprocess((), (series,)).images == 1
    desk.close()
    wait_for(lambda: node.counters.total("answered") == 2)
    wait_for(lambda: not node.store.unreported_series())
    assert len(list(node.store.reports.glob("2.25.*.dcm"))) == 1
    assert node.store._rows("SELECT state FROM instances") == [("delivered",)]


def test_what_has_no_file_keeps_its_answer(start: Start, tmp_path: Path, config: NodeConfig) -> None:
    node = start(replace(config, deliver=Delivery()))
    image = make_image(tmp_path / "bad.dcm", tags={"PixelData": b"short"})
    storescu(node.receiver.port, image)
    wait_for(lambda: node.store.counts()["images_set_aside"] == 1)
    for path in node.store.images.iterdir():
        path.unlink()
    desk = Desk(Path(config.folder), ())
    asked = desk.reprocess((uid_of(image),), ())
    desk.close()
    assert (asked.images, asked.without_file) == (0, 1)


def test_a_folder_in_which_no_node_worked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no node has worked there"):
        Desk(tmp_path / "state", ())
    assert not (tmp_path / "state").exists()
