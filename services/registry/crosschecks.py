"""What must hold between the fields of a model.yaml (pure): names are unique, steps find their tensors and files.

The engine's own tensors are unknown here: a declared output that no step makes, or a tensor that only a later step
reads, may be the engine's; the worker finds out when it loads the model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from . import sources
from .document import shown
from .fields import After, Before, Image, Model, Pool, Tensor, Text, TopK

Problem = tuple[str, str]
"""Field path and what is wrong with it."""


def check(model: Model) -> Iterator[Problem]:
    """Every problem between fields, in the order of the manifest."""
    yield from sources.roles(model.format, model.files)
    yield from _unique("inputs", model.inputs)
    yield from _unique("outputs", model.outputs)
    yield from _steps("preprocess", model.preprocess)
    yield from _steps("postprocess", model.postprocess)
    yield from _roles(model)
    made = dict.fromkeys((tensor.name for tensor in model.inputs), "an input")
    yield from _preprocess(model, made)
    yield from _postprocess(model, made)
    yield from _batching(model)


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean `x`?` for the known word that looks most alike, or nothing."""
    match = difflib.get_close_matches(word[:100], list(known), n=1, cutoff=0.6)
    return f"; did you mean `{match[0]}`?" if match else ""


def _unique(field: str, tensors: Sequence[Tensor]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, tensor in enumerate(tensors):
        if tensor.name in seen:
            yield f"{field}[{index}].name", f"{shown(tensor.name)} is the name of {field}[{seen[tensor.name]}] already"
        seen.setdefault(tensor.name, index)


def _steps(field: str, steps: Sequence[Before | After]) -> Iterator[Problem]:
    for index, step in enumerate(steps):
        kinds = sorted(type(step).model_fields)
        count = sum(getattr(step, kind) is not None for kind in kinds)
        if count != 1:
            one_of = " or ".join(f"`{kind}: {{...}}`" for kind in kinds)
            yield f"{field}[{index}]", f"names {count} processors; give exactly one of {one_of}"


def _roles(model: Model) -> Iterator[Problem]:
    wanted: list[tuple[str, str]] = []
    for index, before in enumerate(model.preprocess):
        if before.text is not None:
            wanted.append((f"preprocess[{index}].text.tokenizer", before.text.tokenizer))
    for index, after in enumerate(model.postprocess):
        if after.top_k is not None and after.top_k.labels:
            wanted.append((f"postprocess[{index}].top_k.labels", after.top_k.labels))
    for field, role in wanted:
        if role not in model.files:
            yield field, f"{shown(role)} is no role in `files`{nearest(role, model.files)}; add `{role}: <path>` there"


def _outputs(step: Image | Text | TopK | Pool) -> list[tuple[str, str]]:
    """Field and tensor name of everything that a step makes."""
    fields = {
        Image: ("output",),
        Text: ("input_ids", "attention_mask", "token_type_ids"),
        TopK: ("output_labels", "output_scores"),
        Pool: ("output",),
    }[type(step)]
    return [(field, getattr(step, field)) for field in fields if getattr(step, field)]


def _preprocess(model: Model, made: dict[str, str]) -> Iterator[Problem]:
    """Checks the steps before the engine; `made` grows by the tensors that they make."""
    inputs = {tensor.name: (index, tensor) for index, tensor in enumerate(model.inputs)}
    for index, before in enumerate(model.preprocess):
        for kind, step in (("image", before.image), ("text", before.text)):
            if step is None:
                continue
            field = f"preprocess[{index}].{kind}"
            if step.input not in inputs:
                known = ", ".join(shown(name) for name in list(inputs)[:8])
                yield f"{field}.input", f"{shown(step.input)} is none of the model's inputs ({known})"
            else:
                yield from _raw_input(model, field, kind, *inputs[step.input])
            yield from _made(field, step, made)
        if before.image is not None:
            yield from _channels(f"preprocess[{index}].image", before.image)


def _raw_input(model: Model, field: str, kind: str, index: int, tensor: Tensor) -> Iterator[Problem]:
    if tensor.datatype != "BYTES":
        yield f"{field}.input", f"{shown(tensor.name)} is {tensor.datatype}; `{kind}` reads a BYTES input"
    elif model.batching.max_batch_size and tensor.shape != [1]:
        text = f"is {tensor.shape}; `{kind}` reads one item per request row: use [1]"
        yield f"inputs[{index}].shape", text


def _channels(field: str, image: Image) -> Iterator[Problem]:
    channels = {"L": 1, "RGB": 3}[image.mode]
    for name, values in (("mean", image.mean), ("std", image.std)):
        if values and len(values) != channels:
            yield f"{field}.{name}", f"has {len(values)} values; mode {image.mode} has {channels} channel(s)"


def _postprocess(model: Model, made: dict[str, str]) -> Iterator[Problem]:
    declared = {tensor.name: (index, tensor) for index, tensor in enumerate(model.outputs)}
    steps = [(index, after.top_k or after.pool) for index, after in enumerate(model.postprocess)]
    for position, (index, step) in enumerate(steps):
        if step is None:
            continue
        kind = "top_k" if isinstance(step, TopK) else "pool"
        field = f"postprocess[{index}].{kind}"
        read_later = {tensor for _, later in steps[position + 1 :] if later is not None for tensor in _read(later)}
        made_later = {tensor for _, later in steps[position:] if later is not None for _, tensor in _outputs(later)}
        for name in ("input", "mask") if isinstance(step, Pool) else ("input",):
            tensor = getattr(step, name)
            if tensor in made_later and tensor not in made:
                yield f"{field}.{name}", f"{shown(tensor)} is made only by this step or a later one"
        for name, tensor in _outputs(step):
            if tensor not in declared and tensor not in read_later:
                hint = nearest(tensor, declared)
                yield f"{field}.{name}", f"{shown(tensor)} is neither in `outputs` nor read by a later step{hint}"
            elif tensor in declared:
                yield from _declared(model, step, name, *declared[tensor])
        yield from _made(field, step, made)


def _read(step: TopK | Pool) -> set[str]:
    return {step.input, step.mask} if isinstance(step, Pool) else {step.input}


def _declared(model: Model, step: TopK | Pool, name: str, index: int, tensor: Tensor) -> Iterator[Problem]:
    """A declared output must look like what the step makes."""
    datatype = "BYTES" if name == "output_labels" else "FP32"
    kind = "top_k" if isinstance(step, TopK) else "pool"
    if tensor.datatype != datatype:
        yield f"outputs[{index}].datatype", f"is {tensor.datatype}; `{kind}` makes {datatype} of {shown(tensor.name)}"
    if not model.batching.max_batch_size:
        return
    if isinstance(step, TopK) and tensor.shape not in ([step.k], [-1]):
        yield f"outputs[{index}].shape", f"is {tensor.shape}; `top_k` with k = {step.k} makes [{step.k}]"
    if isinstance(step, Pool) and len(tensor.shape) != 1:
        yield f"outputs[{index}].shape", f"is {tensor.shape}; `pool` makes one vector: use [width]"


def _made(field: str, step: Image | Text | TopK | Pool, made: dict[str, str]) -> Iterator[Problem]:
    for name, tensor in _outputs(step):
        if tensor in made:
            yield f"{field}.{name}", f"{shown(tensor)} is the name of {made[tensor]} already; choose another"
        made.setdefault(tensor, f"what {field} makes")


def _batching(model: Model) -> Iterator[Problem]:
    rules = model.batching
    largest = rules.max_batch_size
    sizes = [
        ("batching.preferred_batch_size", rules.preferred_batch_size),
        ("warmup.batch_sizes", model.warmup.batch_sizes),
    ]
    for field, values in sizes:
        if values and not largest:
            yield field, "needs batching.max_batch_size of at least 1: without it requests run one by one"
            continue
        for index, size in enumerate(values):
            if size > largest:
                yield f"{field}[{index}]", f"is {size}, more than batching.max_batch_size ({largest})"
            if size in values[:index]:
                yield f"{field}[{index}]", f"is {size}, which is there already"
    level, levels = rules.default_priority_level, rules.priority_levels
    if levels and not 1 <= level <= levels:
        yield "batching.default_priority_level", f"is {level}; with {levels} priority levels it must be 1 to {levels}"
    if not levels and level:
        yield "batching.default_priority_level", f"is {level}, but batching.priority_levels is 0; set both or neither"
