"""Decoders in processes of their own: crashes, hangs, kills, threads, forks, and nothing left behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medimg.runtime.errors import ImageError
from medimg.runtime.images.decoder_pool import DecoderPool

TASK = """
import os, signal, time

def start():
    def decode(request, answer):
        if request == b"hang":
            time.sleep(600)
        if request.startswith(b"work"):
            end = time.process_time() + float(request[4:])
            while time.process_time() < end:
                pass
        if request == b"hang deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])
            time.sleep(600)
        if request == b"abort":
            os.abort()
        if request == b"leave":
            os._exit(7)
        if request == b"refuse":
            raise ValueError("no such pixels")
        if request == b"pid":
            request = b"%16d" % os.getpid()
        answer[:] = request.ljust(len(answer), b".")
    return decode
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    (tmp_path / "pool_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = DecoderPool("pool_task", limit_s=1, patience=1)
    yield found
    found.close()


def worker_pid(pool: DecoderPool) -> int:
    return int(bytes(pool.run(b"pid", 16)))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pid: int) -> bool:
    for _ in range(200):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_one_worker_answers_again_and_again(pool: DecoderPool) -> None:
    assert bytes(pool.run(b"abc", 5)) == b"abc.."
    large = os.urandom(3_000_000)
    assert bytes(pool.run(large, len(large))) == large
    assert worker_pid(pool) == worker_pid(pool) != os.getpid()


def test_a_reason_is_passed_on_and_costs_no_worker(pool: DecoderPool) -> None:
    before = worker_pid(pool)
    with pytest.raises(ImageError, match=r"^no such pixels$"):
        pool.run(b"refuse", 1)
    assert worker_pid(pool) == before


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"abort", r"its decoder crashed \(SIGABRT\)"),
        (b"leave", r"its decoder crashed \(exit status 7\)"),
        (b"hang", "its decoder took longer than 1 s and was stopped"),
        (b"hang deaf", "its decoder took longer than 1 s and was stopped"),
    ],
)
def test_a_worker_that_crashes_or_hangs_costs_one_answer(
    pool: DecoderPool, request_: bytes, reason: str
) -> None:
    before = worker_pid(pool)
    with pytest.raises(ImageError, match=reason):
        pool.run(request_, 1)
    assert not is_running(before)
    assert worker_pid(pool) != before


@pytest.mark.long
def test_time_is_that_of_the_processor_and_grows_with_the_answer(pool: DecoderPool) -> None:
    patient = DecoderPool("pool_task", limit_s=0.5, patience=60)
    with pytest.raises(ImageError, match=r"took longer than 0\.5 s of processor time and was stopped"):
        patient.run(b"work 30", 1)
    size_bytes = 4 * 2**20
    assert len(patient.run(b"work 1", size_bytes)) == size_bytes
    patient.close()


@pytest.mark.long
def test_a_busy_machine_changes_no_answer(pool: DecoderPool) -> None:
    """The worker is stopped for longer than its limit, as where others have the processors."""
    patient = DecoderPool("pool_task", limit_s=0.5, patience=60)
    pid = worker_pid(patient)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(patient.run, b"work 0.2", 8)
        while patient._idle:
            time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
        assert bytes(answer.result()) == b"work 0.2"
    patient.close()


def test_a_worker_killed_between_two_requests_costs_nothing(pool: DecoderPool) -> None:
    before = worker_pid(pool)
    os.kill(before, signal.SIGKILL)
    assert wait_for_end(before)
    assert worker_pid(pool) != before


def test_a_worker_killed_at_work_costs_that_request_only(pool: DecoderPool) -> None:
    pool = DecoderPool("pool_task", limit_s=60)
    pid = worker_pid(pool)
    with ThreadPoolExecutor(2) as threads:
        hanging = threads.submit(pool.run, b"hang", 1)
        while pool._idle:
            time.sleep(0.01)
        assert bytes(threads.submit(pool.run, b"other", 5).result()) == b"other"
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ImageError, match=r"crashed \(SIGKILL\)"):
            hanging.result()
    pool.close()


