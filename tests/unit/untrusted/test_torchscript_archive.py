"""Of a TorchScript archive nothing passes but what a module needs, and nothing that runs by being loaded."""

from __future__ import annotations

import contextlib
import io
import random
import zipfile

import pytest

from penstock.errors import InvalidArgument
from penstock.untrusted import torchscript_archive
from penstock.untrusted.torchscript_archive import is_torchscript

WHOLE = {
    "m/data.pkl": b"pickle", "m/constants.pkl": b"()", "m/version": b"3", "m/byteorder": b"little", "m/data/0": b"1234",
    "m/code/__torch__.py": b"class M(Module):\n", "m/code/__torch__/a/b.py": b"class B(Module):\n",
}  # fmt: skip
BESIDE = {
    "m/code/__torch__.py.debug_pkl": b"x", "m/.data/serialization_id": b"1", "m/extra/note": b"x",
    "m/traced_inputs.pkl": b"x", "m/traced_inputs/0": b"x",
}  # fmt: skip


def archive(members: dict[str, bytes]) -> io.BytesIO:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return made


def rewritten(source: io.BytesIO) -> dict[str, bytes]:
    made = io.BytesIO()
    torchscript_archive.rewrite(source, made)
    with zipfile.ZipFile(made) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_what_a_module_needs_is_written_anew() -> None:
    found = rewritten(archive(WHOLE | BESIDE))
    assert found == {f"model/{name.partition('/')[2]}": content for name, content in WHOLE.items()}


def test_an_archive_is_known_by_its_names() -> None:
    assert is_torchscript(WHOLE) and is_torchscript(["a/code/x.py"])
    assert not is_torchscript(["m/data.pkl", "m/data/0"]) and not is_torchscript(["model/models/model.json"])


@pytest.mark.parametrize(
    ("member", "content", "words"),
    [
        ("m/code/__torch__/c.py", b"  def __setstate__(self, state):\n", "__setstate__, which loading would run"),
        ("m/code/../../etc/x.py", b"", "no part of a scripted module"),
        ("m/bytecode.pkl", b"", "holds 'bytecode.pkl'"),
        ("m/data/../x", b"", "no part of a scripted module"),
        ("n/data.pkl", b"other", "a member twice"),
    ],
)
def test_anything_else_is_refused(member: str, content: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        rewritten(archive({**WHOLE, member: content}))


def test_damaged_and_enormous_archives_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="not a TorchScript archive, or it is damaged"):
        rewritten(io.BytesIO(archive(WHOLE).getvalue()[:-30]))
    monkeypatch.setattr(torchscript_archive, "MAX_TEXT", 10)
    with pytest.raises(InvalidArgument, match="code is larger than"):
        rewritten(archive(WHOLE))


def test_whatever_was_changed_is_taken_or_refused_and_nothing_else() -> None:
    whole, chance = archive(WHOLE | BESIDE).getvalue(), random.Random(0)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        with contextlib.suppress(InvalidArgument):
            rewritten(io.BytesIO(bytes(changed)))
