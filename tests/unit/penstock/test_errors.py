"""The error table is complete, unambiguous and safe to show."""

from __future__ import annotations

import grpc
import pytest

from penstock import errors
from penstock.channel import MAX_TEXT_BYTES, error_info, error_of, error_trailer, status_of, text_of
from penstock.v1 import errors_pb2


def subclasses(kind: type[errors.PenstockError]) -> set[type[errors.PenstockError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_the_table_has_every_class_of_the_module() -> None:
    declared = {kind for kind in subclasses(errors.PenstockError) if kind.__module__ == "penstock.errors"}
    assert declared - {errors.PenstockError} == set(errors.ALL)
    assert len(errors.ALL) == len(set(errors.ALL))


def test_codes_are_unique_and_upper_snake_case() -> None:
    names = [kind.code.name for kind in errors.ALL]
    assert len(names) == len(set(names)) == len(errors.BY_NAME)
    assert all(name.isascii() and name == name.upper() and name.replace("_", "").isalpha() for name in names)


@pytest.mark.parametrize("kind", errors.ALL, ids=lambda kind: kind.code.name)
def test_each_row_is_whole(kind: type[errors.PenstockError]) -> None:
    assert "code" in vars(kind), "inherits its parent's code"
    assert kind.code.grpc in range(1, 17)
    assert kind.code.http in range(400, 600)
    assert kind.code.openai
    assert kind.__doc__
    assert status_of(kind("text")).value[0] == kind.code.grpc


def test_a_server_fault_is_5xx_and_a_callers_fault_4xx() -> None:
    faults = {kind.code.name for kind in errors.ALL if kind.code.http >= 500}
    assert faults == {"DEADLINE_EXCEEDED", "UNAVAILABLE", "UNSUPPORTED", "INTERNAL"}


def test_every_grpc_status_of_a_failure_becomes_an_error() -> None:
    for status in grpc.StatusCode:
        if status is grpc.StatusCode.OK:
            continue
        number = status.value[0]
        raised = errors.from_grpc(number, "text")
        known = any(kind.code.grpc == number for kind in errors.ALL)
        assert raised.code.grpc == (number if known else 13)
        assert raised.message == "text"
    assert type(errors.from_grpc(3, "")) is errors.InvalidArgument
    assert type(errors.from_grpc(13, "")) is errors.Internal
    assert "14" in errors.from_grpc(14, "").message


def test_a_code_from_the_future_is_internal() -> None:
    assert type(errors.from_code("NOT_YET_INVENTED", "text", field="f")) is errors.Internal
    assert errors.from_code("IN_USE", "text", field="f").field == "f"


def test_a_subclass_keeps_the_way_back_to_its_parent() -> None:
    assert isinstance(errors.from_code("INVALID_MANIFEST", "text"), errors.InvalidArgument)


class Failure:
    """What a failed call looks like."""

    def __init__(self, trailers: object) -> None:
        self._trailers = trailers

    def trailing_metadata(self) -> object:
        return self._trailers

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.NOT_FOUND

    def details(self) -> str:
        return "by status"


def test_a_trailer_wins_over_the_status_and_junk_does_not() -> None:
    carried = error_trailer(errors.InUse("an alias names it", field="alias", detail="secret"), "r-1")
    assert b"secret" not in carried[1]
    raised = error_of(Failure((("other", "x"), carried)))
    assert (type(raised), raised.message, raised.field) == (errors.InUse, "an alias names it", "alias")
    for trailers in (None, (), (("penstock-error-bin", b"\xff\xff"),)):
        assert type(error_of(Failure(trailers))) is errors.NotFound
    info = error_info((carried,))
    assert info is not None and info.request_id == "r-1" and not info.retryable


@pytest.mark.parametrize(
    ("said", "heard"), [(None, None), (0.0, 0.0), (2.25, 2.25), (1e12, 86_400.0), (-3.0, 0.0), (float("nan"), 0.0)]
)
def test_when_to_try_again_crosses_too(said: float | None, heard: float | None) -> None:
    trailer = error_trailer(errors.Unavailable("later", retry_after=said))
    assert error_of(Failure((trailer,))).retry_after == heard


def test_a_peer_cannot_make_us_wait_for_ever() -> None:
    info = errors_pb2.ErrorInfo(code="UNAVAILABLE", message="later")
    info.retry_after.seconds = 2**60
    assert error_of(Failure((("penstock-error-bin", info.SerializeToString()),))).retry_after == 86_400.0


@pytest.mark.parametrize("letter", ["a", "é", "€", "𝕏"])
def test_texts_are_cut_between_letters(letter: str) -> None:
    short = letter * (MAX_TEXT_BYTES // len(letter.encode()))
    assert text_of(errors.Internal(short)) == short
    cut = text_of(errors.Internal(short + letter))
    assert len(cut.encode()) <= MAX_TEXT_BYTES and cut.endswith("…") and set(cut[:-1]) == {letter}


def test_a_lone_surrogate_cannot_break_an_answer() -> None:
    assert error_trailer(errors.Internal("a\ud800b", field="\udfff"))[1]
