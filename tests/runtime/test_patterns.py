"""Regular expressions from options and model files: right, or told what is wrong, in bounded time."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.runtime.data import DataSet, Sample
from medimg.runtime.data.patients import with_patients
from medimg.runtime.errors import DataError
from medimg.runtime.files import patterns
from medimg.runtime.files.patterns import fault_of_pattern, find_parts


@given(pattern=st.text("ab(?P<patient>.*+[]{}1,9\\|^$)", max_size=30))
def test_any_text_is_a_pattern_or_has_its_fault(pattern: str) -> None:
    if fault_of_pattern(pattern) is None:
        assert re.compile(pattern).groups


@settings(max_examples=5, deadline=None)
@given(names=st.lists(st.text("p0123456789/é\udcff.", max_size=12), max_size=8))
def test_parts_are_those_of_re(names: list[str]) -> None:
    for pattern in (r"(\d+)", r"x|(p)(?P<patient>\d*)", "(.+)"):
        group = "patient" if "patient" in pattern else 1
        found = [re.search(pattern, name) for name in names]
        assert find_parts(pattern, names) == [match and match[group] for match in found]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "is no regular expression"),
        ("train", "has no group"),
        ("(" * 900, "is no regular expression"),
        ("(a)" * 500, "has 1500 characters; 1000 are the most"),
        ("(a{99999999999})", "is no regular expression"),
        (r"((.|.)*)*\x00(x)", "takes more than 1 s for 2 paths"),
        (r"(a*)*b", "takes more than 1 s for 2 paths"),
    ],
)
def test_what_is_wrong_with_a_pattern_is_told(
    pattern: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "_LEAST_S", 1.0)
    pixels = np.zeros((8, 8), np.uint8)
    dataset = DataSet(("x",), tuple(Sample("a" * 40, pixels, 0) for _ in range(2)))
    started = time.monotonic()
    with pytest.raises(DataError, match="the pattern") as raised:
        with_patients(dataset, pattern, 1)
    assert reason in str(raised.value)
    assert time.monotonic() - started < 20


def test_a_name_that_the_pattern_does_not_fit_is_named() -> None:
    dataset = DataSet(("x",), (Sample("p1/a.png", Path("a"), 0), Sample("b.png", Path("b"), 0)))
    with pytest.raises(DataError, match=r"'\(p\.\)/' finds no patient in 1 of 2 paths \(b\.png\)"):
        with_patients(dataset, "(p.)/", 1)
