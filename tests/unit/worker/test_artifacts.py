"""The cache of artifacts, with a source that breaks as a test wants and a real folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import pytest

from penstock.errors import Internal, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from services.worker.artifacts import PULLS, Artifacts, CacheInUse


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Shelf:
    """A registry in this process.

    cut: bytes after which a stream breaks off (each time anew); opened: offsets that were asked for; gate: when given,
    a stream waits for it before its first byte.
    """

    def __init__(self, *contents: bytes) -> None:
        self.contents = {digest_of(content): content for content in contents}
        self.cut: int | None = None
        self.opened: list[int] = []
        self.gate: asyncio.Event | None = None
        self.started = asyncio.Event()
        self.open = self.most_open = 0
        self.busy = asyncio.Event()  # as many streams are open as a worker may have
        self.away = False

    async def download(self, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        if self.away:
            raise Unavailable("no registry is there to pull from")
        self.opened.append(offset)
        if digest not in self.contents:
            raise NotFound("no such artifact")
        content = self.contents[digest]
        self.started.set()
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        if self.open == PULLS:
            self.busy.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.open -= 1
        end = len(content) if self.cut is None else min(len(content), offset + self.cut)
        for start in range(offset, end, 7):
            yield content[start : min(start + 7, end)]
        if end < len(content):
            raise Unavailable("the registry broke off")


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(b"a" * 100, b"b" * 100, b"c" * 100)


Open = Callable[..., Artifacts]


@pytest.fixture
def cache(tmp_path: Path, shelf: Shelf) -> Iterator[Open]:
    """Opens a cache in the test's folder."""
    opened: list[Artifacts] = []

    def make(capacity: int = 1000) -> Artifacts:
        made = Artifacts(str(tmp_path), shelf, capacity_bytes=capacity)
        made.open()
        opened.append(made)
        return made

    yield make
    for each in opened:
        each.close()


async def pulled(artifacts: Artifacts, content: bytes) -> bytes:
    async with artifacts.held(digest_of(content), size=len(content)) as path:
        return path.read_bytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "sha256").iterdir()}


async def test_an_artifact_is_pulled_once_and_then_served_without_a_registry(
    tmp_path: Path, cache: Open, shelf: Shelf
) -> None:
    artifacts = cache()
    assert await pulled(artifacts, b"a" * 100) == b"a" * 100
    shelf.away = True
    assert await pulled(artifacts, b"a" * 100) == b"a" * 100
    artifacts.close()
    assert await pulled(cache(), b"a" * 100) == b"a" * 100
    assert shelf.opened == [0]
    assert names(tmp_path) == {digest_of(b"a" * 100).removeprefix("sha256:")}


async def test_what_is_neither_cached_nor_there_says_so(cache: Open, shelf: Shelf) -> None:
    artifacts = cache()
    with pytest.raises(NotFound):
        await pulled(artifacts, b"unknown")
    shelf.away = True
    with pytest.raises(Unavailable, match="no registry"):
        await pulled(artifacts, b"a" * 100)


async def test_a_worker_with_many_replicas_pulls_a_few_files_at_a_time(cache: Open, shelf: Shelf) -> None:
    contents = [b"%03d" % number for number in range(20)]
    shelf.contents |= {digest_of(content): content for content in contents}
    artifacts, shelf.gate = cache(), asyncio.Event()
    pulls = [asyncio.create_task(pulled(artifacts, content)) for content in contents]
    async with asyncio.timeout(30):
        await shelf.busy.wait()
        pulls[0].cancel()  # who gives up leaves its turn to another
        shelf.gate.set()
        results = await asyncio.gather(*pulls, return_exceptions=True)
    assert results[1:] == contents[1:]
    assert shelf.most_open == PULLS


async def test_many_at_once_cause_one_download(cache: Open, shelf: Shelf) -> None:
    artifacts = cache()
    results = await asyncio.gather(*(pulled(artifacts, b"a" * 100) for _ in range(20)))
    assert set(results) == {b"a" * 100}
    assert shelf.opened == [0]


async def test_a_broken_stream_goes_on_where_it_stopped(cache: Open, shelf: Shelf) -> None:
    shelf.cut = 30
    assert await pulled(cache(), b"a" * 100) == b"a" * 100
    assert shelf.opened == [0, 30, 60, 90]


async def test_a_stream_that_brings_nothing_new_is_given_up_and_what_came_is_kept(cache: Open, shelf: Shelf) -> None:
    artifacts = cache()
    shelf.gate = asyncio.Event()
    task = asyncio.ensure_future(pulled(artifacts, b"a" * 100))
    await shelf.started.wait()
    shelf.cut = 0
    shelf.gate.set()
    with pytest.raises(Unavailable, match="broke off"):
        await task
    shelf.cut = 40
    assert await pulled(artifacts, b"a" * 100) == b"a" * 100


