"""The run loop on a fake GPU: bytes moved, calls counted, failures injected, everything freed.

Proves that the loop gives each image's answer whatever the batch, checks every code, and frees what it took;
in each version's own API. Does not prove that real kernels give right answers, nor how fast they are.
"""

import contextlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.errors import (
    BackendError,
    GpuMemoryError,
    MissingDependencyError,
    ModelError,
    UsageError,
)
from medimg.runtime.machine import cuda
from medimg.runtime.machine.cuda import Cuda
from medimg.runtime.model.containers import Artefact
from medimg.runtime.model.plan import BatchProfile

Images = NDArray[np.uint8]
Expected = Callable[[Images], NDArray[np.float32]]
VERSIONS = ["10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106"]


@pytest.mark.real
@pytest.mark.parametrize("version", VERSIONS)
def test_answers_in_each_version(
    make_machine: Any, make_engine: Any, images: Images, expected: Expected, version: str
) -> None:
    machine = make_machine(version)
    backend = machine.open(make_engine(version))
    for size in (1, 2, 3, 8):
        np.testing.assert_array_equal(backend.infer(images[:size])["probabilities"], expected(images[:size]))
    backend.close()
    assert machine.held() == machine.api.faults.alive == 0


def test_heat_maps_are_copied_where_they_are_asked_for(
    machine: Any, make_engine: Any, images: Images, expected: Expected
) -> None:
    machine.api.faults.heatmap = True
    backend = machine.open(make_engine())
    assert set(backend.infer(images[:3])) == {"probabilities"}
    assert machine.calls("cudaMemcpyAsync") == 2
    found = backend.infer(images[:3], ("activation_map", "probabilities"))
    np.testing.assert_array_equal(found["probabilities"], expected(images[:3]))
    assert found["activation_map"].shape == (3, 2, 4, 3)
    np.testing.assert_array_equal(found["activation_map"].max(axis=(1, 2)), expected(images[:3]))
    assert machine.calls("cudaMemcpyAsync") == 5
    backend.close()
    assert machine.held() == 0


def test_what_is_copied_and_freed(machine: Any, make_engine: Any, images: Images, expected: Expected) -> None:
    backend = machine.open(make_engine())
    assert (backend.device, backend.precision, backend.batch_size) == ("gpu:0", "fp16", 4)
    # Two blocks on each side, and the stream.
    assert machine.held() == 5
    before = machine.calls("cudaMalloc") + machine.calls("cudaMallocHost")
    first = backend.infer(images[:8])["probabilities"]
    second = backend.infer(images[8:11])["probabilities"]
    np.testing.assert_array_equal(first, expected(images[:8]))
    np.testing.assert_array_equal(second, expected(images[8:11]))
    assert machine.calls("cudaMemcpyAsync") == 4
    assert machine.calls("cudaStreamSynchronize") == 2
    assert machine.calls("cudaMalloc") + machine.calls("cudaMallocHost") == before
    backend.close()
    backend.close()
    assert machine.held() == 0
    with pytest.raises(BackendError, match="the classifier is closed"):
        backend.infer(images[:1])["probabilities"]


def test_a_batch_below_the_least_is_padded_and_one_above_the_most_refused(
    machine: Any, make_engine: Any, images: Images, expected: Expected
) -> None:
    backend = machine.open(make_engine(profile=BatchProfile(4, 4, 6)))
    assert backend.infer(images[:1])["probabilities"].shape == (1, 3)
    np.testing.assert_array_equal(backend.infer(images[:3])["probabilities"], expected(images[:3]))
    with pytest.raises(UsageError, match=r"a batch of 7 images: .* takes 6 at most: choose --batch-size 6"):
        backend.infer(images[:7])["probabilities"]
    with pytest.raises(BackendError, match=r"images of shape \(5, 6, 3\)"):
        backend.infer(images[:1, :, :6])["probabilities"]
    with pytest.raises(BackendError, match="type float32"):
        backend.infer(images[:1].astype(np.float32))["probabilities"]
    backend.close()


