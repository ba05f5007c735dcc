"""What this user's cache knows of engines that were verified on a GPU."""

from medimg.runtime.engines.golden import GoldenCheck
from medimg.runtime.errors import TrustError
from medimg.runtime.files.plain import to_plain
from medimg.runtime.machine.cuda import Device
from medimg.runtime.model import trust


def note_check(engine_sha256: str, gpu: Device, found: GoldenCheck) -> None:
    """Keep in this user's cache how an engine did on this GPU."""
    trust.write_note("verified", _name(engine_sha256, gpu), to_plain(found))


def was_verified(engine_sha256: str, gpu: Device) -> bool:
    """Tell whether it is known that an engine has passed its golden inputs on this very GPU."""
    try:
        note = trust.read_note("verified", _name(engine_sha256, gpu)) or {}
    except TrustError:
        return False
    return note.get("passed") is True


def _name(engine_sha256: str, gpu: Device) -> str:
    return f"{engine_sha256}-{gpu.uuid}"
