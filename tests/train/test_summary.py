from dataclasses import replace

import pytest

from medimg.runtime.metrics import ClassMetrics, Evaluation
from medimg.train import FitResult
from medimg.train.evaluation import ModelEvaluation
from medimg.train.summary import evaluation_lines, fit_lines

FIGURES = Evaluation(
    images=5,
    accuracy=0.8,
    per_class=(ClassMetrics("cyst", 5, 0.8, 1.0, 8 / 9), ClassMetrics("normal", 0, float("nan"), 0.0, 0.0)),
    confusion=((4, 1), (0, 0)),
)
MEASURED = ModelEvaluation("m.h5", "images", "test", False, "keras", "fp32", FIGURES)


def test_figures_as_tables() -> None:
    assert evaluation_lines(MEASURED) == [
        "m.h5 on the part test of images (keras, fp32):",
        "accuracy 0.800 on 5 images",
        "",
        "class   images  recall  precision     F1",
        "cyst         5   0.800      1.000  0.889",
        "normal       0       -      0.000  0.000",
        "",
        "true \\ predicted",
        "        cyst  normal",
        "cyst       4       1",
        "normal     0       0",
    ]


def test_simulated_images_are_said_to_be_simulated() -> None:
    assert "simulated" in evaluation_lines(replace(MEASURED, simulated_data=True))[-1]


def test_control_characters_of_labels_are_not_printed() -> None:
    hostile = replace(FIGURES.per_class[0], label="cyst\x1b[2J")
    shown = evaluation_lines(
        replace(MEASURED, evaluation=replace(FIGURES, per_class=(hostile, FIGURES.per_class[1])))
    )
    assert "\x1b" not in "".join(shown)


@pytest.mark.parametrize("made", ["scratch", "fine_tuned"])
def test_the_summary_of_a_training_says_what_to_type_next(made: str, request: pytest.FixtureRequest) -> None:
    result: FitResult = request.getfixturevalue(made)
    lines = fit_lines(replace(result, output="my model.h5"), "the images")
    text = "\n".join(lines)
    for phase in result.phases:
        assert phase.name in text
    assert f"accuracy {result.validation.accuracy:.3f} on {result.validation.images} images" in lines
    assert "next:  medimg-train evaluate 'my model.h5' 'the images'" in lines
    assert "medimg-export 'my model.h5' --precision fp32" in text
