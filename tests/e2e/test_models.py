"""The two real models of the demo, through the gateway."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from deploy.local.suite import ROOT
from examples.digits.train import build as build_digits
from examples.minilm.export import export as export_minilm
from examples.minilm.export import find_weights
from penstock import Client
from tests.e2e.conftest import serve

MODELS = ROOT / "build" / "models"


@pytest.fixture(scope="module")
def digits(client: Client) -> str:
    build_digits(MODELS / "digits")
    return serve(client, MODELS / "digits", replicas=2)


@pytest.fixture(scope="module")
def minilm(client: Client) -> str:
    export_minilm(find_weights(), MODELS / "minilm")
    return serve(client, MODELS / "minilm", replicas=1)


def samples() -> dict[Path, str]:
    folder = MODELS / "digits"
    return {folder / file: label for file, label in json.loads((folder / "samples.json").read_text()).items()}


def test_digits_reads_handwriting(client: Client, digits: str) -> None:
    for path, label in samples().items():
        result = client.infer(digits, {"image": path.read_bytes()})
        assert result["label"].ravel()[0].decode() == label, path.name
        assert result["probabilities"].sum() == pytest.approx(1.0, abs=1e-5)
        assert result["score"].ravel()[0] == result["probabilities"].max()


def test_a_batch_of_images_gives_each_its_own_answer(client: Client, digits: str) -> None:
    images = [path.read_bytes() for path in samples()]
    together = client.infer(digits, {"image": images})["probabilities"]
    alone = np.concatenate([client.infer(digits, {"image": image})["probabilities"] for image in images])
    assert together == pytest.approx(alone, abs=1e-6)


def test_minilm_ranks_by_meaning(client: Client, minilm: str) -> None:
    texts = ["A kitten rests on a rug.", "The stock market fell.", "Boil the pasta for ten minutes."]
    query = client.infer(minilm, {"text": "A cat lies on the carpet."})["embedding"][0]
    vectors = client.infer(minilm, {"text": texts})["embedding"]
    assert np.linalg.norm(query) == pytest.approx(1.0, abs=1e-5)
    assert int(np.argmax(vectors @ query)) == 0


def test_callers_at_once_are_batched_and_get_their_own_answers(client: Client, minilm: str) -> None:
    texts = [f"Sentence number {number} about {'cats' if number % 2 else 'trains'}." for number in range(48)]
    alone = {text: client.infer(minilm, {"text": text})["embedding"][0] for text in texts[:6]}
    with ThreadPoolExecutor(24) as pool:
        results = list(pool.map(lambda text: client.infer(minilm, {"text": text}), texts))
    for text, vector in alone.items():
        assert results[texts.index(text)]["embedding"][0] == pytest.approx(vector, abs=1e-5)
    # One engine, 24 callers: while it runs, the others wait and make up the next batch.
    assert max(result.trailers.batch_size for result in results) > 1
    assert {result.trailers.worker for result in results} <= {"worker-1", "worker-2"}
