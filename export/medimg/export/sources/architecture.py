"""Architectures in files of their own, as `model.to_json()` and `to_yaml()` write them beside weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medimg.export.errors import SourceError
from medimg.runtime.errors import ModelError
from medimg.runtime.machine.bounded import Bounds, call
from medimg.runtime.model.keras_files import configuration, whole
from medimg.runtime.model.keras_files.archive import MAX_CONFIG_BYTES
from medimg.runtime.model.keras_files.reading import VERSION, Parts
from medimg.runtime.model.keras_files.whole import KerasFile
from medimg.runtime.optional import require

_YAML = "medimg.export.sources.architecture:yaml_as_json"


def joined(path: Path, parts: Parts, architecture: Path) -> KerasFile:
    """Put weights and the architecture that they belong to together.

    Args:
        path: the weights-only file.
        parts: what was read of it.
        architecture: a JSON or YAML file.

    Raises:
        SourceError: the architecture is none.
    """
    text = _text(architecture)
    config = configuration.parse(architecture, text)
    version = parts.version or str(config.get(VERSION) or ("3.0.0" if "module" in config else "2.0.0"))
    if parts.weights == "keras-3" and not version.startswith("3."):
        version = "3.0.0"
    layout: Literal[".keras", ".h5"] = ".keras" if parts.weights == "keras-3" else ".h5"
    try:
        found = whole.judged(path, replace(parts, layout=layout, version=version, config=text))
    except ModelError as error:
        raise SourceError(f"{architecture}: {error}") from None
    return found


def yaml_as_json(path: str) -> str:
    """Read YAML as JSON; runs in a bounded process, since short YAML can stand for endless values."""
    yaml = require("yaml", "export")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]  # no types
        """Knows the tuples of Python that Keras 2 wrote, and nothing else of Python."""

    Loader.add_constructor(
        "tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node, deep=True)
    )
    try:
        return json.dumps(yaml.load(Path(path).read_text(encoding="utf-8"), Loader))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: not YAML that describes a model ({str(error)[:200]})") from None


def _text(path: Path) -> str:
    if not path.is_file():
        raise SourceError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise SourceError(f"{path}: is larger than an architecture can be ({MAX_CONFIG_BYTES >> 20} MiB)")
    if path.suffix in {".yaml", ".yml"}:
        found: Any = call(_YAML, str(path), bounds=Bounds(), subject=str(path))
        return str(found)
    return path.read_text(encoding="utf-8", errors="replace")
