"""The targets, searched for a few seconds: by hypothesis from seeds that are cut, mixed and bent, and by atheris from
what reaches new code. Without a limit: `python -m tests.fuzz.http2`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local.suite import ROOT
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, server


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_keep_the_promises(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)


BENDS = st.tuples(
    st.sampled_from(["change", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)
)


def bent(seed: bytes, bends: list[tuple[str, float, bytes]]) -> bytes:
    """The seed with some places spoiled."""
    out = bytearray(seed)
    for kind, where, content in bends:
        at = int(where * len(out))
        if kind == "change":
            out[at : at + len(content)] = content
        elif kind == "cut":
            del out[at : at + len(content)]
        elif kind == "insert":
            out[at:at] = content
        else:
            out[at:at] = out[at : at + 10 * len(content)]
    return bytes(out[:4000])


@pytest.mark.parametrize("name", TARGETS)
def test_bent_seeds_keep_the_promises(name: str) -> None:
    @given(st.lists(st.sampled_from(SEEDS[name]), min_size=1, max_size=3), st.lists(BENDS, max_size=4))
    @settings(
        max_examples=300,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    def search(seeds: list[bytes], bends: list[tuple[str, float, bytes]]) -> None:
        # The first bytes of a seed say how it is cut; those of the first will do.
        TARGETS[name](bent(b"".join([seeds[0], *(seed[2:] for seed in seeds[1:])]), bends))

    search()


@given(st.sampled_from(SEEDS["server"]), st.integers(0, 39), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_however_the_bytes_are_cut_the_end_is_the_same(seed: bytes, first: int, second: int) -> None:
    server(bytes((first, second)) + seed[2:])


RUNS = {"server": 5000, "client": 2000, "header_blocks": 5000, "heads": 5000}


@pytest.mark.parametrize("name", RUNS)
def test_what_reaches_new_code_keeps_the_promises(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    command = [sys.executable, "-m", "tests.fuzz.http2", name, f"-runs={RUNS[name]}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS[name]} runs" in done.stderr
