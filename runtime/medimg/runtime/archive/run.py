"""The driver: hands partitions to an actor pool of Ray Data, and adds up what becomes of them."""

import contextlib
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medimg.runtime.archive.inputs import is_uri
from medimg.runtime.archive.job import Job, only_run, open_job
from medimg.runtime.archive.partitions import Counts
from medimg.runtime.archive.worker import MOST_TRIES, Outcome, PartitionWorker, Work
from medimg.runtime.errors import CheckFailedError, UsageError
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.containers import PLAN_SUFFIX, file_sha256, open_artefact
from medimg.runtime.optional import require

_STORE_BYTES = 128 * 2**20
"""Ray's object store on this machine: only partitions' numbers and counts pass through it."""

_MOST_FOLDER_BYTES = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
"""An address of a socket has 107 bytes (unix(7)); Ray adds this to its folder."""

# Disabled, Ray still reports that it is (ray.dashboard.modules.usage_stats), unless that leads nowhere.
NO_REPORTS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/"}
Progress = Callable[[Outcome, Job], None]


@dataclass(frozen=True)
class ArchiveOptions:
    """How an archive is classified; what it is, is its `Job`."""

    address: str | None = None
    """Of a Ray cluster; None to start Ray on this machine, for this run alone."""
    workers: int | None = None
    """Classifiers at once; one a machine unless given."""
    threads: int | None = None
    """Processor threads of each; a machine's processors divided by its workers unless given."""
    batch_size: int | None = None
    """Images a call of the back end."""
    top_k: int = 5
    backend: str = "auto"
    device: str = "auto"
    """`cpu`, `gpu` (one for each worker), or `auto`: GPUs if the cluster has some that the model can use."""
    dicom_window: str | None = None
    """In place of the model's own."""
    trusted: tuple[str, ...] = ()
    """SHA-256 of records (`.plan.json`) of TensorRT engines that the user vouches for."""
    partition_files: int | None = None
    """Files a partition."""
    schemes: tuple[str, ...] = ()
    """Schemes of the URIs that a list may name, beside its own."""


@dataclass(frozen=True)
class ArchiveSummary:
    """What a finished archive holds."""

    output: str
    model_sha256: str
    counts: Counts
    made: int = 0
    """Files answered by this run; the others were there before."""
    seconds: float = 0.0
    """From the start of the workers to the last answer."""

    @property
    def files_per_s(self) -> float:
        """Rate of this run."""
        return self.made / self.seconds if self.seconds else math.nan


@dataclass(frozen=True)
class _Pool:
    """The resources of the workers."""

    workers: int
    threads: int
    gpus: int
    """Of each worker."""
    device: str = field(default="cpu")


def classify_archive(
    model: str | Path,
    source: str,
    output: str | Path,
    options: ArchiveOptions | None = None,
    progress: Progress = lambda _outcome, _job: None,
) -> ArchiveSummary:
    """Classify all images of an archive into Parquet, or go on with a run that was broken off.

    Args:
        model: an artefact of medimg-export, readable under this name on every machine of the cluster.
        source: a file, folder or list; see `medimg.runtime.archive.inputs.list_paths`.
        output: a folder that every machine can write to. It is begun once; its list of files stays.
        options: resources and the like.
        progress: called after each partition.

    Raises:
        UsageError: the output belongs to another run, or something cannot be read or written.
        CheckFailedError: workers died again and again at some partitions; all others are done.
    """
    options = options or ArchiveOptions()
    if is_uri(str(output)):
        raise UsageError(
            f"{output}: the output is a folder, since a commit is a rename: copy it when it is done"
        )
    model, output = Path(model).absolute(), Path(output).absolute()
    if not is_uri(source) and output.is_relative_to(Path(source).absolute()):
        raise UsageError(
            f"{output}: lies in the archive, and would be read as a part of it: take another --output"
        )
    # Refused here and not by each worker, after Ray's start.
    spec = open_artefact(model, options.trusted).spec
    _set_up_ray(options.address)
    wanted = Job(
        source if is_uri(source) else str(Path(source).absolute()),
        file_sha256(model),
        min(options.top_k, spec.classes),
        options.dicom_window,
    )
    with only_run(output):
        job = open_job(output, wanted, options.partition_files, options.schemes)
        with _ray(options.address, (options.threads or usable_cpus()) * (options.workers or 1)):
            pool = _pool(options, can_use_gpu=spec.precision != "int8" or model.suffix == PLAN_SUFFIX)
            work = Work(
                job,
                output,
                model,
                pool.threads,
                options.batch_size,
                options.backend,
                pool.device,
                options.trusted,
            )
            return _run(work, pool, progress)


