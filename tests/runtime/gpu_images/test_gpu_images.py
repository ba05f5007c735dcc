"""JPEG decoding on a GPU, with a decoder on the CPU in the card's place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime import Classifier, classifier
from medimg.runtime.errors import BackendError, MissingDependencyError
from medimg.runtime.images.gpu import GpuDecoder, open_decoder
from medimg.runtime.images.gpu.kinds import ALL, JpegKind, examples, kind_of
from medimg.runtime.images.gpu.resizer import Resizer
from medimg.runtime.images.rule import ImageRule

from .resize_graph import make_resize_graph

GREY, HALVED = JpegKind((0x11,)), JpegKind((0x22, 0x11, 0x11))


@dataclass
class OnHost:
    """What stands for an image in the card's memory."""

    array: NDArray[np.uint8]

    @property
    def rows(self) -> int:
        return len(self.array)

    @property
    def columns(self) -> int:
        return len(self.array[0])

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def pixels(self) -> NDArray[np.uint8]:
        return self.array


@dataclass
class Codec:
    """Decodes with OpenCV, off by some grey levels where it is told to be, and counts."""

    off_by: dict[JpegKind, int] = field(default_factory=dict)
    refuses: bytes = b""
    decoded: int = 0

    def decode(self, contents: Sequence[bytes]) -> list[OnHost | None]:
        return [None if content == self.refuses else self._one(content) for content in contents]

    def _one(self, content: bytes) -> OnHost:
        self.decoded += 1
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert pixels is not None
        kind = kind_of(content)
        assert kind is not None
        pixels = pixels.astype(np.int16)
        pixels[0, 0] += np.where(pixels[0, 0] > 128, -1, 1) * self.off_by.get(kind, 0)
        return OnHost(np.ascontiguousarray(pixels.astype(np.uint8)))


def make_decoder(codec: Codec, rows: int = 32, columns: int = 32) -> GpuDecoder:
    return GpuDecoder(lambda: codec, Resizer(rows, columns, "cpu"))


def test_the_graph_is_what_its_source_makes() -> None:
    shipped = resources.files("medimg.runtime.images.gpu").joinpath("resize.onnx").read_bytes()
    assert shipped == make_resize_graph()


@pytest.mark.parametrize("seed", range(20))
def test_the_graph_gives_the_pixels_of_opencv(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, columns, to_rows, to_columns = generator.integers(1, 400, 4)
    image = generator.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    found = Resizer(int(to_rows), int(to_columns), "cpu").resize(image.ctypes.data, int(rows), int(columns))
    expected = cv2.resize(image, (int(to_columns), int(to_rows)), interpolation=cv2.INTER_LINEAR_EXACT)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ALL)
def test_each_kind_has_examples_of_its_own(kind: JpegKind) -> None:
    assert {kind_of(content) for content in examples(kind)} == {kind}


def test_what_is_not_proven_is_left_to_the_processors(tmp_path: Path) -> None:
    (image, *_) = examples(GREY)
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    progressive = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    turned = image[:2] + _exif(6) + image[2:]
    path, decoder = tmp_path / "image", make_decoder(Codec())
    path.write_bytes(image)
    assert decoder.read(path) == image
    for content in (progressive, turned, cv2.imencode(".png", pixels)[1].tobytes()):
        path.write_bytes(content)
        assert decoder.read(path) is None


def test_a_kind_with_other_pixels_is_left_to_the_processors(tmp_path: Path) -> None:
    decoder = make_decoder(Codec(off_by={HALVED: 2, GREY: 1}))
    assert decoder.kinds == {*ALL} - {HALVED}
    path = tmp_path / "halved.jpg"
    path.write_bytes(next(examples(HALVED)))
    assert decoder.read(path) is None


def test_a_card_that_is_right_about_nothing_is_an_error() -> None:
    with pytest.raises(BackendError, match="leave --decode gpu out"):
        make_decoder(Codec(off_by=dict.fromkeys(ALL, 2)))


@pytest.mark.parametrize(
    ("device", "rule", "reason"),
    [
        ("cpu", ImageRule(8, 8), "--device gpu"),
        ("gpu:0", ImageRule(8, 8, resize="letterbox"), "stretch-linear"),
        ("gpu:0", ImageRule(8, 8, jpeg="dct-scaled"), "dct-scaled"),
    ],
)
def test_what_the_card_cannot_follow_is_refused(device: str, rule: ImageRule, reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        open_decoder(device, rule)


def test_without_its_package_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medimg.runtime.images.gpu.decoder.Resizer", lambda *_: None)
    with pytest.raises(MissingDependencyError, match="gpu-decode"):
        open_decoder("gpu:0", ImageRule(8, 8))


def test_predictions_are_those_of_the_processors(
    ready_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [content for kind in ALL for content in examples(kind)][::5]
    paths = [tmp_path / f"{number:02}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    (tmp_path / "picture.png").write_bytes(
        cv2.imencode(".png", np.full((40, 30, 3), 90, np.uint8))[1].tobytes()
    )
    (tmp_path / "cut.jpg").write_bytes(contents[0][: len(contents[0]) // 2])
    inputs = [*paths, tmp_path / "picture.png", tmp_path / "cut.jpg", tmp_path / "missing.jpg"]
    with Classifier(ready_artefact) as alone:
        expected = list(alone.predict(inputs, batch_size=4))
    codec = Codec()
    monkeypatch.setattr(classifier, "open_decoder", lambda _device, _rule: make_decoder(codec))
    with Classifier(ready_artefact, decode="gpu") as with_card:
        proofs = codec.decoded
        assert list(with_card.predict(inputs, batch_size=4)) == expected
    assert codec.decoded == proofs + len(paths)


def test_a_file_that_the_card_refuses_is_an_error_of_that_file(
    ready_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = list(examples(GREY))[:2]
    for name, content in (("a.jpg", first), ("b.jpg", second)):
        (tmp_path / name).write_bytes(content)
    codec = Codec()
    monkeypatch.setattr(classifier, "open_decoder", lambda _device, _rule: make_decoder(codec))
    with Classifier(ready_artefact, decode="gpu") as with_card:
        codec.refuses = first
        refused, answered = with_card.predict([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert refused.error is not None
    assert "a.jpg: the GPU cannot decode it" in refused.error.message
    assert answered.top_k


def _exif(orientation: int) -> bytes:
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
