"""Names that callers choose, checked once: models, aliases, versions, digests, tenants.

Anything that passes is safe as an etcd key segment, a URL segment and a metric label; no path is ever built from it.
"""

from __future__ import annotations

import re

from penstock.errors import InvalidArgument

_MODEL = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_TENANT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]{1,18}")


def model(name: str, field: str = "name") -> str:
    """The name itself if it may name a model; raises InvalidArgument otherwise."""
    if _MODEL.fullmatch(name) and ".." not in name:
        return name
    raise InvalidArgument(
        f"{field}: {_shown(name)} cannot name a model; use 1 to 64 of a-z, 0-9, '.', '_', '-', "
        "beginning and ending with a letter or digit, without '..'",
        field=field,
    )


def alias(name: str, field: str = "alias") -> str:
    """The name itself if it may be an alias; raises InvalidArgument otherwise."""
    if _ALIAS.fullmatch(name):
        return name
    raise InvalidArgument(
        f"{field}: {_shown(name)} cannot be an alias; use a letter, then up to 62 letters, digits, '-' or '_'",
        field=field,
    )


def tenant(name: str, field: str = "name") -> str:
    """The name itself if it may name a tenant, as callers are named; raises InvalidArgument otherwise."""
    if _TENANT.fullmatch(name) and ".." not in name:
        return name
    raise InvalidArgument(
        f"{field}: {_shown(name)} cannot name a tenant; use 1 to 64 letters, digits, '.', '_' and '-', beginning and "
        "ending with a letter or digit, without '..'",
        field=field,
    )


def digest(text: str, field: str = "digest") -> str:
    """The digest itself if it is `sha256:` and 64 lower-case hex digits; raises InvalidArgument otherwise."""
    if is_digest(text):
        return text
    raise InvalidArgument(
        f"{field}: {_shown(text)} is not a digest; use sha256: and 64 lower-case hex digits", field=field
    )


def is_digest(text: str) -> bool:
    """Whether it is `sha256:` and 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def version_or_alias(text: str, field: str = "version") -> int | str:
    """A positive version number as int, or an alias as str; raises InvalidArgument for anything else."""
    if _VERSION.fullmatch(text) and int(text) > 0:
        return int(text)
    if _ALIAS.fullmatch(text):
        return text
    raise InvalidArgument(f"{field}: {_shown(text)} is neither a positive integer nor an alias", field=field)


def _shown(text: str) -> str:
    """Quoted, cut and with control characters escaped, so that a hostile name cannot forge a log line."""
    return repr(text[:80] + ("…" if len(text) > 80 else ""))
