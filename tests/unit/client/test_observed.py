"""Histograms of batches for builds, as values."""

from __future__ import annotations

import json

import pytest

from penstock.client import observed
from penstock.compiling.profiles import batch_ranges
from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.v1.manifest_pb2 import BuildSpec, BuildStep

SEEN = {"1": 9000, "8": 1000}


def statistics(**counts: int) -> oip.ModelStatistics:
    """Of one version: `b8=3` for three batches of eight."""
    made = oip.ModelStatistics(name="digits", version="1")
    for size, count in counts.items():
        made.batch_stats.add(batch_size=int(size[1:])).compute_infer.count = count
    return made


def spec(*steps: tuple[str, str], targets: tuple[str, ...] = ()) -> BuildSpec:
    return BuildSpec(steps=[BuildStep(step=step, parameters=text) for step, text in steps], targets=targets)


def test_versions_count_together() -> None:
    found = observed.histogram("digits", [statistics(b1=80, b8=10), statistics(b8=10, b4=0)])
    assert found == {"1": 8000, "8": 2000}


def test_the_shape_counts_and_not_how_long_it_went_on() -> None:
    short = observed.histogram("digits", [statistics(b1=3, b16=1)])
    assert short == {"1": 7500, "16": 2500}
    assert observed.histogram("digits", [statistics(b1=3_010_000, b16=1_000_000)]) == short
    rare = observed.histogram("digits", [statistics(b1=10_000_000, b64=1)])
    assert rare == {"1": 10000, "64": 1}


def test_it_is_what_the_step_takes() -> None:
    found = observed.histogram("digits", [statistics(b1=900, b2=50, b32=100)])
    assert batch_ranges({int(size): count for size, count in found.items()}, 32) == [(1, 1, 2), (1, 32, 32)]


@pytest.mark.parametrize("nothing", [[], [statistics()], [statistics(b1=0)]])
def test_without_traffic_it_says_so(nothing: list[oip.ModelStatistics]) -> None:
    with pytest.raises(InvalidArgument, match="no traffic of 'digits' was observed") as raised:
        observed.histogram("digits", nothing)
    assert raised.value.field == "batch.seen"


def test_only_what_asks_is_filled() -> None:
    asking = '{"level": 5, "batch": {"max": 64, "seen": "observed"}}'
    given = spec(
        ("halve", asking), ("compile", asking), ("compile", '{"batch": {"seen": {"4": 1}}}'),
        targets=('{"architecture": "sm_89"}', '{"batch": {"seen": "observed"}}'),
    )  # fmt: skip
    assert observed.asks(given)
    made = observed.filled(given, SEEN)
    assert json.loads(made.steps[1].parameters) == {"level": 5, "batch": {"max": 64, "seen": SEEN}}
    assert [made.steps[index] for index in (0, 2)] == [given.steps[index] for index in (0, 2)]
    assert made.targets[0] == given.targets[0] and json.loads(made.targets[1]) == {"batch": {"seen": SEEN}}
    assert not observed.asks(made)
    # What was given is left as it was.
    assert given.steps[1].parameters == asking


@pytest.mark.parametrize("text", ["", "{}", "no JSON", "[1]", '{"batch": 3}', '{"batch": {"seen": "others"}}', "null"])
def test_anything_else_is_the_registrys_to_judge(text: str) -> None:
    given = spec(("compile", text))
    assert not observed.asks(given) and observed.filled(given, SEEN) == given
