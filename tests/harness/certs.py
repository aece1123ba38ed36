"""Real certificates for tests, made by the script that people use in development."""

from __future__ import annotations

import os
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy.local.suite import ROOT
from penstock.kit.tls import Files

SCRIPT = ROOT / "deploy" / "certs" / "make-certs.sh"


@dataclass(frozen=True)
class Certs:
    """A CA and one certificate of it for localhost and 127.0.0.1, as files."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, *hosts: str, days: int = 30) -> Certs:
        """Makes them, or renews the certificate; days below zero: one that has expired."""
        made = subprocess.run(
            [SCRIPT, folder, *hosts], env={**os.environ, "DAYS": str(days)}, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
        return cls(folder)

    def renew(self) -> None:
        """Another certificate of the same CA."""
        self.make(self.folder)

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.pem")

    @property
    def cert(self) -> str:
        return str(self.folder / "penstock.pem")

    @property
    def key(self) -> str:
        return str(self.folder / "penstock.key")

    def files(self, *, mutual: bool = False) -> Files:
        """For a process that serves and calls by TLS; mutual: callers must have a certificate too."""
        return Files(cert=self.cert, key=self.key, ca=self.ca, client_ca=self.ca if mutual else "")

    def environment(self, *, mutual: bool = False) -> dict[str, str]:
        """The same for a process's environment."""
        settings = {"CERT": self.cert, "KEY": self.key, "CA": self.ca, "CLIENT_CA": self.ca if mutual else ""}
        return {f"PENSTOCK_TLS_{name}": path for name, path in settings.items() if path}

    def caller(self, *, shows: bool = False) -> ssl.SSLContext:
        """Somebody who verifies by this CA; shows: with a certificate of their own."""
        context = ssl.create_default_context(cafile=self.ca)
        if shows:
            context.load_cert_chain(self.cert, self.key)
        return context
