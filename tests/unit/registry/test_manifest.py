"""Good manifests fill in their defaults; bad ones are told by field and by what would be right."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from google.protobuf.message import Message

from penstock.errors import InvalidManifest
from penstock.tensors import DATATYPES
from penstock.v1 import manifest_pb2 as pb
from services.registry import fields, manifest

ROOT = Path(__file__).resolve().parents[3]

SMALL: dict[str, Any] = {
    "schema": "penstock/v1",
    "name": "small",
    "format": "onnx",
    "files": {"model": "model.onnx"},
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
}
STEPS: dict[str, Any] = SMALL | {
    "files": {"model": "model.onnx", "labels": "data/labels.txt", "tokenizer": "tokenizer.json"},
    "inputs": [
        {"name": "picture", "datatype": "BYTES", "shape": [1]},
        {"name": "words", "datatype": "BYTES", "shape": [1]},
        {"name": "x", "datatype": "FP32", "shape": [4]},
    ],
    "outputs": [
        {"name": "label", "datatype": "BYTES", "shape": [3]},
        {"name": "score", "datatype": "FP32", "shape": [3]},
        {"name": "vector", "datatype": "FP32", "shape": [8]},
        {"name": "logits", "datatype": "FP32", "shape": [10]},
    ],
    "preprocess": [
        {"image": {"input": "picture", "output": "pixels", "width": 8, "height": 8}},
        {"text": {"input": "words", "tokenizer": "tokenizer", "input_ids": "ids", "attention_mask": "mask"}},
    ],
    "postprocess": [
        {"top_k": {"input": "logits", "labels": "labels", "k": 3, "output_labels": "label", "output_scores": "score"}},
        {"pool": {"input": "tokens", "mask": "mask", "output": "vector"}},
    ],
    "batching": {"max_batch_size": 8},
}


class Plain(yaml.SafeDumper):
    """Writes shared values out in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def changed(base: dict[str, Any], path: str, value: Any) -> str:
    """The manifest with one value replaced; path such as `inputs.0.datatype`."""
    made = copy.deepcopy(base)
    at: Any = made
    *steps, last = path.split(".")
    for step in steps:
        at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
    if isinstance(at, list):
        at[int(last)] = value
    elif value is REMOVE:
        del at[last]
    else:
        at[last] = value
    return yaml.dump(made, Dumper=Plain, sort_keys=False)


REMOVE = object()
DIGITS = "9" * 5000

