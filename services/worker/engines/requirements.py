"""Does this process have what a manifest says its model needs? `dependencies`, and `python` of `environment`.

What a model was made with (`cuda`, `tensorrt`) is left to its engine's probe, which asks the machine itself.
"""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from penstock.errors import InvalidManifest, Unsupported
from penstock.v1 import manifest_pb2 as pb


def check(manifest: pb.Manifest) -> None:
    """Raises Unsupported that names what is missing or too old; InvalidManifest for what is no requirement."""
    wanted = manifest.environment.get("python", "")
    if not manifest.dependencies and not wanted:
        return
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    for index, text in enumerate(manifest.dependencies):
        field = f"dependencies[{index}]"
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            raise InvalidManifest(f"{field}: {text[:80]!r} is not a requirement", field=field) from None
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            have = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            raise Unsupported(f"{field}: this worker has no {requirement.name}; the model needs {text}") from None
        _check_version(requirement.name, have, requirement.specifier, field)
    if wanted:
        try:
            specifier = SpecifierSet(wanted)
        except InvalidSpecifier:
            raise InvalidManifest(
                f"environment.python: {wanted[:80]!r} is not a version specifier", field="environment.python"
            ) from None
        _check_version("python", platform.python_version(), specifier, "environment.python")


def _check_version(name: str, have: str, wanted: Any, field: str) -> None:
    if not wanted.contains(have, prereleases=True):
        raise Unsupported(f"{field}: this worker has {name} {have}; the model needs {name}{wanted}")
