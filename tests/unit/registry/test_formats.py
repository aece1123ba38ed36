"""The wrong file is caught before it is published; a right one is not."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from penstock.errors import InvalidArgument
from services.registry import formats
from tests.harness import fake_tensorrt, models


def check(format: str, data: bytes) -> None:
    formats.check(format, len(data), lambda offset, length: data[offset : offset + length])


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name in names:
            made.writestr(name, b"content")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (models.add_one(tmp_path_factory.mktemp("model")) / "model.onnx").read_bytes()


@pytest.mark.parametrize("format", ["onnx", "tensorrt"])
def test_onnx_is_taken(format: str, onnx: bytes) -> None:
    check(format, onnx)


def test_a_signed_plan_is_taken_as_a_plan_and_as_nothing_else() -> None:
    plan = fake_tensorrt.affine()
    check("tensorrt", plan)
    with pytest.raises(InvalidArgument, match="needs an ONNX model"):
        check("onnx", plan)
    for bare in (b"ftrt" + bytes(99), b"ptrt" + bytes(99)):
        with pytest.raises(InvalidArgument, match="this is a TensorRT plan"):
            check("tensorrt", bare)


def test_python_code_is_source_or_an_archive_with_a_model() -> None:
    check("python", b"class Model: ...")  # begins like an old pickle, and is none
    check("python", archive("model.py", "parts/other.py"))
    for wrong, says in (
        (archive("other.py"), "with a model.py at its top"),
        (b"\x7fELF" + bytes(60), "this is a program"),
        (b"\x80\x04\x00", "format python needs"),
        (b"x" * ((4 << 20) + 1), "format python needs"),
        (b"", "empty"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            check("python", wrong)


def test_a_large_graph_is_skipped_and_not_read(onnx: bytes) -> None:
    read = []

    def peek(offset: int, length: int) -> bytes:
        read.append(length)
        return data[offset : offset + length]

    data = onnx + b"\x7a" + b"\x80\x80\x80\x04" + b"\0" * (8 << 20)  # field 15, 8 MiB long
    formats.check("onnx", len(data), peek)
    assert sum(read) < 1000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        *((pickle.dumps({"a": 1}, protocol), "is a pickle") for protocol in (2, 3, 4, 5)),
        (b"]q\x00.", "is a pickle"),
        (b"cos\nsystem\n(S'ls'\ntR.", "is a pickle"),
        (b"(S'ls'\ntR.", "not an ONNX model"),
        (archive("model/data.pkl"), "this is a zip archive"),
        (b"\x1f\x8b" + b"\0" * 20, "this is a gzip file"),
        (b"\x89HDF\r\n", "this is an HDF5 file"),
        (b"ftrt" + b"\0" * 20, "this is a TensorRT plan"),
        (b"GGUF" + b"\0" * 20, "this is a GGUF file"),
        (b"hello, world, this is text", "ONNX model"),
        (b"\x08\x0a", "no ModelProto with ir_version, graph"),
        (b"\x08\x0a\x3a\x05ab", "cut short"),
        (b"\x08\x0a\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut short"),
        (b"\x08\x0a\x38\x01", "not an ONNX model"),
        (b"\xff" * 64, "not an ONNX model"),
        (b"\0" * 64, "not an ONNX model"),
    ],
)
@pytest.mark.parametrize("format", ["onnx", "tensorrt"])
def test_what_is_not_onnx_is_refused(format: str, data: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as raised:
        check(format, data)
    assert raised.value.field == "files.model"


def test_a_truncated_model_is_refused(onnx: bytes) -> None:
    for length in range(1, len(onnx)):
        with pytest.raises(InvalidArgument):
            check("onnx", onnx[:length])


def test_an_exported_program_is_taken() -> None:
    check("torch-export", archive("m/archive_format", "m/byteorder", "m/models/model.json", "m/data/weights/weight_0"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps([1], 2), "is a pickle"),
        (b"\x08\x0a\x3a\x00", "torch.export.save writes; this is something else"),
        (archive("model/data.pkl", "model/version"), "torch.save or TorchScript"),
        (archive("m/archive_format", "m/extra/x.pickle"), "torch.save or TorchScript"),
        (archive("a")[:-10], "cut short"),
        (b"PK\x03\x04", "cut short"),
        (
            b"PK\x03\x04" + b"\0" * 100 + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 9, 9, 2**31, 5, 0),
            "too many files",
        ),
        (b"PK\x03\x04" + b"\0" * 100 + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 9, 9, 99, 5, 0), "cut short"),
    ],
)
def test_what_is_no_exported_program_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check("torch-export", data)


def test_the_examples_of_the_harness_are_taken(tmp_path: Path) -> None:
    for make in (models.identity, models.any_size, models.slow, models.unloadable):
        check("onnx", (make(tmp_path / make.__name__) / "model.onnx").read_bytes())
