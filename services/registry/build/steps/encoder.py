"""Encoders of the BERT family as ONNX graphs, from their shape and their weights: no torch, no tracing.

The graph takes int64 `input_ids`, `attention_mask` and, where the family has them, `token_type_ids`, each [batch, seq],
and gives float32 `token_embeddings` [batch, seq, hidden]: the last hidden state. Rows of a padded batch answer as if
they had come alone. Standard operators only, written so that TensorRT takes them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidManifest

Array = NDArray[Any]

OUTPUT: Final = "token_embeddings"
# Opset 20 is the first with a Gelu of its own. IR 10 is what came with it: older runtimes still read it.
OPSET: Final = 20
IR_VERSION: Final = 10
# Added to the score of padding before the softmax. exp(-10000) is exactly 0 in float32, so padding gets no weight at
# all, while a row that is all padding still has finite scores, hence a finite softmax: -inf would make it NaN. It is a
# number in float16 too.
PADDING_SCORE: Final = -10000.0
ACTIVATIONS: Final = {
    "gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_python": "none", "relu": "relu",
}  # fmt: skip

BERT: Final = {
    "words": "embeddings.word_embeddings", "kinds": "embeddings.token_type_embeddings",
    "positions": "embeddings.position_embeddings", "norm": "embeddings.LayerNorm",
    "layer": "encoder.layer.{}", "query": "attention.self.query", "key": "attention.self.key",
    "value": "attention.self.value", "mixed": "attention.output.dense", "mixed_norm": "attention.output.LayerNorm",
    "wide": "intermediate.dense", "narrow": "output.dense", "out_norm": "output.LayerNorm",
}  # fmt: skip
DISTILBERT: Final = {
    "words": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm", "layer": "transformer.layer.{}", "query": "attention.q_lin",
    "key": "attention.k_lin", "value": "attention.v_lin", "mixed": "attention.out_lin",
    "mixed_norm": "sa_layer_norm", "wide": "ffn.lin1", "narrow": "ffn.lin2", "out_norm": "output_layer_norm",
}  # fmt: skip
NAMES: Final = {"bert": BERT, "roberta": BERT, "xlm-roberta": BERT, "camembert": BERT, "distilbert": DISTILBERT}


@dataclass(frozen=True)
class Shape:
    """The shape of an encoder. padding: the id of padding where positions are counted past it, else None."""

    family: str
    layers: int
    hidden: int
    heads: int
    positions: int
    epsilon: float
    activation: str
    padding: int | None

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Shape:
        """From a config.json; raises InvalidManifest for an encoder that this module would get wrong."""
        family = document.get("model_type")
        if family not in NAMES:
            raise _wrong(f"model_type {family!r} cannot be converted; there are {', '.join(NAMES)}. Export it to ONNX")
        if document.get("auto_map"):
            raise _wrong("it asks for code of its author's (auto_map), which is never run; export it to ONNX")
        if document.get("position_embedding_type", "absolute") != "absolute" or document.get("is_decoder"):
            raise _wrong("only encoders with absolute positions can be converted; export it to ONNX")
        distil = family == "distilbert"
        try:
            made = cls(
                family=family,
                layers=_whole(document["n_layers" if distil else "num_hidden_layers"]),
                hidden=_whole(document["dim" if distil else "hidden_size"]),
                heads=_whole(document["n_heads" if distil else "num_attention_heads"]),
                positions=_whole(document["max_position_embeddings"]),
                epsilon=float(document.get("layer_norm_eps", 1e-12)),
                activation=str(document["activation" if distil else "hidden_act"]),
                padding=_whole(document.get("pad_token_id", 1), 0) if family not in ("bert", "distilbert") else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(f"config.json lacks or mangles {error}") from None
        if made.activation not in ACTIVATIONS:
            raise _wrong(f"the activation {made.activation[:40]!r} cannot be converted; export it to ONNX")
        if made.hidden % made.heads:
            raise _wrong(f"{made.hidden} hidden units cannot be split over {made.heads} heads")
        return made

    @property
    def names(self) -> Mapping[str, str]:
        """Names of the weights, by what they are."""
        return NAMES[self.family]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        ids = ("input_ids", "attention_mask")
        return (*ids, "token_type_ids") if self.family == "bert" else ids


def _whole(value: Any, least: int = 1) -> int:
    if type(value) is not int or not least <= value < 1 << 20:
        raise ValueError(f"a size ({str(value)[:20]!r})")
    return value


def _wrong(text: str) -> InvalidManifest:
    return InvalidManifest(f"config: {text}", field="config")


@dataclass
class Graph:
    """An ONNX graph under construction: nodes in order, and the constants that they use. used: names of weights."""

    weights: Mapping[str, Array]
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node with one output, named like the node; returns that name."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        """The name of a constant, added once however often it is asked for."""
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def array(self, name: str) -> Array:
        """A weight of the checkpoint in float32; raises InvalidManifest where it is not there."""
        if name not in self.weights:
            raise InvalidManifest(f"weights: there is no {name}; the file is not the whole encoder", field="weights")
        self.used.add(name)
        return self.weights[name].astype(np.float32, copy=False)

    def weight(self, name: str) -> str:
        """The name of a weight of the checkpoint, added to the graph as it is."""
        return self.constant(name, self.array(name))

    def linear(self, name: str, x: str) -> str:
        """x @ W^T + b. W is stored transposed once, here, rather than at every request."""
        kernel = self.constant(f"{name}.kernel", self.array(f"{name}.weight").T)
        product = self.node("MatMul", f"{name}.matmul", [x, kernel])
        return self.node("Add", f"{name}.out", [product, self.weight(f"{name}.bias")])

    def layer_norm(self, name: str, x: str, epsilon: float) -> str:
        """x scaled to mean 0 and variance 1 along its last axis, then by the learned weight and bias."""
        parameters = [self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", f"{name}.out", [x, *parameters], axis=-1, epsilon=epsilon)


def build(shape: Shape, weights: Mapping[str, Array], name: str = "encoder") -> tuple[Any, set[str]]:
    """The whole encoder as a checked ONNX model, and the names of the weights that it holds."""
    import onnx
    from onnx import TensorProto, helper

    graph = Graph(weights)
    x = _embedding(graph, shape)
    bias = _padding_bias(graph)
    for index in range(shape.layers):
        x = _layer(graph, shape, shape.names["layer"].format(index), x, bias)
    graph.nodes[-1].output[0] = OUTPUT
    ids = [helper.make_tensor_value_info(each, TensorProto.INT64, ["batch", "seq"]) for each in shape.inputs]
    out = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", "seq", shape.hidden])
    model = helper.make_model(
        helper.make_graph(graph.nodes, name, ids, [out], list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="penstock",
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # shapes that do not fit: a C++ exception without a class of its own
        raise InvalidManifest(
            "weights: their shapes do not fit config.json", field="weights", detail=str(error)
        ) from None
    return model, graph.used


def _embedding(graph: Graph, shape: Shape) -> str:
    """Word + position + segment vectors, normalised: [batch, seq, hidden]."""
    names = shape.names
    words = graph.node("Gather", "words", [graph.weight(f"{names['words']}.weight"), "input_ids"])
    if shape.family == "bert":
        kinds = graph.node("Gather", "kinds", [graph.weight(f"{names['kinds']}.weight"), "token_type_ids"])
        words = graph.node("Add", "words_and_kinds", [words, kinds])
    elif "kinds" in names:  # there is one kind only
        row = graph.constant("kind", graph.array(f"{names['kinds']}.weight")[0])
        words = graph.node("Add", "words_and_kinds", [words, row])
    both = graph.node("Add", "embedded", [words, _positions(graph, shape)])
    return graph.layer_norm(names["norm"], both, shape.epsilon)


def _positions(graph: Graph, shape: Shape) -> str:
    """Vectors of positions. Without padding in the count 0, 1, 2, ... in every row; else counted past the padding's id
    over what is not padding."""
    table = graph.weight(f"{shape.names['positions']}.weight")
    if shape.padding is None:
        length = graph.node("Shape", "length", ["input_ids"], start=1, end=2)
        zero = graph.constant("zero", np.array([0], np.int64))
        return graph.node("Slice", "positions", [table, zero, length, zero])
    from onnx import TensorProto

    padding = graph.constant("padding_id", np.array(shape.padding, np.int64))
    hidden = graph.node("Equal", "is_padding", ["input_ids", padding])
    shown = graph.node("Cast", "is_token", [graph.node("Not", "is_no_padding", [hidden])], to=TensorProto.INT32)
    count = graph.node("CumSum", "count", [shown, graph.constant("seq_axis", np.array(1, np.int64))])
    counted = graph.node("Cast", "counted", [graph.node("Mul", "count_shown", [count, shown])], to=TensorProto.INT64)
    return graph.node("Gather", "positions", [table, graph.node("Add", "position_ids", [counted, padding])])


def _padding_bias(graph: Graph) -> str:
    """What to add to attention scores: 0 for tokens, PADDING_SCORE for padding; [batch, 1, 1, seq]."""
    from onnx import TensorProto

    axes = graph.constant("mask_axes", np.array([1, 2], np.int64))
    mask = graph.node("Unsqueeze", "mask_4d", ["attention_mask", axes])
    mask = graph.node("Cast", "mask_float", [mask], to=TensorProto.FLOAT)
    padding = graph.node("Sub", "padding", [graph.constant("one", np.array(1, np.float32)), mask])
    return graph.node(
        "Mul", "padding_bias", [padding, graph.constant("padding_score", np.array(PADDING_SCORE, np.float32))]
    )


def _attention(graph: Graph, shape: Shape, name: str, x: str, bias: str) -> str:
    """Multi-head self-attention over x, mixed back to [batch, seq, hidden]."""
    width = shape.hidden // shape.heads
    split = graph.constant("split_heads", np.array([0, 0, shape.heads, width], np.int64))
    merge = graph.constant("merge_heads", np.array([0, 0, shape.hidden], np.int64))

    def heads(part: str, perm: list[int]) -> str:
        made = graph.linear(f"{name}.{shape.names[part]}", x)
        parts = graph.node("Reshape", f"{name}.{part}.split", [made, split])
        return graph.node("Transpose", f"{name}.{part}.heads", [parts], perm=perm)

    query = heads("query", [0, 2, 1, 3])
    key = heads("key", [0, 2, 3, 1])
    value = heads("value", [0, 2, 1, 3])
    scores = graph.node("MatMul", f"{name}.dots", [query, key])
    scale = graph.constant("sqrt_width", np.array(np.sqrt(width), np.float32))
    scores = graph.node("Div", f"{name}.scores", [scores, scale])
    scores = graph.node("Add", f"{name}.masked", [scores, bias])
    shares = graph.node("Softmax", f"{name}.shares", [scores], axis=-1)
    mixed = graph.node("MatMul", f"{name}.mixed", [shares, value])
    mixed = graph.node("Transpose", f"{name}.mixed.tokens", [mixed], perm=[0, 2, 1, 3])
    merged = graph.node("Reshape", f"{name}.merged", [mixed, merge])
    return graph.linear(f"{name}.{shape.names['mixed']}", merged)


def _layer(graph: Graph, shape: Shape, name: str, x: str, bias: str) -> str:
    """One encoder layer: attention and feed-forward, each added to what came in and normalised."""
    names = shape.names
    mixed = graph.node("Add", f"{name}.attended", [_attention(graph, shape, name, x, bias), x])
    x = graph.layer_norm(f"{name}.{names['mixed_norm']}", mixed, shape.epsilon)
    wide = graph.linear(f"{name}.{names['wide']}", x)
    kind = ACTIVATIONS[shape.activation]
    if kind == "relu":
        wide = graph.node("Relu", f"{name}.relu", [wide])
    else:
        wide = graph.node("Gelu", f"{name}.gelu", [wide], approximate=kind)
    fed = graph.node("Add", f"{name}.fed", [graph.linear(f"{name}.{names['narrow']}", wide), x])
    return graph.layer_norm(f"{name}.{names['out_norm']}", fed, shape.epsilon)
