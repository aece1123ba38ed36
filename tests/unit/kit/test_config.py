"""Configuration: every source, which one wins, and how each kind of mistake is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.kit.config import ServiceConfig, load, setting


@dataclass(frozen=True, kw_only=True)
class Config(ServiceConfig):
    """One field of each kind."""

    port: int = setting(8001, "port")
    http_port: int = setting(8000, "port of REST")
    retries: int = setting(1, "retries", low=0, high=5)
    wait_seconds: float = setting(1.5, "seconds", low=0)
    eager: bool = setting(False, "eager")
    colours: tuple[str, ...] = setting(("red", "blue"), "100 % of the colours")


def read(*argv: str, **environ: str) -> Config:
    return load(Config, "tiny", argv, environ)


def toml(folder: Path, text: str) -> str:
    """The flag that names a file of that text."""
    path = folder / "tiny.toml"
    path.write_text(text)
    return f"--config={path}"


def refusal(capsys: pytest.CaptureFixture[str], *argv: str, **environ: str) -> str:
    """What is said when the start is refused."""
    with pytest.raises(SystemExit) as caught:
        read(*argv, **environ)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_defaults() -> None:
    assert read() == Config()


def test_later_sources_win(tmp_path: Path) -> None:
    file = toml(tmp_path, 'retries = 2\nwait_seconds = 2\nlog_level = "error"\nhost = "127.0.0.2"\ncolours = ["a,b"]\n')
    steps: list[tuple[tuple[str, ...], Mapping[str, str], str]] = [
        ((), {}, "error"),
        ((), {"PENSTOCK_LOG_LEVEL": "warning"}, "warning"),
        ((), {"PENSTOCK_LOG_LEVEL": "warning", "PENSTOCK_TINY_LOG_LEVEL": "debug"}, "debug"),
        (("--log-level=info",), {"PENSTOCK_LOG_LEVEL": "warning", "PENSTOCK_TINY_LOG_LEVEL": "debug"}, "info"),
    ]
    for argv, environ, level in steps:
        config = read(file, *argv, **environ)
        assert config.log_level == level
        assert (config.retries, config.wait_seconds, config.host, config.colours) == (2, 2.0, "127.0.0.2", ("a,b",))
        assert isinstance(config.wait_seconds, float)


def test_the_file_may_be_named_by_the_environment_and_a_flag_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("retries = 1\n")
    two.write_text("retries = 2\n")
    assert read(PENSTOCK_TINY_CONFIG=str(two)).retries == 2
    assert read(f"--config={one}", PENSTOCK_TINY_CONFIG=str(two)).retries == 1


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Config)])
def test_every_field_can_be_set_by_every_source(field: str, tmp_path: Path) -> None:
    texts = {int: "3", float: "2.5", bool: "true", str: "x"}
    special = {"log_level": "debug", "log_format": "console", "trace_ratio": "0.5", "colours": "x,y", "etcd": "a:1,b:2"}
    text = special.get(field) or texts[type(getattr(Config(), field))]
    lists = {"colours": '["x", "y"]', "etcd": '["a:1", "b:2"]'}
    bare = isinstance(getattr(Config(), field), int | float)
    in_file = lists.get(field) or (text if bare else f'"{text}"')
    wanted = getattr(read(f"--{field.replace('_', '-')}={text}"), field)
    assert wanted != getattr(Config(), field)
    assert getattr(read(**{f"PENSTOCK_TINY_{field.upper()}": text}), field) == wanted
    assert getattr(read(toml(tmp_path, f"{field} = {in_file}\n")), field) == wanted


def test_what_is_one_process_own_is_not_shared_by_environment() -> None:
    config = read(
        PENSTOCK_ID="x", PENSTOCK_PORT="1", PENSTOCK_ADMIN_PORT="2", PENSTOCK_RETRIES="3", PENSTOCK_HOST="::1"
    )
    assert (config.id, config.port, config.admin_port, config.retries) == ("", 8001, 0, 1)
    assert config.host == "::1"


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", "on"])
def test_booleans(text: str) -> None:
    assert read(f"--eager={text}").eager is True


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("port", "eight"), ("port", "8000.0"), ("port", ""), ("port", "-1"), ("port", "65536"), ("http_port", "70000"),
        ("port", "tcp://10.0.0.1:8001"), ("eager", "maybe"), ("eager", ""), ("wait_seconds", "soon"),
        ("wait_seconds", "nan"), ("wait_seconds", "inf"), ("wait_seconds", "-0.1"), ("retries", "6"),
        ("retries", "-1"), ("log_level", "verbose"), ("log_level", "INFO "), ("log_format", "xml"),
        ("trace_ratio", "1.01"), ("trace_ratio", "-1"), ("lease_seconds", "0"), ("drain_seconds", "-1"),
        ("id", "a/b"), ("id", ".."), ("id", "a\nb"), ("id", "x" * 200),
    ],
)  # fmt: skip
def test_a_bad_text_is_refused_by_name(field: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = f"PENSTOCK_TINY_{field.upper()}"
    said = refusal(capsys, **{key: text})
    assert said.startswith(f"tiny: {key}: ") and repr(text) in said
    assert said.count("\n") == 1
    flag = f"--{field.replace('_', '-')}"
    assert flag in refusal(capsys, f"{flag}={text}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('port = "8000"', "expected int"), ("port = 80.5", "expected int"), ("port = true", "expected int"),
        ("port = 70000", "between 0 and 65535"), ("host = 5", "expected str"), ('host = ["a"]', "expected str"),
        ("host = {a = 1}", "expected str"), ("eager = 1", "expected bool"), ('eager = "true"', "expected bool"),
        ('wait_seconds = "2"', "expected float"), ("wait_seconds = true", "expected float"),
        ("wait_seconds = nan", "finite"), ("wait_seconds = -1", "at least 0"), ("colours = [1]", "expected list"),
        ('colours = "red"', "expected list"), ('log_level = "loud"', "use one of"), ("retries = 6", "between 0 and 5"),
        ("[port]\nx = 1", "expected int"),
    ],
)  # fmt: skip
def test_a_bad_value_in_the_file_is_refused_by_name(
    line: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, toml(tmp_path, line + "\n"))
    field = line.strip("[").split()[0].rstrip("]")
    assert f"tiny.toml: {field}: " in said and expected in said


def test_unknown_keys_and_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown key prot;" in refusal(capsys, toml(tmp_path, "prot = 1\n"))
    assert "unknown key gateway;" in refusal(capsys, toml(tmp_path, "[gateway]\nport = 1\n"))
    assert "--prot" in refusal(capsys, "--prot=1")
    assert "--por" in refusal(capsys, "--por=1"), "an abbreviation breaks when an option is added"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent.toml" in refusal(capsys, f"--config={tmp_path}/absent.toml")
    assert "tiny.toml" in refusal(capsys, toml(tmp_path, "port = = 1\n"))
    (tmp_path / "latin.toml").write_bytes(b'host = "\xe9"\n')
    assert "latin.toml" in refusal(capsys, f"--config={tmp_path}/latin.toml")
    assert str(tmp_path) in refusal(capsys, f"--config={tmp_path}")


def test_help_shows_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in said
    assert "100 % of the colours" in said


def test_a_config_is_not_changed_later() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().port = 1  # type: ignore[misc]
