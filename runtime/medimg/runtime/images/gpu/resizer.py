"""The resize rule `stretch-linear` where the pixels are: OpenCV's arithmetic as a graph for ONNX Runtime.

OpenCV's INTER_LINEAR_EXACT blends two rows and two columns with weights of 1/256, in integers. So does
`resize.onnx` (`tests/runtime/gpu_images/resize_graph.py` makes it), whatever runs it.
"""

from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.optional import require

ONE = 256
_SIZES_KEPT = 256


class Blend(NamedTuple):
    """How each pixel of the result is blended from two of the source, along one axis."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_weight: NDArray[np.int32]
    second_weight: NDArray[np.int32]
    """In 1/256; the two add up to 256."""


def blend(source: int, target: int) -> Blend:
    """Compute the pixels and weights along an axis of `source` pixels that becomes one of `target` pixels."""
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(place).astype(np.int64)
    share = np.where((first < 0) | (first >= source - 1), 0, place - first)
    first = np.clip(first, 0, source - 1)
    weight = np.rint(share * ONE).astype(np.int32)
    return Blend(first, np.minimum(first + 1, source - 1), ONE - weight, weight)


class Resizer:
    """Resizes arrays of the host, or of a GPU's memory.

    Args:
        rows: of the result.
        columns: of the result.
        device: `cpu` or `cuda`.
        number: the GPU's.
    """

    def __init__(self, rows: int, columns: int, device: str, number: int = 0) -> None:
        self._runtime = require("onnxruntime", "gpu")
        self._rows, self._columns, self._device, self._number = rows, columns, device, number
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        provider = ("CUDAExecutionProvider", {"device_id": str(number)})
        providers: list[Any] = [provider] if device == "cuda" else ["CPUExecutionProvider"]
        self._blends: dict[tuple[int, int], dict[str, Any]] = {}
        graph = resources.files(__package__).joinpath("resize.onnx").read_bytes()
        self._session = self._runtime.InferenceSession(graph, options, providers)

    def resize(self, address: int, rows: int, columns: int) -> NDArray[np.uint8]:
        """Resize one image where it lies.

        Args:
            address: of `(rows, columns, 3)` uint8, contiguous, in the device's memory.
            rows: of the source.
            columns: of the source.

        Returns:
            `(rows, columns, 3)` uint8 of the size wanted, in the host's memory.
        """
        binding = self._session.io_binding()
        shape = (rows, columns, 3)
        binding.bind_input("image", self._device, self._number, np.uint8, shape, address)
        for name, values in self._blend(rows, columns).items():
            binding.bind_ortvalue_input(name, values)
        binding.bind_output("resized", self._device, self._number)
        self._session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0], np.uint8)

    def _blend(self, rows: int, columns: int) -> dict[str, Any]:
        """Give the graph's other inputs for one size of images, on the device; many are kept."""
        found = self._blends.get((rows, columns))
        if found is None:
            down, across = blend(rows, self._rows), blend(columns, self._columns)
            arrays = {
                "y0": down.first,
                "y1": down.second,
                "x0": across.first,
                "x1": across.second,
                "wy0": down.first_weight.reshape(-1, 1, 1),
                "wy1": down.second_weight.reshape(-1, 1, 1),
                "wx0": across.first_weight.reshape(-1, 1),
                "wx1": across.second_weight.reshape(-1, 1),
            }
            place = self._runtime.OrtValue.ortvalue_from_numpy
            found = {name: place(array, self._device, self._number) for name, array in arrays.items()}
            if len(self._blends) >= _SIZES_KEPT:
                self._blends.clear()
            self._blends[rows, columns] = found
        return found
