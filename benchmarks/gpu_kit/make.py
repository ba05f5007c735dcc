"""Makes the kit where a package registry is: `python -m gpu_kit.make OUTPUT [options]`, in benchmarks/.

OUTPUT holds all that a bare machine with Python 3.12, PyTorch, numpy, OpenCV, click and pytest lacks:

    python3 OUTPUT/run.py --output RESULTS
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from commands import BIN
from gpu_kit.cut_library import cut_library
from gpu_kit.network import kernels
from gpu_kit.run import IMAGES, MODELS, PACKAGES, STEPS_PACKAGE, TESTS
from gpu_kit.seeded import take_out
from registry import ROOT

LIMIT_BYTES = 60 << 20
WHEELS = {
    "onnxruntime-gpu>=1.31,<1.32": (
        "onnxruntime/*.py",
        "onnxruntime/capi/*.py",
        "onnxruntime/capi/onnxruntime_pybind11_state*.so",
        "onnxruntime/capi/libonnxruntime_providers_shared.so",
        "onnxruntime/capi/libonnxruntime_providers_cuda.so",
        "*.dist-info/METADATA",
    ),
    "nvidia-nvimgcodec-cu13>=0.9,<0.10": (
        "nvidia/nvimgcodec/*.py",
        "nvidia/nvimgcodec/tools/*.py",
        "nvidia/nvimgcodec/tools/dicom/*.py",
        "nvidia/nvimgcodec/nvimgcodec_impl.cpython-{python}-*.so",
        "nvidia/nvimgcodec/libnvimgcodec.so.0",
        "nvidia/nvimgcodec/extensions/libnvjpeg_ext.so.*",
        "nvidia/nvimgcodec/extensions/libjpeg_turbo_ext.so.*",
        "*.dist-info/METADATA",
    ),
    "nvidia-nvjpeg>=13,<14": ("nvidia/cu13/lib/libnvjpeg.so.13",),
}
"""What is taken of each wheel; the rest of it serves other versions and other work."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
WIDTHS = {"vgg16": 1.0, "vgg16-half": 0.5}
SAMPLING = (
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
)
SIDE_PX, COUNT = 512, 32


def main() -> int:
    """Make the kit; returns the exit status."""
    options = _parse()
    output: Path = options.output
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        shutil.rmtree(output, ignore_errors=True)
        for name in (IMAGES, MODELS):
            (output / name).mkdir(parents=True)
        _write_images(options.images, output / IMAGES)
        for name, width in WIDTHS.items():
            _seeded_models(name, width, output, scratch)
        _small_models(options.real, options.preprocessing, output, scratch)
        _packages(output / PACKAGES, options.python, options.compute, scratch)
        _copy_code(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / (1 << 20):.1f} MiB")
    return 0 if size <= LIMIT_BYTES else 1


def _write_images(source: Path, folder: Path) -> None:
    """Write JPEG files of 512 px: grey and colours, in three kinds of chroma sampling and without chroma."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for number in range(COUNT):
        pixels = cv2.imread(str(files[number * len(files) // COUNT]), cv2.IMREAD_COLOR)
        if pixels is None:
            raise SystemExit(f"{files[number]}: cannot be read")
        pixels = cv2.resize(pixels, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
        if number % 2:
            pixels = cv2.applyColorMap(pixels, cv2.COLORMAP_INFERNO)
        sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING[number % 3]]
        image = pixels[..., 0] if number % 8 == 7 else pixels
        cv2.imwrite(str(folder / f"{number:02}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90, *sampling])


def _seeded_models(name: str, width: float, output: Path, scratch: Path) -> None:
    """Export a network of seeded weights and keep its files without them."""
    paths = sorted((output / IMAGES).glob("*.jpg"))
    images = [cv2.resize(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), (224, 224)) for path in paths]  # type: ignore[arg-type]
    np.save(scratch / "images.npy", np.stack(images))
    model = scratch / f"{name}.keras"
    _run(sys.executable, "-m", "gpu_kit.network", model, width, scratch / "images.npy")
    _export(model, output / MODELS, scratch / name)
    for path in (output / MODELS).glob(f"{name}.*onnx"):
        left, cuts = take_out(path.read_bytes(), kernels(width))
        path.unlink()
        path.with_name(f"{path.name}.left").write_bytes(left)
        listed = json.dumps([asdict(cut) for cut in cuts])
        path.with_name(f"{path.name}.cuts.json").write_text(listed, encoding="utf-8")


def _small_models(model: Path, preprocessing: str, output: Path, scratch: Path) -> None:
    """Export a trained network in all three precisions, with golden inputs, under the name `small`."""
    images, named = output / IMAGES, scratch / f"small{model.suffix}"
    shutil.copy(model, named)
    data = ("--calibration", str(images), "--golden", "16")
    _export(
        named,
        output / MODELS,
        scratch / "small",
        "--precision",
        "int8",
        "--preprocessing",
        preprocessing,
        *data,
    )
    shutil.copy(scratch / "small" / "small.golden.npz", output / MODELS)


def _export(model: Path, output: Path, scratch: Path, *options: str) -> None:
    precisions = ("--precision", "fp32", "--precision", "fp16")
    _run(BIN / "medimg-export", model, "--output", scratch, *precisions, *options, "--force")
    for path in scratch.glob("*.onnx"):
        shutil.copy(path, output)


def _packages(archive: Path, python: str, compute: int, scratch: Path) -> None:
    """Download what the machine lacks, cut it down, and pack it with medimg's own wheel."""
    wheels, site = scratch / "wheels", scratch / "site"
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    target = ("--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms)
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *target, "-d", wheels, *WHEELS)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT)
    taken = {name.split(">")[0].replace("-", "_"): parts for name, parts in WHEELS.items()}
    for wheel in wheels.glob("*.whl"):
        whole = scratch / "unpacked" / wheel.name
        shutil.unpack_archive(wheel, whole, "zip")
        for pattern in taken.get(wheel.name.split("-")[0], ("**/*",)):
            for path in whole.glob(pattern.format(python=python.replace(".", ""))):
                if path.is_file():
                    place = site / path.relative_to(whole)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, place)
    library = site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    library.write_bytes(cut_library(library.read_bytes(), compute))
    with tarfile.open(archive, "w:xz", preset=6) as packed:
        packed.add(site, ".")


def _copy_code(output: Path) -> None:
    here = Path(__file__).parent
    (output / STEPS_PACKAGE).mkdir()
    for path in here.glob("*.py"):
        shutil.copy(path, output / STEPS_PACKAGE)
    shutil.copy(here / "run.py", output / "run.py")
    for name in ("gpu_check.py", "commands.py", "registry.py"):
        shutil.copy(here.parent / name, output)
    shutil.copytree(
        ROOT / "tests" / "gpu", output / TESTS / "gpu", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "tests" / "conftest.py", output / TESTS)


def _run(*command: str | Path | float) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=Path(__file__).parents[1])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="Folder to write; replaced if it exists.")
    parser.add_argument(
        "--real", type=Path, required=True, metavar="MODEL", help="Trained Keras model, small."
    )
    parser.add_argument("--preprocessing", default="unit", help="Intensity rule of that model.")
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="Images for the answers."
    )
    parser.add_argument("--python", default="3.12", help="Python version of the machine with the GPU.")
    parser.add_argument(
        "--compute", type=int, default=90, help="Its compute capability: 90 for H100 and H200."
    )
    options = parser.parse_args()
    for name in ("output", "real", "images"):
        setattr(options, name, getattr(options, name).resolve())
    return options


if __name__ == "__main__":
    sys.exit(main())
