"""What a user must know about an image that has its answer all the same."""

from collections.abc import Callable
from typing import TypeAlias

Note: TypeAlias = Callable[[str], None]
"""Takes one sentence without the file's name."""
