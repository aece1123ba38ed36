"""HPACK (RFC 7541): a complete decoder, and the pieces of an encoder that sends repeated fields as one byte.

Fields are pairs of `str`, decoded as latin-1, so that every byte has a letter and nothing fails before it is judged.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final

from .huffman import BadHuffman
from .huffman import decode as huffman
from .limits import HEADER_TABLE_BYTES

Field = tuple[str, str]

_STATIC_TEXT: Final = (
    ":authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200|:status 204|"
    ":status 206|:status 304|:status 400|:status 404|:status 500|accept-charset|accept-encoding gzip, deflate|"
    "accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control|"
    "content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type|"
    "cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|"
    "last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|"
    "server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
)
STATIC: Final[tuple[Field, ...]] = tuple(
    (name, value) for name, _, value in (entry.partition(" ") for entry in _STATIC_TEXT.split("|"))
)
_BY_INDEX: Final[tuple[Field, ...]] = (("", ""), *STATIC)
STATIC_INDEX: Final = {field: index for index, field in reversed(list(enumerate(STATIC, 1)))}
STATIC_NAMES: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}
_FIRST_DYNAMIC: Final = len(STATIC) + 1
_OVERHEAD: Final = 32
_MAX_INTEGER_BYTES: Final = 4


class BadBlock(ValueError):
    """A header block that cannot be decoded: the connection is lost, for the table may be wrong from here on."""


class TooLong(ValueError):
    """A block whose fields are more than we take. It was decoded to its end, so the connection can go on."""


class Decoder:
    """One direction of one connection. `version` changes with every change of the dynamic table."""

    def __init__(self, *, max_list: int, max_fields: int, table_bytes: int = HEADER_TABLE_BYTES) -> None:
        self.version = 0
        self._max_list, self._max_fields = max_list, max_fields
        self._allowed = self._capacity = table_bytes
        self._size = 0
        self._entries: deque[Field] = deque()

    def decode(self, block: bytes, ends: list[int] | None = None) -> list[Field]:
        """The fields in order; `ends` gets where each of them ends. Raises BadBlock, TooLong."""
        try:
            return self._decode(block, ends)
        except (IndexError, BadHuffman) as problem:
            raise BadBlock("a header block ends too early or has a bad string") from problem

    def _decode(self, block: bytes, ends: list[int] | None) -> list[Field]:
        fields: list[Field] = []
        entries, end, at = self._entries, len(block), 0
        total = 0
        while at < end:
            first = block[at]
            if first >= 0x80:
                if first == 0xFF:
                    index, at = _integer(block, at, 0x7F)
                else:
                    index, at = first & 0x7F, at + 1
                if index < _FIRST_DYNAMIC:
                    if not index:
                        raise BadBlock("index 0")
                    field = _BY_INDEX[index]
                else:
                    field = entries[index - _FIRST_DYNAMIC]
            elif first & 0xE0 == 0x20:
                if fields:
                    raise BadBlock("a table size update after a field")
                at = self._resize(block, at)
                continue
            else:
                mask = 0x3F if first & 0x40 else 0x0F
                index = first & mask
                if index == mask:
                    index, at = _integer(block, at, mask)
                else:
                    at += 1
                if not index:
                    name, at = _string(block, at)
                elif index < _FIRST_DYNAMIC:
                    name = _BY_INDEX[index][0]
                else:
                    name = entries[index - _FIRST_DYNAMIC][0]
                # _string, in place: most misses are one literal value.
                size = block[at]
                if size < 0x7F:
                    at += 1
                    stop = at + size
                    if stop > end:
                        raise BadBlock("a string is longer than its block")
                    value = str(block[at:stop], "latin-1")
                    at = stop
                else:
                    value, at = _string(block, at)
                field = (name, value)
                if first & 0x40:
                    self._insert(field)
            fields.append(field)
            if ends is not None:
                ends.append(at)
            total += len(field[0]) + len(field[1]) + _OVERHEAD
            if total > self._max_list:
                # Nothing is kept of the rest; what it does to the table is still done.
                fields = fields[:1]
        if total > self._max_list or len(fields) > self._max_fields:
            raise TooLong(f"the headers are larger than {self._max_list} bytes or more than {self._max_fields} fields")
        return fields

    def _resize(self, block: bytes, at: int) -> int:
        size, at = _integer(block, at, 0x1F) if block[at] & 0x1F == 0x1F else (block[at] & 0x1F, at + 1)
        if size > self._allowed:
            raise BadBlock("a table larger than we allowed")
        self._capacity = size
        self.version += 1
        self._evict()
        return at

    def _insert(self, field: Field) -> None:
        self.version += 1
        self._entries.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + _OVERHEAD
        if self._size > self._capacity:
            self._evict()

    def _evict(self) -> None:
        while self._size > self._capacity:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + _OVERHEAD


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """An integer that does not fit into its prefix (5.1); at: of the prefix. Bounded: no number of ours is large."""
    value, shift = mask, 0
    for place in range(at + 1, at + 1 + _MAX_INTEGER_BYTES):
        byte = block[place]
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    raise BadBlock("an integer of more than four bytes")


def _string(block: bytes, at: int) -> tuple[str, int]:
    first = block[at]
    size = first & 0x7F
    if size == 0x7F:
        size, at = _integer(block, at, 0x7F)
    else:
        at += 1
    stop = at + size
    if stop > len(block):
        raise BadBlock("a string is longer than its block")
    raw = block[at:stop]
    return str(huffman(raw) if first & 0x80 else raw, "latin-1"), stop


def portable(block: bytes) -> bool:
    """The block uses no dynamic table and leaves it as it is, so it means the same on every connection: nothing but
    indices of the static table and short literals that are not indexed and not Huffman-coded."""
    at, end = 0, len(block)
    try:
        while at < end:
            first = block[at]
            at += 1
            if first >= 0x80:
                if not 0x80 < first < 0x80 + _FIRST_DYNAMIC:
                    return False
                continue
            if first >= 0x20:
                return False
            index = first & 0x0F
            if not index:
                size = block[at]
                if size >= 0x7F:
                    return False
                at += 1 + size
            elif index == 0x0F:
                if block[at] >= _FIRST_DYNAMIC - 0x0F:
                    return False
                at += 1
            size = block[at]
            if size >= 0x7F:
                return False
            at += 1 + size
    except IndexError:
        return False
    return at == end


def portable_fields(block: bytes) -> list[Field]:
    """The fields of a block that is portable, which is a good deal quicker read than another one."""
    fields: list[Field] = []
    at, end = 0, len(block)
    while at < end:
        first = block[at]
        at += 1
        if first >= 0x80:
            fields.append(_BY_INDEX[first & 0x7F])
            continue
        index = first & 0x0F
        if not index:
            stop = at + 1 + block[at]
            name = _name(block[at + 1 : stop])
            at = stop
        elif index == 0x0F:
            name = _BY_INDEX[0x0F + block[at]][0]
            at += 1
        else:
            name = _BY_INDEX[index][0]
        stop = at + 1 + block[at]
        fields.append((name, str(block[at + 1 : stop], "latin-1")))
        at = stop
    return fields


@lru_cache(maxsize=256)
def _name(raw: bytes) -> str:
    return str(raw, "latin-1")


def integer(value: int, mask: int, bits: int) -> bytes:
    """An integer with a prefix (5.1); bits: what stands above the prefix in the first byte."""
    if value < mask:
        return bytes((bits | value,))
    out = bytearray((bits | mask,))
    value -= mask
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal_name(name: str, *, secret: bool = False) -> bytes:
    """The beginning of a field that is not indexed, up to its value; secret: proxies may not index it either."""
    bits, index = 0x10 if secret else 0, STATIC_NAMES.get(name)
    if index is not None:
        return integer(index, 0x0F, bits)
    return bytes((bits,)) + _plain(name)


def literal(name: str, value: str, *, secret: bool = False) -> bytes:
    """A field as a literal without indexing, or the index of the static table."""
    index = STATIC_INDEX.get((name, value))
    return integer(index, 0x7F, 0x80) if index is not None else literal_name(name, secret=secret) + _plain(value)


def _plain(text: str) -> bytes:
    raw = text.encode("latin-1")
    return (integer(len(raw), 0x7F, 0) if len(raw) > 126 else bytes((len(raw),))) + raw


class Encoder:
    """One direction of one connection: what is sent again and again goes into the dynamic table, the rest as literals.

    Nothing is ever evicted: once the table is full, new fields stay literals, so an index only has to be shifted.
    """

    def __init__(self) -> None:
        self._capacity = HEADER_TABLE_BYTES
        self._room = HEADER_TABLE_BYTES
        self._inserted: dict[Field, int] = {}
        self._blocks: dict[tuple[Field, ...], bytes] = {}
        self._update = b""
        self._names: dict[str, bytes] = {}

    def allow(self, size: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE. A smaller table than the default is not used at all."""
        if size < self._capacity:
            self._capacity = self._room = 0
            self._inserted.clear()
            self._blocks.clear()
            self._update = b"\x20"

    def block(self, repeated: tuple[Field, ...], varying: list[Field]) -> bytes:
        """A header block. repeated: the same object or value from call to call; varying: sent as literals."""
        known = self._blocks.get(repeated)
        if known is None:
            known = self._repeat(repeated)
        if not varying:
            return known
        parts, names = [known], self._names
        for name, value in varying:
            start = names.get(name)
            if start is None:
                start = names[name] = literal_name(name, secret=name == "authorization")
                if len(names) > 256:
                    names.clear()
            raw = value.encode("latin-1")
            size = len(raw)
            parts.append(b"%b%c%b" % (start, size, raw) if size < 127 else start + integer(size, 0x7F, 0) + raw)
        return b"".join(parts)

    def _repeat(self, fields: tuple[Field, ...]) -> bytes:
        """The block of fields that will come again; new ones are put into the table while there is room."""
        update, self._update = self._update, b""
        new, parts = False, [update]
        for field in fields:
            size = len(field[0]) + len(field[1]) + _OVERHEAD
            index = STATIC_INDEX.get(field)
            if index is None and field in self._inserted:
                index = _FIRST_DYNAMIC + len(self._inserted) - 1 - self._inserted[field]
            if index is not None:
                parts.append(integer(index, 0x7F, 0x80))
            elif size <= self._room and field[0] != "authorization":
                self._room -= size
                self._inserted[field] = len(self._inserted)
                name = STATIC_NAMES.get(field[0])
                start = integer(name, 0x3F, 0x40) if name is not None else b"\x40" + _plain(field[0])
                parts.append(start + _plain(field[1]))
                new = True
            else:
                parts.append(literal(*field, secret=field[0] == "authorization"))
        block = b"".join(parts)
        if new:
            # Every index has moved.
            self._blocks.clear()
        elif not update and len(self._blocks) < 64:
            self._blocks[fields] = block
        return block
