"""UTF-8 text to token ids with a Hugging Face `tokenizer.json` (manifest.proto, TextProcessor).

Items of a batch are padded to its longest with the tokenizer's own padding token and side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb

from .processor import Array, Made

DEFAULT_LENGTH: Final = 512
MAX_BYTES: Final = 1 << 20
NOT_UTF8: Final = "not UTF-8 text"
TOO_LONG: Final = "a text of more than 1 MiB"
_PADDING_TOKENS: Final = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


class TextStep:
    """One `text` processor of a manifest, with its tokenizer loaded."""

    def __init__(self, step: pb.TextProcessor, tokenizer: Path) -> None:
        self.input = step.input
        self._names = (step.input_ids, step.attention_mask, step.token_type_ids)
        self._tokenizer = _load(tokenizer)
        padding: dict[str, Any] = self._tokenizer.padding or {}
        self._pad_id = int(padding["pad_id"]) if "pad_id" in padding else self._find_pad_id()
        self._pad_type = int(padding.get("pad_type_id", 0))
        self._pad_left = padding.get("direction") == "left"
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=step.max_length or DEFAULT_LENGTH)

    def __call__(self, items: Sequence[bytes]) -> Made:
        """Ids, mask and segments, each INT64 [rows, longest]; a row that is no text is all padding."""
        texts: list[str] = []
        failures: dict[int, str] = {}
        for row, data in enumerate(items):
            text = ""
            if len(data) > MAX_BYTES:
                failures[row] = TOO_LONG
            else:
                try:
                    text = data.decode()
                except UnicodeDecodeError:
                    failures[row] = NOT_UTF8
            texts.append(text)
        encoded = self._tokenizer.encode_batch(texts)
        width = max([1, *(len(item.ids) for item in encoded)])
        ids = np.full((len(items), width), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(items), width), dtype=np.int64)
        kinds = np.full((len(items), width), self._pad_type, dtype=np.int64)
        for row, item in enumerate(encoded):
            if count := len(item.ids):
                place = slice(width - count, width) if self._pad_left else slice(0, count)
                ids[row, place] = item.ids
                mask[row, place] = item.attention_mask
                kinds[row, place] = item.type_ids
        made: dict[str, Array] = dict(zip(self._names, (ids, mask, kinds), strict=True))
        made.pop("", None)
        return Made(made, failures)

    def _find_pad_id(self) -> int:
        """The id of the first usual padding token that the vocabulary has, else 0."""
        for token in _PADDING_TOKENS:
            found: int | None = self._tokenizer.token_to_id(token)
            if found is not None:
                return found
        return 0


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise InvalidManifest(
            "files: the tokenizer file is not a tokenizer.json that can be read", field="files", detail=repr(error)
        ) from None
