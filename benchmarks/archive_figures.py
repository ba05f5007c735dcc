"""An archive of 20,000 images: its rate beside `predict`, its scaling, what failures cost, and its memory."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from brain_model import ARTEFACTS, make_model
from commands import BIN, read_json
from medimg.runtime.archive.run import NO_REPORTS
from medimg.runtime.machine.cpus import usable_cpus
from memory import Cost, run_measured
from registry import SCRATCH, figure
from speed_images import many_paths, write_pictures

IMAGES = 20_000
PART = 2_000
"""For what need not run over all of them."""
SCALED = 6_000
"""The start of the workers, some seconds, is in their rates."""
INT8 = ARTEFACTS["int8"]
FOLDER = SCRATCH / "archive"
_STORE_BYTES = 80 * 2**20


@figure("archive")
def archive() -> dict[str, Any]:
    """`medimg-run archive` on a Ray cluster: rate, memory, lost machine and driver, full disk."""
    make_model()
    FOLDER.mkdir(parents=True, exist_ok=True)
    pictures = write_pictures("jpeg-512", SCRATCH / "files")
    whole = many_paths(pictures, IMAGES, FOLDER / "whole")
    part = many_paths(pictures, PART, FOLDER / "part")
    found = {"images": IMAGES, "beside_predict": _beside_predict(whole, part)}
    print(found, flush=True)
    found |= {"failures": _failures(whole), "full_disk": _full_disk(part)}
    return found


@figure("archive-scaling")
def archive_scaling() -> dict[str, Any]:
    """`medimg-run archive` by one worker and by two, each held to a core and to one thread of inference."""
    make_model()
    FOLDER.mkdir(parents=True, exist_ok=True)
    images = many_paths(write_pictures("jpeg-512", SCRATCH / "files"), SCALED, FOLDER / "scaled")
    seconds = {}
    for workers in (1, 2):
        with _cluster(workers) as (cluster, _):
            summary = FOLDER / "workers.json"
            assert _start(cluster, images, _fresh("workers"), workers, "--json", summary).wait() == 0
            seconds[workers] = read_json(summary)["seconds"]
    rates = {workers: SCALED / taken for workers, taken in seconds.items()}
    return {
        "images": SCALED,
        "images_per_s": rates,
        "ratio": rates[2] / rates[1],
        "ratio_target": 1.8,
    }


def _beside_predict(whole: Path, part: Path) -> dict[str, Any]:
    """Run both over all images on the same processors, and compare rates, answers and memory.

    The memory is that of the driver, of the raylets and of all that they start.
    """
    answers, summary = FOLDER / "answers.jsonl", FOLDER / "summary.json"
    predict = run_measured("medimg-run", "predict", INT8, whole, "--format", "jsonl", "--output", answers)
    with _cluster(usable_cpus(), held=False) as (cluster, _):

        def run(images: Path, name: str) -> Cost:
            command = _command(cluster, images, _fresh(name), usable_cpus(), "--json", summary)
            return run_measured(*command, counted=os.getpid())

        small, large = run(part, "small"), run(whole, "large")
    rate = IMAGES / large.seconds
    return {
        "images_per_s": {"archive": rate, "predict": IMAGES / predict.seconds},
        "ratio": predict.seconds / large.seconds,
        "ratio_target": 0.9,
        "images_per_s_without_start": IMAGES / read_json(summary)["seconds"],
        "rows": _rows(FOLDER / "large"),
        **_differences(answers, FOLDER / "large"),
        "peak_mib": {PART: round(small.peak_mib), IMAGES: round(large.peak_mib)},
        "growth_mib": round(large.peak_mib - small.peak_mib),
    }


def _differences(answers: Path, output: Path) -> dict[str, Any]:
    """Compare with `predict`'s answers, image by image."""
    from pyarrow import dataset

    rows = dataset.dataset(output, format="parquet").to_table(columns=["number", "top_k"]).sort_by("number")
    here = [{item["index"]: item["score"] for item in row} for row in rows["top_k"].to_pylist()]
    lines = (json.loads(line)["top_k"] for line in answers.read_text().splitlines())
    there = [{item["index"]: item["score"] for item in line} for line in lines]
    same = [next(iter(a)) == next(iter(b)) for a, b in zip(here, there, strict=True)]
    largest = max(abs(a[key] - b[key]) for a, b in zip(here, there, strict=True) for key in a)
    return {"same_top1": float(np.mean(same)), "max_abs_diff": largest, "max_abs_diff_target": 1e-6}


