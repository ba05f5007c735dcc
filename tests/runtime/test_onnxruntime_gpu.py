"""ONNX Runtime on the GPU, as far as a machine without one can show it: refusals, placement, bound memory.

Does not show that its CUDA provider gives right answers: the tests marked `gpu` do.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medimg.runtime.backends import with_onnxruntime
from medimg.runtime.backends.with_onnxruntime import (
    OnnxRuntimeBackend,
    _run_bound,
    require_shapes_alone_on_cpu,
)
from medimg.runtime.errors import BackendError, GpuMemoryError
from medimg.runtime.model.containers import Artefact, open_onnx


@pytest.fixture
def artefact(ready_artefact: Path) -> Artefact:
    return open_onnx(ready_artefact)


def session_of(artefact: Artefact, **entries: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    return onnxruntime.InferenceSession(artefact.content, options, ["CPUExecutionProvider"])


def test_cuda_that_is_not_there_is_an_error(artefact: Artefact) -> None:
    """ONNX Runtime itself would run on the CPU and say nothing."""
    with pytest.raises(
        BackendError, match=r"built without CUDA|refuses it on gpu:0|gave CPUExecutionProvider"
    ):
        OnnxRuntimeBackend(artefact, "gpu:0", 1, "latency")


def test_int8_is_refused_with_the_way_out(artefact: Artefact) -> None:
    int8 = Artefact(artefact.path, artefact.spec.with_(precision="int8"), artefact.content)
    with pytest.raises(
        BackendError, match=r"no INT8 convolutions on the GPU.*TensorRT engine.*fp16 file.*cpu"
    ):
        OnnxRuntimeBackend(int8, "gpu:0", 1, "latency")


def test_bound_memory_gives_the_same_answers(artefact: Artefact) -> None:
    session = session_of(artefact)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    (expected,) = session.run(["probabilities"], {"image": images})
    for part in (images, images[::2], images[:1]):
        (found,) = _run_bound(session, part, ("probabilities",), ("cpu", 0))
        assert found.shape == (len(part), 3)
    (found,) = _run_bound(session, images, ("probabilities",), ("cpu", 0))
    np.testing.assert_array_equal(found, expected)


def test_nodes_on_the_cpu_are_read_and_named(artefact: Artefact) -> None:
    """Every node of this session runs on the CPU, and most are no arithmetic on shapes."""
    session = session_of(artefact, record_ep_graph_assignment_info="1")
    with pytest.raises(
        BackendError, match=r"would run on the CPU in part: .*/Conv \(Conv\).* and \d+ more: choose"
    ):
        require_shapes_alone_on_cpu(artefact, session)


def placed(*nodes: tuple[str, str, str]) -> Any:
    """A session whose nodes, (name, operator, provider), run where they say."""
    parts = [
        SimpleNamespace(ep_name=provider, get_nodes=partial(list, [SimpleNamespace(name=name, op_type=kind)]))
        for name, kind, provider in nodes
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_arithmetic_on_shapes_may_stay_on_the_cpu(artefact: Artefact) -> None:
    nodes = (("conv", "Conv", CUDA), ("shape", "Shape", CPU), ("cut", "Gather", CPU), ("join", "Concat", CPU))
    require_shapes_alone_on_cpu(artefact, placed(*nodes))
    with pytest.raises(BackendError, match=r"in part: pool \(MaxPool\): choose --device cpu"):
        require_shapes_alone_on_cpu(artefact, placed(*nodes, ("pool", "MaxPool", CPU)))
    with pytest.raises(BackendError, match="does not say which: pip install --upgrade onnxruntime-gpu"):
        require_shapes_alone_on_cpu(artefact, SimpleNamespace())


@pytest.fixture
def cuda_sessions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Sessions that are asked for, each answered by the next of `outcomes`."""
    asked: list[dict[str, Any]] = []

    def open_session(_artefact: Any, _device: str, _threads: int, entries: Any, providers: list[Any]) -> Any:
        asked.append({"entries": entries, "providers": providers})
        outcome = asked[0]["outcomes"][len(asked) - 2] if "outcomes" in asked[0] else None
        if isinstance(outcome, BackendError):
            raise outcome
        return outcome

    monkeypatch.setattr(with_onnxruntime, "_open", open_session)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    return asked


def test_a_graph_with_arithmetic_on_shapes_gets_a_second_session(
    artefact: Artefact, cuda_sessions: list[dict[str, Any]]
) -> None:
    session = placed(("conv", "Conv", CUDA), ("shape", "Shape", CPU))
    session.get_providers = lambda: [CUDA, CPU]
    cuda_sessions.append({"outcomes": [BackendError("strict"), session]})
    backend = OnnxRuntimeBackend(artefact, "gpu:3", 1, "latency")
    assert (backend.device, backend.precision) == ("gpu:3", "fp32")
    strict, read = cuda_sessions[1:]
    assert strict["entries"] == {"session.disable_cpu_ep_fallback": "1"}
    ((name, options),) = strict["providers"]
    assert (name, options["device_id"], options["use_tf32"]) == (CUDA, "3", "0")
    assert read["entries"] == {"session.record_ep_graph_assignment_info": "1"}
    assert read["providers"][1] == CPU


def test_a_second_session_on_the_cpu_is_no_way_out(
    artefact: Artefact, cuda_sessions: list[dict[str, Any]]
) -> None:
    fallen_back = SimpleNamespace(get_providers=lambda: [CPU])
    cuda_sessions.append({"outcomes": [BackendError("libcudnn.so.9 is missing"), fallen_back]})
    with pytest.raises(BackendError, match=r"libcudnn\.so\.9 is missing"):
        OnnxRuntimeBackend(artefact, "gpu:0", 1, "latency")


def test_memory_that_ends_suggests_a_smaller_batch() -> None:
    error = RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 2147483648")
    found = with_onnxruntime._failure(error, np.zeros((64, 2, 2, 3), np.uint8))
    assert isinstance(found, GpuMemoryError)
    assert "a smaller --batch-size needs less" in str(found)
