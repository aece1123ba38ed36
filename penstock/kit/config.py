"""Configuration of a service: defaults ← TOML file ← environment ← flags, read once, strictly.

A service's config is a frozen dataclass that extends ServiceConfig; every field is made by `setting`, whose text is
its help. `load` is the only reader of configuration files, environment and flags. An unknown key, an unknown flag or a
value of the wrong type ends the start with a message that names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", bound="ServiceConfig")


def setting(default: Any, help: str) -> Any:
    """A field of a config dataclass with its one line of explanation."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What all services share."""

    id: str = setting("", "id of this process in the cluster; empty makes one up")
    host: str = setting("127.0.0.1", "address to listen on; anything but loopback needs auth_file")
    port: int = setting(0, "port of the gRPC server; 0 takes a free one")
    admin_port: int = setting(0, "port of /metrics, /healthz and /readyz; 0 takes a free one")
    etcd: tuple[str, ...] = setting(("127.0.0.1:2379",), "etcd endpoints, host:port, comma-separated")
    lease_seconds: float = setting(5.0, "how long the cluster waits for this process before it counts as lost")
    drain_seconds: float = setting(30.0, "how long to finish what is under way after SIGTERM")
    auth_file: str = setting("", "file of callers, one `name sha256-hex-of-token` a line; empty lets loopback in")
    token: str = setting("", "token that this process presents to other services; set it by environment")
    log_level: str = setting("info", "debug, info, warning or error")
    log_format: str = setting("json", "json, or console for people")
    otlp_endpoint: str = setting("", "OTLP gRPC endpoint for traces, such as http://127.0.0.1:4317; empty for none")
    trace_file: str = setting("", "file that gets one JSON object per span; empty for none")
    trace_ratio: float = setting(0.01, "share of calls to trace when the caller has not decided")


class BadConfig(Exception):
    """The configuration cannot be used; the message names the key and its source."""


def load(cls: type[T], service: str, argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> T:
    """Reads a service's configuration.

    Sources, later ones win: the dataclass's defaults; the TOML file of `--config` or PENSTOCK_<SERVICE>_CONFIG;
    PENSTOCK_<SERVICE>_<FIELD>; PENSTOCK_<FIELD> for fields that all services share; flags. Exits with usage on bad
    flags (argparse) and with status 2 and one line on anything else that is wrong.
    """
    environ = os.environ if environ is None else environ
    parser = _parser(cls, service)
    flags = vars(parser.parse_args(argv))
    try:
        values = _from_file(cls, flags.pop("config") or environ.get(f"PENSTOCK_{service.upper()}_CONFIG", ""))
        values |= _from_environ(cls, service, environ)
        values |= {name: value for name, value in flags.items() if value is not None}
        return cls(**values)
    except BadConfig as problem:
        parser.exit(2, f"{service}: {problem}\n")


def _parser(cls: type[ServiceConfig], service: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service}",
        epilog=f"Every option can also stand in the TOML file or in PENSTOCK_{service.upper()}_<OPTION>.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="TOML file with any of the options below", metavar="FILE")
    for name, kind, field in _fields(cls):
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=_reader(kind),
            metavar="LIST" if isinstance(kind, types.GenericAlias) else kind.__name__.upper(),
            help=f"{field.metadata['help']} (default: {default!r})".replace("%", "%%"),
        )
    return parser


def _from_file(cls: type[ServiceConfig], path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        table = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as problem:
        raise BadConfig(f"config file {path}: {problem}") from None
    kinds = {name: kind for name, kind, _ in _fields(cls)}
    if unknown := sorted(set(table) - set(kinds)):
        raise BadConfig(f"config file {path}: unknown key {unknown[0]}; known are {', '.join(sorted(kinds))}")
    values = {}
    for name, value in table.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        values[name] = _read(kinds[name], text, f"{path}: {name}")
    return values


def _from_environ(cls: type[ServiceConfig], service: str, environ: Mapping[str, str]) -> dict[str, Any]:
    shared = {field.name for field in dataclasses.fields(ServiceConfig)} - {"id", "port", "admin_port"}
    values = {}
    for name, kind, _ in _fields(cls):
        own = f"PENSTOCK_{service.upper()}_{name.upper()}"
        for key in (own, f"PENSTOCK_{name.upper()}") if name in shared else (own,):
            if key in environ:
                values[name] = _read(kind, environ[key], key)
                break
    return values


def _fields(cls: type[ServiceConfig]) -> list[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(cls)
    return [(field.name, hints[field.name], field) for field in dataclasses.fields(cls)]


def _read(kind: Any, text: str, source: str) -> Any:
    try:
        return _reader(kind)(text)
    except (ValueError, argparse.ArgumentTypeError) as problem:
        raise BadConfig(f"{source}: {text!r} is not usable: {problem}") from None


def _reader(kind: Any) -> Callable[[str], Any]:
    if kind is bool:
        return _boolean
    if isinstance(kind, types.GenericAlias):  # tuple[str, ...]
        return _list
    return typing.cast(Callable[[str], Any], kind)


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
