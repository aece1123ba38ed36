"""The container of a compiled plan: what it was made for, the plan's bytes, and the signature of whoever made it.

A plan is native code: to load one is to run it. So plans are made by a builder of ours, which signs them, and nobody
loads one before `unwrap` has found that a trusted builder's Ed25519 key (RFC 8032) signed every byte of it. All
numbers are little-endian:

    0   8   magic
    8   4   n, length of the header
    12  8   m, length of the plan
    20  n   header: JSON (PlanHeader)
    ..  m   plan, as the builder gave it
    ..  16  key id: the first half of the SHA-256 of the public key's 32 bytes
    ..  64  signature of CONTEXT and the SHA-512 of everything before it

`unwrap` looks at the header only after the signature holds: nothing of an unsigned file is parsed but two lengths.
`python -m penstock.plans FOLDER` makes a pair of keys; openssl's `genpkey -algorithm ed25519` makes the same.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from penstock.errors import InvalidArgument

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAGIC: Final = b"PSPLAN\x001"
CONTEXT: Final = b"penstock plan 1\x00"
MAX_HEADER: Final = 64 << 10
MAX_PROFILES: Final = 32
"""Optimisation profiles of a plan."""

BUILDERS: Final = {"tensorrt": "tensorrt", "tensorrt_rtx_bindings": "tensorrt-rtx", "torch": "torch"}
"""What `PlanHeader.builder` says, by the Python package whose runtime loads the plan."""

_HEAD: Final = struct.Struct("<8sIQ")
_PIECE: Final = 1 << 20
_KEY_ID: Final = 16
_SIGNATURE: Final = 64
_TAIL: Final = _KEY_ID + _SIGNATURE
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_ARCHITECTURE: Final = re.compile(r"(?:sm[0-9]{2,3}\+?|cpu-[a-z0-9_]{1,32})(?:,sm[0-9]{2,3}\+?){0,15}")
_SM: Final = re.compile(r"sm([0-9]{2,3})", re.ASCII)
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")

Buffer = bytes | bytearray | memoryview
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Smallest, best and largest shape of each input, batch dimension included."""


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """What a plan was made from, by what, and for what. Everything but `created` is part of the cache's key.

    Args:
        source: digest of the model file that it was compiled from, `sha256:` and 64 hex digits.
        builder: a value of BUILDERS. version: the builder's own, as its package says it.
        architecture: GPU architectures that it runs on, `sm80,sm90`; `sm80+` is that and all later ones, and
            `cpu-x86_64` a processor.
        precision: such as fp32, fp16, int8.
        profiles: in the plan's own order; empty where every shape is fixed.
        created: UTC, `2026-01-31T12:00:00Z`.
    """

    source: str
    builder: str
    version: str
    architecture: str
    precision: str
    created: str
    profiles: tuple[Profile, ...] = field(default=())

    def runs_on(self, architecture: str) -> bool:
        """Whether it was made for that one architecture, such as `sm90`."""
        return runs_on(self.architecture, architecture)

    @property
    def key(self) -> str:
        """Hex digest of all that decides whether a plan can be used again, in the engine cache."""
        document = _document(self)
        del document["created"]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def runs_on(architectures: str, one: str) -> bool:
    """Whether what was made for these architectures (PlanHeader.architecture) runs on that one, such as `sm90`."""
    wanted = _SM.fullmatch(one)
    for each in architectures.split(","):
        if each.rstrip("+") == one:
            return True
        least = _SM.fullmatch(each.removesuffix("+"))
        if each.endswith("+") and wanted and least and int(wanted.group(1)) >= int(least.group(1)):
            return True
    return False


def is_plan(head: Buffer) -> bool:
    """Whether a file that begins with these bytes says that it is a container."""
    return bytes(memoryview(head)[: len(MAGIC)]) == MAGIC


