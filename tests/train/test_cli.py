"""medimg-train as its users run it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.long
def test_from_simulated_images_to_figures(run: Run, tmp_path: Path) -> None:
    done = run(
        "medimg-train", "simulate", "images", *["--train", "4", "--test", "1", "--size", "48"], cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "simulated ultrasound images" in done.stdout
    options = "--arch cnn --filters 4 --image-size 32 --epochs 1 --output model.h5 --json fit.json"
    done = run("medimg-train", "fit", "images", *options.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "next:" in done.stdout
    assert "medimg-export model.h5" in done.stdout
    assert "simulated" in done.stdout
    fitted = json.loads((tmp_path / "fit.json").read_text())
    assert fitted["schema"] == 1
    assert fitted["labels"] == ["calcification", "cyst", "normal", "solid"]
    assert fitted["simulated_data"] is True
    assert (fitted["train_images"], fitted["validation_images"]) == (12, 4)
    done = run("medimg-train", "evaluate", "model.h5", "images", "--json", "-", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["scores"]["images"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fit absent --output model.h5", "absent: no such file or folder"),
        ("fit absent --output model.txt", "a Keras file ends in"),
        ("fit absent --output model.h5 --image-size 8", "image size 8"),
        ("fit absent --output model.h5 --epochs 0", "0 epochs"),
        ("fit absent --output model.h5 --arch resnet", "resnet"),
        ("fit absent", "--output"),
        ("fit absent --output model.h5 --filters 64", "--filters has no effect here: it is for --arch cnn"),
        ("fit absent --output model.h5 --arch cnn --unfreeze-blocks 2", "it is for --arch vgg16"),
        ("fit absent --output model.h5 --dense-layers 2", "it is for --arch vgg16 or cnn with --dense-units"),
        ("fit absent --output model.h5 --augment-copies 8", "it is for --arch vgg16 with --augment"),
        ("fit absent --output model.h5 --momentum 0.5", "it is for --optimizer sgd"),
        (
            "compress absent.h5 absent --output small.h5 --augment-copies 2",
            "no effect here: it is for --augment",
        ),
        ("compress absent.h5 absent --output small.h5 --augment xray --epochs 0", "--augment changes what"),
        ("evaluate absent.h5 absent", "absent.h5: no such file"),
        ("calibrate absent.h5 absent --sensitivity tumour", "LABEL=SHARE is wanted"),
        ("calibrate absent.h5 absent --allow-modality dx", "'dx' is no DICOM code"),
        ("tune absent --output search", "absent: no such file or folder"),
        ("tune absent --output search --objective f2", "'f2' is not one of 'val-accuracy'"),
        ("tune absent --output search --objective deployed", "--latency-budget MS"),
        ("tune absent --output search --space absent.toml", "absent.toml: No such file or directory"),
        ("simulate . --train 0", "cannot simulate 0"),
    ],
)
def test_wrong_use_is_one_message(run_here: Run, arguments: str, message: str, tmp_path: Path) -> None:
    done = run_here("medimg-train", *arguments.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
