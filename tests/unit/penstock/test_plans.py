"""The container of compiled plans: what a trusted builder signed comes back whole, and nothing else comes back."""

from __future__ import annotations

import dataclasses
import io
import random
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import plans
from penstock.errors import InvalidArgument
from penstock.plans import PlanHeader, unwrap, wrap

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
HEADER = PlanHeader(
    source="sha256:" + "ab" * 32,
    builder="tensorrt-rtx",
    version="1.7.1.116",
    architecture="sm80,sm120+",
    precision="fp16",
    created="2026-11-25T03:00:00Z",
    profiles=({"x": ((1, 4), (8, 4), (32, 4))}, {"x": ((33, 4), (64, 4), (64, 4))}),
)


def test_what_was_wrapped_comes_back() -> None:
    plan = random.Random(1).randbytes(5000)
    data = wrap(HEADER, plan, KEY)
    for given_data in (data, bytearray(data), memoryview(data)):
        header, view = unwrap(given_data, [OTHER.public_key().public_bytes_raw(), PUBLIC])
        assert header == HEADER
        assert view == plan
        assert view.readonly
    assert plans.is_plan(data[:8])
    assert not plans.is_plan(b"ftrt")


def test_a_file_is_written_and_verified_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_PIECE", 64)
    plan = random.Random(2).randbytes(1000)
    path = tmp_path / "plan"
    with path.open("wb") as file:
        plans.seal(HEADER, io.BytesIO(plan), len(plan), file, KEY)
    assert path.read_bytes() == wrap(HEADER, plan, KEY)
    with path.open("rb") as file:
        assert plans.verified(file, [PUBLIC]) == HEADER
    for size in (999, 1001):
        with pytest.raises(InvalidArgument, match="another size"):
            plans.seal(HEADER, io.BytesIO(plan), size, io.BytesIO(), KEY)


def test_a_file_is_refused_for_what_its_bytes_are_refused_for(tmp_path: Path) -> None:
    data, path = wrap(HEADER, b"plan", KEY), tmp_path / "plan"
    flipped = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]
    for changed in (*flipped, data[:-1], data + b"\0", data[:30], b"", wrap(HEADER, b"plan", OTHER)):
        path.write_bytes(changed)
        with pytest.raises(InvalidArgument) as of_bytes:
            unwrap(changed, [PUBLIC])
        with path.open("rb") as file, pytest.raises(InvalidArgument) as of_file:
            plans.verified(file, [PUBLIC])
        assert of_file.value.message == of_bytes.value.message


def test_an_empty_plan_is_a_plan() -> None:
    assert bytes(unwrap(wrap(HEADER, b"", KEY), [PUBLIC])[1]) == b""


def test_of_a_thousand_changes_none_is_accepted() -> None:
    data = wrap(HEADER, bytes(200), KEY)
    dice = random.Random(7)
    accepted = 0
    for _ in range(1000):
        changed = bytearray(data)
        kind = dice.randrange(5)
        at = dice.randrange(len(data))
        if kind == 0:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del changed[at : at + dice.randint(1, 40)]
        elif kind == 2:
            changed[at:at] = dice.randbytes(dice.randint(1, 40))
        elif kind == 3:
            end = min(len(data), at + dice.randint(1, 20))
            changed[at:end] = bytes(byte ^ dice.randint(1, 255) for byte in changed[at:end])
        else:  # a length that says something else, with the bytes to match where there are any
            struct.pack_into("<I", changed, 8, dice.randrange(1, 400) ^ struct.unpack_from("<I", data, 8)[0])
        assert changed != data
        try:
            unwrap(changed, [PUBLIC])
        except InvalidArgument:
            continue
        accepted += 1
    assert accepted == 0


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_of_a_stranger_are_refused(data: bytes) -> None:
    for start in (b"", plans.MAGIC):
        with pytest.raises(InvalidArgument):
            unwrap(start + data, [PUBLIC])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"ftrt" + data[4:], "not a compiled plan of a Penstock builder"),
        (lambda data: b"", "not a compiled plan"),
        (lambda data: data[:30], "cut short"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data + b"\0", "cut short or has something after its end"),
        (lambda data: data[:8] + struct.pack("<I", 1 << 31) + data[12:], "larger than any builder writes"),
        (lambda data: data[:12] + struct.pack("<Q", 2**64 - 1) + data[20:], "cut short"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "changed after it was signed"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "signature does not fit"),
        (lambda data: wrap(HEADER, b"plan", OTHER), "which is not trusted here; add the builder's public key"),
    ],
)
def test_the_reason_is_told_in_public_words(change: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        unwrap(change(wrap(HEADER, b"plan", KEY)), [PUBLIC])


def test_nothing_is_trusted_where_no_key_is() -> None:
    with pytest.raises(InvalidArgument, match="not trusted"):
        unwrap(wrap(HEADER, b"plan", KEY), [])


def test_a_key_of_that_name_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "key_id", lambda public: bytes(16))
    data = wrap(HEADER, b"plan", OTHER)
    with pytest.raises(InvalidArgument, match="signature does not fit"):
        unwrap(data, [PUBLIC])


