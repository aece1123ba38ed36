"""Of a .keras archive nothing passes but known layers and their weights."""

from __future__ import annotations

import contextlib
import io
import json
import random
import zipfile
from typing import Any

import pytest

from penstock.errors import InvalidArgument
from penstock.untrusted import keras_archive

METADATA = {"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"}


def layer(name: str, module: Any = "keras.layers", registered: Any = None, **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": registered}


def model(*layers: Any, **more: Any) -> dict[str, Any]:
    return {**layer("Sequential", "keras", layers=[layer("InputLayer", batch_shape=[None, 2]), *layers]), **more}


def archive(config: Any, metadata: Any = METADATA, **members: bytes) -> io.BytesIO:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        written.writestr("metadata.json", json.dumps(metadata))
        written.writestr("model.weights.h5", b"numbers" * 1000)
        for name, content in members.items():
            written.writestr(name, content)
    return made


def rewritten(source: io.BytesIO) -> tuple[list[str], dict[str, bytes]]:
    made = io.BytesIO()
    classes = keras_archive.rewrite(source, made)
    with zipfile.ZipFile(made) as opened:
        return classes, {name: opened.read(name) for name in opened.namelist()}


def test_known_layers_pass_without_what_is_for_training() -> None:
    relu = layer("Relu", "keras.src.ops.nn", "Relu")
    zeros = layer("Zeros", "keras.initializers")
    dense = layer("Dense", activation="relu", kernel_initializer=zeros, units=3)
    tensor = {"class_name": "__keras_tensor__", "config": {"shape": [None, 2], "keras_history": ["a", 0, 0]}}
    config = model(dense, relu, {"inbound_nodes": [{"args": [tensor]}]}, compile_config={"optimizer": layer("A", "os")})
    classes, members = rewritten(archive(config))
    assert classes == ["Dense", "InputLayer", "Relu", "Sequential", "Zeros"]
    assert json.loads(members["config.json"]) == {key: config[key] for key in config if key != "compile_config"}
    assert members["model.weights.h5"] == b"numbers" * 1000
    assert set(members) == {"config.json", "metadata.json", "model.weights.h5"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (layer("Lambda", function="x"), "Lambda layer, which is Python code"),
        ({"class_name": "__lambda__", "config": {"code": "4wEAAA=="}}, "Lambda layer, which is Python code"),
        # A module to import, as in CVE-2025-1550; functions of Keras that download, as in CVE-2025-8747.
        (layer("system", "os"), "'system' of 'os'"),
        (layer("run", "subprocess", "run"), "'run' of 'subprocess'"),
        (layer("get_file", "keras.utils"), "'get_file' of 'keras.utils'"),
        ({"module": "builtins", "class_name": "function", "config": "get_file"}, "the function 'get_file' as an"),
        # Layers that read files, unpickle, or load a model from a path.
        (layer("StringLookup", vocabulary="/etc/passwd"), "'StringLookup' of 'keras.layers'"),
        (layer("TextVectorization"), "'TextVectorization'"),
        (layer("TorchModuleWrapper", module="keras.layers"), "'TorchModuleWrapper'"),
        (layer("TFSMLayer", filepath="/srv/model"), "'TFSMLayer'"),
        (layer("JaxLayer"), "'JaxLayer'"),
        # The author's own, by whichever name.
        (layer("Mine", "my_package.layers", "Package>Mine"), "'Mine' of 'my_package.layers'"),
        (layer("Dense", registered="Package>Dense"), "'Dense' of 'keras.layers'"),
        (layer("Dense", None), "'Dense' of 'None'"),
        (layer("Dense", "keras.src.layers"), "'Dense' of 'keras.src.layers'"),
        (layer("Mean", "keras.src.ops.numpy.x"), "'Mean'"),
        ({"class_name": ["Dense"], "module": "keras.layers", "config": {}}, "which is not made from a file here"),
        ({"class_name": "__keras_tensor__", "module": "os", "config": {}}, "'__keras_tensor__' of 'os'"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_its_name_however_deep(bad: dict[str, Any], words: str) -> None:
    for config in (
        model(bad),
        model(layer("TimeDistributed", layer=bad)),
        model(layer("Dense", kernel_initializer={"inner": [[bad]]})),
        {**model(), "build_config": bad},
        bad,
    ):
        with pytest.raises(InvalidArgument, match=words):
            rewritten(archive(config))


def deep(levels: int) -> dict[str, Any]:
    made: Any = layer("Dense")
    for _ in range(levels):
        made = [made]
    return model(made)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (archive(model(), **{"assets/vocabulary.txt": b"x"}), "holds 'assets/vocabulary.txt', which is not read here"),
        (archive(model(), **{"../escape": b"x"}), "holds '../escape'"),
        (archive(model(), {"keras_version": "2.15.0"}), "not of Keras 3"),
        (archive([1]), "is not an object"),
        (archive(b"{"), "not a .keras archive, or it is damaged"),
        (archive(deep(200)), "deeper than"),
        (archive(b"[" * 100_000 + b"]" * 100_000), "damaged"),
        (io.BytesIO(b"\x89HDF\r\n\x1a\n"), "not a .keras archive"),
    ],
)
def test_what_is_no_such_archive_is_refused(source: io.BytesIO, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        rewritten(source)


def test_a_member_twice_or_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive(model(), **{"config.json": b"{}"})
    with pytest.raises(InvalidArgument, match=r"holds 'config\.json'"):
        rewritten(twice)
    monkeypatch.setattr(keras_archive, "MAX_WEIGHTS", 100)
    with pytest.raises(InvalidArgument, match=r"model\.weights\.h5 of the archive is larger"):
        rewritten(archive(model()))


def test_whatever_was_changed_is_taken_or_refused_and_nothing_else() -> None:
    whole, chance = archive(model()).getvalue(), random.Random(0)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        with contextlib.suppress(InvalidArgument):
            rewritten(io.BytesIO(bytes(changed)))
