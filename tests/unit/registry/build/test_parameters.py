"""Parameters of steps are read strictly and written as one text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from penstock.errors import InvalidArgument
from services.registry.build.parameters import canonical, parse


@dataclass(frozen=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise InvalidArgument("not below 0", field="size")


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    share: float = 0.5
    names: tuple[str, ...] = ()
    limit: float | None = None
    inner: Inner = Inner()
    table: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    wide: bool = False


def test_a_whole_document_is_read() -> None:
    document = {"kind": "b", "share": 1, "names": ["x"], "limit": 2, "inner": {"size": 3}, "table": {"k": [1, 2]}}
    assert parse(Outer, document) == Outer("b", 1.0, ("x",), 2.0, Inner(3), {"k": (1, 2)})


def test_equal_parameters_have_one_text_with_defaults_written_out() -> None:
    assert canonical(parse(Outer, {"share": 0.5, "kind": "a"})) == canonical(Outer("a"))
    assert '"size":1' in canonical(Outer("a"))
    assert canonical(Outer("a", limit=1.0)) != canonical(Outer("a"))


@pytest.mark.parametrize(
    "document, where",
    [
        ({}, "s.kind"),
        ({"kind": "c"}, "s.kind"),
        ({"kind": "a", "shares": 1}, "s.shares"),
        ({"kind": "a", "share": "1"}, "s.share"),
        ({"kind": "a", "share": True}, "s.share"),
        ({"kind": "a", "share": float("nan")}, "s.share"),
        ({"kind": "a", "names": "x"}, "s.names"),
        ({"kind": "a", "names": [1]}, "s.names[0]"),
        ({"kind": "a", "inner": {"sizes": 1}}, "s.inner.sizes"),
        ({"kind": "a", "inner": {"size": -1}}, "s.inner.size"),
        ({"kind": "a", "inner": 3}, "s.inner"),
        ({"kind": "a", "table": {"k": [1.5]}}, "s.table.k[0]"),
        ({"kind": "a", "wide": 1}, "s.wide"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(document: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(Outer, document, "s.")
    assert caught.value.field == where
    assert where in caught.value.message
