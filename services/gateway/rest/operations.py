"""The route table's rows. The application, the OpenAPI document and the tests are all made from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from .fields import Field
from .replies import JSON, Dialect, Reply

if TYPE_CHECKING:
    from .exchange import Exchange

Schema = dict[str, Any] | type[Message] | None
"""A JSON schema, a message class whose schema is derived, or None for no body."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path.

    open: needs no credential; timeout: seconds granted instead of the default; accepts and returns: media types;
    status: of success; body and result: schemas; query: parameters. direct: answers without a task, once the body is
    there; False where `answer` is needed after all. streams: the answer comes in pieces, and nothing beside it.
    """

    method: str
    path: str
    summary: str
    tag: str
    dialect: Dialect
    answer: Callable[[Exchange], Awaitable[Reply]]
    open: bool = False
    timeout: float | None = None
    status: int = 200
    query: Sequence[Field] = ()
    headers: Sequence[Field] = ()
    body: Schema = None
    accepts: Sequence[str] = (JSON,)
    result: Schema = None
    returns: Sequence[str] = (JSON,)
    direct: Callable[[Exchange], bool] | None = None
    streams: bool = False

    @property
    def overlaps(self) -> bool:
        """Whether it may be answered beside other requests of its connection: it changes nothing that they see."""
        return self.direct is not None or (self.method == "GET" and not self.streams)
