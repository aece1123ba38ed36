"""The fields of a model.yaml: types, limits and defaults of each (pure). What holds between them: crosschecks.py.

The names are those of protos/penstock/v1/manifest.proto; the published JSON schema is generated from here.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_serializer
from pydantic_core import PydanticCustomError

from penstock import errors, names
from penstock.tensors import MAX_ELEMENTS

from .document import shown

SCHEMA: Final = "penstock/v1"
MAX_BATCH: Final = 65_536
MAX_MEMORY: Final = 1 << 50
MAX_INSTANCES: Final = 16

# Those that an engine runs, then those that only builds read (penstock/sources.py).
Format = Literal[
    "onnx", "torch-export", "tensorrt", "python", "huggingface", "sklearn", "xgboost", "lightgbm", "tflite",
    "savedmodel", "keras", "torchscript",
]  # fmt: skip
# In the order of penstock.tensors.DATATYPES; a test compares.
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip


def _wrong(text: str) -> PydanticCustomError:
    """A problem in our own words; problems.py shows it as it is."""
    return PydanticCustomError("penstock", "{text}", {"text": text})


# Control characters but tab and newline, and halves of surrogate pairs, which JSON can smuggle in.
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def _printable(text: str) -> str:
    if found := _NOT_TEXT.search(text):
        raise _wrong(f"holds the character {found.group()!a}, which is not text")
    return text


def _one_line(text: str) -> str:
    if "\n" in text or "\t" in text:
        raise _wrong("must be one line without tabs")
    return _printable(text)


def _model_name(name: str) -> str:
    try:
        return names.model(name)
    except errors.InvalidArgument as error:
        raise _wrong(error.message.removeprefix("name: ")) from None


_DEVICE_KIND = re.compile(r"[a-z][a-z0-9-]{0,30}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TAG_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def _role(role: str) -> str:
    if not _ROLE.fullmatch(role):
        raise _wrong(f"{shown(role)} cannot be a role; use a lower-case letter, then letters, digits, '-' or '_'")
    return role


def _tag_key(key: str) -> str:
    if not _TAG_KEY.fullmatch(key):
        raise _wrong(f"{shown(key)} cannot be a tag; use 1 to 63 letters, digits, '.', '_', '/' or '-'")
    return key


def _word(word: str) -> str:
    if not _WORD.fullmatch(word):
        raise _wrong(f"{shown(word)} cannot be a label or taint; use 1 to 63 letters, digits, '.', '_', '/' or '-'")
    return word


def _device_kind(kind: str) -> str:
    if not _DEVICE_KIND.fullmatch(kind):
        raise _wrong(f"{shown(kind)} cannot be a kind of device; use lower-case letters, digits or '-', such as gpu")
    return kind


def _relative(path: str) -> str:
    parts = path.split("/")
    if "\\" in path or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise _wrong(
            f"{shown(path)} must be a path below the manifest's folder, such as model.onnx or data/labels.txt: "
            "relative, with '/' between the parts, without '..', '\\' or a drive letter"
        )
    return path


def _shape(shape: list[int]) -> list[int]:
    count = 1
    for dimension in shape:
        if dimension == 0 or dimension < -1:
            raise _wrong(f"holds {dimension}; a dimension is positive, or -1 where any size goes")
        count *= abs(dimension)
    if count > MAX_ELEMENTS:
        raise _wrong("describes more than 2**40 elements")
    return shape


def _requirement(text: str) -> str:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise _wrong(f"{shown(text)} is not a Python requirement; write one such as onnxruntime>=1.20") from None
    if requirement.url:
        raise _wrong(f"{shown(text)} names a URL; name a distribution and its versions, such as onnxruntime>=1.20")
    return text


def _specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        raise _wrong(f"{shown(text)} is not a version specifier; write one such as >=3.11,<4") from None
    return text


def _parent(text: str) -> str:
    name, separator, version = text.rpartition("@")
    try:
        if not separator or not re.fullmatch("[1-9][0-9]{0,17}", version):
            raise errors.InvalidArgument("")
        names.model(name)
    except errors.InvalidArgument:
        raise _wrong(f"{shown(text)} does not name a version; write name@version, such as digits@3") from None
    return text


def _not_zero(value: float) -> float:
    if value == 0:
        raise _wrong("must not be 0; pixels are divided by it")
    return value


def _digest(text: str) -> str:
    try:
        return names.digest(text)
    except errors.InvalidArgument as error:
        raise _wrong(error.message.removeprefix("digest: ")) from None


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    try:
        _json(value)
    except ValueError:
        raise _wrong("holds a number that is not finite") from None
    return value


Document = Annotated[dict[str, Any], AfterValidator(_finite)]
Line = Annotated[str, Field(max_length=1024), AfterValidator(_one_line)]
Prose = Annotated[str, Field(max_length=16_384), AfterValidator(_printable)]
Word = Annotated[str, AfterValidator(_word)]
"""A key or value of a worker's label, or a taint."""
ModelName = Annotated[str, AfterValidator(_model_name)]
TensorName = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_one_line)]
Role = Annotated[str, AfterValidator(_role)]
OptionalName = Annotated[str, Field(max_length=256), AfterValidator(_one_line)]
OptionalRole = Annotated[str, AfterValidator(lambda role: role and _role(role))]
Path = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_one_line), AfterValidator(_relative)]
TagKey = Annotated[str, AfterValidator(_tag_key)]
TagValue = Annotated[str, Field(max_length=256), AfterValidator(_one_line)]
Dimension = Annotated[int, Field(le=MAX_ELEMENTS)]
Shape = Annotated[list[Dimension], Field(max_length=16), AfterValidator(_shape)]
Requirements = Annotated[str, Field(max_length=256), AfterValidator(_one_line), AfterValidator(_requirement)]
Specifier = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_one_line), AfterValidator(_specifier)]
Factor = Annotated[float, Field(ge=-1e30, le=1e30)]  # A `float` field of the proto holds 32 bits.
Divisor = Annotated[Factor, AfterValidator(_not_zero)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
BatchSize = Annotated[int, Field(ge=1, le=MAX_BATCH)]
Microseconds = Annotated[int, Field(ge=0, le=3_600_000_000)]


def _json(value: Any) -> str:
    """Values of a document as the text that a message holds: nothing in them is our business here."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


class Part(BaseModel):
    """What all parts of a manifest share: nothing is coerced, nothing unknown is passed over."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Tensor(Part):
    """One tensor that callers send or get, without the batch dimension when max_batch_size > 0."""

    name: TensorName
    datatype: Datatype
    shape: Shape


class Image(Part):
    """Image bytes to pixels: value = (pixel * scale - mean) / std."""

    input: TensorName
    output: TensorName
    width: Pixels
    height: Pixels
    mode: Literal["L", "RGB"] = "RGB"
    scale: Factor = 1 / 255
    mean: list[Factor] = []
    std: list[Divisor] = []
    layout: Literal["CHW", "HWC", "FLAT"] = "CHW"
    invert: bool = False
    resample: Literal["bilinear", "bicubic", "nearest"] = "bilinear"


class Text(Part):
    """UTF-8 text to token ids."""

    input: TensorName
    tokenizer: Role
    input_ids: TensorName
    attention_mask: OptionalName = ""
    token_type_ids: OptionalName = ""
    max_length: Annotated[int, Field(ge=1, le=1_000_000)] = 512


class TopK(Part):
    """Scores to the best k, with labels."""

    input: TensorName
    output_labels: TensorName
    labels: OptionalRole = ""
    k: Annotated[int, Field(ge=1, le=100_000)] = 1
    output_scores: OptionalName = ""


class Pool(Part):
    """Token embeddings to one vector."""

    input: TensorName
    output: TensorName
    mask: OptionalName = ""
    mode: Literal["mean", "max", "first"] = "mean"
    normalize: bool = False


class Before(Part):
    """One step before the engine; exactly one kind."""

    image: Image | None = None
    text: Text | None = None


class After(Part):
    """One step after the engine; exactly one kind."""

    top_k: TopK | None = None
    pool: Pool | None = None


class Batching(Part):
    """How requests are put together."""

    max_batch_size: Annotated[int, Field(ge=0, le=MAX_BATCH)] = 0
    preferred_batch_size: Annotated[list[BatchSize], Field(max_length=64)] = []
    max_queue_delay_microseconds: Microseconds = 0
    max_queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    priority_levels: Annotated[int, Field(ge=0, le=100)] = 0
    default_priority_level: Annotated[int, Field(ge=0, le=100)] = 0
    default_timeout_microseconds: Microseconds = 0


class Devices(Part):
    """Devices that one replica uses besides the processor."""

    kind: Annotated[str, AfterValidator(_device_kind)] = "gpu"
    count: Annotated[int, Field(ge=1, le=64)] = 1
    memory_bytes: Annotated[int, Field(ge=0, le=MAX_MEMORY)] = 0
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    exclusive: bool = False


class Placement(Part):
    """Where replicas may and should run."""

    selector: Annotated[dict[Word, Word], Field(max_length=16)] = {}
    tolerations: Annotated[list[Word], Field(max_length=64)] = []
    affinity: Annotated[list[ModelName], Field(max_length=16)] = []
    anti_affinity: Annotated[list[ModelName], Field(max_length=16)] = []
    spread: Literal["preferred", "required"] = "preferred"
    pinned: bool = False
    priority: Annotated[int, Field(ge=-100, le=100)] = 0


class Resources(Part):
    """What one replica needs."""

    memory_bytes: Annotated[int, Field(ge=0, le=MAX_MEMORY)] = 0
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    devices: Devices | None = None


class Environment(Part):
    """What the model was made for."""

    python: Specifier | None = None
    cuda: Specifier | None = None
    tensorrt: Specifier | None = None


class Lineage(Part):
    """Where the model came from."""

    dataset: Line = ""
    code: Line = ""
    parents: Annotated[list[Annotated[str, AfterValidator(_parent)]], Field(max_length=64)] = []
    metrics: Annotated[dict[TagKey, float], Field(max_length=64)] = {}
    notes: Annotated[dict[TagKey, Prose], Field(max_length=64)] = {}


class Warmup(Part):
    """Runs before READY."""

    runs: Annotated[int, Field(ge=1, le=1000)] = 1
    batch_sizes: Annotated[list[BatchSize], Field(max_length=64)] = []


class BuildStep(Part):
    """One step of a build; which steps there are and what they take, the builder knows."""

    id: Annotated[str, Field(max_length=41)] = ""
    step: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_one_line)]
    parameters: Document = {}
    inputs: Annotated[dict[Role, Line], Field(max_length=64)] = {}

    @field_serializer("parameters")
    def _as_text(self, parameters: dict[str, Any]) -> str:
        return _json(parameters)


