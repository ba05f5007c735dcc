import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import demo
from commands import CommandFailedError, as_typed, run_command
from demo_data import one_of_each_class, with_test_part
from medimg.runtime.data import read_data
from weights import find_weights


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for label, count in (("a", 20), ("b", 40)):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            assert cv2.imwrite(str(folder / label / f"{number}.png"), np.full((9, 9), number, np.uint8))
    return folder


def report(accuracy: float, loss: float) -> dict[str, Any]:
    verification = {"accuracy": accuracy, "accuracy_drop": loss}
    return {"artefacts": [{"precision": name, "verification": verification} for name in ("fp32", "int8")]}


@pytest.mark.parametrize(
    ("accuracy", "loss", "simulated", "passed"),
    [
        (0.85, 0.02, True, True),
        (0.849, 0.0, True, False),
        (0.849, 0.0, False, True),
        (0.99, 0.021, True, False),
        (0.99, 0.021, False, False),
        (0.99, -0.1, True, True),
    ],
)
def test_the_gates_are_those_stated(
    accuracy: float, loss: float, simulated: bool, passed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.judge(report(accuracy, loss), simulated=simulated) is passed
    printed = capsys.readouterr().out
    assert ("FAILED" in printed) is not passed
    assert f"{accuracy:.4f}" in printed


def test_own_images_without_a_test_part_are_divided_and_told(
    two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = with_test_part(two_classes, tmp_path)
    dataset = read_data(table)
    assert len(dataset) == 60
    assert np.bincount(dataset.part("test").truth).tolist() == [6, 12]
    assert np.bincount(dataset.part("train").truth).tolist() == [14, 28]
    assert "18 of its 60 images are held out" in capsys.readouterr().out
    assert with_test_part(table, tmp_path) == table


def test_one_test_image_of_each_class_is_shown(two_classes: Path, tmp_path: Path) -> None:
    chosen = one_of_each_class(with_test_part(two_classes, tmp_path), tmp_path)
    assert [path.resolve().parent.name for path in chosen] == ["a", "b"]


def test_images_inside_an_archive_are_written_as_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    labels = np.array([[0], [1], [0], [1]], np.uint8)
    parts: Any = {f"{part}_images": images for part in ("train", "val", "test")}
    parts |= {f"{part}_labels": labels for part in ("train", "val", "test")}
    np.savez(tmp_path / "set.npz", **parts)
    chosen = one_of_each_class(tmp_path / "set.npz", tmp_path)
    for path, pixels in zip(chosen, images, strict=False):
        np.testing.assert_array_equal(np.asarray(cv2.imread(str(path)))[..., ::-1], pixels)
    assert len(chosen) == 2


def test_an_earlier_demos_folder_is_emptied_and_no_other(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    demo.empty(output)
    (output / "model.h5").touch()
    demo.empty(output)
    assert [path.name for path in output.iterdir()] == [demo.MARKER]
    (tmp_path / "precious.txt").touch()
    with pytest.raises(OSError, match="holds other files"):
        demo.empty(tmp_path)
    assert (tmp_path / "precious.txt").exists()


def test_the_last_table_fits_80_columns() -> None:
    rows = [
        demo.Row("model.h5", 58.9, 0.98, None, "fp32", None, None),
        demo.Row("model.int8.onnx", 1234.5, 0.98, 1.0, "int8", 12345.6, 12345.6),
    ]
    lines = demo.table(rows)
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(("given", "path"), [("mine.h5", Path("mine.h5")), ("none", None)])
def test_weights_that_are_given_are_taken_without_a_look_elsewhere(
    given: str, path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert find_weights(given).path == path


def test_keras_cache_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    cached.parent.mkdir()
    cached.touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert find_weights(None).path == cached


def test_a_download_that_takes_too_long_is_given_up_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    found = find_weights(None, limit_s=0.001)
    assert found.path is None
    assert "longer than 0.001 s" in found.words


def test_a_command_is_shown_as_a_user_types_it_and_its_failure_ends_the_demo(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(CommandFailedError, match="medimg-run ended with status 2"):
        run_command("medimg-run", "inspect", "no such file.onnx")
    assert "$ medimg-run inspect 'no such file.onnx'\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--data", "empty"], "empty"),
        (["--output", "."], "holds other files"),
        (["--data", "two", "--weights", "nowhere.h5"], "nowhere.h5"),
    ],
)
def test_input_that_cannot_be_used_ends_the_demo_with_one_message(
    tmp_path: Path, two_classes: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    two_classes.rename(tmp_path / "two")
    done = subprocess.run(
        [sys.executable, demo.__file__, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_folder_of_this_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    project = Path(demo.__file__).parent.parent
    assert as_typed(f"error: {project}/build/disk: is full") == "error: build/disk: is full"
    monkeypatch.setenv("MEDIMG_TEST_DATA", "/some/where")
    assert as_typed("fit /some/where/images") == "fit $MEDIMG_TEST_DATA/images"
    monkeypatch.delenv("MEDIMG_TEST_DATA")
    assert as_typed("fit /some/where/images") == "fit /some/where/images"