# (base, where, value, field of the error, words of the message)
BAD = [
    (SMALL, "schema", REMOVE, "schema", "missing; add `schema: penstock/v1`"),
    (SMALL, "schema", "penstock/v2", "schema", "use `penstock/v1`"),
    (SMALL, "name", REMOVE, "name", "missing"),
    (SMALL, "name", "../x", "name", "beginning and ending with a letter or digit"),
    (SMALL, "name", "Big", "name", "a-z"),
    (SMALL, "name", 7, "name", "must be text, not a number (7); put it in quotes"),
    (SMALL, "name", False, "name", "put it in quotes"),
    (SMALL, "naem", "x", "naem", "did you mean `name`?"),
    (SMALL, "zzzz", 1, "zzzz", "known here: schema, name"),
    (SMALL, "description", None, "description", "is empty; give text"),
    (SMALL, "description", "x" * 20_000, "description", "at most 16384"),
    (SMALL, "author", "a\nb", "author", "one line"),
    (SMALL, "tags", ["a"], "tags", "must be a mapping, not a list"),
    (SMALL, "tags.task", 1, "tags.task", "must be text"),
    (SMALL, "tags", {"a b": "c"}, "tags.a b", "cannot be a tag"),
    (SMALL, "tags", {f"k{i}": "v" for i in range(65)}, "tags", "at most 64"),
    (SMALL, "format", "onxx", "format", "did you mean `onnx`?"),
    (SMALL, "format", "pickle", "format", "use one of onnx, torch-export, tensorrt"),
    (SMALL, "files", {}, "files.model", "name the model's file"),
    (SMALL, "files", {"weights": "a.bin"}, "files.model", "is missing"),
    (SMALL, "files.model", "../model.onnx", "files.model", "below the manifest's folder"),
    (SMALL, "files.model", "/etc/passwd", "files.model", "relative"),
    (SMALL, "files.model", "a\\b", "files.model", "'/' between the parts"),
    (SMALL, "files.model", "c:/x", "files.model", "drive letter"),
    (SMALL, "files.model", "a//b", "files.model", "below the manifest's folder"),
    (SMALL, "files.model", "./a", "files.model", "below the manifest's folder"),
    (SMALL, "files.model", "", "files.model", "at least 1"),
    (SMALL, "files", {"model": "m", "A B": "x"}, "files.A B", "cannot be a role"),
    (SMALL, "files", {"model": "m"} | {f"f{i}": "x" for i in range(64)}, "files", "at most 64"),
    (SMALL, "inputs", [], "inputs", "at least 1"),
    (SMALL, "inputs", {}, "inputs", "must be a list, not a mapping"),
    (SMALL, "inputs", [SMALL["inputs"][0]] * 65, "inputs", "at most 64"),
    (SMALL, "inputs", [SMALL["inputs"][0]] * 2, "inputs[1].name", "is the name of inputs[0] already"),
    (SMALL, "outputs", [SMALL["outputs"][0]] * 2, "outputs[1].name", "is the name of outputs[0] already"),
    (SMALL, "inputs.0.datatype", "FLOAT", "inputs[0].datatype", "use one of BOOL, UINT8"),
    (SMALL, "inputs.0.datatype", "fp32", "inputs[0].datatype", "did you mean `FP32`?"),
    (SMALL, "inputs.0.shape", REMOVE, "inputs[0].shape", "is missing; add `shape: [16]`"),
    (SMALL, "inputs.0.shape", [0], "inputs[0].shape", "-1 where any size goes"),
    (SMALL, "inputs.0.shape", [-2], "inputs[0].shape", "-1 where any size goes"),
    (SMALL, "inputs.0.shape", ["n"], "inputs[0].shape[0]", "must be an integer, not text"),
    (SMALL, "inputs.0.shape", [1.5], "inputs[0].shape[0]", "must be an integer"),
    (SMALL, "inputs.0.shape", [2**30, 2**30], "inputs[0].shape", "2**40"),
    (SMALL, "inputs.0.shape", [2**70], "inputs[0].shape[0]", "at most"),
    (SMALL, "inputs.0.shape", [1] * 17, "inputs[0].shape", "at most 16"),
    (SMALL, "inputs.0.name", "", "inputs[0].name", "at least 1"),
    (SMALL, "inputs.0.dims", [1], "inputs[0].dims", "not a field"),
    (SMALL, "batching.max_batch", 1, "batching.max_batch", "did you mean `max_batch_size`?"),
    (SMALL, "placement.selector", {"a b": "c"}, "placement.selector.a b", "cannot be a label"),
    (SMALL, "placement.affinity", ["../x"], "placement.affinity[0]", "cannot name a model"),
    (SMALL, "placement.priority", 101, "placement.priority", "at most 100"),
    (SMALL, "resources.devices.kind", "GPU", "resources.devices.kind", "cannot be a kind of device"),
    (SMALL, "resources.devices.percent", 101, "resources.devices.percent", "at most 100"),
    (SMALL, "batching.max_batch_size", -1, "batching.max_batch_size", "at least 0"),
    (SMALL, "batching.max_batch_size", True, "batching.max_batch_size", "must be an integer"),
    (SMALL, "batching.max_batch_size", "8", "batching.max_batch_size", "must be an integer, not text ('8')"),
    (SMALL, "batching.preferred_batch_size", [4], "batching.preferred_batch_size", "needs batching.max_batch_size"),
    (STEPS, "batching.preferred_batch_size", [4, 16], "batching.preferred_batch_size[1]", "more than batching.max"),
    (STEPS, "batching.preferred_batch_size", [4, 4], "batching.preferred_batch_size[1]", "there already"),
    (STEPS, "batching.priority_levels", 3, "batching.default_priority_level", "must be 1 to 3"),
    (STEPS, "batching.default_priority_level", 1, "batching.default_priority_level", "set both or neither"),
    (STEPS, "batching.max_queue_size", 0, "batching.max_queue_size", "at least 1"),
    (STEPS, "batching.max_queue_delay_microseconds", -1, "batching.max_queue_delay_microseconds", "at least 0"),
    (SMALL, "instances", 0, "instances", "at least 1"),
    (SMALL, "instances", 17, "instances", "at most 16"),
    (SMALL, "instance", 2, "instance", "did you mean `instances`?"),
    (SMALL, "resources.memory_bytes", -5, "resources.memory_bytes", "at least 0"),
    (SMALL, "resources.memory", 5, "resources.memory", "did you mean `memory_bytes`?"),
    (SMALL, "dependencies", ["onnx runtime"], "dependencies[0]", "is not a Python requirement"),
    (SMALL, "dependencies", ["x @ https://example.org/x.whl"], "dependencies[0]", "names a URL"),
    (SMALL, "dependencies", "onnx", "dependencies", "must be a list, not text"),
    (SMALL, "environment.python", "three", "environment.python", "not a version specifier"),
    (SMALL, "environment.pyhton", ">=3", "environment.pyhton", "did you mean `python`?"),
    (SMALL, "lineage.parents", ["digits"], "lineage.parents[0]", "write name@version"),
    (SMALL, "lineage.parents", ["digits@0"], "lineage.parents[0]", "write name@version"),
    (SMALL, "lineage.parents", ["../x@1"], "lineage.parents[0]", "write name@version"),
    (SMALL, "lineage.metrics.accuracy", float("nan"), "lineage.metrics.accuracy", "finite"),
    (SMALL, "lineage.metrics.accuracy", "high", "lineage.metrics.accuracy", "must be a number"),
    (SMALL, "warmup.runs", 0, "warmup.runs", "at least 1"),
    (SMALL, "warmup.batch_sizes", [1], "warmup.batch_sizes", "needs batching.max_batch_size"),
    (STEPS, "warmup.batch_sizes", [9], "warmup.batch_sizes[0]", "more than batching.max_batch_size (8)"),
    (STEPS, "preprocess.0", {}, "preprocess[0]", "names 0 processors"),
    (STEPS, "preprocess.0.text", STEPS["preprocess"][1]["text"], "preprocess[0]", "names 2 processors"),
    (STEPS, "preprocess.0", {"top_k": {}}, "preprocess[0].top_k", "put it under `postprocess`"),
    (STEPS, "postprocess.0", {"image": {}}, "postprocess[0].image", "put it under `preprocess`"),
    (STEPS, "preprocess.0", {"imge": {}}, "preprocess[0].imge", "did you mean `image`?"),
    (STEPS, "preprocess.0.image.input", "photo", "preprocess[0].image.input", "none of the model's inputs ('picture'"),
    (STEPS, "preprocess.0.image.input", "x", "preprocess[0].image.input", "reads a BYTES input"),
    (STEPS, "inputs.0.shape", [3], "inputs[0].shape", "use [1]"),
    (STEPS, "preprocess.0.image.output", "x", "preprocess[0].image.output", "is the name of an input already"),
    (STEPS, "preprocess.1.text.input_ids", "pixels", "preprocess[1].text.input_ids", "what preprocess[0].image makes"),
    (STEPS, "preprocess.0.image.width", REMOVE, "preprocess[0].image.width", "is missing; add `width: 224`"),
    (STEPS, "preprocess.0.image.width", 0, "preprocess[0].image.width", "at least 1"),
    (STEPS, "preprocess.0.image.mode", "rgb", "preprocess[0].image.mode", "did you mean `RGB`?"),
    (STEPS, "preprocess.0.image.mean", [0.5], "preprocess[0].image.mean", "mode RGB has 3 channel(s)"),
    (STEPS, "preprocess.0.image.std", [1.0, 0.0, 1.0], "preprocess[0].image.std[1]", "must not be 0"),
    (STEPS, "preprocess.0.image.scale", 1e300, "preprocess[0].image.scale", "at most"),
    (STEPS, "preprocess.1.text.tokenizer", "tokeniser", "preprocess[1].text.tokenizer", "did you mean `tokenizer`?"),
    (STEPS, "postprocess.0.top_k.labels", "names", "postprocess[0].top_k.labels", "is no role in `files`"),
    (STEPS, "postprocess.0.top_k.k", 5, "outputs[0].shape", "`top_k` with k = 5 makes [5]"),
    (STEPS, "postprocess.0.top_k.output_labels", "labl", "postprocess[0].top_k.output_labels", "did you mean `label`?"),
    (STEPS, "outputs.0.datatype", "FP32", "outputs[0].datatype", "`top_k` makes BYTES"),
    (STEPS, "outputs.2.shape", [4, 8], "outputs[2].shape", "use [width]"),
    (STEPS, "postprocess.1.pool.mode", "sum", "postprocess[1].pool.mode", "use one of mean, max, first"),
    (STEPS, "postprocess.0.top_k.input", "vector", "postprocess[0].top_k.input", "made only by this step"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("base", "path", "value", "field", "words"), BAD, ids=[f"{b[3]}-{i}" for i, b in enumerate(BAD)]
)
def test_bad(base: dict[str, Any], path: str, value: Any, field: str, words: str) -> None:
    with pytest.raises(InvalidManifest) as raised:
        manifest.parse(changed(base, path, value))
    assert raised.value.field == field
    assert words in raised.value.message
    assert f"{field}: " in raised.value.message


BAD_TEXT = [
    ("", "", "must be a mapping"),
    ("- a", "", "must be a mapping"),
    ("just text", "", "must be a mapping"),
    ("name: [", "", "neither YAML nor JSON: line 1"),
    ('{"name": "x",}x', "", "neither YAML nor JSON"),
    ("name: a\nname: b", "name", "again on line 2"),
    ("a: {b: {c: 1, c: 2}}", "a.b.c", "keep one"),
    ('{"a": {"b": 1, "b": 2}}', "a.b", "stands there twice"),
    ("a: &x [1]\nb: *x", "", "aliases"),
    ("a: &x 1", "", "anchors"),
    ("--- {}\n--- {}", "", "neither YAML nor JSON"),
    ("a: !!python/object/apply:os.system [ls]", "a", "YAML tag"),
    ("a: !!set {b}", "a", "YAML tag"),
    ("a: !!binary aGk=", "a", "YAML tag"),
    ("name: 2024-01-01", "name", "put it in quotes"),
    ("yes: 1", "", "key 'yes' is not text"),
    ("tags: {1: a}", "tags", "key '1' is not text"),
    ("? [a, b]\n: 1", "", "key a list or mapping"),
    ("<<: {name: x}", "", "is not text"),
    (f"a: {DIGITS}", "a", "not a number that can be read"),
    ('{"a": ' + DIGITS + "}", "", "a number too long"),
    ('{"a": NaN}', "", "not a number that JSON knows"),
    ("a: " + "[" * 400 + "]" * 400, "", "nested deeper than 16"),
    ('{"a": ' + "[" * 40 + "]" * 40 + "}", "a[0][0]", "nested deeper than 16"),
    ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "", "nested deeper"),
    ("a: \x00", "", "characters that YAML does not allow"),
    ("x: " + "a" * (1 << 20), "", "at most 1048576"),
    ("a: [" + "1," * 30_000 + "]", "", "more than 20000 values"),
    ("\ud800", "", "not valid Unicode"),
]