def _run(work: Work, pool: _Pool, progress: Progress) -> ArchiveSummary:
    start, counts, made = time.monotonic(), Counts(), 0
    seen: set[int] = set()
    lost: list[int] = []
    for outcome in _outcomes(work, pool):
        if outcome.failure is not None:
            raise UsageError(
                f"{outcome.failure}; {len(seen)} of {work.job.partitions} partitions are done: "
                "the same command goes on from there"
            )
        seen.add(outcome.partition)
        if outcome.counts is None:
            lost.append(outcome.partition)
        else:
            counts += outcome.counts
            made += outcome.made * outcome.counts.files
        progress(outcome, work.job)
    if lost:
        numbers = work.job.numbers(min(lost))
        raise CheckFailedError(
            f"{work.output}: {MOST_TRIES} workers died at each of {len(lost)} partitions, the first with "
            f"files {numbers[0]} to {numbers[-1]} of its list: is memory short? The same command tries again"
        )
    assert len(seen) == work.job.partitions, "Ray Data gives a row for each row"
    return ArchiveSummary(str(work.output), work.job.model_sha256, counts, made, time.monotonic() - start)


def _outcomes(work: Work, pool: _Pool) -> Iterator[Outcome]:
    """Let the pool make all partitions, each a block of its own, and give the outcomes as they come."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    partitions = work.job.partitions
    numbers = [{"partition": number} for number in range(partitions)]
    dataset = ray.data.from_items(numbers, override_num_blocks=partitions)
    rows: Iterable[dict[str, str]] = dataset.map(
        PartitionWorker,
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(
            size=pool.workers, max_tasks_in_flight_per_actor=most_in_flight(partitions, pool.workers)
        ),
        num_cpus=pool.threads,
        num_gpus=pool.gpus,
    ).iter_rows()
    return map(Outcome.from_row, rows)


def most_in_flight(partitions: int, workers: int) -> int:
    """Let a second partition wait at each worker, so that none idles between two, if each can have one."""
    return 2 if partitions >= 2 * workers else 1


def _set_up_ray(address: str | None) -> None:
    """Set what Ray reads as it is imported: no usage reports, and no orders from strangers."""
    os.environ |= NO_REPORTS
    # Its native part writes to standard error, past every logger.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None:
        # Ray listens on every address of the machine; who has no token is refused.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    require("ray.data", "ray")


@contextlib.contextmanager
def _ray(address: str | None, cpus: int) -> Iterator[None]:
    """Join a cluster, or start one that only this process can use and that leaves nothing behind."""
    import ray

    with contextlib.ExitStack() as stack:
        folder = None
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            folder = _short(stack.enter_context(temporary_folder("ray")))
            settings |= {
                "address": "local",
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "_temp_dir": str(folder),
                "runtime_env": {"env_vars": {"HOME": str(Path.home())}},
            }
        else:
            settings["address"] = address
        stack.callback(ray.shutdown)
        try:
            with _silent(), _told_of_no_cloud(folder):
                ray.init(**settings)
        except (ConnectionError, RuntimeError, ValueError) as error:
            failed = f"{address}: Ray cannot be joined" if address else "Ray cannot be started"
            raise UsageError(f"{failed} ({error})") from None
        try:
            yield
        except ray.exceptions.RayError as error:
            raise CheckFailedError(f"Ray failed ({error}): the same command goes on from there") from None


def _short(folder: Path) -> Path:
    """Refuse a folder below which Ray's sockets would have longer names than the system allows."""
    if (beyond := len(os.fsencode(folder)) - _MOST_FOLDER_BYTES) > 0:
        raise UsageError(
            f"{folder.parent}: Ray makes its sockets there; their names would be {beyond} bytes too long: "
            "name a folder with a shorter path in TMPDIR"
        )
    return folder


@contextlib.contextmanager
def _told_of_no_cloud(folder: Path | None) -> Iterator[None]:
    """Keep the Ray that starts meanwhile from asking the clouds' metadata addresses what machine this is.

    Even with reports off its head does so, unless a cluster launcher's configuration lies at home.
    """
    if folder is None:
        yield
        return
    (folder / "ray_bootstrap_config.yaml").write_text("{}", encoding="utf-8")
    home = os.environ.get("HOME")
    os.environ["HOME"] = str(folder)
    try:
        yield
    finally:
        del os.environ["HOME"]
        os.environ |= {} if home is None else {"HOME": home}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Send standard error to nowhere, native code's too: Ray tells there that it was told to be quiet."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _pool(options: ArchiveOptions, *, can_use_gpu: bool) -> _Pool:
    """Decide what each worker gets, and see that at least one fits."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    with_gpu = [machine for machine in machines if machine.get("GPU")]
    on_gpu = options.device == "gpu" or (options.device == "auto" and bool(with_gpu) and can_use_gpu)
    machines = with_gpu if on_gpu else machines
    if not machines:
        raise UsageError("no machine of the Ray cluster has a processor" + " and a GPU" * on_gpu)
    workers = options.workers or (
        int(sum(machine["GPU"] for machine in machines)) if on_gpu else len(machines)
    )
    if options.address is None and options.threads is None:
        threads = max(1, usable_cpus() // workers)
    else:
        cpus = min(machine["CPU"] for machine in machines)
        threads = options.threads or max(1, int(cpus) // math.ceil(workers / len(machines)))
    if not any(machine["CPU"] >= threads for machine in machines):
        most = int(max(machine["CPU"] for machine in machines))
        raise UsageError(
            f"--threads {threads}: no machine of the Ray cluster has more than {most} processors"
        )
    return _Pool(workers, threads, int(on_gpu), "gpu" if on_gpu else "cpu")
