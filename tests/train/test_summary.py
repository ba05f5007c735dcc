from dataclasses import replace

import pytest

from medimg.train import FitResult
from medimg.train.fitting.summary import fit_lines


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
    assert "medimg-train calibrate 'my model.h5' 'the images' --seed 0 --validation-fraction 0.3" in text
