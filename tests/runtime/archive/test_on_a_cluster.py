"""An archive on a real Ray cluster of several raylets, of which one is lost, and so is the driver."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from medimg.runtime.archive.run import NO_REPORTS
from medimg.runtime.classifier import Prediction

from .conftest import assert_same, read_rows

pytestmark = pytest.mark.long

PROGRAM = Path(sys.executable).with_name("medimg-run")
STORE_BYTES = 80 * 2**20
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without processors, and two raylets of one each.

    Ray asserts that what it kills is gone after a second or so, which a busy machine does not keep.
    """
    for name, value in NO_REPORTS.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    yield cluster
    while cluster.worker_nodes or cluster.head_node:
        with suppress(AssertionError):
            cluster.shutdown()


def begin(cluster: Any, model: Path, pictures: Path, output: Path) -> "subprocess.Popen[str]":
    command = [PROGRAM, "archive", model, pictures, "--output", output, "--address", cluster.address]
    return subprocess.Popen(
        [*map(str, command), "--workers", "2", "--partition-files", "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_partitions(output: Path, count: int, running: "subprocess.Popen[str]") -> None:
    while len(list(output.glob("part-*.parquet"))) < count:
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)


def test_a_killed_driver_and_a_lost_machine_cost_no_row(
    cluster: Any,
    model: Path,
    make_pictures: Callable[[int, int], Path],
    predicted: Callable[[Path], list[Prediction]],
    tmp_path: Path,
) -> None:
    pictures, output = make_pictures(640, 512), tmp_path / "answers"
    running = begin(cluster, model, pictures, output)
    wait_for_partitions(output, 3, running)
    running.kill()
    running.communicate()
    made = len(list(output.glob("part-*.parquet")))
    assert made < 10
    whole = {path.name: path.read_bytes() for path in output.glob("part-*.parquet")}
    damaged, gone, *_ = sorted(whole)
    (output / damaged).write_bytes(
        whole[damaged][:200] + bytes([whole[damaged][200] ^ 1]) + whole[damaged][201:]
    )
    (output / gone).unlink()
    (output / f".{gone.removesuffix('.parquet')}.123.parquet").write_bytes(b"PAR1")

    running = begin(cluster, model, pictures, output)
    wait_for_partitions(output, made + 2, running)
    with suppress(AssertionError):
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    assert len(list(output.glob("part-*.parquet"))) < 16
    printed, said = running.communicate()
    assert running.returncode == 0, said
    assert "640 files, 640 images answered, 0 errors" in printed
    assert said == ""
    # A worker may have ended a partition after its driver.
    (before,) = re.findall(r"(\d+) were there before", printed)
    assert 40 * (made - 2) <= int(before) < 640 - 80
    assert {name: (output / name).read_bytes() for name in whole} == whole
    assert_same(read_rows(output), predicted(pictures))
    assert not list(output.glob(".part-*"))
