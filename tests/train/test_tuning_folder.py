"""What a search leaves behind that ends before its first trial."""

import sys
from pathlib import Path

import pytest

from medimg.runtime.errors import DataError
from medimg.train import FitOptions, tune
from medimg.train.tuning.tune import SEARCH, SETTINGS

MODULE = sys.modules[tune.__module__]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_search_that_is_refused_leaves_nothing_to_go_on_with(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: FitOptions, there_before: bool
) -> None:
    folder = tmp_path / "search"
    if there_before:
        folder.mkdir()

    def refused(*_given: object) -> None:
        assert (folder / SETTINGS).is_file()
        raise DataError("an image cannot be read")

    monkeypatch.setattr(MODULE, "_search", refused)
    for _ in range(2):  # the second is not told of a search that is there
        with pytest.raises(DataError, match="an image cannot be read"):
            tune(simulated, folder, training=tiny)
    assert list(tmp_path.iterdir()) == ([folder] if there_before else [])
    assert not there_before or not list(folder.iterdir())


def test_a_search_that_has_trials_keeps_them(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: FitOptions
) -> None:
    def broken_off(folder: Path, *_given: object) -> None:
        (folder / SEARCH).mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "_search", broken_off)
    with pytest.raises(KeyboardInterrupt):
        tune(simulated, tmp_path / "search", training=tiny)
    assert {path.name for path in (tmp_path / "search").iterdir()} == {SEARCH, SETTINGS}
