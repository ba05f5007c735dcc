from pathlib import Path

import pytest

from medimg.benchmarks.environment import read_environment

BUSY = (1.0, 0.5, 0.25)
X86 = "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t: fpu\n"


def fake_root(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cpu"),
    [
        ({"proc/cpuinfo": X86}, "Some CPU @ 3 GHz"),
        ({"proc/cpuinfo": "processor: 0\n", "proc/device-tree/model": "A Board\0"}, "A Board"),
    ],
)
def test_the_processor_is_named_on_x86_and_on_arm_boards(
    tmp_path: Path, files: dict[str, str], cpu: str
) -> None:
    assert read_environment("now", BUSY, fake_root(tmp_path, files)).cpu == cpu


def test_governors_are_listed_once_and_none_is_none(tmp_path: Path) -> None:
    assert read_environment("now", BUSY, tmp_path).governor is None
    names = {f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor": "powersave\n" for core in range(3)}
    assert read_environment("now", BUSY, fake_root(tmp_path, names)).governor == "powersave"


def test_load_and_start_are_those_before_the_measurement(tmp_path: Path) -> None:
    found = read_environment("2026-01-01T00:00:00+00:00", BUSY, tmp_path)
    assert (found.started, found.load_average) == ("2026-01-01T00:00:00+00:00", BUSY)


def test_nothing_names_the_host_or_the_user() -> None:
    import getpass
    import platform

    text = str(read_environment("now", BUSY))
    assert platform.node() not in text
    assert f"/{getpass.getuser()}" not in text
    assert str(Path.home()) not in text
