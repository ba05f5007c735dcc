"""How much memory this process may take: the machine's, or what its cgroups leave of it."""

from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_SHARE = 4


def reception_bytes(configured_mb: float) -> int:
    """Give the memory for images that are being received: as configured, or a quarter where that is 0."""
    return int(configured_mb * 1e6) if configured_mb else machine_bytes() // _SHARE


def machine_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Give the machine's memory, or the lowest limit of the cgroups that this process is in."""
    limits = [1024 * int(_field(proc / "meminfo", "MemTotal:"))]
    group = next((line[3:] for line in _lines(proc / "self" / "cgroup") if line.startswith("0::")), "/")
    path = cgroups / group.strip("/")
    for folder in (path, *path.parents):
        if folder == cgroups.parent:
            break
        # The second version's name, and the first's, which has one file for what is not limited too.
        for name in ("memory.max", "memory/memory.limit_in_bytes"):
            limits += [int(line) for line in _lines(folder / name)[:1] if line.isdecimal()]
    return min(limits)


def _field(path: Path, name: str) -> str:
    return next(line.split()[1] for line in _lines(path) if line.startswith(name))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
