"""A `.keras` archive (Keras 3), rewritten so that loading it makes nothing but known layers (pure; knows no Keras).

Keras makes a model by the names of classes in `config.json`. Its safe mode has been got round more than once: by a
module to import (CVE-2025-1550), by a function of Keras that downloads and unpacks (CVE-2025-8747), by a layer that
reads a vocabulary from any path (CVE-2025-12058), by one that unpickles (CVE-2025-49655). So the configuration is read
here first, and every object in it must be of a class on a list: layers that compute, with their initialisers,
regularisers and constraints. Functions, lambdas and objects of the author's own are refused.

The weights are HDF5, which is for the step to look into; here they are one member of bounded size.
"""

from __future__ import annotations

import json
import zipfile
from typing import IO, Any, Final

from penstock.errors import InvalidArgument

from .archives import DAMAGED

CONFIG: Final = "config.json"
METADATA: Final = "metadata.json"
WEIGHTS: Final = "model.weights.h5"
MAX_CONFIG: Final = 64 << 20
MAX_WEIGHTS: Final = 8 << 30
MAX_DEPTH: Final = 100

# fmt: off
_LAYERS: Final = """
    Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average AveragePooling1D
    AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CenterCrop Concatenate Conv1D Conv1DTranspose
    Conv2D Conv2DTranspose Conv3D Conv3DTranspose Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D
    DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten GRU GRUCell GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer LSTM LSTMCell LayerNormalization
    LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MultiHeadAttention Multiply Normalization
    PReLU Permute RMSNormalization RNN RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation
    RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D
    SimpleRNN SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization
    StackedRNNCells Subtract TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D
    ZeroPadding2D ZeroPadding3D
"""
_MODELS: Final = "Sequential Functional Model"
_OPERATIONS: Final = """
    Abs Absolute Add All Any Arccos Arcsin Arctan Argmax Argmin AveragePool BroadcastTo Cast Ceil Clip Concatenate Cos
    Cumsum Divide Einsum Equal Erf Exp ExpandDims Expm1 Flip Floor FloorDivide GetItem Greater GreaterEqual Less
    LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr Logsumexp Matmul Max MaxPool Maximum Mean Min Minimum Mod
    Multiply Negative Normalize NotEqual OneHot Pad Power Prod Reciprocal Relu Relu6 Repeat Reshape Round Rsqrt
    Sigmoid Sign Silu Gelu Elu Selu LeakyRelu HardSigmoid HardSilu LogSoftmax LogSigmoid Sin Softmax Softplus Softsign
    Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take Tan Tanh Tile Transpose TrueDivide Var Where
"""
_MODULES: Final = {
    "keras": frozenset(f"{_MODELS} DTypePolicy".split()),
    "keras.layers": frozenset(_LAYERS.split()),
    "keras.models": frozenset(_MODELS.split()),
    "keras.dtype_policies": frozenset(("DTypePolicy", "DTypePolicyMap")),
    "keras.initializers": frozenset("""
        Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal LecunUniform
        Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
    """.split()),  # noqa: SIM905
    "keras.regularizers": frozenset(("L1", "L2", "L1L2", "OrthogonalRegularizer")),
    "keras.constraints": frozenset(("MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm")),
    "keras.random": frozenset(("SeedGenerator",)),
    **dict.fromkeys(("keras.src.models.functional", "keras.src.models.sequential", "keras.src.models.model"),
                    frozenset(_MODELS.split())),
    **dict.fromkeys((f"keras.src.ops.{part}" for part in ("core", "math", "nn", "numpy")),
                    frozenset(_OPERATIONS.split())),
}
# Marks of values in the configuration, which are no classes.
_VALUES: Final = frozenset(("__keras_tensor__", "__tensor__", "__numpy__", "__tuple__"))
# fmt: on
_INSTEAD: Final = "export the model as a SavedModel (model.export) and publish that"


def rewrite(source: IO[bytes], target: IO[bytes]) -> list[str]:
    """Writes the checked archive to `target`; the classes of its objects, each once.

    Raises InvalidArgument with public words, the class's name among them. What belongs to training is left out.
    """
    try:
        with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as made:
            members = _members(archive)
            config = json.loads(archive.read(members[CONFIG]))
            metadata = json.loads(archive.read(members[METADATA]))
            if not isinstance(config, dict) or not isinstance(metadata, dict):
                raise InvalidArgument("the archive's configuration is not an object")
            config.pop("compile_config", None)
            classes: set[str] = set()
            _check(config, classes, 0)
            version = str(metadata.get("keras_version", ""))[:20]
            if not version.startswith("3."):
                raise InvalidArgument(f"the archive is not of Keras 3; load it with Keras 3 and save it, or {_INSTEAD}")
            made.writestr(CONFIG, json.dumps(config))
            made.writestr(METADATA, json.dumps({"keras_version": version, "date_saved": ""}))
            _copy(archive, members[WEIGHTS], made)
    except (*DAMAGED, ValueError, KeyError) as error:
        raise InvalidArgument("the file is not a .keras archive, or it is damaged") from error
    return sorted(classes)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in found or info.filename not in (CONFIG, METADATA, WEIGHTS):
            raise InvalidArgument(
                f"the archive holds {info.filename[:60]!r}, which is not read here; layers with files of their own, "
                "such as vocabularies, cannot be converted"
            )
        most = MAX_WEIGHTS if info.filename == WEIGHTS else MAX_CONFIG
        if info.file_size > most:
            raise InvalidArgument(f"{info.filename} of the archive is larger than {most >> 20} MiB")
        found[info.filename] = info
    return found


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, made: zipfile.ZipFile) -> None:
    stored = zipfile.ZipInfo(WEIGHTS)
    stored.file_size = info.file_size
    with archive.open(info) as source, made.open(stored, "w") as target:
        while piece := source.read(1 << 20):
            target.write(piece)


def _check(value: Any, classes: set[str], depth: int) -> None:
    """Every object of the configuration, however deep, is of a known class."""
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"the configuration nests deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        for inner in value:
            _check(inner, classes, depth + 1)
    elif isinstance(value, dict):
        if "class_name" in value:
            _check_class(value, classes)
        for inner in value.values():
            _check(inner, classes, depth + 1)


def _check_class(value: dict[str, Any], classes: set[str]) -> None:
    name, module, registered = (value.get(key) for key in ("class_name", "module", "registered_name"))
    shown = repr(str(name)[:60])
    if name == "Lambda" or name == "__lambda__":
        raise InvalidArgument(
            f"the model holds a Lambda layer, which is Python code; use layers or keras.ops, or {_INSTEAD}"
        )
    if isinstance(name, str) and name in _VALUES and module in (None, "builtins"):
        return
    if name == "function":
        raise InvalidArgument(
            f"the model holds the function {str(value.get('config'))[:60]!r} as an object; {_INSTEAD}"
        )
    known = isinstance(name, str) and isinstance(module, str) and name in _MODULES.get(module, ())
    if not known or registered not in (None, name):
        raise InvalidArgument(
            f"the model holds an object of class {shown} of {str(module)[:60]!r}, which is not made from a file here; "
            f"use Keras's own layers that compute, or {_INSTEAD}"
        )
    classes.add(str(name))
