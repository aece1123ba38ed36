"""Who calls: tokens, the file of callers, and what may be served without any."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from penstock.errors import Unauthenticated
from penstock.kit import identity
from penstock.kit.identity import Authenticator


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def callers(folder: Path, text: str) -> Authenticator:
    path = folder / "callers"
    path.write_text(text)
    return Authenticator(str(path))


def test_each_token_has_its_name(tmp_path: Path) -> None:
    lines = [
        "# who",
        "",
        f"alice {digest('a-token')}  # new",
        f"bob {digest('b-token').upper()}",
        f"alice {digest('old')}",
    ]
    known = callers(tmp_path, "\n".join(lines))
    for token, name in (("a-token", "alice"), ("b-token", "bob"), ("old", "alice")):
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert known.authenticate({"authorization": f"{scheme} {token}"}) == name


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "Bearer  ", "a-token", "Basic a-token", "Bearer a-toke", "Bearer a-tokenn",
        "Bearer A-TOKEN", "Bearer a-token,b", "Bearer a-token b", "Token a-token", "Bearer\ta-token", "Bearer \udcff",
        "Bearer " + digest("a-token"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(header: str | None, tmp_path: Path) -> None:
    known = callers(tmp_path, f"alice {digest('a-token')}\n")
    with pytest.raises(Unauthenticated) as caught:
        known.authenticate({} if header is None else {"authorization": header})
    assert "a-token" not in caught.value.message


def test_a_file_without_callers_lets_nobody_in(tmp_path: Path) -> None:
    known = callers(tmp_path, "# nobody yet\n")
    known.require_loopback("0.0.0.0")
    with pytest.raises(Unauthenticated):
        known.authenticate({"authorization": "Bearer x"})


@pytest.mark.parametrize(
    "line",
    ["alice", "alice x", "alice " + "z" * 64, "alice " + "0" * 63, "alice " + "0" * 64 + " more", "0" * 64],
)
def test_a_line_that_cannot_be_read_is_an_error_with_its_number(line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2"):
        callers(tmp_path, f"bob {digest('b')}\n{line}\n")


def test_a_token_has_one_owner(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2"):
        callers(tmp_path, f"bob {digest('b')}\neve {digest('b').upper()}\n")


def test_no_file_is_for_loopback_only() -> None:
    everybody = Authenticator("")
    assert everybody.authenticate({}) == identity.LOCAL
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"):
        everybody.require_loopback(host)
    for host in ("0.0.0.0", "::", "", "10.0.0.1", "127.1", "0x7f000001", "2130706433", "localhost.evil.org", "*"):
        with pytest.raises(ValueError, match="auth_file"):
            everybody.require_loopback(host)


def test_the_caller_is_known_inside_a_call_only() -> None:
    assert identity.caller() == ""
