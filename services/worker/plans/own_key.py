"""The key with which a worker signs what it compiled itself. It trusts the public half; nobody else does."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import plans

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def own_key(folder: Path) -> Ed25519PrivateKey:
    """The key in this folder, made when it is first asked for, readable by this user alone.

    Raises InvalidArgument where the file is something else, or others may read it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        plans.new_key(folder / "plan_key")
    return plans.private_key(folder / "plan_key")
