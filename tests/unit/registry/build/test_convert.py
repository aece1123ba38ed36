"""Converters: the same answers as the library that trained the model, words for what cannot be, nothing unpickled."""

from __future__ import annotations

import importlib.util
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from examples.minilm import reference
from penstock.errors import InvalidArgument, InvalidManifest
from services.registry.build.steps import convert_torch, encoder, tensors
from services.registry.build.steps.session import Session

from .conftest import HIDDEN, Run, encoder_weights


def needs(*libraries: str, extra: str) -> pytest.MarkDecorator:
    """Skips with what to install."""
    lacking = [name for name in libraries if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"{', '.join(lacking)} is not installed (penstock[{extra}])")


TORCH = needs("torch", "onnxscript", extra="build-torch")
QUIET = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves and each other

# --- Hugging Face -----------------------------------------------------------------------------------------------------


def folder_of(tmp_path: Path, config: dict[str, Any], *parts: dict[str, np.ndarray]) -> dict[str, Path]:
    (tmp_path / "config.json").write_text(json.dumps(config))
    files = {"config": tmp_path / "config.json"}
    for index, part in enumerate(parts):
        role = f"weights-{index + 1}" if index else "weights"
        files[role] = tensors.write(part, tmp_path / f"{role}.safetensors")
    return files


def test_an_encoder_equals_an_independent_one(tmp_path: Path, step: Run) -> None:
    config, weights = encoder_weights()
    result = step("convert-huggingface", folder_of(tmp_path, config, weights))
    ids = [5, 9, 2, 33, 7]
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, 5)), "token_type_ids": np.zeros((1, 5))}
    given = Session(result.files["model"].read_bytes(), 1).run(feeds)[encoder.OUTPUT][0]
    wanted = reference.encode(weights, ids, layers=2, heads=4, epsilon=1e-5)
    np.testing.assert_allclose(given, wanted, atol=1e-4)


def test_shards_prefixes_and_heads(tmp_path: Path, step: Run) -> None:
    config, weights = encoder_weights()
    named = {f"bert.{name}": array for name, array in weights.items()}
    named["classifier.weight"] = np.zeros((2, HIDDEN), np.float32)
    half = len(named) // 2
    parts = dict(list(named.items())[:half]), dict(list(named.items())[half:])
    result = step("convert-huggingface", folder_of(tmp_path, config, *parts))
    assert result.report["left_out"] == ["classifier.weight"]
    assert result.report["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_padding_changes_nothing_in_any_family(family: str, tmp_path: Path, step: Run) -> None:
    config, weights = encoder_weights(family)
    made = Session(step("convert-huggingface", folder_of(tmp_path, config, weights)).files["model"].read_bytes(), 1)
    assert list(made.inputs) == ["input_ids", "attention_mask"]
    alone = made.run({"input_ids": np.array([[5, 9, 2]]), "attention_mask": np.ones((1, 3))})[encoder.OUTPUT]
    padded = {"input_ids": np.array([[5, 9, 2, 1, 1]]), "attention_mask": np.array([[1, 1, 1, 0, 0]])}
    np.testing.assert_allclose(made.run(padded)[encoder.OUTPUT][:, :3], alone, atol=1e-5)


@needs("torch", "transformers", extra="build-torch], and transformers to compare with [it")
@QUIET
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_every_family_equals_transformers(family: str, tmp_path: Path, step: Run) -> None:
    import torch
    import transformers

    kinds = {"bert": ("BertConfig", "BertModel"), "roberta": ("RobertaConfig", "RobertaModel"),
             "distilbert": ("DistilBertConfig", "DistilBertModel")}  # fmt: skip
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64} if family == "distilbert" else {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, kinds[family][0])(vocab_size=60, max_position_embeddings=40, **sizes)
    theirs = getattr(transformers, kinds[family][1])(config).eval()
    weights = {name: array.detach().numpy() for name, array in theirs.state_dict().items()}
    result = step("convert-huggingface", folder_of(tmp_path, json.loads(config.to_json_string()), weights))
    ids, mask = np.array([[5, 9, 2, 33, 1], [4, 8, 3, 2, 7]]), np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    if family != "roberta":
        ids[0, 4] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    given = Session(result.files["model"].read_bytes(), 1).run(feeds)[encoder.OUTPUT]
    with torch.inference_mode():
        wanted = theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    np.testing.assert_allclose(given[mask == 1], wanted[mask == 1], atol=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "llama"}, "model_type 'llama' cannot be converted"),
        ({"auto_map": {"AutoModel": "m.py"}}, "code of its author's"),
        ({"hidden_act": "swish"}, "activation 'swish'"),
        ({"num_attention_heads": 5}, "cannot be split over 5 heads"),
        ({"num_hidden_layers": "2"}, "mangles a size"),
        ({"position_embedding_type": "relative_key"}, "absolute positions"),
        ({"num_hidden_layers": 3}, "there is no encoder.layer.2"),
        ({"hidden_size": 64}, "do not fit config.json"),
    ],
)
def test_an_encoder_that_would_come_out_wrong_is_refused(
    change: dict[str, Any], words: str, tmp_path: Path, step: Run
) -> None:
    config, weights = encoder_weights()
    with pytest.raises(InvalidManifest, match=words):
        step("convert-huggingface", folder_of(tmp_path, {**config, **change}, weights))


