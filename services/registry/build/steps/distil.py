"""`distil`: a small student that has learnt to answer as its teacher does, from a recipe.

The teacher is an ONNX model; it answers the inputs of a training set once, and a multi-layer perceptron is trained in
torch on inputs and answers. The student takes the teacher's one float input and gives one of its outputs under the same
names, so it can stand in for it. A part of the set is held out, and the report says how well the student answers that.
The same recipe, seed and inputs give the same student.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument

from ..numerics import TOLERANCES, difference
from ..step import Role, Step, StepContext, StepResult, installed
from . import onnx_file, report, tensors
from .session import Session

Array = NDArray[Any]

OPSET: Final = 18
OPERATORS: Final = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
SMALLEST: Final = 1e-12


@dataclass(frozen=True)
class Parameters:
    """hidden: units of each hidden layer. output: of the teacher; its first of floats where None. loss: mse, or kl for
    an output of probabilities, which the student then gives too. held_out: share of the set that is not trained on."""

    hidden: tuple[int, ...] = (32,)
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    output: str | None = None
    loss: Literal["mse", "kl"] = "mse"
    epochs: int = 200
    batch: int = 64
    rate: float = 3e-3
    decay: float = 1e-4
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hidden or len(self.hidden) > 16 or not all(1 <= units <= 65_536 for units in self.hidden):
            raise InvalidArgument("1 to 16 layers of 1 to 65536 units are needed", field="hidden")
        if not (1 <= self.epochs <= 100_000 and 1 <= self.batch <= 65_536):
            raise InvalidArgument("epochs 1 to 100000, batch 1 to 65536", field="epochs")
        if not (0 < self.rate <= 1 and 0 <= self.decay < 1 and 0 < self.held_out < 1):
            raise InvalidArgument("rate, decay and held_out are shares of 1", field="rate")


@dataclass(frozen=True)
class Lesson:
    """What is taught: flat inputs and answers, and how the tensors are called and shaped."""

    input: str
    output: str
    x: Array
    y: Array
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def run(work: StepContext[Parameters]) -> StepResult:
    """Asks the teacher, trains the student, writes `model`, and compares the two."""
    parameters = work.parameters
    teacher = onnx_file.read(work.inputs["model"])
    session = Session(teacher.SerializeToString(), work.threads)
    lesson = ask(session, tensors.samples(work.inputs["training"], "training"), parameters.output)
    work.say(f"the teacher answered {len(lesson.x)} samples")
    work.progress(0.2)
    order = np.random.default_rng(parameters.seed).permutation(len(lesson.x))
    held = max(1, round(len(order) * parameters.held_out))
    if len(order) - held < 1:
        raise InvalidArgument("training: at least two samples are needed", field="training")
    mean, spread = lesson.x[order[held:]].mean(axis=0), lesson.x[order[held:]].std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1).astype(np.float32)
    layers = train(work, (lesson.x - mean) / spread, lesson.y, order[held:])
    # The scaling of inputs is part of the first layer, so that the student needs none.
    first, bias = layers[0]
    layers[0] = ((first / spread).astype(np.float32), (bias - first @ (mean / spread)).astype(np.float32))
    path = onnx_file.write(written(lesson, layers, parameters), work.folder / "model.onnx")
    student = Session(path.read_bytes(), work.threads)
    rows = lesson.x[order[:held]].reshape(held, *lesson.input_shape)
    answers = student.run({lesson.input: rows})[lesson.output].reshape(held, -1)
    learnt = difference(lesson.y[order[:held]], answers, TOLERANCES["lossy"])
    work.say(
        f"{held} samples held out: mean difference {learnt.mean_absolute:.4f}, mean cosine {learnt.mean_cosine:.4f}"
    )
    said = report.compared(work, teacher, path, "lossy", 8, parameters.seed)
    return StepResult({"model": path}, {**said, "held_out": {"samples": held, **learnt.json()}})


def ask(session: Session, arrays: dict[str, Array], output: str | None) -> Lesson:
    """The teacher's answers; raises InvalidArgument where a perceptron could not stand in for this teacher."""
    if len(session.inputs) != 1:
        raise InvalidArgument(
            f"model: a student has one input, and this teacher has {len(session.inputs)}; quantise or prune it instead",
            field="model",
        )
    name, (kind, _) = next(iter(session.inputs.items()))
    if np.dtype(kind).kind != "f":
        raise InvalidArgument(f"model: the input {name} is not of floats; quantise or prune it instead", field="model")
    if name not in arrays:
        raise InvalidArgument(f"training: the set lacks the model's input {name}", field="training")
    answers: dict[str, list[Array]] = {}
    for feeds in tensors.batches({name: arrays[name]}, 64):
        for key, value in session.run(feeds).items():
            answers.setdefault(key, []).append(value)
    floats = [key for key, value in answers.items() if value[0].dtype.kind == "f" and value[0].ndim > 1]
    chosen = output or (floats[0] if floats else "")
    if chosen not in floats:
        raise InvalidArgument(
            f"distil.output: an output of floats, one row each, is needed; there are {', '.join(floats) or 'none'}",
            field="distil.output",
        )
    x, y = arrays[name].astype(np.float32), np.concatenate(answers[chosen]).astype(np.float32)
    return Lesson(name, chosen, x.reshape(len(x), -1), y.reshape(len(y), -1), x.shape[1:], y.shape[1:])


