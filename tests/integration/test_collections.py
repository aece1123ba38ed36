"""Freeing the registry's disk, asked for by the command, by both faces of the SDK, and by the registry itself."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock import errors
from penstock.cli.main import exit_code
from penstock.client import AsyncClient, Client
from penstock.v1.storage_pb2 import Collection
from services.registry.blobs import LocalBlobStore
from services.registry.collector.references import References
from services.registry.collector.rounds import Rounds
from services.registry.database import Database
from services.registry.disk import locked
from services.registry.threads import Threads
from tests.harness.build_service import Registry, running
from tests.harness.registry import collector
from tests.integration.test_build_commands import penstock

LONG_AGO = 1_000_000_000


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with running(tmp_path) as made:
        await made.publish()
        yield made


def age(folder: Path) -> None:
    for path in (folder / "blobs").rglob("*"):
        if path.is_file():
            os.utime(path, (LONG_AGO, LONG_AGO))


def files(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "blobs").rglob("*"))


async def test_the_command(registry: Registry) -> None:
    (registry.folder / "left").write_bytes(b"x" * 2048)
    async with AsyncClient(registry.address) as client:
        await client.upload(registry.folder / "left")
    age(registry.folder)
    code, out, err = await penstock(registry, "gc", "--dry-run")
    assert (code, err) == (0, "")
    assert "would free 1 artifact, 2.0 KiB" in out and "named by versions" in out
    assert files(registry.folder) == 3
    code, out, _ = await penstock(registry, "gc", "--json")
    made = json.loads(out)["collection"]
    assert code == 0 and (made["freed_artifacts"], made["freed_bytes"], made["who"]) == (1, 2048, "local")
    assert files(registry.folder) == 2
    code, out, _ = await penstock(registry, "gc", "--list")
    assert code == 0 and "local  1, 2.0 KiB  0 results, 0 plans" in out
    assert (await penstock(registry, "gc", "--list", "--dry-run"))[0] == 2


async def test_the_sdk(registry: Registry) -> None:
    age(registry.folder)
    async with AsyncClient(registry.address) as client:
        made = await client.collect()
        assert (made.freed_artifacts, made.kept_artifacts, set(made.kept_bytes)) == (0, 2, {"versions"})
        assert await client.collections() == [made]
        with locked(registry.folder / "locks" / "collector", 0.0):
            with pytest.raises(errors.Unavailable) as raised:
                await client.collect()
            assert exit_code(raised.value) == 4 and str(registry.folder) not in raised.value.message
            assert (await client.collect(dry_run=True)).dry_run

    def waiting() -> list[Collection]:
        with Client(registry.address) as client:
            client.collect()
            return client.collections(limit=1)

    (newest,) = await asyncio.to_thread(waiting)
    assert newest.id > made.id


async def test_a_found_plan_stays_to_be_fetched_and_a_lost_one_is_a_miss(registry: Registry) -> None:
    made, _ = await registry.ended((await registry.build("compile")).id)
    (engine,) = made.engines
    key = {name: getattr(engine, name) for name in ("builder", "builder_version", "architecture", "precision")}
    async with AsyncClient(registry.address) as client:
        age(registry.folder)
        assert await client.find_engine(engine.source_digest, profile=engine.profile, **key) == engine
        # Claimed by that: it stays though nothing else names it.
        claimed = registry.folder / "blobs" / engine.artifact.digest[7:9] / engine.artifact.digest[9:]
        assert claimed.stat().st_mtime > LONG_AGO
        shutil.rmtree(claimed.parent)
        assert await client.find_engine(engine.source_digest, profile=engine.profile, **key) is None


async def test_a_build_that_finds_its_result_gone_makes_it_again(registry: Registry) -> None:
    first, _ = await registry.ended((await registry.build("append", text="a")).id)
    digest = first.steps[0].outputs["model"].digest
    (registry.folder / "blobs" / digest[7:9] / digest[9:]).unlink()
    again, _ = await registry.ended((await registry.build("append", text="a")).id)
    assert not again.steps[0].cached and again.steps[0].outputs["model"].digest == digest


async def test_of_registries_that_share_a_database_one_collects_when_it_is_due(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/registry.db")
    database.migrate()
    threads = Threads("test", 2)
    blobs = LocalBlobStore(tmp_path, threads)
    references = References(database)
    made = [Rounds(collector(database, blobs, tmp_path), references, interval=3600.0, look=0.01) for _ in range(2)]
    tasks = [asyncio.create_task(one.run()) for one in made]
    async with asyncio.timeout(30):
        while not references.listed(0):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # By the other one the record is seen at its next look; a third collection would be there by then.
    for one in made:
        assert [entry.who for entry in await one.listed(0)] == [""]
    await made[0].collect("me")
    assert [entry.who for entry in references.listed(0)] == ["me", ""]
    for task, one in zip(tasks, made, strict=True):
        task.cancel()
        await one.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    database.close()
    threads.close()
