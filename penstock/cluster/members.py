"""The members of the store as this process reaches them: one channel each, and whose turn it is.

The first in line is asked until it fails; then it goes to the end of the line. TLS may change while we run: channels
are then opened anew, and an old one is closed when the last call on it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import grpc

Credentials = Callable[[], grpc.ChannelCredentials | None]
"""What to open a channel with now; None for plain text. Another object after a change."""

Stubs = TypeVar("Stubs")

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
)


class Member(Generic[Stubs]):
    """One endpoint: its channel and what is called on it."""

    def __init__(
        self, endpoint: str, credentials: grpc.ChannelCredentials | None, stubs: Callable[[grpc.aio.Channel], Stubs]
    ) -> None:
        self.endpoint = endpoint
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        self.stubs = stubs(self.channel)
        self.calls = 0

    @contextmanager
    def called(self) -> Iterator[None]:
        """Around a call, so that the channel is not closed under it."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1


class Members(Generic[Stubs]):
    """endpoints: `host:port`, in the order of their turns."""

    def __init__(
        self, endpoints: Sequence[str], credentials: Credentials, stubs: Callable[[grpc.aio.Channel], Stubs]
    ) -> None:
        self._credentials = credentials
        self._stubs = stubs
        self._opened_with = credentials()
        self._line = [Member(endpoint, self._opened_with, stubs) for endpoint in endpoints]
        self._retired: list[Member[Stubs]] = []

    def __len__(self) -> int:
        return len(self._line)

    async def first(self) -> Member[Stubs]:
        """Whose turn it is."""
        if (credentials := self._credentials()) is not self._opened_with:
            self._opened_with = credentials
            self._retired += self._line
            self._line = [Member(member.endpoint, credentials, self._stubs) for member in self._line]
        first = self._line[0]
        for member in [member for member in self._retired if not member.calls]:
            self._retired.remove(member)
            await member.channel.close()
        return first

    def pass_over(self, member: Member[Stubs]) -> None:
        """It did not answer: it goes to the end, unless another call has sent it there already."""
        if self._line[0] is member:
            self._line.append(self._line.pop(0))

    async def close(self) -> None:
        """Closes every channel; calls on them are cut off."""
        for member in (*self._line, *self._retired):
            await member.channel.close()