def test_threads_take_turns_on_the_right_gpu(
    machine: Any, make_engine: Any, images: Images, expected: Expected
) -> None:
    backend = machine.open(make_engine(), number=1)
    assert (backend.device, backend.gpu.name) == ("gpu:1", "Fake GPU B")
    selected = machine.calls("cudaSetDevice")
    with ThreadPoolExecutor(4) as threads:
        sizes = [1 + turn % 8 for turn in range(200)]
        found = list(threads.map(lambda size: backend.infer(images[size : 2 * size])["probabilities"], sizes))
    for size, answer in zip(sizes, found, strict=True):
        np.testing.assert_array_equal(answer, expected(images[size : 2 * size]))
    assert machine.calls("cudaSetDevice") == selected + 200
    assert machine.library.fake_device() == 1
    backend.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("medimg")]


def test_many_batches_take_no_more_memory(machine: Any, make_engine: Any, images: Images) -> None:
    backend = machine.open(make_engine())
    for turn in range(2000):
        backend.infer(images[: 1 + turn % 8])["probabilities"]
        machine.keep.clear()
    assert machine.held() == 5
    backend.close()


# Failures: each has its own message, and leaves nothing behind.


@pytest.mark.parametrize(
    ("failing", "error", "message"),
    [
        ("cudaMalloc=2@1", GpuMemoryError, "out of memory.*--batch-size 1,4,4"),
        ("cudaMalloc=2@2", GpuMemoryError, "out of memory.*--batch-size 1,4,4"),
        ("cudaMallocHost=2@2", GpuMemoryError, "out of memory"),
        ("cudaStreamCreateWithFlags=46", BackendError, "the GPU is lost to this process.*start it again"),
        ("cudaSetDevice=999", BackendError, "the GPU is lost to this process"),
        ("cudaGetDeviceProperties=101", BackendError, "there is no such GPU"),
        ("cudaDeviceGetAttribute=1", BackendError, "cudaDeviceGetAttribute: some other error"),
    ],
)
def test_cuda_fails_while_an_engine_is_loaded(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch, failing: str, error: type, message: str
) -> None:
    monkeypatch.setenv("FAKE_CUDA_FAIL", failing)
    with pytest.raises(error, match=message):
        machine.open(make_engine())
    monkeypatch.delenv("FAKE_CUDA_FAIL")
    assert machine.held() == machine.api.faults.alive == 0


