"""What a search costs beside Keras Tuner alone, on the same images and options."""

import csv
import math
import os
import time
from pathlib import Path
from typing import Any

from commands import read_json, run_command, run_script
from medimg.runtime.data import read_data
from medimg.train.keras_setup import choose_policy
from registry import ROOT, SCRATCH, figure

IMAGES = "images/brain-mri"
TRIALS, PATIENCE, BATCH_SIZE, SEED = 20, 6, 32, 0
"""The patience is that of `fit`'s head."""
TARGET = 15
SPACE = """
dense_layers = { choices = [0, 1] }
dense_units = { choices = [64, 256] }
dropout = { low = 0.0, high = 0.6 }
learning_rate = { low = 1e-4, high = 1e-2, sampling = "log" }
"""


@figure("tuning-head")
def tuning_head(images: int = 240, epochs: int = 5) -> dict[str, Any]:
    """20 trials of VGG16's head: seconds and best score of `medimg-train tune` and of Keras Tuner alone.

    Both are whole processes, from start to end; `tune` also trains the best model again, saves it, and
    judges it in float32. A quarter of the images validate.
    """
    real = Path(os.environ["MEDIMG_TEST_DATA"])
    folder = ROOT / SCRATCH / "tuning-head"
    folder.mkdir(parents=True, exist_ok=True)
    weights = real / "weights" / "vgg16_imagenet_notop.h5"
    table, space, report = folder / "images.csv", folder / "space.toml", folder / "tune.json"
    validation_images = _write_table(real / IMAGES, images, table)
    space.write_text(SPACE, encoding="utf-8")
    policy = choose_policy("auto")
    ours = run_command(
        *("medimg-train", "tune", table, "--output", _new(folder / "search"), "--weights", weights),
        *("--allow-unlisted", "--fine-tune-epochs", "0", "--balance", "none", "--space", space),
        *("--max-trials", str(TRIALS), "--epochs", str(epochs), "--batch-size", str(BATCH_SIZE)),
        *("--precision-policy", policy, "--seed", str(SEED), "--json", report),
    )
    begin = time.perf_counter()
    alone = run_script(
        *("tuner_alone.py", table, weights, "--trials", str(TRIALS), "--epochs", str(epochs)),
        *("--patience", str(PATIENCE), "--batch-size", str(BATCH_SIZE), "--seed", str(SEED)),
        *("--policy", policy),
    )
    theirs = time.perf_counter() - begin
    trials = read_json(report)["trials"]
    best, best_alone = trials[0]["score"], max(alone["scores"])
    share = (best + best_alone) / 2
    noise = 1.96 * math.sqrt(2 * share * (1 - share) / validation_images)
    print(f"{theirs / ours:.1f} times; best {best:.3f} and {best_alone:.3f}, within {noise:.3f} by chance")
    return {
        "images": images,
        "validation_images": validation_images,
        "trials": TRIALS,
        "epochs": epochs,
        "policy": policy,
        "seconds": {"medimg": ours, "keras_tuner": theirs, "ratio": theirs / ours, "target": TARGET},
        "best_val_accuracy": {
            "medimg": best,
            "keras_tuner": best_alone,
            "difference_by_chance_95": noise,
            "within_noise": abs(best - best_alone) <= noise,
        },
        "medimg_trial_seconds": [trial["figures"]["seconds"] for trial in trials],
    }


def _write_table(data: Path, count: int, table: Path) -> int:
    """List evenly chosen training images, every fourth of them for validation; give how many validate."""
    part = read_data(data).part("train")
    chosen = part.samples[:: max(1, len(part) // count)][:count]
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for number, item in enumerate(chosen):
            split = "train" if number % 4 else "val"
            rows.writerow([data / item.name, part.labels[item.label or 0], split])
    return len(range(0, len(chosen), 4))


def _new(folder: Path) -> Path:
    """Name a folder that is not there yet; an earlier search stays."""
    number = 0
    while (found := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return found