def wrap(header: PlanHeader, plan: Buffer, key: Ed25519PrivateKey) -> bytes:
    """The container, signed. Raises InvalidArgument for a header that `unwrap` would not take."""
    made, body = io.BytesIO(), memoryview(plan).cast("B")
    seal(header, io.BytesIO(body), len(body), made, key)
    return made.getvalue()


def seal(header: PlanHeader, plan: BinaryIO, size: int, container: BinaryIO, key: Ed25519PrivateKey) -> None:
    """Writes the container of a plan of `size` bytes, piece by piece. Raises InvalidArgument for a header that `unwrap`
    would not take, or where `plan` has another size."""
    text = json.dumps(_document(header), separators=(",", ":"), sort_keys=True).encode()
    _parsed(text)
    hasher = hashlib.sha512()

    def put(data: bytes) -> None:
        hasher.update(data)
        container.write(data)

    put(_HEAD.pack(MAGIC, len(text), size) + text)
    left = size
    while piece := plan.read(min(_PIECE, left)):
        put(piece)
        left -= len(piece)
    if left or plan.read(1):
        raise InvalidArgument("the plan has another size than was said")
    put(key_id(key.public_key().public_bytes_raw()))
    container.write(key.sign(CONTEXT + hasher.digest()))


def unwrap(data: Buffer, trusted_keys: Iterable[bytes]) -> tuple[PlanHeader, memoryview]:
    """The header and a view of the plan's bytes in `data`.

    trusted_keys: public keys of builders, 32 bytes each. Raises InvalidArgument with the reason in public words unless
    one of them signed exactly these bytes.
    """
    view = memoryview(data).cast("B")
    header_size, plan_size = _sizes(bytes(view[: _HEAD.size]), len(view))
    signed, signature = view[:-_SIGNATURE], bytes(view[-_SIGNATURE:])
    _verify(_trusted(bytes(signed[-_KEY_ID:]), trusted_keys), signature, hashlib.sha512(signed))
    end = _HEAD.size + header_size
    return _parsed(bytes(view[_HEAD.size : end])), view[end : end + plan_size].toreadonly()


