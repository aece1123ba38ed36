"""What every BlobStore promises. S3 joins by one more factory in `STORES`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from penstock.errors import Conflict, InvalidArgument, NotFound, ResourceExhausted, TooLarge, Unavailable
from services.registry.blobs import BlobStore, LocalBlobStore, Stat
from services.registry.disk import CHUNK, locked
from services.registry.threads import Threads

Factory = Callable[[Path, Threads], BlobStore]
STORES: dict[str, Factory] = {"local": lambda folder, threads: LocalBlobStore(folder, threads, max_bytes=1 << 24)}


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads("test", 4)
    yield made
    made.close()


@pytest.fixture(params=list(STORES.values()), ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path, threads: Threads) -> BlobStore:
    factory: Factory = request.param
    return factory(tmp_path / "artifacts", threads)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def upload(store: BlobStore, data: bytes, *, digest: str = "", offset: int = 0, chunk: int = 100_000) -> None:
    async with store.writer(digest or digest_of(data), len(data), offset) as writer:
        for at in range(offset, len(data), chunk):
            await writer.write(data[at : at + chunk])
        await writer.commit()


async def content(store: BlobStore, digest: str, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in store.read(digest, offset)])


DATA = os.urandom(CHUNK * 2 + 12_345)
DIGEST = digest_of(DATA)


async def test_what_was_uploaded_is_read(store: BlobStore) -> None:
    assert await store.stat(DIGEST) == Stat(False, 0)
    await upload(store, DATA)
    assert await store.stat(DIGEST) == Stat(True, len(DATA))
    assert store.claim(DIGEST) == len(DATA)
    assert await content(store, DIGEST) == DATA
    assert await content(store, DIGEST, CHUNK - 1) == DATA[CHUNK - 1 :]
    assert await content(store, DIGEST, len(DATA)) == b""
    assert max([len(chunk) async for chunk in store.read(DIGEST)]) <= CHUNK
    assert store.peek(DIGEST, 10, 5) == DATA[10:15]
    assert store.peek(DIGEST, len(DATA) - 1, 5) == DATA[-1:]


async def test_nothing_is_content_too(store: BlobStore) -> None:
    await upload(store, b"")
    assert await store.stat(digest_of(b"")) == Stat(True, 0)


async def test_small_artifacts_are_kept_at_once(store: BlobStore) -> None:
    assert store.keep(b"hello") == digest_of(b"hello") == store.keep(b"hello")
    assert await content(store, digest_of(b"hello")) == b"hello"


async def test_what_is_not_there(store: BlobStore) -> None:
    with pytest.raises(NotFound):
        await content(store, DIGEST)
    with pytest.raises(NotFound):
        store.peek(DIGEST, 0, 1)
    with pytest.raises(NotFound):
        store.claim(DIGEST)
    await upload(store, b"abc")
    for offset in (-1, 4):
        with pytest.raises(InvalidArgument) as raised:
            await content(store, digest_of(b"abc"), offset)
        assert raised.value.field == "offset"


@pytest.mark.parametrize(
    "evil", ["", "../../etc/passwd", "sha256:" + "A" * 64, "sha256:../" + "a" * 61, "a" * 64 + "\n"]
)
async def test_no_path_is_built_from_a_bad_digest(store: BlobStore, evil: str) -> None:
    with pytest.raises(InvalidArgument):
        await store.stat(evil)
    with pytest.raises(InvalidArgument):
        await content(store, evil)
    with pytest.raises(InvalidArgument):
        async with store.writer(evil, 1, 0):
            pass


async def test_a_wrong_digest_is_discarded(store: BlobStore) -> None:
    wrong = digest_of(b"something else")
    with pytest.raises(InvalidArgument) as raised:
        await upload(store, DATA, digest=wrong)
    assert raised.value.field == "header.digest"
    assert await store.stat(wrong) == Stat(False, 0)
    with pytest.raises(NotFound):
        store.claim(wrong)


async def test_a_short_upload_is_refused_and_can_be_finished(store: BlobStore) -> None:
    with pytest.raises(InvalidArgument, match="were announced"):
        async with store.writer(DIGEST, len(DATA), 0) as writer:
            await writer.write(DATA[:-1])
            await writer.commit()
    assert await store.stat(DIGEST) == Stat(False, len(DATA) - 1)
    with pytest.raises(NotFound):
        store.claim(DIGEST)
    await upload(store, DATA, offset=len(DATA) - 1)
    assert await content(store, DIGEST) == DATA


async def test_more_than_announced_is_refused(store: BlobStore) -> None:
    with pytest.raises(InvalidArgument, match="more than the announced"):
        async with store.writer(DIGEST, 10, 0) as writer:
            await writer.write(DATA[:11])
    assert await store.stat(DIGEST) == Stat(False, 0)


async def test_too_large_is_refused_before_a_byte_is_taken(store: BlobStore) -> None:
    with pytest.raises(TooLarge):
        async with store.writer(DIGEST, (1 << 24) + 1, 0):
            pass


async def test_an_interrupted_upload_shows_nothing_and_goes_on_where_it_was(store: BlobStore) -> None:
    half = len(DATA) // 2
    with contextlib.suppress(ConnectionError):
        async with store.writer(DIGEST, len(DATA), 0) as writer:
            await writer.write(DATA[:half])
            raise ConnectionError
    assert await store.stat(DIGEST) == Stat(False, half)
    with pytest.raises(NotFound):
        await content(store, DIGEST)
    for offset in (0, half - 1, half + 1):
        with pytest.raises(Conflict, match=f"{half} bytes were received") as raised:
            await upload(store, DATA, offset=offset)
        assert raised.value.field == "header.offset"
    await upload(store, DATA, offset=half)
    assert await content(store, DIGEST) == DATA


async def test_a_resumed_upload_is_checked_from_its_first_byte(store: BlobStore) -> None:
    async with store.writer(DIGEST, len(DATA), 0) as writer:
        await writer.write(b"x" * 1000)
    with pytest.raises(InvalidArgument, match="does not have this digest"):
        await upload(store, DATA, offset=1000)
    await upload(store, DATA)
    assert await content(store, DIGEST) == DATA


async def test_garbage_longer_than_the_content_does_not_block_it(store: BlobStore) -> None:
    async with store.writer(digest_of(b"abc"), 1000, 0) as writer:
        await writer.write(b"x" * 500)
    with pytest.raises(Conflict):
        await upload(store, b"abc", offset=500)
    await upload(store, b"abc")
    assert await content(store, digest_of(b"abc")) == b"abc"


async def test_one_writer_at_a_time(store: BlobStore) -> None:
    async with store.writer(DIGEST, len(DATA), 0) as writer:
        await writer.write(DATA[:10])
        with pytest.raises(Unavailable) as raised:
            await upload(store, DATA, offset=10)
        assert raised.value.retry_after and raised.value.code.retryable
        await upload(store, b"another artifact is free")
        await writer.write(DATA[10:])
        await writer.commit()
    assert await content(store, DIGEST) == DATA


async def test_of_many_writers_one_gets_through(store: BlobStore) -> None:
    results = await asyncio.gather(*(upload(store, DATA) for _ in range(12)), return_exceptions=True)
    failures = [result for result in results if result is not None]
    assert all(isinstance(failure, Unavailable | Conflict) for failure in failures), failures
    assert len(failures) < 12
    assert await content(store, DIGEST) == DATA


async def test_cancelling_a_writer_frees_its_artifact(store: BlobStore) -> None:
    writing = asyncio.Event()

    async def endless() -> None:
        async with store.writer(DIGEST, len(DATA), 0) as writer:
            await writer.write(DATA[:1000])
            writing.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(endless())
    await writing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await upload(store, DATA, offset=(await store.stat(DIGEST)).received)
    assert await content(store, DIGEST) == DATA


async def test_cancelled_at_any_point_it_is_all_or_nothing(store: BlobStore) -> None:
    for turns in range(40):
        data = b"%d" % turns * 200_000
        task = asyncio.create_task(upload(store, data))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        stat = await store.stat(digest_of(data))
        if stat.complete:
            assert await content(store, digest_of(data)) == data
        else:
            await upload(store, data, offset=stat.received)
            assert await content(store, digest_of(data)) == data


async def test_readers_are_not_disturbed_by_cancelling_one(store: BlobStore) -> None:
    await upload(store, DATA)

    async def slowly() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(store.read(DIGEST)) as chunks:
            async for chunk in chunks:
                yield chunk

    reader = slowly()
    assert await anext(reader) == DATA[:CHUNK]
    await reader.aclose()  # type: ignore[attr-defined]
    assert await content(store, DIGEST) == DATA


async def test_what_nobody_claims_can_be_removed(store: BlobStore) -> None:
    """Uploading, keeping and asking claim an artifact; reading it does not."""
    begun = store.now()
    await upload(store, DATA)
    kept = store.keep(b"kept")
    assert {blob.digest: blob.size for shard in store.shards() for blob in shard} == {DIGEST: len(DATA), kept: 4}
    assert all(blob.claimed >= begun for shard in store.shards() for blob in shard)
    assert store.remove([DIGEST, kept, digest_of(b"never there")], begun) == set()
    later = max(blob.claimed for shard in store.shards() for blob in shard) + 0.001
    await until_after(store, later)
    assert store.claim(kept) == 4
    assert await content(store, DIGEST) == DATA
    assert store.remove([DIGEST, kept], later) == {DIGEST}
    with pytest.raises(NotFound):
        await content(store, DIGEST)
    assert await store.stat(DIGEST) == Stat(False, 0)
    await upload(store, DATA)
    assert store.remove([DIGEST], later) == set()


async def test_storing_again_what_is_there_claims_it(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"same")
    for again in (
        lambda: store.keep(b"same"),
        lambda: store.copy_in(tmp_path / "file"),
        lambda: store.claim(digest_of(b"same")),
    ):
        store.keep(b"same")
        later = store.now() + 0.001
        await until_after(store, later)
        again()
        assert store.remove([digest_of(b"same")], later) == set()
    later = store.now() + 0.001
    await until_after(store, later)
    assert (await store.stat(digest_of(b"same"))).complete
    assert store.remove([digest_of(b"same")], later) == set()


async def test_an_open_download_outlives_its_artifact(store: BlobStore) -> None:
    await upload(store, DATA)
    async with contextlib.aclosing(store.read(DIGEST)) as chunks:
        got = await anext(chunks)
        assert store.remove([DIGEST], store.now() + 3600) == {DIGEST}
        assert got + b"".join([chunk async for chunk in chunks]) == DATA


async def until_after(store: BlobStore, moment: float) -> None:
    """The store's clock moves in steps, of which nothing tells."""
    async with asyncio.timeout(30):
        while store.now() < moment:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# --- the local folder ---------------------------------------------------------------------------------------------


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_sweep_takes_old_uploads_and_leaves_what_is_under_way(tmp_path: Path, threads: Threads) -> None:
    store = LocalBlobStore(tmp_path, threads)
    await upload(store, b"complete")
    for name in (b"old", b"new"):
        async with store.writer(digest_of(name), 3, 0) as writer:
            await writer.write(name[:1])
    old = tmp_path / "partial" / digest_of(b"old").removeprefix("sha256:")
    os.utime(old, (1, 1))
    async with store.writer(digest_of(b"busy"), 4, 0) as writer:
        await writer.write(b"b")
        os.utime(tmp_path / "partial" / digest_of(b"busy").removeprefix("sha256:"), (1, 1))
        assert await store.sweep(3600) == 1
        await writer.write(b"usy")
        await writer.commit()
    assert not old.exists()
    assert (await store.stat(digest_of(b"new"))).received == 1
    assert await content(store, digest_of(b"busy")) == b"busy"
    assert await content(store, digest_of(b"complete")) == b"complete"
    assert await store.sweep(-1) == 1
    assert files(tmp_path / "partial") == []


