"""JPEG decoding on the card beside the CPU: the same pixels, damaged files, and images per second."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medimg.runtime.images.gpu import GpuDecoder

Add = Callable[[str, object], None]
COPIES, DAMAGED, BATCH = 4, 300, 64


def measure_decoding(paths: Sequence[Path], scratch: Path, add: Add) -> None:
    """Hold the card's decoder against the processors, on whole files and damaged ones, and time both.

    Args:
        paths: JPEG files.
        scratch: a folder to write damaged files to.
        add: keeps a figure.
    """
    from gpu_kit.steps import timed
    from medimg.runtime.images.gpu import open_decoder
    from medimg.runtime.images.load import load_image
    from medimg.runtime.images.rule import ImageRule

    rule = ImageRule(224, 224)
    decoder = open_decoder("gpu:0", rule)
    add("kinds decoded on the card", [[hex(factor) for factor in kind.sampling] for kind in decoder.kinds])
    taken = [path for path in paths if decoder.read(path) is not None]
    add("files decoded on the card", [len(taken), len(paths)])
    contents, expected = [path.read_bytes() for path in taken], [load_image(path, rule) for path in taken]
    add("largest difference", max(_differences(decoder.decode(contents), expected)))
    batch = (contents * COPIES)[:BATCH]
    for threads in (1, 2, 4):
        with ThreadPoolExecutor(threads) as pool:
            call = partial(_in_threads, pool, decoder.decode, [batch] * threads)
            add(f"card per s, {threads} threads", len(batch) * threads / timed(call)[0])
    for threads in (1, 8, 16):
        with ThreadPoolExecutor(threads) as pool:
            call = partial(_in_threads, pool, partial(load_image, rule=rule), [*paths] * COPIES)
            add(f"processors per s, {threads} threads", len(paths) * COPIES / timed(call)[0])
    add("damaged files", _damaged(decoder, contents, scratch))


def _damaged(decoder: "GpuDecoder", contents: Sequence[bytes], scratch: Path) -> dict[str, int]:
    """Flip bits within the scan of files; count how card and processors answer."""
    from medimg.runtime.errors import ImageError
    from medimg.runtime.images.load import load_image
    from medimg.runtime.images.rule import ImageRule

    generator = np.random.default_rng(0)
    counted: Counter[str] = Counter()
    for number in range(DAMAGED):
        content = bytearray(contents[number % len(contents)])
        for place in generator.integers(len(content) // 4, len(content) - 2, 1 + number % 3):
            content[place] ^= 1 << generator.integers(8)
        path = scratch / "damaged.jpg"
        path.write_bytes(content)
        (found,) = decoder.decode([bytes(content)]) if _read(decoder, path) else (None,)
        try:
            (difference,) = _differences([found], [load_image(path, ImageRule(224, 224))])
            on_cpu = "processors answer"
        except ImageError:
            on_cpu, difference = "processors refuse", 0
        on_card = "card refuses" if found is None else "card answers"
        both = found is not None and on_cpu == "processors answer"
        counted[
            f"{on_cpu}, {on_card}" + (f", {'other' if difference > 1 else 'same'} pixels" if both else "")
        ] += 1
    return dict(counted)


def _read(decoder: "GpuDecoder", path: Path) -> bool:
    from medimg.runtime.errors import ImageError

    try:
        return decoder.read(path) is not None
    except ImageError:
        return False


def _differences(
    found: Sequence[NDArray[np.uint8] | None], expected: Sequence[NDArray[np.uint8]]
) -> list[int]:
    return [
        255 if one is None else int(np.abs(one.astype(int) - other).max())
        for one, other in zip(found, expected, strict=True)
    ]


def _in_threads(pool: ThreadPoolExecutor, call: Callable[..., object], items: Sequence[object]) -> None:
    list(pool.map(call, items))