@pytest.mark.parametrize(("text", "field", "words"), BAD_TEXT, ids=range(len(BAD_TEXT)))
def test_bad_text(text: str, field: str, words: str) -> None:
    with pytest.raises(InvalidManifest) as raised:
        manifest.parse(text)
    assert (raised.value.field, words in raised.value.message) == (field, True), raised.value.message


def test_halves_of_surrogates_and_nul_do_not_get_in() -> None:
    for evil in ("\ud800", "\x00", "\x1b[31m"):
        with pytest.raises(InvalidManifest, match="which is not text"):
            manifest.parse(json.dumps(SMALL | {"description": evil}))


def test_all_problems_are_told_at_once() -> None:
    text = changed(SMALL, "format", "nope")
    text = text.replace("name: small", "name: BAD").replace("FP32", "FLOAT")
    with pytest.raises(InvalidManifest) as raised:
        manifest.parse(text)
    assert raised.value.field == "name"
    assert [line.split(":")[0] for line in raised.value.message.splitlines()] == [
        "the manifest has 4 problems",
        "name",
        "format",
        "inputs[0].datatype",
        "outputs[0].datatype",
    ]


def test_many_problems_are_cut() -> None:
    text = yaml.safe_dump(SMALL | {"inputs": [{"name": f"x{i}", "datatype": "NO", "shape": []} for i in range(30)]})
    with pytest.raises(InvalidManifest) as raised:
        manifest.parse(text)
    assert raised.value.message.startswith("the manifest has 30 problems")
    told = raised.value.message.count("inputs[")
    assert 3 <= told <= 10 and raised.value.message.endswith(f"and {30 - told} more")


