"""Who calls. One check for every method of every service: a bearer token, or loopback where no callers are configured.

Tokens are 256-bit random strings, so their plain SHA-256 is what the file keeps; comparison is in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path

from penstock.errors import Unauthenticated
from penstock.wire.call import CALLER_OF_CALL

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")

LOCAL = "local"
"""Name of every caller while no callers are configured."""


def caller() -> str:
    """Authenticated name of whoever made the call that is being served; empty outside a call."""
    return CALLER_OF_CALL.get()


def set_caller(name: str) -> None:
    """Says who makes the call that is being served; only the server's own gate does this."""
    CALLER_OF_CALL.set(name)


class Authenticator:
    """Knows the callers of one process.

    Args:
        auth_file: lines of `name sha256-hex-of-token`, `#` for comments; empty to take every caller as `local`, which
            `require_loopback` allows on loopback only.
    """

    def __init__(self, auth_file: str) -> None:
        self._names: dict[str, str] = {}
        self._open = not auth_file
        for number, line in enumerate(Path(auth_file).read_text().splitlines() if auth_file else (), 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or not _DIGEST.fullmatch(words[1]):
                raise ValueError(f"auth_file, line {number}: expected `name sha256-hex-of-token`")
            if words[1].lower() in self._names:
                raise ValueError(f"auth_file, line {number}: the token of {words[0]} is also somebody else's")
            self._names[words[1].lower()] = words[0]

    def authenticate(self, headers: Mapping[str, str]) -> str:
        """Name of the caller by the `authorization` header; raises Unauthenticated."""
        if self._open:
            return LOCAL
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            given = hashlib.sha256(token.strip().encode(errors="replace")).hexdigest()
            for digest, name in self._names.items():
                if hmac.compare_digest(digest, given):
                    return name
        raise Unauthenticated("this needs a valid token: send `authorization: Bearer <token>`")

    def require_loopback(self, host: str) -> None:
        """Raises ValueError when an address other than loopback would be served without authentication."""
        if self._open and not is_loopback(host):
            raise ValueError(
                f"host {host} can be reached from other machines and no callers are configured: "
                "set auth_file, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a process that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