async def test_a_cancelled_pull_is_gone_on_with_by_the_next_after_a_restart(
    tmp_path: Path, cache: Open, shelf: Shelf
) -> None:
    artifacts = cache()
    part = tmp_path / "sha256" / (digest_of(b"a" * 100).removeprefix("sha256:") + ".part")
    part.write_bytes(b"a" * 64)
    shelf.gate = asyncio.Event()
    task = asyncio.ensure_future(pulled(artifacts, b"a" * 100))
    await shelf.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    artifacts.close()
    shelf.gate.set()
    assert await pulled(cache(), b"a" * 100) == b"a" * 100
    assert shelf.opened == [64, 64]


async def test_a_cancelled_waiter_does_not_disturb_the_others(cache: Open, shelf: Shelf) -> None:
    artifacts = cache()
    shelf.gate = asyncio.Event()
    first, second = (asyncio.ensure_future(pulled(artifacts, b"a" * 100)) for _ in range(2))
    await shelf.started.wait()
    first.cancel()
    shelf.gate.set()
    assert await second == b"a" * 100


async def test_wrong_content_is_discarded(tmp_path: Path, cache: Open, shelf: Shelf) -> None:
    artifacts = cache()
    shelf.contents[digest_of(b"a" * 100)] = b"A" * 100
    with pytest.raises(Internal, match="did not match its digest"):
        await pulled(artifacts, b"a" * 100)
    assert names(tmp_path) == set()
    shelf.contents[digest_of(b"a" * 100)] = b"a" * 100
    assert await pulled(artifacts, b"a" * 100) == b"a" * 100


async def test_a_damaged_beginning_is_discarded_too(tmp_path: Path, cache: Open) -> None:
    artifacts = cache()
    part = tmp_path / "sha256" / (digest_of(b"a" * 100).removeprefix("sha256:") + ".part")
    part.write_bytes(b"x" * 50)
    with pytest.raises(Internal):
        await pulled(artifacts, b"a" * 100)
    assert await pulled(artifacts, b"a" * 100) == b"a" * 100


async def test_more_bytes_than_promised_are_not_taken(tmp_path: Path, cache: Open) -> None:
    artifacts = cache()
    with pytest.raises(Internal, match="larger than 50 bytes"):
        async with artifacts.held(digest_of(b"a" * 100), size=50):
            pass
    with pytest.raises(Internal, match="larger than 60 bytes"):
        async with artifacts.held(digest_of(b"a" * 100), limit=60):
            pass
    assert names(tmp_path) == set()


async def test_fewer_bytes_than_promised_are_an_error(cache: Open) -> None:
    with pytest.raises(Unavailable, match="100 of 150 bytes"):
        async with cache().held(digest_of(b"a" * 100), size=150):
            pass


async def test_an_artifact_larger_than_the_cache_is_refused_before_a_byte_moves(cache: Open, shelf: Shelf) -> None:
    with pytest.raises(ResourceExhausted, match="100 bytes does not fit the worker's cache of 99 bytes"):
        await pulled(cache(99), b"a" * 100)
    assert shelf.opened == []


async def test_the_longest_unused_is_thrown_out_but_never_what_is_in_use(tmp_path: Path, cache: Open) -> None:
    artifacts = cache(250)
    a, b, c = (digest_of(letter * 100).removeprefix("sha256:") for letter in (b"a", b"b", b"c"))
    async with artifacts.held(f"sha256:{a}", size=100):
        await pulled(artifacts, b"b" * 100)
        os.utime(tmp_path / "sha256" / a, ns=(0, (tmp_path / "sha256" / a).stat().st_mtime_ns))
        await pulled(artifacts, b"c" * 100)
        assert names(tmp_path) == {a, c}
    os.utime(tmp_path / "sha256" / a, ns=(0, (tmp_path / "sha256" / a).stat().st_mtime_ns))
    await pulled(artifacts, b"b" * 100)
    assert names(tmp_path) == {b, c}


async def test_a_file_that_was_changed_is_noticed(tmp_path: Path, cache: Open, shelf: Shelf) -> None:
    artifacts = cache()
    await pulled(artifacts, b"a" * 100)
    path = tmp_path / "sha256" / digest_of(b"a" * 100).removeprefix("sha256:")
    path.chmod(0o644)
    path.write_bytes(b"z" * 100)
    assert await pulled(artifacts, b"a" * 100) == b"a" * 100
    artifacts.close()
    path.chmod(0o644)
    path.write_bytes(b"y" * 100)
    assert await pulled(cache(), b"a" * 100) == b"a" * 100
    assert shelf.opened == [0, 0, 0]


async def test_a_folder_belongs_to_one_worker(cache: Open) -> None:
    first = cache()
    with pytest.raises(CacheInUse):
        cache()
    first.close()
    cache()  # free again


async def test_only_a_digest_becomes_a_file_name(cache: Open) -> None:
    artifacts = cache()
    for digest in ("sha256:../../etc/passwd", "sha256:" + "A" * 64, "", "md5:" + "a" * 32):
        with pytest.raises(InvalidArgument):
            async with artifacts.held(digest):
                pass
