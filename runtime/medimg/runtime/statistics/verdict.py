"""What a comparison with the reference comes to."""

from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["proven", "not proven", "failed", "unlabelled"]
