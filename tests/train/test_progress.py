import io
import sys

import pytest

from medimg.train.progress import Progress
from medimg.train.verbs.terminal_progress import TerminalProgress


class Terminal(io.StringIO):
    """Takes what a terminal would be shown."""

    def isatty(self) -> bool:
        return True


def test_a_counter_shows_how_far_it_is_and_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with TerminalProgress().counter("head", 4) as advance:
        for step in range(4):
            advance(f"epoch {step // 2 + 1}/2  loss 0.{step}")
    lines = shown.getvalue().split("\r")
    assert any("head" in line and "50%" in line and "epoch 1/2  loss 0.1" in line for line in lines)
    assert any("100%" in line and "epoch 2/2  loss 0.3" in line for line in lines)


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().counter("head", 2) as advance:
        advance("epoch 1/1")
    assert capsys.readouterr() == ("", "")
