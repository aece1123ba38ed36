"""Page tokens: where the next page begins, opaque to the caller and checked when it comes back (pure).

A token belongs to one question: the same token with another filter is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Final

from penstock.errors import InvalidArgument

DEFAULT: Final = 100
LARGEST: Final = 1000


def size(asked: int) -> int:
    """Entries of a page; raises InvalidArgument for a size that is out of range."""
    if not 0 <= asked <= LARGEST:
        raise InvalidArgument(f"page_size: {asked} is not 1 to {LARGEST}, or 0 for {DEFAULT}", field="page_size")
    return asked or DEFAULT


def question(kind: str, name: str, tags: Mapping[str, str] | None = None) -> str:
    """A short fingerprint of what is asked."""
    asked = json.dumps([kind, name, sorted((tags or {}).items())])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def token(asked: str, last: str) -> str:
    """The token of the page after the entry `last`."""
    return base64.urlsafe_b64encode(json.dumps([asked, last]).encode()).decode().rstrip("=")


def last_of(asked: str, text: str) -> str:
    """The entry after which to go on, empty for the first page; raises InvalidArgument for a token that is not ours."""
    if not text:
        return ""
    try:
        if len(text) > 1024:
            raise ValueError
        found = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        if isinstance(found, list) and len(found) == 2 and found[0] == asked and isinstance(found[1], str):
            return found[1]
    except (ValueError, binascii.Error, RecursionError):
        pass
    raise InvalidArgument(
        "page_token: this token does not belong to this question; send it with the same filter, or begin without one",
        field="page_token",
    )