def test_messages_stay_small_and_plain_whatever_is_sent() -> None:
    evil = {"\u202e" * 5000 + str(i): "\x1b" for i in range(100)}
    with pytest.raises(InvalidManifest) as raised:
        manifest.parse(json.dumps(SMALL | evil))
    assert len(raised.value.message) <= 1024
    assert raised.value.message.replace("\n", "").isprintable() and raised.value.message.isascii()


def test_hostile_text_of_the_largest_size_is_refused_in_bounded_time() -> None:
    start = time.process_time()
    for text in ("[" * (1 << 20), "{" * (1 << 20), "a: " * 300_000, "- " * 500_000, "? " * 500_000, "&a " * 300_000):
        with pytest.raises(InvalidManifest):
            manifest.parse(text)
    assert time.process_time() - start < 20


def test_defaults_are_filled_in() -> None:
    made = manifest.parse(yaml.safe_dump(STEPS))
    image, text = made.preprocess[0].image, made.preprocess[1].text
    assert (image.mode, image.layout, image.resample) == ("RGB", "CHW", "bilinear")
    assert image.scale == pytest.approx(1 / 255)
    assert (text.max_length, text.token_type_ids) == (512, "")
    assert made.postprocess[1].pool.mode == "mean"
    assert made.batching.max_queue_size == 1024
    assert (made.warmup.runs, list(made.warmup.batch_sizes)) == (1, [1, 8])
    assert (made.resources.memory_bytes, made.instances) == (0, 1)
    assert [step.WhichOneof("kind") for step in made.postprocess] == ["top_k", "pool"]


