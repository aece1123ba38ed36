"""The name and password of a user of etcd.

The password lies in a file: it never stands on a command line, in a log or in a message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from penstock.kit.config import ServiceConfig

MAX_BYTES: Final = 4096


class Login:
    """A user and where its password lies; raises ValueError when the file cannot be used.

    The file is read again whenever the store asks anew, so a changed password needs no restart.
    """

    def __init__(self, user: str, password_file: str) -> None:
        self.user = user
        self._file = Path(password_file)
        self.password()

    def password(self) -> str:
        """The file's one line, without its end; raises ValueError when there is none."""
        try:
            with self._file.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as problem:
            raise ValueError(f"etcd_password_file: {self._file} cannot be read: {problem.strerror}") from None
        try:
            text = data.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            text = ""
        if not text or len(data) > MAX_BYTES or not text.isprintable():
            raise ValueError(f"etcd_password_file: {self._file} must hold the password alone, on one line")
        return text


def for_etcd(config: ServiceConfig) -> Login | None:
    """As whom a process calls etcd; None for nobody. Raises ValueError as Login does."""
    if not config.etcd_user and not config.etcd_password_file:
        return None
    if not config.etcd_user or not config.etcd_password_file:
        raise ValueError("etcd_user and etcd_password_file go together")
    return Login(config.etcd_user, config.etcd_password_file)
