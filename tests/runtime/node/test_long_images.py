"""Images of several frames among others, bounds on them, and decoders that fail for a while."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UltrasoundMultiFrameImageStorage

from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import DecoderError
from medimg.runtime.images.load import load_frames
from medimg.runtime.node.long_images import AT_ONCE
from medimg.runtime.node.service import Node

from .conftest import Start, kept_file, make_config, make_image, make_series, storescu, uid_of, wait_for

pytestmark = pytest.mark.long


def make_loop(path: Path, frames: int, tags: dict[str, Any] | None = None) -> Path:
    """Write an ultrasound loop of tiny frames."""
    pixels = np.random.default_rng(frames).integers(0, 256, (frames, 8, 8), dtype=np.uint8)
    header = {"NumberOfFrames": frames, "PixelData": pixels.tobytes(), "WindowCenter": 128}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Modality": "US", "WindowWidth": 256}
    kind = {"SOPClassUID": UltrasoundMultiFrameImageStorage}
    return make_image(path, size=8, tags=header | bits | kind | (tags or {}))


def outcomes(node: Node) -> dict[str, tuple[str, str | None]]:
    """UID to outcome and reason."""
    return {uid: (outcome, reason) for uid, outcome, reason, _ in node.store.last_results(1000)}


def test_others_are_answered_between_the_frames_of_a_long_image(start: Start, tmp_path: Path) -> None:
    node = start()
    loop = make_loop(tmp_path / "loop.dcm", 2000)
    assert storescu(node.receiver.port, loop).returncode == 0
    wait_for(lambda: node._worker._long._open)
    images = make_series(tmp_path / "series", 4)
    assert storescu(node.receiver.port, *images).returncode == 0
    short = make_loop(tmp_path / "short.dcm", 20)
    assert storescu(node.receiver.port, short).returncode == 0
    wait_for(lambda: outcomes(node).keys() >= {uid_of(path) for path in (*images, short)})
    assert uid_of(loop) not in outcomes(node)
    wait_for(lambda: uid_of(loop) in outcomes(node), 120)
    assert {outcome for outcome, _ in outcomes(node).values()} == {"classified"}


@pytest.mark.parametrize(("rule", "frames"), [("mean", 2), ("max", 7), ("mean", 50)])
def test_a_long_image_has_the_scores_of_all_its_frames(
    start: Start, tiny_model: Path, tmp_path: Path, rule: Any, frames: int
) -> None:
    config = make_config(tmp_path)
    node = start(replace(config, inference=replace(config.inference, combine=rule)))
    node._worker._image_s = 0.1 / 7  # so that the last part is a short one, or none is left
    path = make_loop(tmp_path / "loop.dcm", frames)
    assert storescu(node.receiver.port, path).returncode == 0
    wait_for(lambda: uid_of(path) in outcomes(node))
    with Classifier(tiny_model, threads=1) as classifier:
        scores = [{best.index: best.score for best in each.top_k} for each in classifier.predict([path])]
    assert len(scores) == frames
    columns = ([frame[index] for frame in scores] for index in range(3))
    expected = [max(values) if rule == "max" else sum(values) / frames for values in columns]
    ((found,),) = node.store._rows("SELECT scores FROM instances WHERE sop_uid = ?", uid_of(path))
    np.testing.assert_allclose(json.loads(found), expected, atol=1e-6)


def test_a_model_that_is_replaced_answers_no_part_of_an_image(
    start: Start, tiny_model: Path, tmp_path: Path
) -> None:
    from .tiny_model import write_tiny_model

    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model.read_bytes())
    node = start(model=model)
    loop = make_loop(tmp_path / "loop.dcm", 2000)
    assert storescu(node.receiver.port, loop).returncode == 0
    wait_for(lambda: [each for each in node._worker._long._open if each.answers.count])
    write_tiny_model(model, seed=1)
    assert node.models.reload()
    wait_for(lambda: uid_of(loop) in outcomes(node), 120)
    (line,) = (line for line in audited(node) if '"answered"' in line)
    assert node.models.current.sha256 in line
    assert node.counters.total("errors") == 0


def audited(node: Node) -> list[str]:
    return [text for (text,) in node.store._rows("SELECT text FROM lines WHERE stream = 'audit'")]


def test_more_frames_than_allowed_are_set_aside(start: Start, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    node = start(replace(config, inference=replace(config.inference, max_frames=100)))
    paths = [make_loop(tmp_path / "a.dcm", 101), make_loop(tmp_path / "b.dcm", 100)]
    assert storescu(node.receiver.port, *paths).returncode == 0
    wait_for(lambda: len(outcomes(node)) == 2)
    assert outcomes(node)[uid_of(paths[0])] == (
        "set aside",
        "it has 101 frames or more; inference.max_frames is 100",
    )
    assert outcomes(node)[uid_of(paths[1])][0] == "classified"


@pytest.mark.parametrize(("frames", "told"), [(1, 1), (5, 5), (2, "")])
@pytest.mark.parametrize(("failures", "outcome"), [(2, "classified"), (3, "set aside")])
def test_a_decoder_that_fails_for_a_while_is_tried_again_later(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
    told: Any,
    failures: int,
    outcome: str,
) -> None:
    """As one does that is short of memory or of time; meanwhile others are answered."""
    left = [failures]
    fragile = make_loop(tmp_path / "fragile.dcm", frames, {"NumberOfFrames": told})

    def failing(path: Path, *rest: Any, **options: Any) -> Iterator[Any]:
        if fragile_file == Path(path) and left[0]:
            left[0] -= 1
            raise DecoderError(f"{path}: its decoder crashed (SIGKILL): the file may be damaged")
        yield from load_frames(path, *rest, **options)

    for module in ("classifier", "node.long_images"):
        monkeypatch.setattr(f"medimg.runtime.{module}.load_frames", failing)
    config = make_config(tmp_path)
    node = start(replace(config, inference=replace(config.inference, retry_s=0.3)))
    fragile_file = kept_file(node, fragile)
    other = make_image(tmp_path / "other.dcm")
    assert storescu(node.receiver.port, fragile).returncode == 0
    wait_for(lambda: node.counters.total("postponed"))
    assert storescu(node.receiver.port, other).returncode == 0
    wait_for(lambda: uid_of(other) in outcomes(node))
    assert uid_of(fragile) not in outcomes(node)
    found = wait_for(lambda: outcomes(node).get(uid_of(fragile)))
    assert found[0] == outcome
    assert found[1] is None or found[1].startswith("its decoder crashed")
    assert node.counters.total("postponed") == 2


def test_several_long_images_share_the_worker(start: Start, tmp_path: Path) -> None:
    node = start()
    with node.models.in_use():
        paths = [make_loop(tmp_path / f"{n}.dcm", 200 + n) for n in range(AT_ONCE + 2)]
        assert storescu(node.receiver.port, *paths).returncode == 0
    wait_for(lambda: len(outcomes(node)) == len(paths))
    assert {outcome for outcome, _ in outcomes(node).values()} == {"classified"}


def test_what_must_be_known_of_an_image_stands_once_in_its_line(start: Start, tmp_path: Path) -> None:
    node = start()
    tags = {"WindowCenter": [5, 128], "WindowWidth": [0, 256]}
    paths = [make_loop(tmp_path / f"{count}.dcm", count, tags) for count in (1, 6)]
    paths.append(make_loop(tmp_path / "plain.dcm", 1))
    assert storescu(node.receiver.port, *paths).returncode == 0
    wait_for(lambda: len(outcomes(node)) == 3)
    results = [
        json.loads(text) for (text,) in node.store._rows("SELECT text FROM lines WHERE stream = 'results'")
    ]
    notes = {line["sop_instance_uid"]: line.get("notes") for line in results}
    passed_over = ["its window 1 has a width of 0 and was passed over"]
    assert [notes[uid_of(path)] for path in paths] == [passed_over, passed_over, None]
