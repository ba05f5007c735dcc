"""INT8 on processors whose sums of 8-bit products saturate: who answers, and what is said of the other."""

from pathlib import Path

import pytest

from medimg.runtime import backends
from medimg.runtime.backends import choose_backend
from medimg.runtime.machine.cpus import saturates_in_int8
from medimg.runtime.model.spec import Precision


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [("sse4_1 avx2", True), ("avx2 avx512f avx512_vnni", False), ("avx2 avx_vnni", False), ("asimd", False)],
)
def test_the_instruction_sets_tell(tmp_path: Path, flags: str, saturates: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"model name : any\nflags\t: {flags}\n")
    assert saturates_in_int8(tmp_path) is saturates


@pytest.mark.parametrize(
    ("precision", "saturates", "chosen"),
    [
        ("int8", True, "onnxruntime"),
        ("int8", False, "openvino"),
        ("fp32", True, "openvino"),
    ],
)
def test_auto_takes_the_back_end_that_is_exact(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, saturates: bool, chosen: str
) -> None:
    monkeypatch.setattr(backends, "saturates_in_int8", lambda: saturates)
    choice = choose_backend(precision, device="cpu")
    assert choice.backend == chosen
    assert ("saturates" in choice.reason) == (chosen == "onnxruntime")