async def test_a_resumed_upload_is_new_when_it_is_whole(tmp_path: Path, threads: Threads) -> None:
    store = LocalBlobStore(tmp_path, threads)
    async with store.writer(DIGEST, len(DATA), 0) as writer:
        await writer.write(DATA)
    os.utime(tmp_path / "partial" / DIGEST.removeprefix("sha256:"), (1, 1))
    begun = store.now()
    await upload(store, DATA, offset=len(DATA))
    assert store.remove([DIGEST], begun) == set()


async def test_a_folder_that_somebody_is_at_is_waited_for(tmp_path: Path, threads: Threads) -> None:
    store = LocalBlobStore(tmp_path, threads)
    digest = store.keep(b"small")
    with locked(tmp_path / "locks" / digest[7:9], 0.0):
        claiming = asyncio.create_task(threads.run(store.claim, digest))
        # Of others nobody has to wait for it.
        others = [threads.run(store.keep, b"another %d" % number) for number in range(3)]
        assert len(set(await asyncio.gather(*others))) == 3
        assert not claiming.done()
    assert await claiming == 5


async def test_an_upload_that_brought_nothing_leaves_nothing(tmp_path: Path, threads: Threads) -> None:
    store = LocalBlobStore(tmp_path, threads)
    async with store.writer(DIGEST, len(DATA), 0):
        pass
    with pytest.raises(InvalidArgument):
        await upload(store, DATA, digest=digest_of(b"other"))
    assert files(tmp_path) == []


