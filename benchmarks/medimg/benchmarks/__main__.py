"""Entry point of medimg-bench."""

from typing import NoReturn

from medimg.benchmarks.cli import cli
from medimg.runtime.commandline import run


def main() -> NoReturn:
    """Run the command and leave with its exit status."""
    run(cli)


if __name__ == "__main__":
    main()
