"""The order of a job, what its steps read, and the key of a result, as values."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.errors import InvalidArgument
from services.registry.build import dag
from services.registry.build.dag import Asked, Described, Input

DIGEST = "sha256:" + "ab" * 32
MODEL = Input("model")


def step(
    name: str = "s", *, reads: tuple[Input, ...] = (MODEL,), writes: tuple[str, ...] = ("model",), **more: Any
) -> Described:
    values: dict[str, Any] = {"version": 1, "canonical": "{}", "tools": {"t": "1"}, **more}
    return Described(name=name, inputs=reads, outputs=writes, **values)


def test_ids_are_the_steps_names_with_numbers_where_taken() -> None:
    made = dag.expand([Asked("halve"), Asked("gate"), Asked("gate", id="gate-2"), Asked("gate")])
    assert [one.id for one in made] == ["halve", "gate", "gate-2", "gate-3"]


def test_compile_runs_once_per_target_with_its_parameters() -> None:
    asked = [Asked("compile", {"level": 1, "architecture": "sm_80"})]
    made = dag.expand(asked, [{"architecture": "sm_86"}, {"architecture": "sm_89", "level": 2}])
    assert [(one.id, one.parameters) for one in made] == [
        ("compile", {"level": 1, "architecture": "sm_86"}),
        ("compile-2", {"level": 2, "architecture": "sm_89"}),
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "there is no step"),
        ([Asked("a", id="source")], "cannot be an id"),
        ([Asked("a", id="x"), Asked("b", id="x")], "each id once"),
        ([Asked("a", id="X/../y")], "cannot be an id"),
        ([Asked("a")] * 33, "at most 32"),
    ],
)
def test_what_is_no_job(asked: list[Asked], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        dag.expand(asked)


@pytest.mark.parametrize("files", [{"model"}, {"config", "weights"}])
def test_what_is_not_onnx_is_compared_as_it_was_converted(files: set[str]) -> None:
    convert = step("convert", reads=tuple(Input(role) for role in sorted(files)))
    gate = step("gate", reads=(Input("source"), MODEL), writes=())
    asked = dag.expand([Asked("convert"), Asked("halve"), Asked("gate")])
    nodes = dag.wire(asked, [convert, step("halve"), gate], files, onnx=False)
    assert nodes[0].inputs == {role: f"source.{role}" for role in files}
    assert nodes[2].inputs == {"source": "convert.model", "model": "halve.model"}


def test_a_role_is_the_newest_file_of_that_role() -> None:
    gate = step("gate", reads=(Input("source"), MODEL, Input("samples", required=False)), writes=())
    asked = dag.expand([Asked("a"), Asked("b"), Asked("gate")])
    nodes = dag.wire(asked, [step("a"), step("b"), gate], {"model", "samples"})
    assert [node.inputs for node in nodes] == [
        {"model": "source.model"},
        {"model": "a.model"},
        {"source": "source.model", "model": "b.model", "samples": "source.samples"},
    ]


def test_what_is_named_is_taken() -> None:
    many = step("many", reads=(Input("model", several=True),), writes=())
    asked = dag.expand([Asked("a"), Asked("many", inputs={"model": DIGEST, "model-2": "a.model"})])
    nodes = dag.wire(asked, [step("a"), many], {"model", "model-3"})
    assert nodes[1].inputs == {"model": DIGEST, "model-2": "a.model", "model-3": "source.model-3"}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"model": "later.model"}, "is not there"),
        ({"model": "source.labels"}, "is not there"),
        ({"model": "sha256:1"}, "is not a digest"),
        ({"nothing": "source.model"}, "s reads model; not 'nothing'"),
        ({"../x": "source.model"}, "cannot be a role"),
    ],
)
def test_references_that_lead_nowhere(inputs: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        dag.wire(dag.expand([Asked("s", inputs=inputs)]), [step()], {"model"})


def test_a_missing_file_is_told_before_anything_runs() -> None:
    with pytest.raises(InvalidArgument, match="labels is missing; the version has model"):
        dag.wire(dag.expand([Asked("s")]), [step(reads=(Input("labels"),))], {"model"})


def test_what_can_run() -> None:
    described = [step("a"), step("b"), step("c", writes=())]
    asked = dag.expand([Asked("a"), Asked("b", inputs={"model": "source.model"}), Asked("c")])
    nodes = dag.wire(asked, described, {"model"})
    assert [node.id for node in dag.ready(nodes, set())] == ["a", "b"]
    assert [node.id for node in dag.ready(nodes, {"a"})] == ["b"]
    assert [node.id for node in dag.ready(nodes, {"a", "b"})] == ["c"]
    assert dag.ready(nodes, {"a", "b", "c"}) == ()


def test_a_file_that_was_not_written() -> None:
    node = dag.Node("c", "c", {}, {"model": "a.model", "cache": "a.cache"})
    assert dag.digests(node, {}, {"a": {"model": DIGEST}}, {"cache"}) == {"model": DIGEST}
    with pytest.raises(InvalidArgument, match=r"step c reads a\.cache, which was not written"):
        dag.digests(node, {}, {"a": {"model": DIGEST}})


def test_the_key_changes_with_everything_that_matters() -> None:
    keys = {
        dag.key(inputs, described)
        for inputs in ({"model": DIGEST}, {"model": DIGEST[:-1] + "c"}, {"source": DIGEST})
        for described in (
            step(), step("other"), step(version=2), step(canonical='{"a":1}'), step(tools={"t": "2"}),
        )
    }  # fmt: skip
    assert len(keys) == 15
    assert dag.key({"a": "1", "b": "2"}, step()) == dag.key({"b": "2", "a": "1"}, step())


def test_what_a_gate_says() -> None:
    passed, failed = {"name": "size", "passed": True}, {"name": "accuracy", "passed": False, "text": "0.9 of 0.95"}
    assert dag.failed_checks([{}]) == (False, ())
    assert dag.failed_checks([{"verdict": "passed", "checks": [passed]}]) == (True, ())
    both: list[dict[str, Any]] = [
        {"verdict": "failed", "checks": [passed, failed]},
        {"verdict": "passed", "checks": []},
    ]
    assert dag.failed_checks(both) == (True, ("accuracy: 0.9 of 0.95",))
    # A gate that says it failed and not why has failed all the same.
    assert dag.failed_checks([{"verdict": "failed", "checks": "?"}]) == (True, ("the gate failed",))
