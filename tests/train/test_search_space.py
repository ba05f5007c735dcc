from pathlib import Path

import pytest

from medimg.runtime.errors import UsageError
from medimg.train import FitOptions
from medimg.train.fitting.options import Arch
from medimg.train.networks.options import ARCHS
from medimg.train.tuning.search_space import Choice, Range, SearchSpace, default_space, read_space

BASE = FitOptions(arch="cnn", image_size=32)


def written(folder: Path, text: str) -> Path:
    path = folder / "space.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_becomes_ranges_and_choices(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        learning_rate = { low = 1e-4, high = 1e-2, sampling = "log" }
        dropout = { low = 0, high = 0.6, step = 0.2 }
        [filters]
        low = 8
        high = 64
        [dense_units]
        choices = ["none", 64, 256]
        """,
    )
    assert read_space(path, BASE) == SearchSpace(
        {
            "learning_rate": Range(1e-4, 1e-2, "log"),
            "dropout": Range(0, 0.6, step=0.2),
            "filters": Range(8, 64, whole=True),
            "dense_units": Choice(("none", 64, 256)),
        }
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = [", "not a readable TOML file"),
        ("", "names nothing to search"),
        ("[speed]\nlow = 1\nhigh = 2", "[speed]: is nothing to search; activation, "),
        ("[image_size]\nchoices = [32, 64]", "[image_size]: all trials share"),
        ("[seed]\nlow = 1\nhigh = 2", "[seed]: is nothing to search"),
        ("dropout = 0.5", "[dropout]: is no table"),
        ("[dropout]\nhigh = 0.5", "[dropout]: low is no number"),
        ("[dropout]\nlow = 0\nhigh = 1.5", "dropout 1.5 is not from 0 to below 1"),
        ("[dropout]\nlow = 0.5\nhigh = 0.2", "low 0.5 is not below high 0.2"),
        ("[dropout]\nlow = 0\nhigh = nan", "high is no number: nan"),
        ("[l2]\nlow = 0\nhigh = 1\nsampling = 'log'", "log sampling needs numbers above 0"),
        ("[l2]\nlow = 0\nhigh = 1\nsampling = 'even'", "sampling 'even' is not one of linear, log"),
        ("[l2]\nlow = 0.1\nhigh = 1\nsampling = 'log'\nstep = 1", "step 1 is not above 1"),
        ("[filters]\nlow = 8\nhigh = 9.5", "high is no whole number: 9.5"),
        ("[filters]\nlow = 8\nhigh = 16\nsize = 2", "unknown key 'size'"),
        ("[activation]\nlow = 8\nhigh = 16", "is no number: give choices"),
        ("[activation]\nchoices = []", "choices is no list"),
        ("[activation]\nchoices = ['relu', 'relu']", "named twice"),
        ("[activation]\nchoices = ['relu', 'swish']", "[activation]: 'swish' is no value of it"),
        ("[blocks]\nchoices = [3, 6]", "[blocks]: image size 32: nothing is left"),
        ("[batch_size]\nchoices = [8, 'all']", "'all' is no value of it"),
        ("[batch_size]\nchoices = [8]\nstep = 2", "choices stand alone"),
    ],
)
def test_what_no_trial_could_take_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_space(path, BASE)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_usual_space_fits_its_architecture(arch: Arch) -> None:
    base = FitOptions(arch=arch, image_size=32)
    space = default_space(base)
    assert {"learning_rate", "dropout", "l2", "batch_size", "activation", "dense_units"} <= {
        *space.parameters
    }
    for name, parameter in space.parameters.items():
        for value in parameter.ends:
            FitOptions(**{"arch": arch, "image_size": 32, **space.drawn({name: value})})


def test_without_fine_tuning_no_blocks_are_unfrozen() -> None:
    assert "unfreeze_blocks" in default_space(FitOptions()).parameters
    assert "unfreeze_blocks" not in default_space(FitOptions(fine_tune_epochs=0)).parameters
    assert "unfreeze_blocks" not in default_space(FitOptions(weights="none")).parameters


def test_images_too_small_for_a_choice_leave_it_out() -> None:
    blocks = default_space(FitOptions(arch="cnn", image_size=32, padding="valid", blocks=3)).parameters[
        "blocks"
    ]
    assert blocks == Choice((3,))


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Range(1e-4, 1, "log"), (1e-4, 1e-3, 1e-2, 0.1, 1.0)),
        (Range(0.1, 0.5), (0.1, 0.2, 0.3, 0.4, 0.5)),
        (Range(0, 0.5, step=0.2), (0, 0.2, 0.4)),
        (Range(8, 64, "log", step=2, whole=True), (8, 16, 32, 64)),
        (Range(1, 3, whole=True), (1, 2, 3)),
        (Choice(("relu", "gelu")), ("relu", "gelu")),
    ],
)
def test_a_grid_tries_steps_or_five_values(parameter: Range | Choice, values: tuple[float, ...]) -> None:
    assert parameter.grid == values


def test_words_and_numbers_come_back_as_they_were() -> None:
    from keras_tuner import HyperParameters

    choices = ("none", 64, 256)
    space = SearchSpace(
        {"dense_units": Choice(choices), "l2": Choice((0.0, 0.1)), "dense_layers": Choice((1, 2))}
    )
    for seed in range(20):
        declared = HyperParameters()
        space.declare(declared, BASE)
        drawn = space.drawn({item.name: item.random_sample(seed) for item in declared.space})
        assert drawn["dense_units"] in (None, 64, 256)
        assert drawn["l2"] in (0.0, 0.1)
        assert drawn["dense_layers"] in (1, 2)
