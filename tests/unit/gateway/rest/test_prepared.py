"""What is prepared must not be told from what is worked out anew: the same bytes, the same refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import PenstockError
from penstock.oip import inference_pb2 as oip
from services.gateway.rest import infer_codec, prepared
from services.gateway.rest.infer_codec import read_request, write_response
from services.gateway.rest.prepared import Prepared

X: dict[str, Any] = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}


def outcome(work: Any) -> Any:
    """What a call gives, or the error that it raises, as something that can be compared."""
    try:
        return work()
    except PenstockError as error:
        return type(error), error.message, error.field


def anew(body: bytes, json_size: int | None) -> Any:
    request, wanted = read_request(body, json_size)
    request.model_name, request.model_version = "m", "3"
    return request, wanted


def from_prepared(known: Prepared, body: bytes, json_size: int | None) -> Any:
    payload, kind = known.request("m", "3", body, json_size)
    return oip.ModelInferRequest.FromString(payload), kind.wanted


def agree(known: Prepared, document: Any, tail: bytes = b"", *, has_tail: bool | None = None) -> None:
    text = orjson.dumps(document)
    size = len(text) if (bool(tail) if has_tail is None else has_tail) else None
    body = text + tail
    assert outcome(lambda: from_prepared(known, body, size)) == outcome(lambda: anew(body, size))


NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    "INT8": st.integers(-(2**7), 2**7 - 1),
    "UINT64": st.integers(0, 2**64 - 1),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1),
    "FP64": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1),
    "BYTES": st.text(st.characters(codec="utf-8"), max_size=3),
    "FP16": st.floats(width=16, allow_nan=False, allow_infinity=False),
}
ODD = st.sampled_from([None, True, False, 0, 1, 1.0, -1, 300, 2**40, 1e39, 2**63, "1", [], [1], {}, {"a": 1}])


@st.composite
def inputs(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    datatype = draw(st.sampled_from(list(NUMBERS)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = int(np.prod(shape, dtype=int))
    entry: dict[str, Any] = {"name": draw(st.sampled_from("xyz")), "datatype": datatype, "shape": shape}
    raw = b""
    if draw(st.booleans()):
        numbers = draw(st.lists(NUMBERS[datatype], min_size=count, max_size=count))
        entry["data"] = nested(numbers, shape) if draw(st.booleans()) else numbers
    else:
        raw = draw(st.binary(max_size=8))
        entry["parameters"] = {"binary_data_size": len(raw)}
    return entry, raw


def nested(flat: list[Any], shape: list[int]) -> Any:
    if len(shape) < 2:
        return flat
    step = len(flat) // shape[0] if shape[0] else 0
    return [nested(flat[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    entries = draw(st.lists(inputs(), min_size=1, max_size=3))
    document: dict[str, Any] = {"inputs": [entry for entry, _ in entries]}
    if draw(st.booleans()):
        document["id"] = draw(st.text(st.characters(codec="utf-8"), max_size=4))
    if draw(st.booleans()):
        document["parameters"] = {"binary_data_output": draw(st.booleans())}
    if draw(st.booleans()):
        chosen = draw(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from([None, True, False])), max_size=2))
        document["outputs"] = [
            {"name": name} if binary is None else {"name": name, "parameters": {"binary_data": binary}}
            for name, binary in chosen
        ]
    return document, b"".join(raw for _, raw in entries)


KNOWN = Prepared()
"""Shared by all examples, so that a kind which one of them left behind must suit the next."""


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(requests(), st.data())
def test_requests_agree_with_those_read_anew(made: tuple[dict[str, Any], bytes], data: st.DataObject) -> None:
    document, tail = made
    agree(KNOWN, document, tail)
    agree(KNOWN, document, tail)
    # The same with something wrong in it, or only odd.
    agree(KNOWN, document, tail + b"x")
    agree(KNOWN, document, tail[:-1])
    spoilt = orjson.loads(orjson.dumps(document))
    places: list[Any] = [spoilt, *spoilt["inputs"], *spoilt.get("outputs", [])]
    places += [one["parameters"] for one in places if "parameters" in one]
    place = data.draw(st.sampled_from(places))
    if place:
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(ODD)
    agree(KNOWN, spoilt, tail)
    numbers = next((one["data"] for one in document["inputs"] if one.get("data")), None)
    if numbers:
        numbers[data.draw(st.integers(0, len(numbers) - 1))] = data.draw(ODD)
        agree(KNOWN, document, tail)


def test_what_is_equal_in_python_is_not_one_kind() -> None:
    known = Prepared()
    one = {**X, "shape": [1, 2], "data": [1, 2]}
    agree(known, {"inputs": [one]})
    for shape in ([True, 2], [1.0, 2], [1, 2, 1], [1, 2.0]):
        agree(known, {"inputs": [{**one, "shape": shape}]})
    scalar = {"name": "x", "datatype": "FP32", "shape": [], "parameters": {"binary_data_size": 4}}
    agree(known, {"inputs": [scalar, {**scalar, "name": "y"}]}, bytes(8))
    agree(known, {"inputs": [scalar], "outputs": [{"name": "y"}, {"name": "FP32"}]}, bytes(4))
    agree(known, {"inputs": [{**X, "shape": [2]}], "parameters": {"binary_data_output": True}})
    agree(known, {"inputs": [{**X, "shape": [2, 1]}]})
    for value in (True, False, 1, 0):
        agree(known, {"inputs": [X], "parameters": {"binary_data_output": value}})
        agree(known, {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": value}}]})


def test_shared_memory_is_not_prepared() -> None:
    known = Prepared()
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    shared = {"name": "x", "shape": [2], "datatype": "INT32", "parameters": region}
    for document in ({"inputs": [shared]}, {"inputs": [X], "outputs": [{"name": "y", "parameters": region}]}):
        agree(known, document)
        _, kind = known.request("m", "", orjson.dumps(document), None)
        made = oip.ModelInferResponse(model_name="m")
        made.outputs.add(name="y", datatype="INT32", shape=[2]).parameters["shared_memory_region"].string_param = "r"
        for _ in range(2):
            assert kind.written(made.SerializeToString()) == write_response(made, kind.wanted)
    assert not kept(known)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "3.5e38", "1e-60", "-0.0", "18446744073709551616", "16777217"])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "UINT64"])
def test_numbers_at_the_edge(number: str, datatype: str) -> None:
    known = Prepared()
    for text in ("1.5", number, "0"):
        body = b'{"inputs":[{"name":"x","datatype":"%s","shape":[2],"data":[%s,1]}]}' % (
            datatype.encode(),
            text.encode(),
        )
        assert outcome(lambda body=body: from_prepared(known, body, None)) == outcome(
            lambda body=body: anew(body, None)
        )


def test_the_second_of_a_kind_is_not_worked_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Prepared()
    first = orjson.dumps({"inputs": [X], "id": "a"})
    _, kind = known.request("m", "3", first, None)
    kind.written(response([("y", "INT32", [1], bytes(4))], id_="a").SerializeToString())

    def general(*_: object) -> None:
        raise AssertionError("this is of a kind that is known")

    monkeypatch.setattr(infer_codec, "read_document", general)
    monkeypatch.setattr(infer_codec, "write_response", general)
    second = orjson.dumps({"inputs": [{**X, "data": [3, 4]}], "id": "b"})
    payload, again = known.request("m", "3", second, None)
    assert again is kind
    assert oip.ModelInferRequest.FromString(payload).raw_input_contents[0] == np.array([3, 4], "<i4").tobytes()
    answer = kind.written(response([("y", "INT32", [1], b"\5\0\0\0")], id_="b").SerializeToString())
    assert orjson.loads(answer.body)["outputs"][0]["data"] == [5]


def kept(known: Prepared) -> int:
    return len(known._kinds)


def test_what_is_kept_is_bounded() -> None:
    known = Prepared()
    for number in range(prepared.MAX_KEPT + 5):
        agree(known, {"inputs": [{**X, "name": f"x{number}"}]})
    assert 0 < kept(known) <= prepared.MAX_KEPT
    before = kept(known)
    agree(known, {"inputs": [{**X, "name": "x" * prepared.MAX_SHAPE_BYTES}]})
    agree(known, {"inputs": [X] * 1025})
    assert kept(known) == before
    _, kind = known.request("m", "", orjson.dumps({"inputs": [X]}), None)
    for number in range(prepared.MAX_ANSWERS + 5):
        kind.written(response([("y", "INT32", [1], bytes(4))], model=f"m{number}").SerializeToString())
    kind.written(response([("y", "INT32", [1], bytes(4))], model="m" * 2000).SerializeToString())
    assert 0 < len(kind.answers) <= prepared.MAX_ANSWERS


def response(outputs: list[tuple[str, str, list[int], bytes]], *, id_: str = "", model: str = "m") -> Any:
    made = oip.ModelInferResponse(model_name=model, model_version="3", id=id_)
    for name, datatype, shape, raw in outputs:
        made.outputs.add(name=name, datatype=datatype, shape=shape)
        made.raw_output_contents.append(raw)
    return made


SIZES = {"BOOL": 1, "INT64": 8, "FP32": 4, "FP64": 8, "FP16": 2, "BF16": 2, "UINT8": 1}


@st.composite
def responses(draw: st.DrawFn) -> Any:
    outputs = []
    for name in draw(st.lists(st.sampled_from("xyz"), max_size=3, unique=True)):
        datatype = draw(st.sampled_from([*SIZES, "BYTES"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=2))
        count = int(np.prod(shape, dtype=int))
        if datatype == "BYTES":
            raw = b"".join(b"\1\0\0\0%c" % draw(st.sampled_from(b"a\xff")) for _ in range(count))
        else:
            size = count * SIZES[datatype] + draw(st.sampled_from([0, 0, 0, 1]))
            raw = draw(st.binary(min_size=size, max_size=size))
        outputs.append((name, datatype, shape, raw))
    made = response(outputs, id_=draw(st.text(st.characters(codec="utf-8"), max_size=3)))
    if draw(st.integers(0, 9)) == 0:
        made.parameters["p"].bool_param = True
    if made.outputs and draw(st.integers(0, 9)) == 0:
        made.outputs[0].parameters["q"].int64_param = 7
    if made.outputs and draw(st.integers(0, 9)) == 0:
        del made.raw_output_contents[0]
    return made


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    responses(),
    responses(),
    st.sampled_from([None, True, False]),
    st.dictionaries(st.sampled_from("xyz"), st.booleans()),
)
def test_answers_agree_with_those_written_anew(
    made: Any, other: Any, default: bool | None, chosen: dict[str, bool]
) -> None:
    document: dict[str, Any] = {"inputs": [X]}
    if default is not None:
        document["parameters"] = {"binary_data_output": default}
    document["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name, binary in chosen.items()]
    _, kind = KNOWN.request("m", "3", orjson.dumps(document), None)
    for each in (made, other, made):
        payload = each.SerializeToString()
        expected = outcome(lambda each=each: write_response(each, kind.wanted))
        assert outcome(lambda payload=payload: kind.written(payload)) == expected
        # And with other numbers of the same size.
        for index, raw in enumerate(each.raw_output_contents):
            each.raw_output_contents[index] = raw[::-1]
        payload = each.SerializeToString()
        expected = outcome(lambda each=each: write_response(each, kind.wanted))
        assert outcome(lambda payload=payload: kind.written(payload)) == expected


def test_fields_in_another_order() -> None:
    """Nobody writes them so, and the protocol allows it: a name that comes after the tensors counts."""
    known = Prepared()
    _, kind = known.request("m", "", orjson.dumps({"inputs": [X]}), None)
    made = response([("y", "INT32", [1], bytes(4))], id_="i")
    payload = made.SerializeToString()
    for odd in (payload + b"\x0a\x01n", payload + b"\x1a\x01j", payload + b"\x50\x01", b"\x1a\x01h" + payload):
        parsed = oip.ModelInferResponse.FromString(odd)
        for _ in range(2):
            kind.written(payload)
            assert kind.written(odd) == write_response(parsed, kind.wanted)
