"""The worker's own plans on its disk: found by everything they depend on, believed for their signature alone."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from penstock import plans
from penstock.errors import InvalidArgument
from penstock.plans import PlanHeader
from services.worker.engines.trt.matching import Target
from services.worker.plans.cache import PlanCache
from services.worker.plans.own_key import own_key
from services.worker.plans.wanted import Wanted

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))
TARGET = Target("tensorrt-rtx", "1.7.1.116", "sm89")
NEED = Wanted("sha256:" + "ab" * 32, 8, 32)


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return opened(tmp_path)


def opened(folder: Path, capacity: int = 1 << 20) -> PlanCache:
    made = PlanCache(folder / "plans", capacity_bytes=capacity, trusted_keys=(KEY.public_key().public_bytes_raw(),))
    made.open()
    return made


def plan(need: Wanted = NEED, target: Target = TARGET, key: Ed25519PrivateKey = KEY, most: int = 32) -> bytes:
    header = PlanHeader(
        need.source, target.builder, target.version, target.architecture, "fp32", "2026-11-25T00:00:00Z",
        ({"x": ((1, 4), (8, 4), (most, 4))},),
    )  # fmt: skip
    return plans.wrap(header, b"code" * 100, key)


def keep(cache: PlanCache, need: Wanted = NEED, target: Target = TARGET, data: bytes = b"", **options: Any) -> Path:
    def write(file: BinaryIO) -> None:
        file.write(data or plan(need, target))

    return cache.keep(need, target, write, **options)


@pytest.mark.parametrize(
    ("need", "target"),
    [
        (dataclasses.replace(NEED, source="sha256:" + "cd" * 32), TARGET),
        (dataclasses.replace(NEED, largest=64), TARGET),
        (dataclasses.replace(NEED, best=16), TARGET),
        (dataclasses.replace(NEED, workspace=1), TARGET),
        (NEED, Target("tensorrt", "1.7.1.116", "sm89")),
        (NEED, Target("tensorrt-rtx", "1.7.1.117", "sm89")),
        (NEED, Target("tensorrt-rtx", "1.7.1.116", "sm86")),
    ],
)
def test_a_mismatch_in_anything_is_a_miss(cache: PlanCache, need: Wanted, target: Target) -> None:
    path = keep(cache)
    assert cache.find(NEED, TARGET) == [path]
    assert cache.find(need, target) == []
    other = keep(cache, need, target)
    assert cache.find(need, target) == [other] and cache.find(NEED, TARGET) == [path]


def test_what_a_killed_worker_left_is_found_by_the_next_but_for_halves(cache: PlanCache, tmp_path: Path) -> None:
    path = keep(cache)
    half = path.with_name(path.name + ".part")
    half.write_bytes(b"half")
    assert opened(tmp_path).find(NEED) == [path]
    assert not half.exists()


@pytest.mark.parametrize(
    "data",
    [
        plan(key=STRANGER),
        plan()[:-1],
        plan()[:-200] + bytes([plan()[-200] ^ 1]) + plan()[-199:],
        b"vtrt" + bytes(500),
        plan(dataclasses.replace(NEED, source="sha256:" + "cd" * 32)),
        plan(target=Target("tensorrt-rtx", "1.7.1.116", "sm120")),
    ],
)
def test_what_is_not_what_its_name_says_is_removed_and_never_found(cache: PlanCache, data: bytes) -> None:
    path = keep(cache)
    path.write_bytes(data)
    assert cache.find(NEED, TARGET) == []
    assert not path.exists()


def test_what_no_trusted_key_signed_does_not_get_in(cache: PlanCache, tmp_path: Path) -> None:
    for data in (plan(key=STRANGER), plan(dataclasses.replace(NEED, source="sha256:" + "cd" * 32)), b"vtrt"):
        with pytest.raises(InvalidArgument):
            keep(cache, data=data)
    with pytest.raises(InvalidArgument, match="takes smaller batches than 32"):
        keep(cache, data=plan(most=16), whole=True)
    assert [path for path in (tmp_path / "plans").rglob("*") if path.is_file()] == []
    assert keep(cache, data=plan(most=16)).exists()


def test_the_longest_unused_go_first_and_nothing_that_is_loading(tmp_path: Path) -> None:
    size = len(plan())
    cache = opened(tmp_path, 2 * size + size // 2)
    needs = [dataclasses.replace(NEED, source="sha256:" + f"{number:02x}" * 32) for number in range(4)]
    paths = [keep(cache, need) for need in needs[:2]]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, ns=(time.time_ns() - (age + 1) * 10**9, path.stat().st_mtime_ns))
    cache.find(needs[0])  # is used
    assert paths[1].exists()
    third = keep(cache, needs[2])
    assert [path.exists() for path in (*paths, third)] == [True, False, True]
    with cache.held(needs[0].source), cache.held(needs[2].source):
        keep(cache, needs[3])
        assert [path.exists() for path in (paths[0], third)] == [True, True]
        assert cache.find(needs[3]) == []


def test_the_timing_cache_is_the_models_own(cache: PlanCache) -> None:
    cache.keep_timing(NEED.source, TARGET, b"measured")
    assert cache.timing(NEED.source, TARGET).read_bytes() == b"measured"
    assert not cache.timing("sha256:" + "cd" * 32, TARGET).exists()
    assert not cache.timing(NEED.source, Target("tensorrt", "11", "sm89")).exists()


def test_the_workers_key_is_made_once_and_is_its_users_alone(tmp_path: Path) -> None:
    made = own_key(tmp_path / "keys")
    assert own_key(tmp_path / "keys").private_bytes_raw() == made.private_bytes_raw()
    assert (tmp_path / "keys" / "plan_key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "keys" / "plan_key").chmod(0o640)
    with pytest.raises(InvalidArgument, match="chmod 600"):
        own_key(tmp_path / "keys")
