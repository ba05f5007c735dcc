import json
from pathlib import Path

import pytest

import training_figures
from training_figures import summarised, table


def run(seed: int, accuracy: float) -> dict[str, object]:
    estimate = {"value": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.03}
    return {
        "seed": seed,
        "validation_accuracy": 0.97,
        "test_images": 624,
        "accuracy": estimate,
        "roc_auc": estimate,
    }


def test_the_page_shows_every_seed_their_mean_and_what_is_published() -> None:
    page = table({"pneumoniamnist": summarised([run(0, 0.87), run(1, 0.89)])})
    assert "| pneumoniamnist | medimg, seed 1 | 624 | 0.890 (0.85–0.92) | 0.890 (0.85–0.92) | 0.970 |" in page
    assert "| **medimg, mean** |  | **0.880** |" in page
    assert "| pneumoniamnist | ResNet-18 (28 px) |  | 0.854 | 0.944 |  |" in page


def test_no_test_part_is_read_before_every_model_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDIMG_TEST_DATA", "/real")
    monkeypatch.setattr(training_figures, "ROOT", tmp_path)
    monkeypatch.setattr(training_figures, "TABLE", tmp_path / "training.md")
    called: list[list[str]] = []

    def answer(*command: str | Path) -> float:
        words = list(map(str, command))
        called.append(words)
        written: dict[str, object] = {"seconds": 60.0, "validation": {"accuracy": 0.9}}
        if words[1] == "evaluate":
            estimate = {"value": 0.8, "low": 0.7, "high": 0.9}
            kinds = ("accuracy", "balanced_accuracy", "roc_auc", "pr_auc")
            scores = {"images": 5, **dict.fromkeys(kinds, estimate)}
            written = {"scores": scores, "resampling": {}, "reliability": {"ece": estimate}}
        (tmp_path / words[words.index("--json") + 1]).write_text(json.dumps(written))
        return 1.0

    monkeypatch.setattr(training_figures, "run_command", answer)
    found = training_figures.training_real_sets()
    assert [words[1] for words in called] == ["fit"] * 9 + ["evaluate"] * 9
    assert {words[words.index("--seed") + 1] for words in called[:9]} == {"0", "1", "2"}
    assert not found["bar_held"]
    assert found["sets"]["cifar-10"]["mean_accuracy"] == pytest.approx(0.8)
    assert "cifar-10" in (tmp_path / "training.md").read_text()
