"""What a client verifies a gateway by, and what it shows of itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from penstock.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files, empty for none. ca: without it, calls are plain text; cert, key: for mutual TLS."""

    ca: str
    cert: str
    key: str

    @classmethod
    def of(cls, ca: str | None, cert: str | None, key: str | None) -> Tls:
        """What was given; for what was not, the environment's."""
        given = {"ca": ca, "cert": cert, "key": key}
        return cls(
            **{
                name: os.environ.get(f"PENSTOCK_TLS_{name.upper()}", "") if path is None else path
                for name, path in given.items()
            }
        )

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel; None for plain text. Raises InvalidArgument for files that cannot be read or go nowhere."""
        if bool(self.cert) != bool(self.key):
            raise InvalidArgument("tls_cert and tls_key go together: give both, or neither", field="tls_cert")
        if not self.ca:
            return None
        cert = _read(self.cert, "tls_cert") if self.cert else None
        key = _read(self.key, "tls_key") if self.key else None
        return grpc.ssl_channel_credentials(_read(self.ca, "tls_ca"), key, cert)


def _read(path: str, field: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as problem:
        raise InvalidArgument(f"{field}: {path} cannot be read: {problem.strerror}", field=field) from None
    if b"-----BEGIN " not in content:
        raise InvalidArgument(f"{field}: {path} is not a PEM file", field=field)
    return content
