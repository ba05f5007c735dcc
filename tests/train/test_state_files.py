"""What says how far a long run has come: damaged, it is named, with the way out."""

from pathlib import Path

import pytest

from medimg.runtime.errors import UsageError
from medimg.train.state_files import read_state


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_damage_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mark.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"mark\.json: damaged \(.*\): begin anew"):
        read_state(tmp_path / "mark.json", "begin anew")
