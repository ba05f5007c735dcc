"""What is wrong with a data set, as lines for a terminal."""

from typing import TYPE_CHECKING

from medimg.runtime.files.text import printable

if TYPE_CHECKING:
    from medimg.train.data.duplicates import Duplicates

SHOWN = 5


def unreadable_lines(messages: tuple[str, ...]) -> list[str]:
    """Count images that cannot be read, and show the first."""
    if not messages:
        return []
    more = [f"  and {len(messages) - SHOWN} more"] if len(messages) > SHOWN else []
    shown = [f"  {printable(message)}" for message in messages[:SHOWN]]
    return [f"{len(messages)} unreadable image(s) left out:", *shown, *more]


def duplicate_lines(found: "Duplicates") -> list[str]:
    """Count images that repeat others, and show the first; nothing where there are none."""
    if not found.images:
        return []
    where = f"an earlier image of {found.part}" if found.part == found.other else f"an image of {found.other}"
    told = f", {found.contradictory} of them with another label" if found.contradictory else ""
    pairs = [
        f"  {printable(pair.image)} ({printable(pair.label)}) repeats {printable(pair.repeats)} "
        f"({printable(pair.its_label)})" + ("" if pair.exact else f", {pair.bits} of 256 bits apart")
        for pair in found.listed[:SHOWN]
    ]
    more = [f"  and {found.images - SHOWN} more"] if found.images > SHOWN else []
    return [
        f"{found.images} image(s) of {found.part} repeat {where} "
        f"({found.exact} to the pixel, {found.near} nearly){told}:",
        *pairs,
        *more,
    ]
