"""A fleet on paper: a small simulation of decoding workers before one GPU, and of workers that die.

It is fed with the service times in `results/`; what is not measured is an argument with its source beside it.
"""

import heapq
import json
import random
from pathlib import Path
from typing import Any

from registry import ROOT, figure

RESULTS = ROOT / "benchmarks" / "results"
GPU_IMAGES_PER_S = {"A100": 11_200, "H100": 23_500, "H200": 25_100}
"""Not measured: MLPerf's ResNet-50 rates (42,379, 88,714 and 94,620 a GPU) times the ratio of the networks'
multiplications, 4.1 to 15.5 billion. VGG16's larger convolutions use a GPU better."""
SPREAD = 0.25
"""Standard deviation of one file's decoding time over its mean: files differ in size."""
BATCH = 64
FILES = 10_000


def simulate_feeding(
    cores: int, decode_ms: float, gpu_images_per_s: float, files: int = FILES, seed: int = 0
) -> float:
    """Let cores decode files into a queue, from which one GPU takes whole batches.

    The queue holds four batches, or two files a core if that is more. Gives the share of its time that the
    GPU is busy, over the second half, so that the start does not count.

    Args:
        cores: that decode.
        decode_ms: mean time of one file on one core, gamma distributed.
        gpu_images_per_s: rate of the GPU on batches of 64.
        files: how many pass at least; forty a core.
        seed: of the decoding times.
    """
    generator = random.Random(seed)  # noqa: S311  a simulation
    shape = SPREAD**-2
    free_at = [0.0] * cores
    gpu_free, batch_s = 0.0, BATCH / gpu_images_per_s
    taken: list[float] = []
    ready: list[float] = []
    ahead = max(4, 2 * cores // BATCH + 1)
    for number in range(max(files, 40 * cores) // BATCH * BATCH):
        begin = heapq.heappop(free_at)
        batch = number // BATCH
        if batch >= ahead:
            # The queue is full until the GPU has taken an earlier batch.
            begin = max(begin, taken[batch - ahead])
        spent = generator.gammavariate(shape, decode_ms / 1e3 / shape)
        heapq.heappush(free_at, begin + spent)
        ready.append(begin + spent)
        if len(ready) == BATCH:
            start = max(gpu_free, *ready)
            taken.append(start)
            gpu_free, ready = start + batch_s, []
    half = len(taken) // 2
    return (len(taken) - half) * batch_s / (gpu_free - taken[half])


def simulate_deaths(
    rate: float, partition_files: int, mean_life_h: float, restart_s: float, hours: float, seed: int = 0
) -> float:
    """Let a worker die at random, lose its partition and begin anew; give the share of its time that counts.

    Args:
        rate: images a second of one worker.
        partition_files: what a commit holds.
        mean_life_h: mean time between deaths, exponentially distributed.
        restart_s: until a new worker works.
        hours: simulated.
        seed: of the deaths.
    """
    generator = random.Random(seed)  # noqa: S311  a simulation
    partition_s, end = partition_files / rate, hours * 3600
    clock = useful = 0.0
    while clock < end:
        life = generator.expovariate(1 / (mean_life_h * 3600))
        useful += life // partition_s * partition_s
        clock += life + restart_s
    return useful / clock


@figure("fleet")
def fleet() -> dict[str, Any]:
    """How many decoding cores feed one GPU, the cost of 100 million images, and what dying workers cost."""
    files, jpeg = _measured("speed-files")["kinds"], _measured("speed-jpeg")["sides_px"]
    large = _measured("speed-large-files")["kinds"]
    decode_ms = {name: kind["decode_core_ms"] for name, kind in {**files, **large}.items()}
    decode_ms["jpeg-1024"] = jpeg["1024"]["decode_core_ms"]["full"]
    per_core = _measured("speed-arrays")["throughput_per_s"]["medimg"] / 2
    return {
        "decode_core_ms": decode_ms,
        "int8_images_per_s_a_core": per_core,
        "gpu_images_per_s_by_arithmetic": GPU_IMAGES_PER_S,
        "feeding": {
            name: {gpu: _feeders(ms, rate) for gpu, rate in GPU_IMAGES_PER_S.items()}
            for name, ms in decode_ms.items()
        },
        "hundred_million": {
            "core_hours_int8": {name: _core_hours(ms + 1e3 / per_core) for name, ms in decode_ms.items()},
            "core_hours_decoding": {name: _core_hours(ms) for name, ms in decode_ms.items()},
            "gpu_hours": {gpu: 1e8 / rate / 3600 for gpu, rate in GPU_IMAGES_PER_S.items()},
        },
        "useful_share_with_deaths": {
            f"{files} files a partition, a death every {hours} h": {
                "simulated": simulate_deaths(2 * per_core, files, hours, 30.0, 20_000.0),
                "by_formula": useful_share(2 * per_core, files, hours, 30.0),
            }
            for files in (256, 24_415)
            for hours in (1, 24)
        },
    }


def _measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(RESULTS / f"{name}.json").read_text())
    return found


def _core_hours(core_ms: float) -> float:
    return 1e8 * core_ms / 1e3 / 3600


def _feeders(decode_ms: float, rate: float) -> dict[str, Any]:
    """Find by simulation how many cores keep a GPU busy for 95 % of the time."""
    cores = max(1, int(0.9 * decode_ms / 1e3 * rate))
    while (busy := simulate_feeding(cores, decode_ms, rate)) < 0.95:
        cores += max(1, cores // 50)
    half = simulate_feeding(max(1, cores // 2), decode_ms, rate)
    return {"cores": cores, "gpu_busy": busy, "gpu_busy_with_half_the_cores": half}


def useful_share(rate: float, files: int, mean_life_h: float, restart_s: float) -> float:
    """On average half a partition is lost with a worker, whose life is long beside it."""
    life = mean_life_h * 3600
    return (life - files / rate / 2) / (life + restart_s)
