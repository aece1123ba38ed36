"""What may be a name, against a corpus of what has broken other servers."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import names
from penstock.errors import InvalidArgument

TRAVERSAL = [
    "..", ".", "...", "../etc/passwd", "..\\..\\windows", "/etc/passwd", "//server/share", "C:\\boot.ini", "a/../b",
    "a/..", "a/b", "a\\b", "./a", "a/.", "~", "~root", "-", "--help", "a..b", "a...b", "..a", "a..", "file:///etc",
    "%2e%2e", "%2e%2e%2f", "%252e%252e%252f", "..%2f", "%2e.", "..%c0%af", "..%5c", "%00", "a%00b", "a%2fb", "%61",
    "..;/", "....//", "..../", "\\\\?\\C:", "con:", "nul.", "a:b", "a::$data", "models@3", "sha256:0",
]  # fmt: skip
CONTROL = [
    "", " ", "  ", "a ", " a", "a b", "\t", "a\t", "\n", "a\n", "\na", "a\nb", "a\r\nb", "\r", "\0", "a\0", "a\0b",
    "\x1b[31mred", "a\x7f", "a\x08b", "\x85", "a\x85", "a\u2028b", "a\u2029", "\ufeffa", "a\u200b", "a\u00ad",
    "\u202eevil", "a\ud800", "level=error event=forged", '{"level":"error"}', "a,b", "a=b", 'a"b', "a'b",
]  # fmt: skip
SHELL = [
    "a;b", "$(reboot)", "`id`", "a|b", "a&b", "a&&b", "a>b", "a<b", "${HOME}", "$HOME", "a*", "a?", "[a]", "{a,b}",
    "!a", "#a", "a#b", "a'; drop table models; --", "' or 1=1", "a%", "%s%n", "{0}", "{{a}}", "<script>", "a^b", "(a)",
]  # fmt: skip
ALPHABET = [
    "A", "Model", "mOdel", "modèle", "模型", "мodel", "ａ", "a．b", "‥", "․․", "a․․b", "①", "٣", "ß", "ı", "K",
    "_a", "a_", "-a", "a-", ".a", "a.", "_", "__", "a" * 65, "a" * 4096, "a" * 64 + "\n", "é", "a\u0301", "😀",
]  # fmt: skip
HOSTILE = [*TRAVERSAL, *CONTROL, *SHELL, *ALPHABET]


def test_the_corpus_is_large_and_has_no_doubles() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 130


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_no_hostile_name_can_be_a_model(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.model(name, "models[0].name")
    assert caught.value.field == "models[0].name"
    assert caught.value.message.isprintable(), "a name could steer a terminal or forge a line of a log"
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_what_a_tenant_may_be_is_harmless_too(name: str) -> None:
    allowed = set(string.ascii_letters + string.digits)
    if name and set(name) <= allowed and len(name) <= 64:
        assert names.tenant(name) == name
        return
    with pytest.raises(InvalidArgument) as caught:
        names.tenant(name, "tenant.name")
    assert caught.value.field == "tenant.name" and caught.value.message.isprintable()


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_what_an_alias_may_be_is_harmless_too(name: str) -> None:
    allowed = set(string.ascii_letters + string.digits + "_-")
    if name and set(name) <= allowed and name[0] in string.ascii_letters and len(name) <= 63:
        assert names.alias(name) == name
        return
    for check in (names.alias, names.version_or_alias):
        with pytest.raises(InvalidArgument) as caught:
            check(name)
        assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["a", "0", "a.b", "a-b_c.d", "resnet-50", "all-minilm-l6-v2", "a" * 64, "v1.2.3"])
def test_names_that_are_meant(name: str) -> None:
    assert names.model(name) == name


@pytest.mark.parametrize(
    ("text", "meaning"), [("1", 1), ("42", 42), ("9" * 18, 10**18 - 1), ("007", 7), ("prod", "prod")]
)
def test_versions_and_aliases(text: str, meaning: int | str) -> None:
    assert names.version_or_alias(text) == meaning


@pytest.mark.parametrize(
    "text", ["0", "00", "-1", "+1", "1.0", "1e3", "0x1", " 1", "1 ", "1\n", "9" * 19, "٣", "²", ""]
)
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(InvalidArgument):
        names.version_or_alias(text)


def test_digests() -> None:
    good = "sha256:" + "0123456789abcdef" * 4
    assert names.digest(good) == good
    for bad in (
        good + "\n",
        good[:-1],
        good + "0",
        good.upper(),
        good.removeprefix("sha256:"),
        "sha512:" + "0" * 64,
        "",
    ):
        with pytest.raises(InvalidArgument):
            names.digest(bad)


@given(st.text(max_size=80))
def test_whatever_passes_is_one_safe_segment(name: str) -> None:
    try:
        names.model(name)
    except InvalidArgument as refusal:
        assert refusal.message.isprintable()
        return
    assert set(name) <= set(string.ascii_lowercase + string.digits + "._-")
    assert 1 <= len(name) <= 64 and ".." not in name
    assert name[0].isalnum() and name[-1].isalnum()


@given(st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", fullmatch=True))
def test_the_rule_as_documented(name: str) -> None:
    if ".." not in name:
        assert names.model(name) == name
