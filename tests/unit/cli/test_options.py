"""What is said of a deployment by flags and files, and what it would change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.cli import deployment_file, options, windows
from penstock.cli.parser import UsageError, build
from penstock.errors import InvalidArgument
from penstock.v1 import manifest_pb2
from penstock.v1 import models_pb2 as pb


def parse(*arguments: str) -> Any:
    return build().parse_args(["deploy", *arguments])


def words(line: str) -> list[str]:
    return line.split()


# windows


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("08:00-18:00=3", ()),
        ("mon-fri 08:00-18:00=3", ("mon", "tue", "wed", "thu", "fri")),
        ("sat,sun 08:00-18:00=3", ("sat", "sun")),
        ("sat-mon 08:00-18:00=3", ("sat", "sun", "mon")),
        ("mon,mon-wed 08:00-18:00=3", ("mon", "tue", "wed")),
    ],
)
def test_a_window_is_one_word_and_back(text: str, days: tuple[str, ...]) -> None:
    window = windows.parse(text)
    assert window == windows.Window(days, "08:00", "18:00", 3)
    assert windows.parse(windows.words(*window)) == window


@pytest.mark.parametrize("text", ["", "8:00-18:00=3", "08:00-18:00", "mon 08:00=3", "mo 08:00-18:00=3"])
def test_what_is_no_window_is_told_what_one_looks_like(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"mon-fri 08:00-18:00=3|one of mon, tue"):
        windows.parse(text)


# flags


def test_flags_become_scaling() -> None:
    args = parse(
        *[
            "m",
            "--min",
            "0",
            "--max",
            "4",
            "--outstanding",
            "2",
            "--rate",
            "20",
            "--queue-time",
            "50ms",
            "--utilisation",
            "0.7",
            "--idle-time",
            "10m",
        ],
        "--schedule",
        "mon-fri 08:00-18:00=3",
    )
    made = options.scaling(args)
    assert made is not None
    assert (made.min_replicas, made.max_replicas, made.outstanding, made.rate, made.utilisation) == (0, 4, 2, 20, 0.7)
    assert (made.queue_time.ToMilliseconds(), made.idle_time.ToSeconds()) == (50, 600)
    assert list(made.schedule[0].days) == ["mon", "tue", "wed", "thu", "fri"]
    assert not made.HasField("rise_time")
    at_least_one = options.scaling(parse("m", "--max", "3", "--rate", "1"))
    assert at_least_one is not None and at_least_one.min_replicas == 1


def test_flags_become_a_place() -> None:
    args = parse(
        *[
            "m",
            "--selector",
            "zone=a",
            "--selector",
            "gpu=t4",
            "--toleration",
            "spot",
            "--affinity",
            "a",
            "--anti-affinity",
            "m",
        ],
        *words("--spread required --pinned --priority -5"),
    )
    assert options.placement(args) == manifest_pb2.Placement(
        selector={"zone": "a", "gpu": "t4"},
        tolerations=["spot"],
        affinity=["a"],
        anti_affinity=["m"],
        spread="required",
        pinned=True,
        priority=-5,
    )


def test_no_flags_say_nothing() -> None:
    args = parse("m", "--replicas", "2", "--tenant", "acme")
    assert options.scaling(args) is None
    assert options.placement(args) is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("m --min 1 --replicas 2", "--min cannot stand beside --replicas"),
        ("m --outstanding 2", "--outstanding needs --max"),
    ],
)
def test_flags_that_need_each_other(line: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as raised:
        options.scaling(parse(*line.split()))
    assert raised.value.usage.startswith("usage: penstock deploy")


@pytest.mark.parametrize(
    "line",
    [
        "m --max 0",
        "m --outstanding 0",
        "m --queue-time 50",
        "m --schedule always",
        "m --priority 101",
        "m --selector zone",
        "m --affinity A",
        "m --spread maybe",
        "m --tenant A",
    ],
)
def test_wrong_flags_are_told_before_anything_is_sent(line: str) -> None:
    with pytest.raises(UsageError):
        parse(*line.split())


# words


def test_words_for_people() -> None:
    fixed = pb.DeployedVersion(version=1, replicas=2)
    assert (options.wanted_words(fixed), options.scaling_words(fixed)) == ("2", "")
    assert options.placement_words(fixed) == "as its manifest says"
    made = options.scaling(parse("m", "--max", "4", "--outstanding", "2.5", "--idle-time", "90s", "--rise-time", "0s"))
    scaled = pb.DeployedVersion(version=1, replicas=1, scaling=made, placement=manifest_pb2.Placement())
    assert options.wanted_words(scaled) == "1 to 4"
    assert options.scaling_words(scaled) == "outstanding 2.5; idle time 90s; rise time 0s"
    assert options.placement_words(scaled) == "anywhere"
    place = manifest_pb2.Placement(selector={"b": "2", "a": "1"}, anti_affinity=["m"], pinned=True)
    scaled.placement.CopyFrom(place)
    assert options.placement_words(scaled) == "selector a=1,b=2; anti-affinity m; pinned"


# files

FILE = """
deployments:
  - model: digits
    version: prod
    replicas: 2
  - model: minilm
    version: 3
    scaling:
      max_replicas: 8
      queue_time: 50ms
      schedule: ["mon-fri 08:00-18:00=3", {begin: "22:00", end: "06:00", replicas: 1}]
    placement: {selector: {zone: a}}
    tenant: acme
