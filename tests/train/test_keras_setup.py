import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medimg.train.keras_setup import choose_policy, start_keras


def write_cpuinfo(root: Path, text: str) -> None:
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(text)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("processor : 0\nflags\t\t: fpu avx512_bf16 sse\n", "mixed_bfloat16"),
        ("flags\t\t: fpu amx_bf16\n", "mixed_bfloat16"),
        ("Features\t: fp asimd bf16\n", "mixed_bfloat16"),
        ("model name : bf16\nflags : fpu avx2\n", "float32"),
        ("", "float32"),
    ],
)
def test_auto_follows_the_processor(text: str, policy: str, tmp_path: Path) -> None:
    write_cpuinfo(tmp_path, text)
    assert choose_policy("auto", root=tmp_path) == policy


@pytest.mark.parametrize(
    ("gpus", "policy"),
    [
        ([(9, 0), (8, 0)], "mixed_bfloat16"),
        ([(7, 5)], "mixed_float16"),
        ([(9, 0), (7, 0)], "mixed_float16"),
        ([(6, 1)], "float32"),
    ],
)
def test_auto_follows_the_oldest_gpu(gpus: list[tuple[int, int]], policy: str, tmp_path: Path) -> None:
    write_cpuinfo(tmp_path, "flags : amx_bf16")
    assert choose_policy("auto", gpus, tmp_path) == policy


def test_auto_without_a_description_is_float32(tmp_path: Path) -> None:
    assert choose_policy("auto", root=tmp_path) == "float32"


def test_a_policy_asked_for_is_kept(tmp_path: Path) -> None:
    write_cpuinfo(tmp_path, "flags : amx_bf16")
    assert choose_policy("float32", root=tmp_path) == "float32"


@pytest.mark.long
def test_starting_is_quiet_and_sets_threads() -> None:
    code = (
        "from medimg.train.keras_setup import start_keras; start_keras(1, 0)\n"
        "import tensorflow as tf; print(tf.config.threading.get_intra_op_parallelism_threads())"
    )
    clean = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout == "1\n"
    assert done.stderr == ""


def test_threads_that_can_no_longer_be_set_are_told(caplog: pytest.LogCaptureFixture) -> None:
    import tensorflow

    tensorflow.zeros(1)
    with caplog.at_level(logging.WARNING):
        start_keras(threads=57)
    assert "its own number of threads" in caplog.text
