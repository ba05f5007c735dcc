"""The environment and the model as a CycloneDX bill of materials."""

import re
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import require


def bill_of_materials(model: Path | None = None) -> str:
    """List every installed distribution, and an artefact, in CycloneDX 1.6 JSON.

    Args:
        model: an artefact with a spec.

    Raises:
        ModelError: it carries none, or was changed.
    """
    bom_module = require("cyclonedx.model.bom", "node")
    component = require("cyclonedx.model.component", "node")
    bom = bom_module.Bom()
    installed = {_canonical(found.name): found for found in distributions()}
    entries = {name: _package(found) for name, found in sorted(installed.items())}
    bom.metadata.component = root = entries["medimg"]
    bom.components.update(entry for entry in entries.values() if entry is not root)
    for name, entry in entries.items():
        bom.register_dependency(entry, [entries[need] for need in _needs(installed[name]) if need in entries])
    if model is not None:
        described = _model(model, component)
        bom.components.add(described)
        bom.register_dependency(root, [described])
    output = require("cyclonedx.output", "node")
    schema = require("cyclonedx.schema", "node")
    made = output.make_outputter(bom, schema.OutputFormat.JSON, schema.SchemaVersion.V1_6)
    return str(made.output_as_string(indent=1))


def _canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def _needs(distribution: Distribution) -> set[str]:
    """Name what a distribution requires, its extras included."""
    names = (re.match(r"[\w.-]+", requirement) for requirement in distribution.requires or ())
    return {_canonical(name[0]) for name in names if name} - {_canonical(distribution.name)}


def _package(distribution: Distribution) -> Any:  # noqa: ANN401  cyclonedx is optional
    component = require("cyclonedx.model.component", "node")
    factory = require("cyclonedx.contrib.license.factories", "node").LicenseFactory()
    purl = require("packageurl", "node").PackageURL
    name, version = distribution.name, distribution.version
    metadata = distribution.metadata
    stated = next((metadata[key] for key in ("License-Expression", "License") if key in metadata), "")
    # Some packages give their licence's whole text where its name is wanted.
    short = stated if "\n" not in stated and len(stated) < 100 else ""
    reference = f"pkg:pypi/{name.lower()}@{version}"
    return component.Component(
        type=component.ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=reference,
        purl=purl("pypi", name=name.lower(), version=version),
        licenses=[factory.make_from_string(short)] if short else [],
        components=[
            component.Component(
                name=held, bom_ref=f"{reference}#{held}", licenses=[factory.make_from_string(licence)]
            )
            for held, licence in _carried(distribution)
        ],
    )


def _carried(distribution: Distribution) -> list[tuple[str, str]]:
    """Name what a wheel carries under a licence that its metadata does not state, and that licence."""
    if not _canonical(distribution.name).startswith("opencv-"):
        return []
    libraries = {file.name.partition("-")[0] for file in distribution.files or ()}
    return [("FFmpeg", "LGPL-2.1-or-later")] if "libavcodec" in libraries else []


def _model(path: Path, component: Any) -> Any:  # noqa: ANN401
    spec = ModelSpec.read(path)
    model = require("cyclonedx.model", "node")
    sha256 = file_sha256(path)
    facts = {
        "medimg:precision": spec.precision,
        "medimg:labels": ", ".join(spec.labels),
        "medimg:intended_use": spec.intended_use,
        "medimg:source_sha256": spec.source.sha256 if spec.source else None,
    }
    return component.Component(
        type=component.ComponentType.MACHINE_LEARNING_MODEL,
        name=path.name,
        version=sha256[:12],
        bom_ref=f"model:{sha256}",
        hashes=[model.HashType(alg=model.HashAlgorithm.SHA_256, content=sha256)],
        properties=[model.Property(name=name, value=value) for name, value in facts.items() if value],
    )