def test_devices_and_placement() -> None:
    devices, placement = {"memory_bytes": 5}, {"selector": {"zone": "a"}, "tolerations": ["x"], "anti_affinity": ["b"]}
    made = manifest.parse(json.dumps({**SMALL, "resources": {"devices": devices}, "placement": placement}))
    assert (made.resources.devices.kind, made.resources.devices.count) == ("gpu", 1)
    assert not made.resources.devices.exclusive
    assert (dict(made.placement.selector), made.placement.spread) == ({"zone": "a"}, "preferred")
    whole = manifest.parse(json.dumps({**SMALL, "resources": {"devices": {}}}))
    assert whole.resources.devices.exclusive
    plain = manifest.parse(json.dumps(SMALL))
    assert not plain.resources.HasField("devices") and not plain.HasField("placement")


def test_no_batch_dimension_by_default() -> None:
    made = manifest.parse(json.dumps(SMALL))
    assert (made.batching.max_batch_size, list(made.warmup.batch_sizes)) == (0, [])


def test_numbers_as_people_write_them() -> None:
    text = yaml.safe_dump(STEPS).replace("height: 8", "height: 8\n    scale: 1e-3")
    assert manifest.parse(text).preprocess[0].image.scale == pytest.approx(0.001)


def test_everything_survives_the_way_into_the_message() -> None:
    full = STEPS | {
        "description": "Zwei Zeilen\nund ein ☃",
        "author": "ä",
        "tags": {"task": "test", "a/b": ""},
        "framework": "scikit-learn",
        "resources": {"memory_bytes": 2**40, "threads": 4},
        "dependencies": ["onnxruntime>=1.20", "numpy"],
        "environment": {"python": ">=3.11,<4", "cuda": "==12.*"},
        "lineage": {"dataset": "d", "code": "c", "parents": ["a.b@12"], "metrics": {"acc": 1}, "notes": {"k": "v\nw"}},
        "warmup": {"runs": 2, "batch_sizes": [8, 1]},
    }
    made = manifest.parse(yaml.safe_dump(full))
    assert made.lineage.metrics["acc"] == 1.0 and made.lineage.parents == ["a.b@12"]
    assert dict(made.environment) == {"python": ">=3.11,<4", "cuda": "==12.*"}
    assert made.description == full["description"] and made.resources.memory_bytes == 2**40
    assert made == manifest.parse(json.dumps(full))
    assert pb.Manifest.FromString(made.SerializeToString(deterministic=True)) == made


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/model.yaml")), ids=lambda path: path.parent.name)
def test_the_examples_are_good(path: Path) -> None:
    text = path.read_text()
    assert manifest.parse(text).name == path.parent.name
    jsonschema.validate(yaml.safe_load(text), manifest.json_schema())


