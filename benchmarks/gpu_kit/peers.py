"""The kit's network in PyTorch: eager and compiled, channels last, in three precisions."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH_SIZES = (1, 8, 64, 256)
PEAK_SIZE = 8192
Add = Callable[[str, object], None]


def measure_peers(path: Path, images: NDArray[np.uint8], add: Add) -> None:
    """Time PyTorch on arrays in pinned memory of the host, answers copied back; then its matrix peak.

    Args:
        path: the float32 artefact, whose weights are read.
        images: `(batch, 224, 224, 3)` uint8 RGB.
        add: keeps a figure.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network, pinned = _network(path), torch.tensor(images).pin_memory()
    plans = [(how, dtype) for dtype in ("float16", "bfloat16", "float32") for how in ("eager", "compiled")]
    with torch.inference_mode():
        for how, dtype in plans:
            model = network(getattr(torch, dtype))
            runner = torch.compile(model) if how == "compiled" else model
            for size in BATCH_SIZES:

                def call(runner: Any = runner, size: int = size) -> None:  # noqa: ANN401  PyTorch has no types here
                    runner(pinned[:size].cuda(non_blocking=True)).cpu()

                start = time.perf_counter()
                call()
                first = time.perf_counter() - start
                median = _median_s(call)
                add(f"{how} {dtype} {size}", {"throughput_per_s": size / median, "first_call_s": first})
        add("matrix_peak_tflops", _peak_tflops())


def _network(path: Path) -> Callable[[Any], Any]:
    """Read the weights of a chain of convolutions; give a function that builds it in a precision."""
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {array.name: numpy_helper.to_array(array) for array in graph.initializer}
    kinds = [node for node in graph.node if node.op_type in ("Conv", "MaxPool", "Gemm")]
    (head,) = [node for node in kinds if node.op_type == "Gemm"]
    transposed = any(item.name == "transB" and item.i for item in head.attribute)
    matrix = arrays[head.input[1]] if transposed else arrays[head.input[1]].T

    def tensor(array: NDArray[Any]) -> Any:  # noqa: ANN401
        return torch.nn.Parameter(torch.tensor(array.copy()), requires_grad=False)

    def layers() -> list[Any]:
        built: list[Any] = []
        for node in kinds:
            if node.op_type == "Conv":
                kernel = arrays[node.input[1]].astype(np.float32)
                convolution = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                convolution.weight, convolution.bias = tensor(kernel), tensor(arrays[node.input[2]])
                built += [convolution, torch.nn.ReLU(inplace=True)]
            elif node.op_type == "MaxPool":
                built.append(torch.nn.MaxPool2d(2))
        return built

    class Network(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not installed here
        def __init__(self, dtype: Any) -> None:  # noqa: ANN401
            super().__init__()
            self.dtype = dtype
            self.features = torch.nn.Sequential(*layers()).to(dtype)
            self.head = torch.nn.Linear(matrix.shape[1], matrix.shape[0])
            self.head.weight, self.head.bias = tensor(matrix), tensor(arrays[head.input[2]])
            self.mean = tensor(np.array([103.939, 116.779, 123.68], np.float32).reshape(1, 3, 1, 1))

        def forward(self, images: Any) -> Any:  # noqa: ANN401
            bgr = images.permute(0, 3, 1, 2).flip(1).float() - self.mean
            features = self.features(bgr.to(self.dtype).contiguous(memory_format=torch.channels_last))
            return torch.softmax(self.head(features.float().mean((2, 3))), 1)

    return lambda dtype: Network(dtype).cuda().eval().to(memory_format=torch.channels_last)


def _peak_tflops() -> float:
    import torch

    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=torch.float16) for _ in range(2))

    def call() -> None:
        left @ right
        torch.cuda.synchronize()

    return 2 * PEAK_SIZE**3 / _median_s(call) / 1e12


def _median_s(call: Callable[[], object]) -> float:
    from gpu_kit.steps import timed

    return timed(call)[0]
