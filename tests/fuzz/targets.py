"""What must hold for any bytes. Each target takes bytes, and raises AssertionError when a promise is broken.

hypothesis calls them with what it makes of the seeds (test_fuzz.py), atheris with what reaches new code
(`python -m tests.fuzz.http2`). The judges are the libraries `hyperframe` and `hpack`, and plain re-computations.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import hpack
import hyperframe.frame
from hpack.huffman_table import decode_huffman

from penstock import errors
from penstock.wire.call import Answer, Call
from penstock.wire.http2 import Method, huffman
from penstock.wire.http2 import frames as f
from penstock.wire.http2.client_side import ClientConnection
from penstock.wire.http2.client_stream import ClientStream
from penstock.wire.http2.deadlines import Deadlines
from penstock.wire.http2.head import Head, Malformed, read_head
from penstock.wire.http2.heads import Heads
from penstock.wire.http2.hpack import BadBlock, Decoder, TooLong
from penstock.wire.http2.messages import Assembler, read_binary, read_text, read_timeout
from tests.harness.http2 import PATH, Ended, frames_of
from tests.harness.raw_http2 import in_words
from tests.integration.http2_cases import DEAF, HOLD, LIMITS

_loop = asyncio.new_event_loop()


def server(data: bytes) -> None:
    """A server's connection, whatever comes after the preface: it never raises, says nothing but frames, comes to the
    same end however the bytes are cut, and keeps nothing afterwards. The first two bytes choose the cuts."""
    sizes, data = (data[0] % 40 + 1, data[1] + 1) if len(data) > 1 else (1, 1), data[2:]
    whole = _loop.run_until_complete(_served(data, (len(data) or 1,)))
    parts = _loop.run_until_complete(_served(data, sizes))
    assert whole == parts, f"{whole} whole, {parts} in parts of {sizes}"


async def _served(data: bytes, sizes: tuple[int, ...]) -> list[str]:
    it = Ended(
        {
            PATH: Method("Echo", _sleepy),
            HOLD: Method("Hold", _hold),
            DEAF: Method("Both", stream=_twice),
        },
        LIMITS,
    )
    now = it.connection.clock()
    it.connection.clock = lambda: now
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        it.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    said = b"".join(it.connection.taken())
    _are_frames(said)
    ended = it.connection.ended
    words = [word for word in in_words(frames_of(said)) if not word.endswith("NO_ERROR")]
    it.connection.end(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not it.common.tasks
    assert it.common.held == it.connection.held == 0
    assert not it.connection.streams
    it.common.deadlines.close()
    return [*words, f"ended: {ended}"]


async def _sleepy(call: Call) -> Answer:
    if len(call.payload) & 1:
        await asyncio.sleep(0)
    return Answer(call.payload)


async def _hold(call: Call) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


async def _twice(call: Call, requests: AsyncIterator[bytes], write: Any) -> None:
    async for each in requests:
        await write(each * 2)


def _are_frames(said: bytes) -> None:
    """The library reads every one of them."""
    at = 0
    while at < len(said):
        frame, size = hyperframe.frame.Frame.parse_frame_header(memoryview(said[at : at + 9]), strict=True)
        frame.parse_body(memoryview(said[at + 9 : at + 9 + size]))
        assert len(said) >= at + 9 + size
        at += 9 + size


def client(data: bytes) -> None:
    """A client's connection with calls under way: it never raises, and every caller hears of an end."""
    _loop.run_until_complete(_called(data))


async def _called(data: bytes) -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    it = ClientConnection(loop, LIMITS, deadlines, lambda: None, lambda: None)
    it.begin()
    never = float("inf")
    head = ((":method", "POST"), (":path", PATH), (":scheme", "http"))
    ends: list[Answer | BaseException | None] = []
    for size in (0, 10, 100_000):
        it.ask(it.open(head, [], never), b"x" * size, lambda answer, problem: ends.append(answer or problem))
    stream = ClientStream(it.open(head, [], never))
    at = 0
    step = data[0] + 1 if data else 1
    it.receive(f.settings({}))
    while at < len(data):
        it.receive(data[at : at + step])
        at += step
    _are_frames(b"".join(it.taken()).removeprefix(f.PREFACE))
    it.end(0)
    assert not it.streams
    assert len(ends) == 3
    assert None not in ends
    try:
        async with asyncio.timeout(30):
            while await stream.receive() is not None:
                pass
    except errors.PenstockError:
        pass
    deadlines.close()