def test_the_examples_of_the_documentation_are_good() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "manifest.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        manifest.parse(yaml.safe_dump(yaml.safe_load(blocks[0]) | yaml.safe_load(block)))


def test_the_documentation_names_every_field() -> None:
    text = (ROOT / "docs" / "manifest.md").read_text()
    for part in (fields.Model, fields.Tensor, fields.Image, fields.Text, fields.TopK, fields.Pool, fields.Batching):
        for name, info in part.model_fields.items():
            assert f"`{info.alias or name}`" in text, name
    parts: dict[str, type[fields.Part]]
    parts = {"resources": fields.Resources, "lineage": fields.Lineage, "warmup": fields.Warmup}
    for prefix, described in parts.items():
        for name in described.model_fields:
            assert f"`{prefix}.{name}`" in text, name


def source(format: str, **files: str) -> dict[str, Any]:
    return {"schema": "penstock/v1", "name": "a", "format": format, "files": files}


HUB = source("huggingface", config="config.json", weights="model.safetensors")


@pytest.mark.parametrize("described", [HUB, source("sklearn", model="m.skops"), source("tflite", model="m.tflite")])
def test_what_only_builds_read_need_not_declare_its_tensors(described: dict[str, Any]) -> None:
    made = manifest.parse(yaml.safe_dump(described))
    assert made.format == described["format"] and not made.inputs and not made.outputs
    jsonschema.validate(described, manifest.json_schema())


@pytest.mark.parametrize(
    ("described", "field", "words"),
    [
        (source("onnx", model="m.onnx"), "inputs", "missing"),
        (source("sklearn", weights="m.skops"), "files.model", "is missing"),
        (source("huggingface", weights="model.safetensors"), "files.config", "config: config.json"),
        (source("huggingface", config="config.json"), "files.weights", "in safetensors"),
        (source("huggingface", config="c", weights="w.safetensors", model="m"), "files.model", "made by the build"),
        (
            source("huggingface", config="c", weights="w.safetensors", **{"weights-2": "pytorch_model.bin"}),
            "files.weights-2", "a .bin file is a pickle, which is never read",
        ),
        (source("savedmodel", model="saved_model.pb"), "files.graph", "graph: saved_model.pb"),
        (source("savedmodel", graph="saved_model.pb", index="variables/variables.index"), "files.index", "goes with"),
        ({**HUB, "format": ["huggingface"]}, "format", "is not known"),
    ],
)  # fmt: skip
def test_what_only_builds_read_is_checked_by_role(described: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidManifest, match=re.escape(words)) as raised:
        manifest.parse(yaml.safe_dump(described))
    assert raised.value.field == field


def test_the_json_schema_refuses_what_it_can() -> None:
    validator = jsonschema.Draft202012Validator(manifest.json_schema())
    assert not list(validator.iter_errors(SMALL)) and not list(validator.iter_errors(STEPS))
    for path, value in (
        ("format", "pickle"),
        ("naem", 1),
        ("inputs.0.datatype", "FLOAT"),
        ("warmup.runs", 0),
        ("inputs", []),
    ):
        assert list(validator.iter_errors(yaml.safe_load(changed(SMALL, path, value))))


def test_every_field_of_the_proto_can_be_written() -> None:
    pairs: list[tuple[type[fields.Part], type[Message]]]
    pairs = [(fields.Model, pb.Manifest), (fields.Image, pb.ImageProcessor), (fields.Text, pb.TextProcessor)]
    pairs += [(fields.TopK, pb.TopKProcessor), (fields.Pool, pb.PoolProcessor), (fields.Batching, pb.Batching)]
    pairs += [(fields.Lineage, pb.Lineage), (fields.Warmup, pb.Warmup), (fields.Resources, pb.Resources)]
    for part, message in pairs:
        known = {info.alias or name for name, info in part.model_fields.items()}
        assert known == {field.name for field in message.DESCRIPTOR.fields}


def test_datatypes_are_those_of_the_protocol() -> None:
    assert get_args(fields.Datatype) == tuple(DATATYPES)


def test_reading_manifests_pulls_in_neither_grpc_nor_sql() -> None:
    code = (
        "import sys, services.registry.manifest; "
        "sys.exit(bool({'grpc', 'sqlalchemy', 'asyncio', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
