"""POSIX shared memory objects for tests, and origins of calls."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.regions import FOLDER
from penstock.wire.origin import Origin


@contextmanager
def shared_object(size: int, content: bytes = b"") -> Iterator[str]:
    """The key of a new object, which is gone afterwards if it is still there."""
    key = f"/penstock-test-{uuid.uuid4().hex}"
    with open(path_of(key), "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size)
        file.write(content)
    try:
        yield key
    finally:
        if os.path.lexists(path_of(key)):
            os.unlink(path_of(key))


def path_of(key: str) -> str:
    """Where the object of a key lies."""
    return f"{FOLDER}/{key.lstrip('/')}"


class KnownOrigin(Origin):
    """An origin that a test decides on."""

    def __init__(self, same_user: bool) -> None:
        super().__init__(None)
        self._same_user = same_user


NEIGHBOUR = KnownOrigin(True)
STRANGER = KnownOrigin(False)
