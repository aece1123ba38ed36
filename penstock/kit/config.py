"""Configuration of a service: defaults ← TOML file ← environment ← flags, read once, strictly.

A service's config is a frozen dataclass that extends ServiceConfig; every field is made by `setting`, whose text is
its help. `load` is the only reader of configuration files, environment and flags. An unknown key, an unknown flag, a
value of the wrong type or out of range ends the start with a message that names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", bound="ServiceConfig")


def setting(
    default: Any,
    help: str,
    *,
    one_of: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    pattern: str = "",
) -> Any:
    """A field of a config dataclass with its one line of explanation and what its values must fulfil.

    one_of: the only texts allowed; low, high: bounds of a number, themselves allowed; pattern: of the whole text, or of
    each in a list. A field called `port` or `…_port` is always a port number.
    """
    metadata = {"help": help, "one_of": one_of, "low": low, "high": high, "pattern": pattern}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What all services share."""

    id: str = setting(
        "", "id of this process in the cluster; empty makes one up", pattern=r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})?"
    )
    host: str = setting("127.0.0.1", "address to listen on; anything but loopback needs auth_file")
    advertise: str = setting("", "host by which other processes reach this one; empty: host, or the machine's name")
    port: int = setting(0, "port of the gRPC server; 0 takes a free one")
    admin_port: int = setting(0, "port of /metrics, /healthz and /readyz; 0 takes a free one")
    etcd: tuple[str, ...] = setting(("127.0.0.1:2379",), "etcd endpoints, host:port, comma-separated")
    etcd_ca: str = setting("", "PEM file of CAs; etcd is then called by TLS and its members verified by them")
    etcd_cert: str = setting("", "PEM file of the certificate, and its chain, that this process shows to etcd")
    etcd_key: str = setting("", "PEM file of the key of etcd_cert")
    etcd_user: str = setting("", "user of etcd; empty where etcd has no users", pattern=r"[^\s:]{0,128}")
    etcd_password_file: str = setting("", "file that holds the password of etcd_user, and nothing else")
    lease_seconds: float = setting(
        5.0, "how long the cluster waits for this process before it counts as lost", low=1, high=3600
    )
    drain_seconds: float = setting(30.0, "how long to finish what is under way after SIGTERM", low=0)
    auth_file: str = setting("", "file of callers, one `name sha256-hex-of-token` a line; empty lets loopback in")
    token: str = setting("", "token that this process presents to other services; set it by environment")
    tls_cert: str = setting("", "PEM file of this process's certificate and its chain; its ports then speak TLS")
    tls_key: str = setting("", "PEM file of the key of tls_cert")
    tls_client_ca: str = setting("", "PEM file of CAs; only callers with a certificate of one of them are let in")
    tls_ca: str = setting("", "PEM file of CAs; other processes are then called by TLS and verified by them")
    log_level: str = setting("info", "debug, info, warning or error", one_of=("debug", "info", "warning", "error"))
    log_format: str = setting("json", "json, or console for people", one_of=("json", "console"))
    otlp_endpoint: str = setting("", "OTLP gRPC endpoint for traces, such as http://127.0.0.1:4317; empty for none")
    trace_file: str = setting("", "file that gets one JSON object per span; empty for none")
    trace_ratio: float = setting(0.01, "share of calls to trace when the caller has not decided", low=0, high=1)


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
            type=_reader(kind, field),
            metavar="LIST" if isinstance(kind, types.GenericAlias) else kind.__name__.upper(),
            help=f"{field.metadata['help']} (default: {default!r})".replace("%", "%%"),
        )
    return parser


def _from_file(cls: type[ServiceConfig], path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise BadConfig(f"config file {path}: {problem}") from None
    fields = {name: (kind, field) for name, kind, field in _fields(cls)}
    if unknown := sorted(set(table) - set(fields)):
        raise BadConfig(f"config file {path}: unknown key {unknown[0]}; known are {', '.join(sorted(fields))}")
    return {name: _from_toml(*fields[name], value, f"config file {path}: {name}") for name, value in table.items()}


def _from_toml(kind: Any, field: dataclasses.Field[Any], value: Any, source: str) -> Any:
    """TOML has types of its own, so a value must have the right one: "8000" is no port."""
    if isinstance(kind, types.GenericAlias) and isinstance(value, list):
        fits = all(isinstance(item, str) for item in value)
        value = tuple(value)
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    else:
        fits = type(value) is kind
    if not fits:
        wanted = "list of strings" if isinstance(kind, types.GenericAlias) else kind.__name__
        raise BadConfig(f"{source}: {value!r} is not usable: expected {wanted}")
    try:
        return _checked(value, field)
    except ValueError as problem:
        raise BadConfig(f"{source}: {value!r} is not usable: {problem}") from None


def _from_environ(cls: type[ServiceConfig], service: str, environ: Mapping[str, str]) -> dict[str, Any]:
    shared = {field.name for field in dataclasses.fields(ServiceConfig)} - {"id", "port", "admin_port"}
    values = {}
    for name, kind, field in _fields(cls):
        own = f"PENSTOCK_{service.upper()}_{name.upper()}"
        for key in (own, f"PENSTOCK_{name.upper()}") if name in shared else (own,):
            if key in environ:
                values[name] = _read(kind, field, environ[key], key)
                break
    return values


def _fields(cls: type[ServiceConfig]) -> list[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(cls)
    return [(field.name, hints[field.name], field) for field in dataclasses.fields(cls)]


def _read(kind: Any, field: dataclasses.Field[Any], text: str, source: str) -> Any:
    try:
        return _reader(kind, field)(text)
    except (ValueError, argparse.ArgumentTypeError) as problem:
        raise BadConfig(f"{source}: {text!r} is not usable: {problem}") from None


def _reader(kind: Any, field: dataclasses.Field[Any]) -> Callable[[str], Any]:
    """Text of the environment or of a flag to a value; argparse shows the text of an ArgumentTypeError."""
    parse: Callable[[str], Any] = _boolean if kind is bool else _list if isinstance(kind, types.GenericAlias) else kind

    def read(text: str) -> Any:
        try:
            return _checked(parse(text), field)
        except ValueError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None

    return read


def _checked(value: Any, field: dataclasses.Field[Any]) -> Any:
    """The value itself; raises ValueError when the field does not allow it."""
    rules = field.metadata
    low, high = (0, 65535) if field.name == "port" or field.name.endswith("_port") else (rules["low"], rules["high"])
    if rules["one_of"] and value not in rules["one_of"]:
        raise ValueError(f"use one of {', '.join(rules['one_of'])}")
    texts = value if isinstance(value, tuple) else (value,)
    if rules["pattern"] and not all(re.fullmatch(rules["pattern"], text) for text in texts):
        raise ValueError(f"it must match {rules['pattern']}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is needed")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"it must be {f'at least {low}' if high is None else f'between {low} and {high}'}")
    return value


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