async def test_a_disk_without_room_refuses_and_serves_on(tmp_path: Path, threads: Threads) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    store = LocalBlobStore(tmp_path, threads, max_bytes=1 << 60)
    await upload(store, b"there already")
    with pytest.raises(ResourceExhausted) as raised:
        async with store.writer(DIGEST, free, 0):
            pass
    assert raised.value.retry_after
    async with store.writer(DIGEST, free // 3 * 2, 0):
        # Two uploads that fit one by one but not together.
        with pytest.raises(ResourceExhausted):
            async with store.writer(digest_of(b"x"), free // 3 * 2, 0):
                pass
    async with store.writer(digest_of(b"x"), free // 3 * 2, 0):
        pass
    assert await content(store, digest_of(b"there already")) == b"there already"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


async def test_a_disk_that_fills_up_while_writing(small_disk: Path, threads: Threads) -> None:
    """The upload fails as retryable, reads go on, and with room it is finished."""
    # `spare_bytes` so far below zero that the check beforehand lets everything through.
    store = LocalBlobStore(small_disk, threads, spare_bytes=-(1 << 40))
    ballast, data = os.urandom(1 << 20), os.urandom(3 << 19)
    await upload(store, ballast)
    with pytest.raises(ResourceExhausted):
        await upload(store, data)
    with pytest.raises(ResourceExhausted):
        store.keep(os.urandom(3 << 20))
    assert await content(store, digest_of(ballast)) == ballast
    stat = await store.stat(digest_of(data))
    assert not stat.complete and 0 < stat.received < len(data)
    assert files(small_disk / "partial") == [digest_of(data).removeprefix("sha256:")]
    (small_disk / "blobs" / digest_of(ballast)[7:9] / digest_of(ballast)[9:]).unlink()
    await upload(store, data, offset=stat.received)
    assert await content(store, digest_of(data)) == data


async def test_a_link_in_the_folder_is_not_followed(tmp_path: Path, threads: Threads) -> None:
    store = LocalBlobStore(tmp_path / "store", threads)
    canary = tmp_path / "canary"
    canary.write_bytes(b"secret")
    hex_digits = digest_of(b"abc").removeprefix("sha256:")
    (tmp_path / "store/partial" / hex_digits).symlink_to(canary)
    with pytest.raises(OSError):
        await upload(store, b"abc")
    assert canary.read_bytes() == b"secret"


CHILD = """
import asyncio, sys
from pathlib import Path
from services.registry.blobs import LocalBlobStore
from services.registry.threads import Threads

async def main(folder, digest, size, data):
    async with LocalBlobStore(Path(folder), Threads("child", 1)).writer(digest, int(size), 0) as writer:
        await writer.write(data.encode())
        print("written", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_writer_in_another_process_counts_and_its_death_frees_the_artifact(
    tmp_path: Path, threads: Threads
) -> None:
    store = LocalBlobStore(tmp_path, threads)
    command = [sys.executable, "-c", CHILD, str(tmp_path), digest_of(b"abcdef"), "6", "abc"]
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"written\n"
    with pytest.raises(Unavailable):
        await upload(store, b"abcdef", offset=3)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    assert await store.stat(digest_of(b"abcdef")) == Stat(False, 3)
    await upload(store, b"abcdef", offset=3)
    assert await content(store, digest_of(b"abcdef")) == b"abcdef"


# --- copies, for builds -----------------------------------------------------------------------------------------------


async def test_copies_out_and_in(store: BlobStore, tmp_path: Path) -> None:
    await upload(store, DATA)
    copy = tmp_path / "copy"
    store.copy_out(DIGEST, copy)
    assert copy.read_bytes() == DATA
    copy.write_bytes(b"changed")
    assert await content(store, DIGEST) == DATA, "the copy is the caller's own"
    made = store.copy_in(copy)
    assert (made.digest, made.size_bytes) == (digest_of(b"changed"), 7)
    copy.write_bytes(b"changed again")
    assert await content(store, made.digest) == b"changed"
    with pytest.raises(NotFound):
        store.copy_out(digest_of(b"nothing"), tmp_path / "none")


async def test_only_a_file_of_its_own_is_copied_in(store: BlobStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (tmp_path / "symbolic").symlink_to(secret)
    os.link(secret, tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    for name in ("symbolic", "hard", "pipe", "missing", "."):
        with pytest.raises(InvalidArgument):
            store.copy_in(tmp_path / name)