def train(work: StepContext[Parameters], x: Array, y: Array, rows: Array) -> list[tuple[Array, Array]]:
    """Weights [out, in] and biases of every layer."""
    import torch

    parameters = work.parameters
    torch.manual_seed(parameters.seed)
    torch.set_num_threads(max(1, work.threads))
    torch.use_deterministic_algorithms(True)
    sizes = [x.shape[1], *parameters.hidden, y.shape[1]]
    linear = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    active = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[parameters.activation]
    learner = torch.optim.AdamW(
        [each for layer in linear for each in layer.parameters()], lr=parameters.rate, weight_decay=parameters.decay
    )
    slope = torch.optim.lr_scheduler.CosineAnnealingLR(learner, parameters.epochs)
    inputs, answers = torch.from_numpy(x[rows].astype(np.float32)), torch.from_numpy(y[rows])
    chance = torch.Generator().manual_seed(parameters.seed)
    for epoch in range(parameters.epochs):
        total = 0.0
        for index in _batches(torch, len(rows), parameters.batch, chance):
            hidden = inputs[index]
            for layer in linear[:-1]:
                hidden = active(layer(hidden))
            loss = _loss(torch, linear[-1](hidden), answers[index], parameters.loss)
            learner.zero_grad()
            loss.backward()
            learner.step()
            total += float(loss.detach()) * len(index)
        slope.step()
        if epoch % max(1, parameters.epochs // 10) == 0 or epoch == parameters.epochs - 1:
            work.say(f"epoch {epoch + 1}: loss {total / len(rows):.5f}")
            work.progress(0.2 + 0.5 * (epoch + 1) / parameters.epochs)
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear]


def _batches(torch: Any, rows: int, size: int, chance: Any) -> Iterator[Any]:
    order = torch.randperm(rows, generator=chance)
    for start in range(0, rows, size):
        yield order[start : start + size]


def _loss(torch: Any, given: Any, wanted: Any, kind: str) -> Any:
    if kind == "mse":
        return torch.nn.functional.mse_loss(given, wanted)
    shares = wanted.clamp_min(SMALLEST)
    told = torch.log_softmax(given, dim=-1)
    return (wanted * (shares.log() - told)).sum(dim=-1).mean()


def written(lesson: Lesson, layers: list[tuple[Array, Array]], parameters: Parameters) -> Any:
    """The student as an ONNX model with the teacher's names and shapes."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, name = [], [], lesson.input
    if len(lesson.input_shape) != 1:
        nodes.append(helper.make_node("Flatten", [name], ["flat"], name="flat", axis=1))
        name = "flat"
    for index, (weight, bias) in enumerate(layers):
        constants += [numpy_helper.from_array(weight.T.copy(), f"weight.{index}")]
        constants += [numpy_helper.from_array(bias, f"bias.{index}")]
        made = f"layer.{index}"
        nodes.append(helper.make_node("Gemm", [name, f"weight.{index}", f"bias.{index}"], [made], name=made))
        name = made
        if index < len(layers) - 1:
            name = f"active.{index}"
            nodes.append(helper.make_node(OPERATORS[parameters.activation], [made], [name], name=name))
    if parameters.loss == "kl":
        nodes.append(helper.make_node("Softmax", [name], ["shares"], name="shares", axis=-1))
        name = "shares"
    if len(lesson.output_shape) != 1:
        constants.append(numpy_helper.from_array(np.array([-1, *lesson.output_shape], np.int64), "shape"))
        nodes.append(helper.make_node("Reshape", [name, "shape"], [lesson.output], name="shaped"))
    else:
        nodes[-1].output[0] = lesson.output
    values = [
        helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", *shape])
        for each, shape in ((lesson.input, lesson.input_shape), (lesson.output, lesson.output_shape))
    ]
    return helper.make_model(
        helper.make_graph(nodes, "student", values[:1], values[1:], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
        producer_name="penstock",
    )


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build-torch", "torch", "numpy", "onnx", "onnxruntime")


STEP: Final = Step(
    name="distil",
    version=1,
    text="trains a small student against the model's answers",
    parameters=Parameters,
    inputs=(
        Role("model", "the teacher, an ONNX model with one float input"),
        Role("training", "inputs by name to ask the teacher"),
        Role("samples", "inputs by name, for the comparison", required=False),
        Role("evaluation", "inputs by name and labels, for accuracy before and after", required=False),
    ),
    outputs=(Role("model", "the student, an ONNX model"),),
    tools=_tools,
    run=run,
)