def verified(file: BinaryIO, trusted_keys: Iterable[bytes]) -> PlanHeader:
    """The header of a container that need not be in memory as a whole; else as `unwrap`. file: at its beginning."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(_HEAD.size)
    header_size, plan_size = _sizes(head, size)
    text = file.read(header_size)
    hasher = hashlib.sha512(head + text)
    left = plan_size
    while piece := file.read(min(_PIECE, left)):
        hasher.update(piece)
        left -= len(piece)
    tail = file.read(_TAIL)
    if left or len(tail) != _TAIL:  # it became shorter meanwhile
        raise _cut()
    hasher.update(tail[:_KEY_ID])
    _verify(_trusted(tail[:_KEY_ID], trusted_keys), tail[_KEY_ID:], hasher)
    return _parsed(text)


def key_id(public: bytes) -> bytes:
    """The name of a public key: 16 bytes."""
    return hashlib.sha256(public).digest()[:_KEY_ID]


# --- keys in files ----------------------------------------------------------------------------------------------------


def new_key(path: Path) -> bytes:
    """Makes a private key (PKCS #8 PEM, RFC 8410) that only this user reads, and `<path>.pub` beside it.

    The public key's 32 bytes. Raises FileExistsError where there is a key already: nothing is written over.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    Path(f"{path}.pub").write_bytes(public)
    return key.public_key().public_bytes_raw()


def private_key(path: Path) -> Ed25519PrivateKey:
    """The builder's key. Raises InvalidArgument where the file is no such key, or others may read it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_HEADER)
    except OSError as error:
        raise InvalidArgument(f"the builder's key cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise InvalidArgument("the builder's key may be read by others than its owner; `chmod 600` it")
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidArgument("the builder's key is not an Ed25519 private key in PEM without a password")
    return key


def public_keys(path: Path) -> tuple[bytes, ...]:
    """The trusted keys of a file: PEM blocks one after another, 32 bytes each. Raises InvalidArgument."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        text = path.read_bytes()[:MAX_HEADER]
    except OSError as error:
        raise InvalidArgument(f"plan_keys: the file cannot be read: {error.strerror}", field="plan_keys") from None
    found = []
    for block in re.findall(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", text, re.DOTALL):
        try:
            key = serialization.load_pem_public_key(block)
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidArgument("plan_keys: a key in the file is not an Ed25519 public key", field="plan_keys")
        found.append(key.public_bytes_raw())
    if not found:
        raise InvalidArgument("plan_keys: the file holds no public key in PEM", field="plan_keys")
    return tuple(found)


# --- inside -----------------------------------------------------------------------------------------------------------


def _cut() -> InvalidArgument:
    return InvalidArgument("the plan is cut short or has something after its end; compile the model again")


def _sizes(head: bytes, total: int) -> tuple[int, int]:
    """Bytes of the header and of the plan, by the first bytes of a container of so many."""
    if not is_plan(head):
        raise InvalidArgument("this is not a compiled plan of a Penstock builder")
    if total < _HEAD.size + _TAIL:
        raise _cut()
    _, header_size, plan_size = _HEAD.unpack(head)
    if header_size > MAX_HEADER:
        raise InvalidArgument("the plan's header is larger than any builder writes")
    if total != _HEAD.size + header_size + plan_size + _TAIL:
        raise _cut()
    return header_size, plan_size


def _trusted(wanted: bytes, keys: Iterable[bytes]) -> bytes:
    """The public key of that name."""
    public = next((key for key in keys if key_id(key) == wanted), None)
    if public is None:
        raise InvalidArgument(
            f"the plan is signed with key {wanted.hex()}, which is not trusted here; add the builder's public key to "
            "the worker's plan_keys, or compile the model again"
        )
    return public


def _verify(public: bytes, signature: bytes, signed: Any) -> None:
    """signed: the SHA-512 of all that was signed, as hashlib has it."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, CONTEXT + signed.digest())
    except (InvalidSignature, ValueError):
        raise InvalidArgument(
            "the plan's signature does not fit its content: it was changed after it was signed; compile the model again"
        ) from None


def _document(header: PlanHeader) -> dict[str, Any]:
    profiles = [
        {name: [list(shape) for shape in shapes] for name, shapes in profile.items()} for profile in header.profiles
    ]
    texts = {name: getattr(header, name) for name in ("source", "builder", "version", "architecture", "precision")}
    return {**texts, "profiles": profiles, "created": header.created}


def _parsed(text: bytes) -> PlanHeader:
    """The header; raises InvalidArgument for anything that PlanHeader does not describe."""
    try:
        document = json.loads(text)
        profiles = tuple(_profile(entry) for entry in document.pop("profiles"))
        header = PlanHeader(**document, profiles=profiles)
        words = (header.builder, header.version, header.precision)
        whole = (
            all(_WORD.fullmatch(word) for word in words)
            and _DIGEST.fullmatch(header.source)
            and _ARCHITECTURE.fullmatch(header.architecture)
            and _TIME.fullmatch(header.created)
        )
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        whole = False
    if len(text) > MAX_HEADER or not whole or len(profiles) > MAX_PROFILES:
        raise InvalidArgument("the plan's header does not say what a plan's header says")
    return header


def _profile(entry: Mapping[str, Any]) -> Profile:
    made = {}
    for name, (least, best, most) in entry.items():
        shapes = tuple(tuple(shape) for shape in (least, best, most))
        for low, middle, high in zip(*shapes, strict=True):
            if any(type(size) is not int for size in (low, middle, high)) or not 0 <= low <= middle <= high < 1 << 31:
                raise ValueError(name)
        made[name] = (shapes[0], shapes[1], shapes[2])
    return made


def main(arguments: list[str]) -> int:
    """Makes `builder.key` and `builder.key.pub` in a folder."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    public = new_key(folder / "builder.key")
    print(f"{folder / 'builder.key'}: key {key_id(public).hex()}, public {base64.b64encode(public).decode()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
