"""Keys: what is built can be parsed, the table lists them all, and nothing with a slash gets in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.cluster import keys

DOCS = Path(__file__).parents[3] / "docs" / "etcd.md"


def test_built_keys_parse_back() -> None:
    assert keys.parse_deployment(keys.deployment("digits")) == "digits"
    assert keys.parse_worker(keys.worker("worker-1")) == "worker-1"
    assert keys.parse_replica(keys.replica("worker-1", "a.b_c-d", 12)) == ("worker-1", "a.b_c-d", 12)
    assert keys.parse_assignment(keys.assignment("worker-1")) == "worker-1"
    assert keys.parse_learned(keys.learned("a.b_c-d", 12)) == ("a.b_c-d", 12)
    assert keys.parse_service(keys.service("gateway", "gateway-1f")) == ("gateway", "gateway-1f")


def test_prefixes_hold_their_keys() -> None:
    assert keys.replica("w", "m", 1).startswith(keys.replicas_of("w"))
    assert not keys.replica("w2", "m", 1).startswith(keys.replicas_of("w"))
    assert keys.service("gateway", "g").startswith(keys.services_of("gateway"))
    assert keys.services_of("gateway").startswith(keys.SERVICES)


@pytest.mark.parametrize("bad", ["", "a/b", "..", "../x", "a@1", "a b", "ä", "x" * 200, "-a", "a\n"])
def test_what_cannot_be_a_segment(bad: str) -> None:
    for build in (keys.deployment, keys.tenant, keys.worker, keys.assignment, keys.drain):
        with pytest.raises(ValueError):
            build(bad)
    with pytest.raises(ValueError):
        keys.replica(bad, "m", 1)
    with pytest.raises(ValueError):
        keys.service("gateway", bad)


@pytest.mark.parametrize("bad", ["/penstock/workers/a", "/penstock/replicas/w", "/penstock/replicas/w/m", "w/m@1", ""])
def test_another_kind_of_key_is_no_replica(bad: str) -> None:
    with pytest.raises(ValueError):
        keys.parse_replica(bad)


def test_every_key_is_bounded() -> None:
    segment = "x" * keys.MAX_SEGMENT
    longest = (
        keys.deployment(segment),
        keys.tenant(segment),
        keys.worker(segment),
        keys.assignment(segment),
        keys.service(segment, segment),
        keys.replica(segment, segment, keys.MAX_VERSION),
    )
    for key in longest:
        assert len(key) <= keys.MAX_KEY
        assert keys.known(key)
        assert not keys.known(key + "x")


def test_what_has_none_of_the_forms_is_not_known() -> None:
    assert all(keys.known(key.example) for key in keys.TABLE)
    for strange in ("", "/", "/penstock/x", "/penstock/workers/", "/penstock/workers/a/b", "/penstock/workers/ä"):
        assert not keys.known(strange)
    for version in ("0", "01", "+3", " 3", "1_0", "-1", "", "9" * 19, "٣"):
        key = f"/penstock/replicas/w/m@{version}"
        assert not keys.known(key)
        with pytest.raises(ValueError):
            keys.parse_replica(key)
    for number in (0, -1, keys.MAX_VERSION + 1):
        with pytest.raises(ValueError):
            keys.replica("w", "m", number)


def test_the_table_has_every_prefix_once_with_one_writer() -> None:
    prefixes = [
        keys.DEPLOYMENTS,
        keys.TENANTS,
        keys.WORKERS,
        keys.REPLICAS,
        keys.ASSIGNMENTS,
        keys.LEARNED,
        keys.DRAINS,
        keys.POOLS,
        keys.SERVICES,
        keys.LEADER,
    ]
    assert [key.form.partition("{")[0] for key in keys.TABLE] == prefixes
    for key in keys.TABLE:
        pattern = re.sub(r"\\\{\w+\\\}", r"[^/]+", re.escape(key.form))
        assert re.fullmatch(pattern, key.example), key
        assert key.writer and key.life and " or " not in key.writer


def test_the_documentation_has_the_table() -> None:
    text = DOCS.read_text()
    for key in keys.TABLE:
        row = next(line for line in text.splitlines() if f"`{key.form}`" in line)
        assert f"`{key.record}`" in row and key.writer in row