def _failures(whole: Path) -> dict[str, Any]:
    """Kill a raylet, then the driver, then damage a partition; the same command each time goes on."""
    output = _fresh("failures")
    partitions = -(-IMAGES // 256)
    steps: dict[str, Any] = {}
    with _cluster(2) as (cluster, nodes):
        running = _start(cluster, whole, output, 2)
        _wait(output, partitions // 4, running)
        cluster.remove_node(nodes[0], allow_graceful=False)
        _wait(output, partitions // 2, running)
        running.kill()
        running.wait()
        steps["partitions_when_the_driver_was_killed"] = len(list(output.glob("part-*.parquet")))
        assert _start(cluster, whole, output, 1).wait() == 0
        steps["after_raylet_and_driver"] = _rows(output)
        victim = output / "part-00001.parquet"
        damaged = bytearray(victim.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        victim.write_bytes(damaged)
        assert _start(cluster, whole, output, 1).wait() == 0
        steps["after_a_corrupt_partition"] = _rows(output)
    return steps


def _full_disk(part: Path) -> dict[str, Any]:
    """Write to a file system that is too small, make it larger, and go on."""
    output = _fresh("disk")
    output.mkdir()
    needed = sum(path.stat().st_size for path in (FOLDER / "small").rglob("*") if path.is_file())
    command = f"{BIN / 'medimg-run'} archive {INT8} {part} --output {output}"
    script = (
        f"mount -t tmpfs -o size={needed * 6 // 10} none {output} && {command}; first=$?; "
        f"mount -o remount,size=64m {output} && {command}; second=$?; "
        f"cp -r {output}/part-*.parquet {output}/../disk-copy/; echo STATUS $first $second"
    )
    copy = _fresh("disk-copy")
    copy.mkdir()
    # A mount namespace of its own: what is mounted ends with the command, and needs no root.
    wrapped = ["unshare", "--map-root-user", "--mount", "bash", "-c", script]
    done = subprocess.run(wrapped, capture_output=True, text=True, check=True)
    first, second = done.stdout.split("STATUS")[1].split()
    return {
        "status_while_full": int(first),
        "said": done.stderr.strip().splitlines()[-1:],
        "status_with_room": int(second),
        **_rows(copy),
    }


def _rows(output: Path) -> dict[str, int]:
    """Count with pyarrow alone."""
    from pyarrow import compute, dataset

    table = dataset.dataset(output, format="parquet").to_table(columns=["number", "path"])
    return {"rows": table.num_rows, "distinct_paths": compute.count_distinct(table["path"]).as_py()}


@contextmanager
def _cluster(nodes: int, *, held: bool = True) -> Iterator[tuple[Any, list[Any]]]:
    """A real Ray cluster: a head without processors, and raylets of one each, held to a core each or not."""
    os.environ |= NO_REPORTS
    from ray.cluster_utils import Cluster

    cores = sorted(os.sched_getaffinity(0))
    head = {"num_cpus": 0, "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        made = []
        for number in range(nodes):
            if held:
                os.sched_setaffinity(0, {cores[number % len(cores)]})
            made.append(cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES))
        os.sched_setaffinity(0, cores)
        yield cluster, made
    finally:
        os.sched_setaffinity(0, cores)
        cluster.shutdown()


def _start(
    cluster: Any,  # noqa: ANN401  a ray.cluster_utils.Cluster
    images: Path,
    output: Path,
    workers: int,
    *options: str | Path,
) -> "subprocess.Popen[bytes]":
    tool, *arguments = _command(cluster, images, output, workers, *options)
    return subprocess.Popen([BIN / tool, *arguments], stdout=subprocess.DEVNULL)


def _command(
    cluster: Any,  # noqa: ANN401
    images: Path,
    output: Path,
    workers: int,
    *options: str | Path,
) -> tuple[str | Path, ...]:
    """Give the command of workers with one thread each."""
    where = ("--address", cluster.address, "--workers", str(workers), "--threads", "1")
    return "medimg-run", "archive", INT8, images, "--output", output, *where, *options


def _wait(output: Path, partitions: int, running: "subprocess.Popen[bytes]") -> None:
    while len(list(output.glob("part-*.parquet"))) < partitions:
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.2)


def _fresh(name: str) -> Path:
    """Name a folder that is not there."""
    folder = FOLDER / name
    if folder.exists():
        subprocess.run(["rm", "-r", str(folder)], check=True)
    return folder