def test_threads_share_no_more_workers_than_there_are_of_them(pool: DecoderPool) -> None:
    def answers(thread: int) -> set[int]:
        pids = set()
        for number in range(40):
            text = f"{thread} {number}".encode()
            assert bytes(pool.run(text, 20)) == text.ljust(20, b".")
            pids.add(worker_pid(pool))
        return pids

    with ThreadPoolExecutor(4) as threads:
        pids = set[int]().union(*threads.map(answers, range(4)))
    assert 1 <= len(pids) <= 4
    pool.close()
    assert all(not is_running(pid) for pid in pids)


def test_nothing_stays_open_or_running(pool: DecoderPool) -> None:
    pid, before, shared = worker_pid(pool), open_descriptors(), set(Path("/dev/shm").iterdir())
    kept = [pool.run(b"x" * 5000, 10_000) for _ in range(20)]
    for request in (b"refuse", b"abort", b"leave"):
        with pytest.raises(ImageError):
            pool.run(request, 10_000)
    assert open_descriptors() <= before + len(kept)
    kept.clear()
    # The worker that crashed was replaced by none yet.
    assert open_descriptors() < before
    assert set(Path("/dev/shm").iterdir()) <= shared
    pool.close()
    assert wait_for_end(pid)


def test_a_task_that_cannot_start_says_so() -> None:
    with pytest.raises(ImageError, match=r"its decoder does not start: no_such_task\.start\(\) must work"):
        DecoderPool("no_such_task").run(b"", 1)


def test_a_process_that_cannot_be_had_is_one_line(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  names are enough
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refused)
        with pytest.raises(ImageError, match="its decoder cannot be started"):
            pool.run(b"one", 3)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert bytes(pool.run(b"one", 3)) == b"one"


def test_memory_that_cannot_be_had_is_one_line(pool: DecoderPool) -> None:
    with pytest.raises(ImageError, match="no memory for its 4,611,686,018,427,387,904 bytes of pixels"):
        pool.run(b"", 2**62)


def test_python_without_memfd_uses_a_file_without_a_name(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert bytes(pool.run(b"abc", 5)) == b"abc.."


FORKING = """
import os
from medimg.runtime.images.decoder_pool import DecoderPool
pool = DecoderPool("pool_task", limit_s=5)
before = bytes(pool.run(b"pid", 16))
child = os.fork()
if not child:
    own = bytes(pool.run(b"pid", 16))
    pool.close()
    os._exit(0 if own != before else 1)
assert os.waitpid(child, 0)[1] == 0
assert bytes(pool.run(b"pid", 16)) == before
"""


def test_a_forked_child_starts_its_own_workers(tmp_path: Path, pool: DecoderPool) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


PARENT = """
import os, signal, sys, threading, time
from medimg.runtime.images.decoder_pool import DecoderPool
pool = DecoderPool("pool_task", limit_s=1, patience=1)
print(int(bytes(pool.run(b"pid", 16))), flush=True)
if sys.argv[1] == "killed at work":
    threading.Thread(target=pool.run, args=(b"hang", 1), daemon=True).start()
    time.sleep(0.3)
if sys.argv[1] != "ended":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long
@pytest.mark.parametrize("end", ["ended", "killed", "killed at work"])
def test_workers_end_with_their_parent(end: str, pool: DecoderPool, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PARENT, end],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == (0 if end == "ended" else -signal.SIGKILL), done.stderr
    assert wait_for_end(int(done.stdout))
    assert not done.stderr


def test_a_worker_imports_little() -> None:
    """What a worker holds is the standard library and its task."""
    code = "import sys; from medimg.runtime.images import decoder_worker, gdcm_frames; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numpy", "cv2", "pydicom"}.isdisjoint(done.stdout.split())
