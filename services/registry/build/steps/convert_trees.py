"""`convert-trees`: scikit-learn (skops), XGBoost (JSON or UBJSON) and LightGBM (text) to ONNX.

scikit-learn's own files are pickles and are never read. A `.skops` file names the type of everything in it; one that
names a type beyond those that skops knows to be harmless is refused, and nothing of it is made. The formats of XGBoost
and LightGBM hold numbers and names only; they are read by these libraries, in the step's confined process.
"""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from penstock.errors import InvalidArgument, InvalidManifest, Unsupported
from penstock.untrusted.words import public

from ..step import Role, Step, StepContext, StepResult, installed
from . import onnx_file

MAX_UNPACKED: Final = 2 << 30
OPSET: Final = 18
LIBRARIES: Final = {
    "sklearn": ("skops", "scikit-learn", "skl2onnx"),
    "xgboost": ("onnxmltools", "xgboost-cpu", "skl2onnx"),
    "lightgbm": ("onnxmltools", "lightgbm", "skl2onnx"),
}
# Parts of common estimators that skops does not vouch for by itself. Making one runs nothing of the file's: their state
# is numbers, which the converter reads and nobody predicts with here.
PARTS: Final = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
)


@dataclass(frozen=True)
class Parameters:
    """library: which one wrote the file. input: the name of the one input, float32 [batch, features]. features: how
    many, where the file does not say."""

    library: Literal["sklearn", "xgboost", "lightgbm"]
    input: str = "features"
    features: int | None = None

    def __post_init__(self) -> None:
        if self.features is not None and not 1 <= self.features <= 1_000_000:
            raise InvalidArgument("1 to 1000000 is needed", field="features")


def run(work: StepContext[Parameters]) -> StepResult:
    """Converts and writes `model`."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    path = work.inputs["model"]
    _refuse_pickle(path)
    load = {"sklearn": _sklearn, "xgboost": _xgboost, "lightgbm": _lightgbm}[work.parameters.library]
    try:
        model, kind = load(path, work.parameters)
    except (InvalidArgument, Unsupported):
        raise
    except Exception as error:  # each library has exceptions of its own, and some raise plain ones
        raise InvalidManifest(
            f"model: {work.parameters.library} cannot be converted: {public(_unconverted(error))}",
            field="model",
            detail=repr(error),
        ) from None
    _rename(model)
    made = onnx_file.write(model, work.folder / "model.onnx")
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    work.say(f"{kind}: {made.stat().st_size:,} bytes, inputs {', '.join(inputs)}, outputs {', '.join(outputs)}")
    return StepResult(
        {"model": made},
        {
            "kind": kind,
            "before": {"bytes": path.stat().st_size},
            "after": onnx_file.summary(made, model),
            "inputs": inputs,
            "outputs": outputs,
            "interface": onnx_file.interface(model),
        },
    )


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
    # A pickle of protocol 2 or later, or what joblib wraps around one: zlib, gzip, bz2, xz, lz4.
    packed = (b"\x78", b"\x1f\x8b", b"BZh", b"\xfd7z", b"\x04\x22\x4d\x18")
    if head[:1] == b"\x80" or head.startswith(packed):
        raise InvalidManifest(
            "model: this is a pickle, which can run code when it is loaded and is never read; save scikit-learn models "
            "with skops.io.dump, XGBoost's with save_model('model.json'), LightGBM's with save_model('model.txt')",
            field="model",
        )


def _sklearn(path: Path, parameters: Parameters) -> tuple[Any, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_UNPACKED:
                raise InvalidManifest("model: the archive unpacks to more than 2 GiB", field="model")
            archive.getinfo("schema.json")
    except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError):
        raise InvalidManifest("model: this is no .skops file; write it with skops.io.dump", field="model") from None
    import skops.io
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    named = skops.io.get_untrusted_types(file=path)
    strange = sorted(set(named) - set(PARTS))
    if strange:
        raise InvalidManifest(
            f"model: it holds types that are not made from a file here: {public(', '.join(strange))}; use "
            "scikit-learn's own estimators and plain numpy arrays",
            field="model",
        )
    estimator = skops.io.load(path, trusted=[name for name in named if name in PARTS])
    features = parameters.features or getattr(estimator, "n_features_in_", None)
    if not isinstance(features, int):
        raise InvalidArgument(
            "convert-trees.features: the model does not say how many features it takes", field="convert-trees.features"
        )
    # Probabilities as a tensor; a list of dicts, the default, is nothing that can be served.
    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "classes_") else None
    model = to_onnx(
        estimator,
        initial_types=[(parameters.input, FloatTensorType([None, features]))],
        options=options,
        target_opset={"": OPSET, "ai.onnx.ml": 3},
    )
    return model, type(estimator).__name__


def _xgboost(path: Path, parameters: Parameters) -> tuple[Any, str]:
    import onnxmltools
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    data = bytearray(path.read_bytes())
    booster = xgboost.Booster()
    booster.load_model(data)
    features = parameters.features or booster.num_features()
    booster.feature_names = None  # the converter wants them numbered
    booster.feature_types = None
    _plain_base_score(booster)
    model = onnxmltools.convert_xgboost(
        booster, initial_types=[(parameters.input, FloatTensorType([None, features]))], target_opset=15
    )
    return model, "XGBoost"


def _plain_base_score(booster: Any) -> None:
    """XGBoost 3 writes one score per target, in brackets; the converter reads a number."""
    config = json.loads(booster.save_config())
    score = config["learner"]["learner_model_param"]["base_score"]
    values = [float(each) for each in score.strip("[]").split(",")]
    if len(set(values)) == 1 and score.startswith("["):
        config["learner"]["learner_model_param"]["base_score"] = repr(values[0])
        booster.load_config(json.dumps(config))


def _lightgbm(path: Path, parameters: Parameters) -> tuple[Any, str]:
    import lightgbm
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    text = path.read_text(encoding="utf-8", errors="strict")
    if not text.startswith("tree"):
        raise InvalidManifest(
            "model: this is no LightGBM model; write it with Booster.save_model('model.txt')", field="model"
        )
    booster = lightgbm.Booster(model_str=text)
    features = parameters.features or booster.num_feature()
    model = onnxmltools.convert_lightgbm(
        booster, initial_types=[(parameters.input, FloatTensorType([None, features]))], zipmap=False, target_opset=15
    )
    return model, "LightGBM"


def _unconverted(error: BaseException) -> str:
    """What the converter says, first sentence only: the rest is advice to its own developers."""
    text = " ".join(str(error).split())
    return text.split(". ")[0] if text else type(error).__name__


def _rename(model: Any) -> None:
    """The first dimension is the batch, also where a converter (LightGBM's, of labels) says that it is 1."""
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].dim_param = "batch"


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build-trees", *LIBRARIES[parameters.library], "onnx")


STEP: Final = Step(
    name="convert-trees",
    version=3,
    text="scikit-learn (skops), XGBoost and LightGBM to ONNX",
    parameters=Parameters,
    inputs=(Role("model", "a .skops file, an XGBoost model as JSON or UBJSON, or a LightGBM model as text"),),
    outputs=(Role("model", "the ONNX model"),),
    tools=_tools,
    run=run,
)
