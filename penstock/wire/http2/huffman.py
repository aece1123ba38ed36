"""The Huffman code of HPACK (RFC 7541, 5.2 and appendix B), decoded a byte at a time through a table.

A state is a place inside the code tree; an entry says, for a state and a byte, the next state and what was read on the
way. Entries are made when first needed: all of them would cost a quarter of a second at start.
"""

from __future__ import annotations

from typing import Final

_LENGTHS: Final = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJBKABABABBBACCBBBABCBAABCC"
    "CCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRRSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSV"
    "WVVWWWWWXWWWWWVZ"
)
"""Length in bits of the code of each byte and of the end of a string: A is 5, Z is 30. The code is canonical, so the
lengths give all of it."""
_EOS: Final = 256
_MAX_KEPT: Final = 2048
_Entry = tuple[int, bytes]


class BadHuffman(ValueError):
    """Not a Huffman-coded string."""


def _codes() -> list[tuple[int, int]]:
    """Code and length by symbol."""
    codes = [(0, 0)] * (_EOS + 1)
    code = before = 0
    for length, symbol in sorted((ord(letter) - 60, symbol) for symbol, letter in enumerate(_LENGTHS)):
        code <<= length - before
        codes[symbol] = (code, length)
        code, before = code + 1, length
    return codes


def _tree() -> tuple[list[list[int]], set[int]]:
    """Children of each inner node (a leaf is ~symbol), and the nodes where a string may end: under eight ones."""
    nodes: list[list[int]] = [[0, 0]]
    for symbol, (code, length) in enumerate(_codes()):
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes[node][bit] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node][bit]
        nodes[node][code & 1] = ~symbol
    ends, node = {0}, 0
    for _ in range(7):
        node = nodes[node][1]
        ends.add(node)
    return nodes, ends


_NODES, _ENDS = _tree()
_TABLE: list[_Entry | None] = [None] * (len(_NODES) << 8)
_KEPT: dict[bytes, bytes] = {}
_ENCODED: Final = _codes()


def decode(coded: bytes) -> bytes:
    """The string; raises BadHuffman for a wrong padding or the end symbol."""
    known = _KEPT.get(coded)
    if known is not None:
        return known
    table, state, parts = _TABLE, 0, []
    for byte in coded:
        entry = table[state << 8 | byte] or _entry(state, byte)
        state = entry[0]
        parts.append(entry[1])
    if state not in _ENDS:
        raise BadHuffman("a Huffman string ends inside a code")
    plain = b"".join(parts)
    if len(coded) <= 64:
        if len(_KEPT) >= _MAX_KEPT:
            _KEPT.clear()
        _KEPT[coded] = plain
    return plain


def encode(plain: bytes) -> bytes:
    """The Huffman code of a string, padded with ones."""
    value = bits = 0
    for byte in plain:
        code, length = _ENCODED[byte]
        value, bits = value << length | code, bits + length
    padding = -bits % 8
    return (value << padding | (1 << padding) - 1).to_bytes((bits + padding) // 8, "big")


def _entry(state: int, byte: int) -> _Entry:
    node, read = state, bytearray()
    for shift in range(7, -1, -1):
        node = _NODES[node][byte >> shift & 1]
        if node < 0:
            if ~node == _EOS:
                raise BadHuffman("a Huffman string holds the end symbol")
            read.append(~node)
            node = 0
    entry = (node, bytes(read))
    _TABLE[state << 8 | byte] = entry
    return entry
