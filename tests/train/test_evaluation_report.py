"""The report in a real browser, and the summary on a terminal of 80 columns."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import Intensity, ModelSpec
from medimg.runtime.statistics.bootstrap import Estimate, Resamples
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.evaluate import ModelEvaluation, count
from medimg.train.evaluation.heatmaps import NO_POOLED_HEAD, Maps
from medimg.train.evaluation.operating_points import choose_point, measure_point
from medimg.train.evaluation.reliability import measure_reliability
from medimg.train.evaluation.report import PATIENT_IMAGES, mistake_blocks, render
from medimg.train.evaluation.scores import score
from medimg.train.evaluation.subgroups import measure_subgroups
from medimg.train.evaluation.summary import COLLAPSED, WIDTH, evaluation_lines

Made = Callable[..., Answers]
HOSTILE = "<img src=x onerror=document.title='owned'> $x$"
SPEC = ModelSpec(("a", "b"), ImageRule(28, 28), Intensity.named("unit"), intended_use="tests <only>")


def evaluated(answers: Answers, chosen_on: Answers | None = None) -> ModelEvaluation:
    """All that `evaluate` gives, without a model."""
    resamples = Resamples(answers.patients, draws=100)
    points = [choose_point(chosen_on, chosen_on.labels[-1], 0.9, "the part val")] if chosen_on else []
    return ModelEvaluation(
        model="/somewhere/model.h5",
        data="/somewhere/images.csv",
        part="test",
        simulated_data=False,
        backend="keras",
        precision="fp32",
        evaluation=count(answers),
        resampling=resamples.resampling,
        scores=score(answers, resamples),
        reliability=measure_reliability(answers, resamples),
        operating_points=tuple(measure_point(answers, point, resamples) for point in points),
        subgroups=measure_subgroups(answers, "ward", points) if answers.samples[0].attributes else (),
    )


def browse(page: Path) -> str:
    browser = shutil.which("chromium")
    assert browser, "no chromium: install the package chromium"
    quiet = [
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def maps(images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Maps:
    ramp = np.linspace(-1, 1, 7, dtype=np.float32)[None, :, None, None] * np.ones((len(images), 1, 7, 1))
    return np.concatenate([ramp, -ramp], axis=3).astype(np.float32)


@pytest.mark.real
def test_a_browser_shows_every_figure_and_runs_nothing(
    regression: tuple[Answers, Answers], tmp_path: Path
) -> None:
    validation, test = (replace(item, labels=("normal", HOSTILE)) for item in regression)
    wards = ("A", "B", "", HOSTILE)
    samples = tuple(
        replace(sample, attributes={"ward": wards[min(number // 200, 3)]})
        for number, sample in enumerate(test.samples)
    )
    test = replace(test, samples=samples)
    result = evaluated(test, validation)
    page = tmp_path / "report.html"
    page.write_text(render(result, test, SPEC, mistake_blocks(test, SPEC.image, maps)))
    shown = browse(page)
    assert "<title>Evaluation of model.h5</title>" in shown
    heads = [
        *("Warnings", "What was measured", "Figures", "Classes", "Curves", "Calibration"),
        *("Operating points", "Subgroups", "Worst mistakes"),
    ]
    places = [shown.index(f">{head}<") for head in heads]
    assert places == sorted(places)
    assert PATIENT_IMAGES in shown
    assert str(result.scores.accuracy) in shown
    assert "tests &lt;only&gt;" in shown
    assert "24 (small)" in shown
    assert "sensitivity 0.9 on the part val" in shown
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/svg\+xml;base64,', shown)) == 4
    assert len(re.findall(r'<img alt="test\[\d+\]: [^"]+" src="data:image/png;base64,', shown)) == 12
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    assert HOSTILE not in text
    assert "/somewhere" not in text


def test_without_images_the_page_holds_no_name_of_one(made: Made) -> None:
    answers = made(3, 80, seed=1)
    text = render(evaluated(answers), answers, SPEC)
    assert ".png" not in text
    assert PATIENT_IMAGES not in text
    assert "image/png" not in text


def test_mistakes_without_heat_maps_say_why(made: Made) -> None:
    answers = made(3, 30, seed=1)
    said, *pictures = mistake_blocks(answers, SPEC.image, NO_POOLED_HEAD)
    assert NO_POOLED_HEAD in str(said)
    assert pictures
    assert mistake_blocks(replace(answers, shown=answers.decided), SPEC.image, maps) == ["There is none."]


def test_curves_of_a_class_that_no_image_shows_are_left_out(made: Made) -> None:
    answers = made(3, 60, seed=1)
    without = replace(
        answers, shown=np.stack([answers.shown[:, 0], ~answers.shown[:, 0], np.zeros(60, bool)], 1)
    )
    assert "Precision over recall" in render(evaluated(without), without, SPEC)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("label", ["cyst", "a very long name of a class, with <b> and \x1b[2J"])
def test_lines_fit_a_terminal_of_80_columns(classes: int, label: str, made: Made) -> None:
    answers = made(classes, 300, seed=1)
    samples = tuple(
        replace(sample, patient=str(number // 3), attributes={"ward": label[: number // 280 * 20]})
        for number, sample in enumerate(answers.samples)
    )
    labels = tuple(f"{label}{number}" for number in range(classes))
    answers = replace(answers, labels=labels, samples=samples)
    lines = evaluation_lines(evaluated(answers, answers))
    assert max(map(len, lines[1:])) <= WIDTH
    assert "\x1b" not in "".join(lines)
    assert "95 % intervals by the bootstrap over 100 patients (100 draws, seed 0)." in lines
    assert any("too few to tell much" in line for line in lines)


def test_a_wide_confusion_matrix_has_numbers_for_heads(made: Made) -> None:
    answers = made(3, 200, seed=1)
    copies = [answers.probabilities / 4] * 4
    shown = np.hstack([answers.shown, np.zeros((200, 9), bool)])
    labels = tuple(f"{name} {copy}" for copy in range(4) for name in answers.labels)
    wide = replace(answers, labels=labels, shown=shown, probabilities=np.hstack(copies))
    lines = evaluation_lines(evaluated(wide))
    assert max(map(len, lines[1:])) <= WIDTH
    assert any(line.startswith("12 solid 3") for line in lines)


def test_an_interval_is_written_with_its_value() -> None:
    assert str(Estimate(0.8771, 0.851, 0.899)) == "0.877 (95 %: 0.85–0.90)"
    assert Estimate(0.8771, 0.851, 0.899).short == "0.877 (0.85–0.90)"
    assert str(Estimate(float("nan"), 0, 1)) == "-"
    assert str(Estimate(0.5, float("nan"), 1)) == "0.500 (95 %: -)"


def test_an_interval_without_width_is_explained(made: Made) -> None:
    answers = made(2, 40, seed=1)
    assert COLLAPSED not in evaluation_lines(evaluated(answers))
    perfect = replace(answers, shown=answers.decided)
    assert COLLAPSED in evaluation_lines(evaluated(perfect))
