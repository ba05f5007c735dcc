from pathlib import Path

import tuning_figures
from medimg.runtime.data import read_data
from medimg.train import FitOptions, simulate
from medimg.train.tuning.search_space import read_space


def test_both_sides_get_the_same_division(tmp_path: Path) -> None:
    simulate(tmp_path / "set", train=10, test=2, size=32)
    table = tmp_path / "images.csv"
    validating = tuning_figures._write_table(tmp_path / "set", 20, table)
    data = read_data(table)
    train, validation = data.part("train"), data.part("val")
    assert (len(train), len(validation)) == (15, 5) == (15, validating)
    assert set(train.truth) == set(validation.truth) == {0, 1, 2, 3}
    assert not {sample.name for sample in train.samples} & {sample.name for sample in validation.samples}


def test_the_space_is_one_that_tune_takes(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(tuning_figures.SPACE)
    space = read_space(tmp_path / "space.toml", FitOptions(fine_tune_epochs=0))
    assert set(space.parameters) == {"dense_layers", "dense_units", "dropout", "learning_rate"}
