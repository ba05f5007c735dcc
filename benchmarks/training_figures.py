"""What fine-tuning reaches on the real sets at default settings; writes docs/results/training.md too."""

import os
import statistics
from pathlib import Path
from typing import Any

from commands import read_json, run_command
from registry import REAL_SETS, ROOT, SCRATCH, commit, figure

NAME = "training-real-sets"
SEEDS = (0, 1, 2)
BAR = 0.854
"""ResNet-18 at 28 pixels on PneumoniaMNIST, which the mean of the seeds has to reach."""
PUBLISHED: dict[str, tuple[tuple[str, float, float], ...]] = {
    "pneumoniamnist": (
        ("ResNet-18 (28 px)", 0.854, 0.944),
        ("ResNet-18 (224 px)", 0.864, 0.956),
        ("Google AutoML Vision", 0.946, 0.991),
    )
}
"""Test accuracy and AUC from J. Yang et al., MedMNIST v2, Scientific Data 10 (2023), 41."""
TABLE = ROOT / "docs" / "results" / "training.md"

HEAD = f"""# Fine-tuned VGG16 on real sets

`medimg-train fit` at default settings with ImageNet weights, three seeds. Everything was chosen on
validation images; each test part was read once, by `medimg-train evaluate` after the last fit. In
brackets: 95 % bootstrap intervals over the test images. The AUC is that of the second of two classes,
else the mean of the classes, each against the rest. The training part of pneumoniamnist is a subset
(3,882 of 4,708 images), its test part is whole. The test part of brain-mri is unlike its training part,
of which the validation images are a share. Published figures: J. Yang et al., MedMNIST v2,
Scientific Data 10 (2023), 41.

`benchmarks/results/{NAME}.json` holds the raw figures, commit and machine; `python benchmarks/figures.py
{NAME}` measures anew.

| Set | Model | Test images | Accuracy | AUC | On validation images |
|---|---|---|---|---|---|"""


@figure(NAME)
def training_real_sets() -> dict[str, Any]:
    """VGG16 fine-tuned on each real set at default settings; each test part is read once, at the end."""
    for name in REAL_SETS:
        for seed in SEEDS:
            fine_tuned(name, seed)
    sets = {name: summarised([_evaluate(name, seed) for seed in SEEDS]) for name in REAL_SETS}
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(sets), encoding="utf-8")
    return {
        "seeds": SEEDS,
        "published": PUBLISHED,
        "pneumoniamnist_bar": BAR,
        "bar_held": sets["pneumoniamnist"]["mean_accuracy"] >= BAR,
        "sets": sets,
    }


def path_of(name: str, seed: int = 0) -> Path:
    """Say where `fine_tuned` puts a model."""
    return SCRATCH / NAME / f"{name}-{seed}.h5"


def fine_tuned(name: str, seed: int = 0) -> Path:
    """Train VGG16 at default settings, choosing by validation images alone; models of earlier runs are kept.

    Args:
        name: a key of `REAL_SETS`.
        seed: of the division and the training.

    Returns:
        The model; `.fit.json` beside it is what `fit` reported, `.commit` names the code that trained it.
    """
    real, model = Path(os.environ["MEDIMG_TEST_DATA"]), path_of(name, seed)
    (ROOT / model).parent.mkdir(parents=True, exist_ok=True)
    weights, report = real / "weights" / "vgg16_imagenet_notop.h5", model.with_suffix(".fit.json")
    by = ROOT / model.with_suffix(".commit")
    if by.exists():
        return model
    run_command(
        *("medimg-train", "fit", real / REAL_SETS[name], "--output", model, "--seed", str(seed)),
        *("--weights", weights, "--json", report),
    )
    by.write_text(commit(), encoding="utf-8")
    return model


def trained_by(model: Path) -> str:
    """Name the commit whose code trained a model of `fine_tuned`."""
    return (ROOT / model.with_suffix(".commit")).read_text(encoding="utf-8")


def _evaluate(name: str, seed: int) -> dict[str, Any]:
    """Read the test part, once."""
    model = fine_tuned(name, seed)
    answer = model.with_suffix(".test.json")
    images = Path(os.environ["MEDIMG_TEST_DATA"]) / REAL_SETS[name]
    run_command("medimg-train", "evaluate", model, images, "--json", answer)
    trained, found = read_json(ROOT / model.with_suffix(".fit.json")), read_json(ROOT / answer)
    kept = ("accuracy", "balanced_accuracy", "roc_auc", "pr_auc")
    return {
        "seed": seed,
        "trained_by": trained_by(model),
        "fit_s": round(trained["seconds"], 1),
        "validation_accuracy": trained["validation"]["accuracy"],
        "test_images": found["scores"]["images"],
        "resampling": found["resampling"],
        **{figure_name: found["scores"][figure_name] for figure_name in kept},
        "ece": found["reliability"]["ece"],
    }


def summarised(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the mean over the seeds before the runs."""
    return {
        **{
            f"mean_{kind}": statistics.mean(run[kind]["value"] for run in runs)
            for kind in ("accuracy", "roc_auc")
        },
        "runs": runs,
    }


def table(sets: dict[str, Any]) -> str:
    """Write the page.

    Args:
        sets: what `summarised` gave for each set.
    """
    lines = [HEAD]
    for name, found in sets.items():
        lines += [
            _row(
                name,
                f"medimg, seed {run['seed']}",
                str(run["test_images"]),
                _with_interval(run["accuracy"]),
                _with_interval(run["roc_auc"]),
                f"{run['validation_accuracy']:.3f}",
            )
            for run in found["runs"]
        ]
        means = (f"**{found[kind]:.3f}**" for kind in ("mean_accuracy", "mean_roc_auc"))
        lines.append(_row(name, "**medimg, mean**", "", *means, ""))
        lines += [
            _row(name, model, "", f"{accuracy:.3f}", f"{auc:.3f}", "")
            for model, accuracy, auc in PUBLISHED.get(name, ())
        ]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _with_interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.2f}–{estimate['high']:.2f})"
