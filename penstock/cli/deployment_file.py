"""A file that says how several models run, and what applying it would change (pure but for reading the file).

    deployments:
      - model: digits
        version: prod
        replicas: 2
      - model: minilm
        scaling: {min_replicas: 0, max_replicas: 8, outstanding: 4, schedule: ["mon-fri 08:00-18:00=3"]}
        placement: {selector: {zone: a}}
        tenant: acme

Each entry is all that is said of that version: what an entry leaves out is as if it had never been said. Models that
the file does not name are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock import names
from penstock.cli import options, windows
from penstock.client import document
from penstock.errors import InvalidArgument
from penstock.reading import read as read_message
from penstock.v1 import models_pb2 as pb

MAX_BYTES: Final = 1 << 20
_KEYS: Final = ("model", "version", "replicas", "scaling", "placement", "tenant", "keep_others")


@dataclass(frozen=True, slots=True)
class Change:
    """What one entry would change. kind: `create`, `update` or `none`; differences: field, before, after."""

    name: str
    version: int
    kind: str
    differences: list[tuple[str, str, str]] = field(default_factory=list)


def read(path: str | Path) -> list[pb.DeployRequest]:
    """The entries in order; raises InvalidArgument with the field, OSError."""
    path = Path(path)
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise InvalidArgument(f"{path}: a deployment file is at most 1 MiB")
    try:
        content = document.parse(data.decode("utf-8"), path)
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path}: not UTF-8 text") from None
    entries = content.get("deployments") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or set(content) != {"deployments"}:
        raise InvalidArgument(
            f"{path}: must hold one list, `deployments`, of entries such as `- model: digits`", field="deployments"
        )
    found = [_entry(entry, f"deployments[{number}]") for number, entry in enumerate(entries)]
    defaults = [request.name for request in found if not request.keep_others]
    for number, request in enumerate(found):
        if not request.keep_others and defaults.count(request.name) > 1:
            where = f"deployments[{number}].model"
            text = f"{where}: {request.name} stands here twice; all but one need `keep_others: true`"
            raise InvalidArgument(text, field=where)
    return found


def change(request: pb.DeployRequest, number: int, deployed: pb.Deployment | None) -> Change:
    """What deploying that version would change of the model's deployment."""
    versions = {} if deployed is None else {entry.version: entry for entry in deployed.versions}
    default = 0 if deployed is None else deployed.default_version
    before = versions.get(number)
    asked = _kept(before or versions.get(default), number) if request.keep_options else _asked(request, number)
    differences = [] if before is None else _differences(before, asked)
    if deployed is not None and not request.keep_others:
        if default != number:
            differences.append(("default", str(default), str(number)))
        retiring = [v.version for v in deployed.versions if v.version != number and not v.retiring]
        differences += [(f"version {other}", "stays", "retires") for other in retiring]
    if before is None:
        # Of what is new all is told, beside what it does to others.
        differences = [*_differences(pb.DeployedVersion(version=number, tenant=""), asked), *differences]
        return Change(request.name, number, "create", differences)
    return Change(request.name, number, "update" if differences else "none", differences)


def _asked(request: pb.DeployRequest, number: int) -> pb.DeployedVersion:
    asked = pb.DeployedVersion(version=number, replicas=request.replicas or 1, tenant=request.tenant)
    if request.HasField("scaling"):
        asked.scaling.CopyFrom(request.scaling)
        asked.replicas = request.scaling.min_replicas
    if request.HasField("placement"):
        asked.placement.CopyFrom(request.placement)
    return asked


def _kept(before: pb.DeployedVersion | None, number: int) -> pb.DeployedVersion:
    kept = pb.DeployedVersion(replicas=1)
    if before is not None:
        kept.CopyFrom(before)
    kept.version, kept.retiring = number, False
    return kept


def _differences(before: pb.DeployedVersion, after: pb.DeployedVersion) -> list[tuple[str, str, str]]:
    pairs = (
        ("replicas", options.wanted_words(before), options.wanted_words(after)),
        ("scaling", options.scaling_words(before), options.scaling_words(after)),
        ("placement", options.placement_words(before), options.placement_words(after)),
        ("tenant", before.tenant, after.tenant),
        ("retiring", "yes" if before.retiring else "no", "yes" if after.retiring else "no"),
    )
    return [(name, was, now) for name, was, now in pairs if was != now]


def _entry(entry: object, path: str) -> pb.DeployRequest:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{path}: must be a mapping, such as `model: digits`", field=path)
    for key in entry:
        if key not in _KEYS:
            where = f"{path}.{str(key)[:64]}"
            raise InvalidArgument(f"{where}: is not known here; known are {', '.join(_KEYS)}", field=where)
    values: dict[str, Any] = dict(entry)
    name = values.pop("model", None)
    if not isinstance(name, str):
        raise InvalidArgument(f"{path}.model: names the model, such as digits", field=f"{path}.model")
    values["name"] = names.model(name, f"{path}.model")
    version = values.get("version")
    if isinstance(version, int) and not isinstance(version, bool):
        values["version"] = str(version)
    if isinstance(values.get("scaling"), Mapping):
        values["scaling"] = _with_windows(values["scaling"], f"{path}.scaling.schedule")
    request = read_message(values, pb.DeployRequest, path)
    if request.version:
        names.version_or_alias(request.version, f"{path}.version")
    return request


def _with_windows(scaling: Mapping[str, Any], path: str) -> dict[str, Any]:
    """With the windows that are one word each written out."""
    values = dict(scaling)
    if isinstance(values.get("schedule"), list):
        values["schedule"] = [
            {**(window := windows.parse(item, f"{path}[{number}]")._asdict()), "days": list(window["days"])}
            if isinstance(item, str)
            else item
            for number, item in enumerate(values["schedule"])
        ]
    return values
