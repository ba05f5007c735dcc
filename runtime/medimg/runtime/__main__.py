"""Entry point of medimg-run."""

from typing import NoReturn

from medimg.runtime.interrupt import leave_at_once


def main() -> NoReturn:
    """Run the command and leave with its exit status."""
    leave_at_once()
    from medimg.runtime.cli import cli
    from medimg.runtime.commandline import run

    run(cli)


if __name__ == "__main__":
    main()