class Build(Part):
    """What is built from this version when it is published."""

    steps: Annotated[list[BuildStep], Field(min_length=1, max_length=32)]
    targets: Annotated[list[Document], Field(max_length=16)] = []
    files: Annotated[dict[Role, Annotated[str, AfterValidator(_digest)]], Field(max_length=16)] = {}

    @field_serializer("targets")
    def _as_texts(self, targets: list[dict[str, Any]]) -> list[str]:
        return [_json(target) for target in targets]


class Model(Part):
    """A model.yaml."""

    schema_: Annotated[Literal["penstock/v1"], Field(alias="schema")]
    name: Annotated[str, AfterValidator(_model_name)]
    description: Prose = ""
    author: Line = ""
    tags: Annotated[dict[TagKey, TagValue], Field(max_length=64)] = {}
    framework: Line = ""
    format: Format
    files: Annotated[dict[Role, Path], Field(max_length=64)]
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=64)]
    outputs: Annotated[list[Tensor], Field(min_length=1, max_length=64)]
    preprocess: Annotated[list[Before], Field(max_length=64)] = []
    postprocess: Annotated[list[After], Field(max_length=64)] = []
    batching: Batching = Batching()
    resources: Resources = Resources()
    dependencies: Annotated[list[Requirements], Field(max_length=64)] = []
    environment: Environment = Environment()
    lineage: Lineage = Lineage()
    warmup: Warmup = Warmup()
    placement: Placement | None = None
    build: Build | None = None
    instances: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 1


class SourceModel(Model):
    """A model.yaml of a format that only builds read: the conversion tells inputs and outputs that it leaves out."""

    inputs: Annotated[list[Tensor], Field(max_length=64)] = []
    outputs: Annotated[list[Tensor], Field(max_length=64)] = []