def test_memory_ends_before_the_batch_fits(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_MEMORY", "500")
    with pytest.raises(GpuMemoryError, match=r"model\.sm87\.fp16\.plan: .*a smaller batch needs less"):
        machine.open(make_engine())


@pytest.mark.parametrize(
    ("failing", "error", "message"),
    [
        ("cudaMemcpyAsync=700@1", BackendError, "lost to this process .*illegal memory access"),
        ("cudaMemcpyAsync=1@2", BackendError, "the GPU failed"),
        ("cudaStreamSynchronize=719", BackendError, "unspecified launch failure"),
        ("cudaStreamSynchronize=2", GpuMemoryError, "a batch of 3 images: .*a smaller batch needs less"),
        ("cudaSetDevice=46", BackendError, "the GPU is lost to this process"),
    ],
)
def test_cuda_fails_while_a_batch_runs(
    machine: Any,
    make_engine: Any,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    error: type,
    message: str,
) -> None:
    backend = machine.open(make_engine())
    machine.library.fake_reset()
    monkeypatch.setenv("FAKE_CUDA_FAIL", failing)
    with pytest.raises(error, match=message):
        backend.infer(images[:3])["probabilities"]
    monkeypatch.delenv("FAKE_CUDA_FAIL")
    machine.library.fake_reset()
    backend.close()
    assert machine.held() == machine.api.faults.alive == 0


def test_a_kernel_that_fails_later_is_noticed_where_its_batch_is_waited_for(
    machine: Any, make_engine: Any, images: Images
) -> None:
    backend = machine.open(make_engine())
    machine.api.faults.fail_in_stream = 700
    with pytest.raises(
        BackendError, match=r"cudaStreamSynchronize: an illegal memory access.*start it again"
    ):
        backend.infer(images[:2])["probabilities"]
    # The context is gone: every later call says so, and closing still lets everything go.
    with pytest.raises(BackendError, match="lost to this process"):
        backend.infer(images[:2])["probabilities"]
    with pytest.raises(BackendError, match="lost to this process"):
        backend.close()
    assert machine.held() == machine.api.faults.alive == 0


def test_a_failed_batch_does_not_spoil_the_next(
    machine: Any, make_engine: Any, images: Images, expected: Expected
) -> None:
    backend = machine.open(make_engine())
    machine.api.faults.fail_launch = True
    with pytest.raises(BackendError, match=r"failed on a batch of shape \(2, .*Error Code 1"):
        backend.infer(images[:2])["probabilities"]
    machine.api.faults.fail_launch = False
    machine.api.faults.refuse_shape = True
    with pytest.raises(BackendError, match=r"the engine refuses the shape \(3, 5, 7, 3\)"):
        backend.infer(images[:3])["probabilities"]
    machine.api.faults.refuse_shape = False
    np.testing.assert_array_equal(backend.infer(images[4:9])["probabilities"], expected(images[4:9]))
    backend.close()


@pytest.mark.parametrize(
    ("fault", "value", "error", "message"),
    [
        (
            "no_engine",
            "Serialization assertion failed",
            BackendError,
            r"^model\.sm87\.fp16\.plan: TensorRT cannot load the engine: Serialization",
        ),
        ("no_engine", "Error Code 2: OutOfMemory (out of memory)", GpuMemoryError, "a smaller batch"),
        ("no_context", True, GpuMemoryError, "does not fit on the GPU .*a smaller batch needs less"),
        ("output_columns", 4, ModelError, r"probabilities \(4,\).*not those of its record with 3 classes"),
        ("refuse_shape", True, BackendError, "refuses the shape"),
    ],
)
def test_tensorrt_fails(
    machine: Any, make_engine: Any, fault: str, value: object, error: type, message: str
) -> None:
    setattr(machine.api.faults, fault, value)
    with pytest.raises(error, match=message):
        machine.open(make_engine())
    assert machine.held() == machine.api.faults.alive == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"capability": "8.6"}, r"compute capability 8\.6 .*Fake GPU A, has 8\.7: build it again here"),
        ({"version": "10.7.0"}, r"built by TensorRT 10\.7\.0, here is 10"),
    ],
)
def test_engines_of_another_machine_are_refused_before_they_are_deserialised(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(machine.api, "__version__", "10.3.0")
    machine.api.faults.no_engine = "deserialised"
    with pytest.raises(ModelError, match=message):
        machine.open(make_engine(**{"version": "10.3.0", **wrong}))


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [("10.3.0", "10.13.1", True), ("10.13.1", "10.3.0", False), ("10.3.0", "11.0.0", False)],
)
def test_version_compatible_engines(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch, built: str, here: str, runs: bool
) -> None:
    monkeypatch.setattr(machine.api, "__version__", here)
    artefact: Artefact = make_engine(built)
    assert artefact.engine is not None
    object.__setattr__(artefact.engine, "version_compatible", True)
    if not runs:
        with pytest.raises(ModelError, match="was built by TensorRT"):
            machine.open(artefact)
        return
    backend = machine.open(artefact)
    assert backend._runtime.engine_host_code_allowed
    backend.close()


# The machine.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FAKE_CUDA_DRIVER": "0"}, "no NVIDIA driver is loaded: install it"),
        ({"FAKE_CUDA_DRIVER": "11080"}, r"too old: it supports CUDA 11\.8, .* need 12\.6: update the driver"),
        ({"FAKE_CUDA_FAIL": "cudaGetDeviceCount=3"}, "cudaGetDeviceCount: some other error"),
    ],
)
def test_drivers(
    machine: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BackendError, match=message):
        machine.cuda.count()


def test_gpus(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cuda.count() == 2
    second = machine.cuda.device(1)
    assert (second.name, second.sm, second.uuid, second.bus_id) == (
        "Fake GPU B",
        "sm87",
        "22" * 16,
        "0000:3C:00.0",
    )
    free, total = machine.cuda.free_bytes()
    assert free == total == 1 << 30
    with pytest.raises(BackendError, match=r"there is no such GPU .*doctor lists them"):
        machine.cuda.select(2)
    monkeypatch.setenv("FAKE_CUDA_GPUS", "0")
    assert machine.cuda.count() == 0


def test_the_functions_that_are_called_exist(machine: Any) -> None:
    """In the fake, and in NVIDIA's own library where one is installed; it needs no GPU for that."""
    source = Path(cuda.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"\bcuda[A-Z]\w+", source.partition('"""')[2])) - {"cudaDeviceProp"}
    assert len(names) == 18
    assert [name for name in names if not hasattr(machine.library, name)] == []
    with contextlib.suppress(MissingDependencyError):
        real = Cuda()
        assert [name for name in names if not hasattr(real._library, name)] == []
