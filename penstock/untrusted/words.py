"""A library's own words about a file, made fit for whoever sent the file (pure)."""

from __future__ import annotations

import re

_PATH = re.compile(r"(?:/[\w.@+~-]+){2,}/?")


def public(error: BaseException | str, limit: int = 300) -> str:
    """A library's own words, fit for a caller: one line, no paths, no control characters, cut."""
    words = _PATH.sub("…", " ".join(str(error).split()))
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    return words if len(words) <= limit else words[: limit - 1] + "…"