@pytest.mark.parametrize(
    "change",
    [
        {"source": "sha256:12"}, {"builder": ""}, {"version": "a b"}, {"architecture": "sm9"},
        {"architecture": "sm90,"}, {"created": "today"},
        {"precision": "fp16\n"}, {"builder": 3}, {"profiles": ({"x": ((2,), (1,), (3,))},)},
        {"profiles": ({"x": ((1,), (1, 2), (3,))},)}, {"profiles": ({"x": ((1,), (1,), (2**31,))},)},
        {"profiles": ({"x": ((True,), (1,), (2,))},)}, {"profiles": ({},) * 33},
        {"profiles": ({"x" * 70_000: ((1,), (1,), (1,))},)},
    ],
)  # fmt: skip
def test_a_header_that_says_something_else_is_not_signed(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="header does not say"):
        wrap(dataclasses.replace(HEADER, **change), b"plan", KEY)


def test_a_signed_header_is_checked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(plans, "_parsed", lambda text: HEADER)
        patched.setattr(plans, "_document", lambda header: {"source": ["a list"]})
        data = wrap(HEADER, b"plan", KEY)
    with pytest.raises(InvalidArgument, match="header does not say"):
        unwrap(data, [PUBLIC])


@pytest.mark.parametrize(
    ("made_for", "here", "runs"),
    [
        ("sm90", "sm90", True), ("sm90", "sm86", False), ("sm80,sm86", "sm86", True), ("sm80,sm86", "sm89", False),
        ("sm80+", "sm90", True), ("sm80,sm86+", "sm120", True), ("sm90+", "sm89", False),
        ("cpu-x86_64", "cpu-x86_64", True),
        ("cpu-x86_64", "sm90", False), ("sm80+", "cpu-x86_64", False),
    ],
)  # fmt: skip
def test_where_a_plan_runs(made_for: str, here: str, runs: bool) -> None:
    assert dataclasses.replace(HEADER, architecture=made_for).runs_on(here) is runs


def test_the_key_follows_everything_but_the_time() -> None:
    assert HEADER.key == dataclasses.replace(HEADER, created="2027-01-01T00:00:00Z").key
    others = [
        dataclasses.replace(HEADER, **change)
        for change in (
            {"source": "sha256:" + "cd" * 32}, {"builder": "tensorrt"}, {"version": "1.8"}, {"architecture": "sm90"},
            {"precision": "fp32"}, {"profiles": ()},
        )
    ]  # fmt: skip
    assert len({HEADER.key, *(other.key for other in others)}) == 7


def test_keys_in_files(tmp_path: Path) -> None:
    path = tmp_path / "builder.key"
    public = plans.new_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pair = tmp_path / "both.pub"
    other = tmp_path / "other.key"
    plans.new_key(other)
    pair.write_bytes((tmp_path / "other.key.pub").read_bytes() + (tmp_path / "builder.key.pub").read_bytes())
    keys = plans.public_keys(pair)
    assert keys[1] == public
    assert bytes(unwrap(wrap(HEADER, b"plan", plans.private_key(path)), keys)[1]) == b"plan"
    with pytest.raises(FileExistsError):
        plans.new_key(path)


def test_files_that_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "builder.key"
    plans.new_key(path)
    for wrong in (tmp_path / "missing", Path(f"{path}.pub")):
        with pytest.raises(InvalidArgument, match=r"cannot be read|may be read by others"):
            plans.private_key(wrong)
    path.chmod(0o644)
    with pytest.raises(InvalidArgument, match="may be read by others"):
        plans.private_key(path)
    for wrong in (tmp_path / "missing", path):
        with pytest.raises(InvalidArgument, match="plan_keys: the file"):
            plans.public_keys(wrong)
    broken = tmp_path / "broken"
    broken.write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(InvalidArgument, match="not an Ed25519 public key"):
        plans.public_keys(broken)
    broken.chmod(0o600)
    with pytest.raises(InvalidArgument, match="not an Ed25519 private key"):
        plans.private_key(broken)


def test_the_command_makes_a_pair(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    command = [sys.executable, "-m", "penstock.plans", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    (public,) = plans.public_keys(folder / "builder.key.pub")
    assert plans.key_id(public).hex() in answer.stdout
    key = plans.private_key(folder / "builder.key")
    assert bytes(unwrap(wrap(HEADER, b"plan", key), [public])[1]) == b"plan"
