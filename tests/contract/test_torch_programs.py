"""Real exported programs through the rewriting, and real attacks: torch's own loader falls for them, ours does not."""

from __future__ import annotations

import io
import json
import pickle  # only to write what must never be read
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb
from services.worker.engines import torch as engine
from tests.harness.engines import spec

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # of torch, while it exports
]


class Attention(torch.nn.Module):  # type: ignore[misc]
    """Two inputs, a dynamic sequence, a buffer, a branch on data: most of what programs are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.register_buffer("shift", torch.arange(8.0))
        self.eval()

    def forward(self, ids: Any, mask: Any) -> Any:
        hidden = self.layer(self.embed(ids) + self.shift, src_key_padding_mask=mask == 0)
        pooled = torch.einsum("bsd,bs->bd", hidden, mask.to(hidden.dtype)) / hidden.shape[1]
        # On whole numbers: what comes out of a normalisation sums to zero, give or take its rounding.
        return torch.cond(ids[0, 0] > 9, lambda x: x + 1, lambda x: x - 1, (pooled,)), hidden


def exported(folder: Path) -> tuple[Path, Any]:
    module = Attention()
    example = (torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))
    batch, length = torch.export.Dim("b", min=1, max=64), torch.export.Dim("s", min=2, max=32)
    program = torch.export.export(module, example, dynamic_shapes=({0: batch, 1: length},) * 2)
    path = folder / "model.pt2"
    torch.export.save(program, path)
    return path, module


MANIFEST = pb.Manifest(
    name="m",
    format="torch-export",
    inputs=[spec("ids", "INT64", -1), spec("mask", "INT64", -1)],
    outputs=[spec("pooled", "FP32", 8), spec("hidden", "FP32", -1, 8)],
    batching=pb.Batching(max_batch_size=8),
)


def test_a_real_program_computes_what_the_module_does(tmp_path: Path) -> None:
    path, module = exported(tmp_path)
    loaded = engine.load({"model": path}, MANIFEST, 1)
    assert {name: str(info) for name, info in loaded.outputs.items()} == {
        "pooled": "pooled FP32 [-1, 8]",
        "hidden": "hidden FP32 [-1, -1, 8]",
    }
    for rows, length in ((1, 3), (2, 5), (8, 17)):
        ids = np.random.default_rng(rows).integers(0, 20, (rows, length))
        mask = np.ones_like(ids)
        mask[:, length - 1] = 0
        given = loaded.run({"ids": ids, "mask": mask})
        with torch.no_grad():
            pooled, hidden = module(torch.from_numpy(ids), torch.from_numpy(mask))
        np.testing.assert_allclose(given["pooled"], pooled.numpy(), atol=1e-5)
        np.testing.assert_allclose(given["hidden"][mask == 1], hidden.numpy()[mask == 1], atol=1e-5)


class Sing:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def saved_by_torch(thing: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


Members = dict[str, bytes]


def sample_inputs(members: Members, canary: Path) -> None:
    members["data/sample_inputs/model.pt"] = saved_by_torch(Sing(canary))


def pickled_weight(members: Members, canary: Path) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(members[name])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    members[f"data/weights/{first['path_name']}"] = saved_by_torch(Sing(canary))
    members[name] = json.dumps(config).encode()


def opaque_constant(members: Members, canary: Path) -> None:
    name = "data/constants/model_constants_config.json"
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    members[name] = json.dumps({"config": {"c": entry}}).encode()
    members["data/constants/opaque_obj_0"] = pickle.dumps(Sing(canary))


def shape_expression(members: Members, canary: Path) -> None:
    text = members["models/model.json"].decode()
    symbol = next(part for part in text.split('"') if part.startswith("Symbol("))
    evil = f"__import__('pathlib').Path('{canary}').touch() or 1"
    members["models/model.json"] = text.replace(symbol, evil).encode()


ATTACKS: list[Callable[[Members, Path], None]] = [sample_inputs, pickled_weight, opaque_constant, shape_expression]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_that_torch_falls_for_does_nothing_here(
    attack: Callable[[Members, Path], None], tmp_path: Path
) -> None:
    path, _ = exported(tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    canary = tmp_path / "canary"
    attack(members, canary)
    hostile = tmp_path / "hostile.pt2"
    with zipfile.ZipFile(hostile, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"hostile/{name}", content)
    try:
        torch.export.load(hostile)
    except Exception as error:  # it may fail after it sang
        print(repr(error))
    assert canary.exists(), "the attack does not work, so the test would prove nothing"
    canary.unlink()
    try:
        engine.load({"model": hostile}, MANIFEST, 1)
    except InvalidManifest as error:
        assert str(tmp_path) not in error.message
    else:
        assert attack is sample_inputs  # left out, not refused: an honest archive has them too
    assert not canary.exists()
