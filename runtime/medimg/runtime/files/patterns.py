"""Regular expressions of users and of model files: they may be wrong, and they may take for ever.

Python's own have no time limit, and hold up every thread. So they are tried in a process of their own.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache

from medimg.runtime.errors import DataError

_LONGEST = 1000
"""Characters of a pattern."""
_LEAST_S = 10.0
_NAME_S = 0.001
"""Seconds that a name may take on average, beside `_LEAST_S` for all of them."""
_PROGRAM = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
text, names = json.load(sys.stdin)
pattern = re.compile(text)
group = "patient" if "patient" in pattern.groupindex else 1
found = [pattern.search(name) for name in names]
json.dump([match and match[group] for match in found], sys.stdout)
"""


@lru_cache(maxsize=64)
def fault_of_pattern(pattern: str) -> str | None:
    """Say why a text is no pattern that finds a part of a path; nothing if it is one."""
    if len(pattern) > _LONGEST:
        return f"has {len(pattern)} characters; {_LONGEST} are the most"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression ({error})"
    return None if groups else "has no group: put the patient's part of the path in parentheses"


def find_parts(pattern: str, names: Sequence[str]) -> list[str | None]:
    """Find in each name what the pattern's group `patient`, or else its first group, matches.

    Args:
        pattern: a regular expression.
        names: paths.

    Returns:
        One part a name; None where the pattern does not fit.

    Raises:
        DataError: it is no pattern, or takes too long.
    """
    if fault := fault_of_pattern(pattern):
        raise DataError(f"the pattern {pattern[:_LONGEST]!r} {fault}")
    limit_s = _LEAST_S + _NAME_S * len(names)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([pattern, list(names)]).encode(),
            capture_output=True,
            timeout=limit_s,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"the pattern {pattern!r} takes more than {limit_s:.0f} s for {len(names)} paths: "
            "take a simpler one, without repetitions of repetitions"
        ) from None
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it was killed"]
        raise DataError(f"the pattern {pattern!r} cannot be tried ({last[0][:200]})") from None
    parts: list[str | None] = json.loads(done.stdout)
    return parts