"""


def written(tmp_path: Path, text: str, name: str = "deployment.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_file_says_how_several_run(tmp_path: Path) -> None:
    digits, minilm = deployment_file.read(written(tmp_path, FILE))
    assert digits == pb.DeployRequest(name="digits", version="prod", replicas=2)
    assert (minilm.version, minilm.tenant, minilm.scaling.queue_time.nanos) == ("3", "acme", 50_000_000)
    assert [item.replicas for item in minilm.scaling.schedule] == [3, 1]
    as_json = written(tmp_path, '{"deployments": [{"model": "digits"}]}', "d.json")
    assert deployment_file.read(as_json) == [pb.DeployRequest(name="digits")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "line 1"),
        ("deployments: {}", "one list, `deployments`"),
        ("deployments: [{model: a}]\nother: 1", "one list, `deployments`"),
        ("deployments: [a]", r"deployments\[0\]: must be a mapping"),
        ("deployments: [{name: a}]", r"deployments\[0\].name: is not known here; known are model"),
        ("deployments: [{version: 1}]", r"deployments\[0\].model: names the model"),
        ("deployments: [{model: A}]", r"deployments\[0\].model: 'A' cannot name"),
        ("deployments: [{model: a, version: -1}]", r"deployments\[0\].version"),
        ("deployments: [{model: a, replicas: two}]", r"deployments\[0\].replicas: must be an integer, not 'two'"),
        ("deployments: [{model: a, scaling: {schedule: [x]}}]", r"scaling.schedule\[0\]: 'x' is no window"),
        ("deployments: [{model: a, scaling: {schedule: [{end: 18:00}]}}]", r"schedule\[0\].end: .* put it in quotes"),
        ("deployments: [{model: a, version: 1}, {model: a, version: 2}]", "stands here twice"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        deployment_file.read(written(tmp_path, text))


def deployed(*versions: pb.DeployedVersion, default: int = 1) -> pb.Deployment:
    return pb.Deployment(name="digits", versions=versions, default_version=default)


def test_what_a_change_would_be() -> None:
    request = pb.DeployRequest(name="digits", replicas=2)
    new = deployment_file.change(request, 1, None)
    assert (new.kind, new.differences) == ("create", [("replicas", "0", "2")])
    there = deployed(pb.DeployedVersion(version=1, replicas=2))
    assert deployment_file.change(request, 1, there).kind == "none"
    scaled = pb.DeployRequest(name="digits", scaling=pb.Scaling(min_replicas=1, max_replicas=4, rate=2), tenant="acme")
    more = deployment_file.change(scaled, 1, there)
    assert (more.kind, more.differences) == (
        "update",
        [("replicas", "2", "1 to 4"), ("scaling", "", "rate 2"), ("tenant", "", "acme")],
    )
    next_one = deployment_file.change(request, 2, there)
    assert next_one.kind == "create"
    assert next_one.differences[1:] == [("default", "1", "2"), ("version 1", "stays", "retires")]
    beside = pb.DeployRequest(name="digits", replicas=2, keep_others=True)
    assert deployment_file.change(beside, 2, there).differences == [("replicas", "0", "2")]
    back = deployed(pb.DeployedVersion(version=1, replicas=2, retiring=True), pb.DeployedVersion(version=2), default=2)
    assert ("retiring", "yes", "no") in deployment_file.change(request, 1, back).differences


def test_what_is_kept_is_no_change() -> None:
    there = deployed(pb.DeployedVersion(version=1, replicas=2, tenant="acme"))
    keep = pb.DeployRequest(name="digits", keep_options=True)
    assert deployment_file.change(keep, 1, there).kind == "none"
    assert ("tenant", "", "acme") in deployment_file.change(keep, 2, there).differences
