"""The text processor, with a small real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb
from services.worker.processors.text import MAX_BYTES, NOT_UTF8, TOO_LONG, TextStep

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "é"]
PAD, CLS, SEP, UNK, A, B, C, ACUTE = range(8)
FIELDS: dict[str, Any] = {
    "input": "text",
    "tokenizer": "tokenizer",
    "input_ids": "ids",
    "attention_mask": "mask",
    "token_type_ids": "kinds",
}


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return made


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_texts_are_padded_to_the_longest_of_the_batch(tokenizer: Tokenizer, tmp_path: Path) -> None:
    step = TextStep(pb.TextProcessor(**FIELDS), saved(tokenizer, tmp_path))
    made = step([b"a b c", "é".encode(), b""])
    np.testing.assert_array_equal(
        made.tensors["ids"], [[CLS, A, B, C, SEP], [CLS, ACUTE, SEP, PAD, PAD], [CLS, SEP, PAD, PAD, PAD]]
    )
    np.testing.assert_array_equal(made.tensors["mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    assert made.tensors["kinds"].tolist() == [[0] * 5] * 3
    assert {array.dtype for array in made.tensors.values()} == {np.dtype(np.int64)}


def test_the_tokenizers_own_padding_is_used_but_not_its_fixed_length(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.enable_padding(direction="left", pad_id=C, pad_token="c", length=9)
    made = TextStep(pb.TextProcessor(**FIELDS), saved(tokenizer, tmp_path))([b"a", b"a b"])
    assert made.tensors["ids"].tolist() == [[C, CLS, A, SEP], [CLS, A, B, SEP]]
    assert made.tensors["mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_long_texts_are_cut_and_keep_their_last_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = saved(tokenizer, tmp_path)
    made = TextStep(pb.TextProcessor(**FIELDS, max_length=4), path)([b"a b c a b c"])
    assert made.tensors["ids"].tolist() == [[CLS, A, B, SEP]]
    assert TextStep(pb.TextProcessor(**FIELDS), path)([b"a " * 2000]).tensors["ids"].shape == (1, 512)


def test_names_that_are_empty_make_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    fields = {**FIELDS, "token_type_ids": "", "attention_mask": ""}
    assert set(TextStep(pb.TextProcessor(**fields), saved(tokenizer, tmp_path))([b"a"]).tensors) == {"ids"}


def test_bad_rows_fail_alone_and_do_not_widen_the_batch(tokenizer: Tokenizer, tmp_path: Path) -> None:
    step = TextStep(pb.TextProcessor(**FIELDS), saved(tokenizer, tmp_path))
    made = step([b"a", b"\xff\xfe a b c a b c", b"a " * MAX_BYTES, b"b"])
    assert made.failures == {1: NOT_UTF8, 2: TOO_LONG}
    assert made.tensors["ids"].shape == (4, 3)
    assert made.tensors["ids"][[0, 3]].tolist() == [[CLS, A, SEP], [CLS, B, SEP]]


def test_a_text_of_nothing_still_has_a_column(tmp_path: Path) -> None:
    bare = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made = TextStep(pb.TextProcessor(**FIELDS), saved(bare, tmp_path))([b""])
    assert made.tensors["ids"].shape == (1, 1)
    assert made.tensors["mask"].tolist() == [[0]]


def test_a_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(InvalidManifest, match=r"not a tokenizer\.json") as caught:
        TextStep(pb.TextProcessor(**FIELDS), path)
    assert str(tmp_path) not in caught.value.message