def header_blocks(data: bytes) -> None:
    """Blocks of one connection, each as long as a byte before it says: we and the library read the same, or refuse."""
    ours, judge = Decoder(max_list=1 << 16, max_fields=2000), hpack.Decoder(max_header_list_size=1 << 16)
    while len(data) > 1:
        size = data[0] + 1
        block, data = data[1 : 1 + size], data[1 + size :]
        try:
            theirs: Any = [(_text(name), _text(value)) for name, value in judge.decode(block, raw=True)]
        except hpack.HPACKError as refused:
            theirs = refused
        try:
            found = ours.decode(block)
        except TooLong:
            return
        except BadBlock as bad:
            # We take no number that is longer than any of ours has to be.
            assert isinstance(theirs, hpack.HPACKError) or "four bytes" in str(bad), (block, theirs)
            return
        assert found == theirs, block


_METHODS = {PATH: Method("Echo", lambda call: _sleepy(call))}
_APART = ("grpc-timeout", "x-request-id")
"""Read into their own places; a head need not have them among its headers too."""


def heads(data: bytes) -> None:
    """Blocks of one connection, as in header_blocks: what is read by what is known of earlier ones is what would be
    read anew."""
    quick = Heads(_METHODS, LIMITS)
    plain = Decoder(max_list=LIMITS.max_header_list, max_fields=LIMITS.max_header_fields)
    while len(data) > 1:
        size = data[0] + 1
        block, data = data[1 : 1 + size], data[1 + size :]
        found = _head(quick.read, block)
        assert found == _head(lambda part: read_head(plain.decode(part), _METHODS), block), block
        if isinstance(found, str) and found.startswith("BadBlock"):
            return


def _head(read: Callable[[bytes], Head], block: bytes) -> tuple[Any, ...] | str:
    """What counts of a head; or how it is refused."""
    try:
        head = read(block)
    except (BadBlock, TooLong, Malformed) as problem:
        return f"{type(problem).__name__}: {problem}"
    headers = {name: value for name, value in head.headers.items() if name not in _APART}
    refusal = head.refusal and str(head.refusal)
    return head.method, head.path, head.timeout, headers, head.request_id, head.http, head.length, refusal


def _text(part: bytes) -> str:
    return bytes(part).decode("latin-1")


def huffman_strings(data: bytes) -> None:
    """The library decodes the same, or refuses as well; and what we encode comes back."""
    assert huffman.decode(huffman.encode(data)) == data
    try:
        found = huffman.decode(data)
    except huffman.BadHuffman:
        found = None
    try:
        theirs = bytes(decode_huffman(data))
    except hpack.HPACKError:
        theirs = None
    assert found == theirs


def messages(data: bytes) -> None:
    """The first byte says how the rest is cut; what comes out is what a plain reading of the whole gives."""
    step, data = (data[0] % 30 + 1 if data else 1), data[1:]
    limit, out, problem = 300, [], ""
    it = Assembler(limit)
    try:
        for at in range(0, len(data), step):
            it.feed(data[at : at + step])
            while (message := it.take()) is not None:
                out.append(message)
    except errors.PenstockError as refusal:
        problem = refusal.code.name
    wanted, at, wrong = [], 0, ""
    while len(data) - at >= 5 and not wrong:
        flag, size = data[at], int.from_bytes(data[at + 1 : at + 5], "big")
        if flag:
            wrong = "UNSUPPORTED" if flag == 1 else "INVALID_ARGUMENT"
        elif size > limit:
            wrong = "RESOURCE_EXHAUSTED"
        elif len(data) - at - 5 < size:
            break
        else:
            wanted.append(data[at + 5 : at + 5 + size])
            at += 5 + size
    assert (out, problem) == (wanted, wrong)
    assert problem or it.between == (at == len(data))


def values(data: bytes) -> None:
    """Header values that we read: a timeout, a text, base64. Each is read, or refused as the caller's fault."""
    text = data.decode("latin-1")
    try:
        seconds = read_timeout(text)
        assert re.fullmatch(r"[0-9]{1,8}[HMSmun]", text), text
        assert 0 <= seconds <= 31_536_000
    except errors.InvalidArgument:
        assert not re.fullmatch(r"[0-9]{1,8}[HMSmun]", text), text
    assert isinstance(read_text(text), str)
    with suppress(errors.InvalidArgument):
        assert isinstance(read_binary(text), bytes)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (server, client, header_blocks, heads, huffman_strings, messages, values)
}
