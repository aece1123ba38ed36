"""Being somebody to the store: the token that a user has now, and when it must be asked for anew.

A token ends by itself, with a restart of the store, or when users and roles change. The store then refuses a call
before it does anything, so that even a write may be sent again with another token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from penstock.errors import Unavailable
from penstock.kit.log import get_logger

Headers = tuple[tuple[str, str], ...]

_OVER: Final = ("invalid auth token", "user name is empty", "revision of auth store is old")
"""What the store says of a call without a token that holds now."""

log = get_logger()


class Login(Protocol):
    """A user. `password` raises ValueError while there is none to be had."""

    user: str

    def password(self) -> str: ...


class Session:
    """The headers of every call.

    Args:
        base: headers without any user.
        login: the user; None for nobody, which costs nothing.
    """

    def __init__(self, base: Headers, login: Login | None) -> None:
        self._base = base
        self._login = login
        self._now: Headers | None = base if login is None else None
        self._entering = asyncio.Lock()

    async def headers(self, enter: Callable[[str, str], Awaitable[str]]) -> Headers:
        """Those to send now. enter: asks the store for a token; gives an empty one where the store has no users."""
        if self._now is not None:
            return self._now
        async with self._entering:
            if self._now is None:
                assert self._login is not None
                token = await enter(self._login.user, self._password(self._login))
                self._now = (*self._base, ("token", token)) if token else self._base
                log.info("store_entered", user=self._login.user, users=bool(token))
            return self._now

    def end(self, headers: Headers, text: str) -> bool:
        """Takes note of a refusal of a call with these headers; whether the call may be sent again with other ones."""
        if self._login is None or not any(words in text for words in _OVER):
            return False
        if self._now is headers:
            self._now = None
        return True

    def _password(self, login: Login) -> str:
        try:
            return login.password()
        except ValueError as problem:
            raise Unavailable("there is no password for the coordination store", detail=str(problem)) from None