def test_weights_in_a_pickle_are_never_read(tmp_path: Path, step: Run) -> None:
    config, _ = encoder_weights()
    files = folder_of(tmp_path, config)
    for head in (b"PK\x03\x04archive/data.pkl", b"\x80\x02}q\x00."):
        (tmp_path / "pytorch_model.bin").write_bytes(head)
        with pytest.raises(InvalidManifest, match=r"publish model\.safetensors"):
            step("convert-huggingface", {**files, "weights": tmp_path / "pytorch_model.bin"})


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def save_program(path: Path, module: Any, *example: Any) -> Path:
    import torch

    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=tuple({0: batch} for _ in example)), path)
    return path


@pytest.mark.torch
@TORCH
@QUIET
def test_a_program_becomes_a_graph_with_its_names(tmp_path: Path, step: Run) -> None:
    import torch

    class Two(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()

        def forward(self, x: Any) -> Any:
            hidden = self.layer(x)
            return {"hidden": hidden, "pooled": hidden.mean(dim=1)}

    path = save_program(tmp_path / "m.pt2", Two().eval(), torch.ones(2, 5, 8))
    result = step("convert-torch", {"model": path})
    assert result.report["outputs"] == ["hidden", "pooled"]
    assert result.report["largest_difference"] < 1e-4
    model = onnx.load(result.files["model"])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.torch
@TORCH
@QUIET
def test_outputs_may_be_named(tmp_path: Path, step: Run) -> None:
    import torch

    path = save_program(tmp_path / "m.pt2", torch.nn.Linear(3, 2), torch.ones(2, 3))
    assert step("convert-torch", {"model": path}, outputs=["scores"]).report["outputs"] == ["scores"]
    with pytest.raises(InvalidArgument, match="returns 1 tensors, and 2 names"):
        step("convert-torch", {"model": path}, outputs=["a", "b"])


@pytest.mark.torch
@TORCH
@QUIET
def test_an_operator_without_conversion_is_named(tmp_path: Path, step: Run) -> None:
    import torch

    class Odd(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.linalg.eigvals(x).real

    path = save_program(tmp_path / "m.pt2", Odd(), torch.ones(2, 3, 3))
    with pytest.raises(InvalidManifest, match=r"the operator aten[.:]+\w*eig\w*.* has no conversion"):
        step("convert-torch", {"model": path})


def test_pickles_of_torch_are_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(InvalidManifest, match="never read"):
        convert_torch.is_script(tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    with pytest.raises(InvalidManifest, match=r"pickle of torch\.save"):
        convert_torch.is_script(tmp_path / "m.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(InvalidManifest, match="damaged"):
        convert_torch.is_script(tmp_path / "broken.pt")


# --- scikit-learn, XGBoost, LightGBM ----------------------------------------------------------------------------------


def data() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels[:500].astype(np.float32), labels[:500]


@needs("skops", extra="build-trees")
@QUIET
def test_sklearn_answers_the_same_as_onnx(tmp_path: Path, step: Run) -> None:
    import skops.io
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels, labels = data()
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=50)),
        RandomForestClassifier(8, max_depth=6, random_state=0),
    )
    for model in models:
        skops.io.dump(model.fit(pixels, labels), tmp_path / "m.skops")
        result = step("convert-trees", {"model": tmp_path / "m.skops"}, library="sklearn", input="pixels")
        assert result.report["inputs"] == ["pixels"]
        given = Session(result.files["model"].read_bytes(), 1).run({"pixels": pixels})
        np.testing.assert_allclose(given["probabilities"], model.predict_proba(pixels), atol=1e-4)
        assert (given["label"] == model.predict(pixels)).mean() > 0.99


@needs("skops", extra="build-trees")
@QUIET
def test_a_type_that_nobody_vouches_for_is_refused_before_it_is_made(tmp_path: Path, step: Run) -> None:
    import os

    import skops.io
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    skops.io.dump(make_pipeline(FunctionTransformer(os.system)), tmp_path / "m.skops")
    with pytest.raises(InvalidManifest, match=r"not made from a file here: posix\.system"):
        step("convert-trees", {"model": tmp_path / "m.skops"}, library="sklearn")


@needs("xgboost", "onnxmltools", extra="build-trees")
@QUIET
@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_xgboost_answers_the_same_as_onnx(ending: str, tmp_path: Path, step: Run) -> None:
    import xgboost

    pixels, labels = data()
    for objective, target in (("multi:softprob", labels), ("reg:squarederror", labels * 2.5 + 1)):
        more = {"num_class": 10} if "multi" in objective else {}
        booster = xgboost.train(
            {"objective": objective, "max_depth": 3, **more}, xgboost.DMatrix(pixels, label=target), 6
        )
        booster.save_model(tmp_path / f"m.{ending}")
        result = step("convert-trees", {"model": tmp_path / f"m.{ending}"}, library="xgboost")
        given = Session(result.files["model"].read_bytes(), 1).run({"features": pixels})
        wanted = booster.predict(xgboost.DMatrix(pixels))
        found = given["probabilities"] if more else given["variable"][:, 0]
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@needs("lightgbm", "onnxmltools", extra="build-trees")
@QUIET
def test_lightgbm_answers_the_same_as_onnx(tmp_path: Path, step: Run) -> None:
    import lightgbm

    pixels, labels = data()
    for objective, target in (("multiclass", labels), ("regression", labels * 2.5 + 1)):
        more = {"num_class": 10} if objective == "multiclass" else {}
        booster = lightgbm.train(
            {"objective": objective, "verbose": -1, "num_threads": 1, **more}, lightgbm.Dataset(pixels, target), 6
        )
        booster.save_model(tmp_path / "m.txt")
        result = step("convert-trees", {"model": tmp_path / "m.txt"}, library="lightgbm")
        given = Session(result.files["model"].read_bytes(), 1).run({"features": pixels})
        found = given["probabilities"] if more else given["variable"][:, 0]
        np.testing.assert_allclose(found, booster.predict(pixels.astype(np.float64)), atol=1e-3)
        told = result.report["interface"]
        assert all(tensor["shape"][0] == -1 for tensor in [*told["inputs"], *told["outputs"]])


@pytest.mark.parametrize("library", ["sklearn", "xgboost", "lightgbm"])
@pytest.mark.parametrize("head", [pickle.dumps({}), b"\x78\x9c1234", b"\x1f\x8b1234"])
def test_a_pickle_of_any_of_them_is_never_read(library: str, head: bytes, tmp_path: Path, step: Run) -> None:
    (tmp_path / "m").write_bytes(head)
    with pytest.raises(InvalidManifest, match="never read; save scikit-learn models with skops"):
        step("convert-trees", {"model": tmp_path / "m"}, library=library)
