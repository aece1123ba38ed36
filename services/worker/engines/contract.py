"""What a manifest promises of the engine, and whether the loaded model keeps it (pure).

The processors stand between the caller's tensors and the engine's. Walking them forwards gives what the engine is fed,
and backwards what it has to give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb

from .engine import Engine, TensorInfo

ANY = -1


@dataclass(frozen=True, slots=True)
class Promise:
    """fed: every tensor that is there before the engine runs; optional: those of them that the model need not take
    (made by a processor, such as an attention mask that only pooling wants); wanted: what the engine must give, in the
    manifest's order."""

    fed: dict[str, TensorInfo]
    optional: frozenset[str]
    wanted: dict[str, TensorInfo]


def promised(manifest: pb.Manifest) -> Promise:
    """What the manifest says of the engine's inputs and outputs, batch dimension included."""
    batched = manifest.batching.max_batch_size > 0

    def info(name: str, datatype: str, *shape: int) -> TensorInfo:
        return TensorInfo(name, datatype, (ANY, *shape) if batched else shape)

    fed = {spec.name: info(spec.name, spec.datatype, *spec.shape) for spec in manifest.inputs}
    made: set[str] = set()
    for step in manifest.preprocess:
        fed.pop(_consumed(step), None)
        for name, datatype, shape in _made_before(step):
            fed[name] = info(name, datatype, *shape)
            made.add(name)
    wanted: dict[str, TensorInfo] = {}
    there = set(fed)
    for step in manifest.postprocess:
        takes, makes = _around_after(step)
        for name, datatype, shape in takes:
            if name not in there:
                wanted.setdefault(name, info(name, datatype, *shape))
        there.update(makes)
    for spec in manifest.outputs:
        if spec.name not in there:
            wanted[spec.name] = info(spec.name, spec.datatype, *spec.shape)
    return Promise(fed, frozenset(made), wanted)


def validate(manifest: pb.Manifest, engine: Engine) -> None:
    """Raises InvalidManifest that names the tensor and what the model has, where manifest and model disagree."""
    promise = promised(manifest)
    for name, fed in promise.fed.items():
        takes = engine.inputs.get(name)
        if takes is None and name not in promise.optional:
            raise InvalidManifest(
                f"inputs: the model takes no {name!r}; it takes {_listed(engine.inputs)}", field="inputs"
            )
        if takes is not None and (why := _unfit(fed, takes, manifest, fed_to_model=True)):
            raise InvalidManifest(f"inputs: {name!r} {why}; the model takes {takes}", field="inputs")
    if missing := [name for name in engine.inputs if name not in promise.fed]:
        raise InvalidManifest(
            f"inputs: the model also takes {', '.join(map(repr, missing))}, which the manifest does not give it",
            field="inputs",
        )
    for name, wanted in promise.wanted.items():
        gives = engine.outputs.get(name)
        if gives is None:
            raise InvalidManifest(
                f"outputs: the model gives no {name!r}; it gives {_listed(engine.outputs)}", field="outputs"
            )
        if why := _unfit(gives, wanted, manifest, fed_to_model=False):
            raise InvalidManifest(f"outputs: {name!r} {why}; the model gives {gives}", field="outputs")


def _unfit(given: TensorInfo, taken: TensorInfo, manifest: pb.Manifest, *, fed_to_model: bool) -> str:
    """Why a tensor does not fit its place; empty where it does."""
    promise = given if fed_to_model else taken
    if given.datatype != taken.datatype:
        return f"is {promise.datatype} in the manifest"
    if given.shape is None or taken.shape is None or promise.shape is None:
        return ""
    if len(given.shape) != len(taken.shape):
        return f"has {len(promise.shape)} dimensions {list(promise.shape)} by the manifest"
    batched = manifest.batching.max_batch_size > 0
    for axis, (one, other) in enumerate(zip(given.shape, taken.shape, strict=True)):
        if batched and axis == 0:
            model = other if fed_to_model else one
            if model != ANY and not model == manifest.batching.max_batch_size == 1:
                return f"must take any batch up to {manifest.batching.max_batch_size} in dimension 0"
        elif one != other and ANY not in (one, other):
            return f"is {promise.shape[axis]} in dimension {axis} by the manifest"
        elif fed_to_model and one == ANY != other:
            return f"may have any size in dimension {axis} by the manifest"
    return ""


def _listed(tensors: Mapping[str, TensorInfo]) -> str:
    return "; ".join(str(tensor) for tensor in list(tensors.values())[:16]) or "nothing"


Shape = tuple[int, ...]


def _consumed(step: pb.Processor) -> str:
    return step.image.input if step.WhichOneof("kind") == "image" else step.text.input


def _made_before(step: pb.Processor) -> list[tuple[str, str, Shape]]:
    """Name, datatype and shape per item of what a step before the engine makes."""
    if step.WhichOneof("kind") == "image":
        return [(step.image.output, "FP32", image_shape(step.image))]
    text = step.text
    return [(name, "INT64", (ANY,)) for name in (text.input_ids, text.attention_mask, text.token_type_ids) if name]


def _around_after(step: pb.Processor) -> tuple[list[tuple[str, str, Shape]], list[str]]:
    """What a step after the engine takes (name, datatype, shape per item), and the names that it makes."""
    if step.WhichOneof("kind") == "top_k":
        top = step.top_k
        return [(top.input, "FP32", (ANY,))], [name for name in (top.output_labels, top.output_scores) if name]
    pool = step.pool
    mask: list[tuple[str, str, Shape]] = [(pool.mask, "INT64", (ANY,))] if pool.mask else []
    return [(pool.input, "FP32", (ANY, ANY)), *mask], [pool.output]


def image_shape(image: pb.ImageProcessor) -> Shape:
    """Shape of one item that an image processor makes."""
    channels = 1 if image.mode == "L" else 3
    if image.layout == "FLAT":
        return (channels * image.height * image.width,)
    if image.layout == "HWC":
        return (image.height, image.width, channels)
    return (channels, image.height, image.width)
