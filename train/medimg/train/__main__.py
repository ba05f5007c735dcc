"""Entry point of medimg-train."""

from typing import NoReturn

from medimg.runtime.commandline import run
from medimg.train.cli import cli


def main() -> NoReturn:
    """Run the command and leave with its exit status."""
    run(cli)


if __name__ == "__main__":
    main()
