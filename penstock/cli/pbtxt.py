"""Reads the text form of a protobuf message without its schema: as much of it as a Triton `config.pbtxt` uses (pure).

The grammar is https://protobuf.dev/reference/protobuf/textformat-spec/, without extensions and `Any`. A message becomes
a mapping from field name to the list of its values, in order: text, numbers, True and False, enum names (Word), or
messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from penstock.errors import InvalidArgument

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32


class Word(str):
    """An enum's name: a word without quotes."""


Value = "str | int | float | bool | Word | Message"
Message = dict[str, list["str | int | float | bool | Word | Message"]]

_TOKEN: Final = re.compile(
    r"(?P<skip>[ \t\r\f\v]+|\#[^\n]*)|(?P<line>\n)"
    r"|(?P<number>-?(?:0[xX][0-9a-fA-F]{1,16}|(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,4})?[fF]?)(?![\w.]))"
    r"|(?P<word>-?[A-Za-z_]\w{0,255})"
    r"|(?P<text>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    r"|(?P<sign>[{}\[\]<>:,;])"
)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))")
_LETTERS: Final = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_CLOSING: Final = {"{": "}", "<": ">"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def parse(text: str) -> Message:
    """The message; raises InvalidArgument with the line where it is none."""
    if len(text) > MAX_BYTES:
        raise InvalidArgument(f"it is longer than {MAX_BYTES} characters")
    reader = _Reader(list(_tokens(text)))
    message = reader.message("", 0)
    return message


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise InvalidArgument(f"line {line}: {text[at : at + 20]!r} is not understood")
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "line":
            line += 1
        elif kind != "skip":
            yield _Token(kind, match.group(), line)
    yield _Token("end", "", line)


class _Reader:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._at = tokens, 0

    def message(self, closing: str, depth: int) -> Message:
        """Fields up to the closing sign, which is taken; empty for the end of the text."""
        if depth > MAX_DEPTH:
            raise self._wrong(f"messages lie more than {MAX_DEPTH} deep")
        found: Message = {}
        while True:
            token = self._next()
            if token.text == closing and token.kind in ("sign", "end"):
                return found
            if token.kind != "word" or token.text.startswith("-"):
                raise self._wrong("a field's name is missing")
            found.setdefault(token.text, []).extend(self._values(depth))
            if self._peek().text in (",", ";"):
                self._next()

    def _values(self, depth: int) -> list[str | int | float | bool | Word | Message]:
        colon = self._peek().text == ":" and bool(self._next())
        if self._peek().text == "[":
            self._next()
            values: list[str | int | float | bool | Word | Message] = []
            while self._peek().text != "]":
                values.append(self._value(depth))
                if self._peek().text == ",":
                    self._next()
                elif self._peek().text != "]":
                    raise self._wrong("a list's ']' or ',' is missing")
            self._next()
            return values
        if not colon and self._peek().text not in _CLOSING:
            raise self._wrong("':' or '{' is missing")
        return [self._value(depth)]

    def _value(self, depth: int) -> str | int | float | bool | Word | Message:
        token = self._next()
        if token.kind == "sign" and token.text in _CLOSING:
            return self.message(_CLOSING[token.text], depth + 1)
        if token.kind == "text":
            text = _unescaped(token.text[1:-1])
            while self._peek().kind == "text":
                text += _unescaped(self._next().text[1:-1])
            return text
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "word":
            return {"true": True, "false": False, "True": True, "False": False}.get(token.text, Word(token.text))
        raise self._wrong("a value is missing")

    def _peek(self) -> _Token:
        return self._tokens[min(self._at, len(self._tokens) - 1)]

    def _next(self) -> _Token:
        token = self._peek()
        self._at += 1
        return token

    def _wrong(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"line {self._tokens[max(0, min(self._at, len(self._tokens)) - 1)].line}: {what}")


def _number(text: str) -> int | float:
    plain = text.rstrip("fF") if not text.lower().lstrip("-").startswith("0x") else text
    return (
        int(plain, 0 if "x" in plain.lower() else 10)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", plain)
        else float(plain)
    )


def _unescaped(text: str) -> str:
    def letter(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return chr(int(match[2], 8)) if match[2] else _LETTERS.get(match[3], match[3])

    return _ESCAPE.sub(letter, text)
