"""/openapi.json and /docs: the document, and a page of our own that draws it. Nothing is loaded from elsewhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from . import shapes
from .exchange import Exchange
from .operations import Operation
from .replies import Dialect, Reply, json_reply

_FOLDER: Final = Path(__file__).parent / "page"
_FILES: Final = {
    "/docs": ("index.html", "text/html; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Pages:
    """Answers with the page's files and, once it is set, the document."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}
        self._replies = {
            path: Reply(
                body=(_FOLDER / name).read_bytes(), media_type=kind, headers={"content-security-policy": _POLICY}
            )
            for path, (name, kind) in _FILES.items()
        }

    def operations(self) -> list[Operation]:
        """The rows of the route table."""
        rows = [
            Operation(
                "GET",
                path,
                "The page that draws this document, and its parts.",
                tag="documentation",
                dialect=Dialect.MANAGEMENT,
                answer=partial(self._file, path),
                open=True,
                result=shapes.OCTETS,
                returns=(kind,),
            )
            for path, (_, kind) in _FILES.items()
        ]
        document = Operation(
            "GET",
            "/openapi.json",
            "This document.",
            tag="documentation",
            dialect=Dialect.MANAGEMENT,
            answer=self._document,
            result=shapes.OPENAPI,
        )
        return [*rows, document]

    async def _file(self, path: str, exchange: Exchange) -> Reply:
        return self._replies[path]

    async def _document(self, exchange: Exchange) -> Reply:
        return json_reply(self.document)
