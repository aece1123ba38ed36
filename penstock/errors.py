"""Every error that may leave a service: one table from code to gRPC status, HTTP status and retryability.

A service raises one of the classes below; the kit's interceptor and the REST bridge translate by the table, and
`penstock.channel` maps an answer back to the same class. The message is public: it never holds a path, a stack trace
or an internal name. What only an operator may see goes into `detail`, which is logged and never sent.

    PenstockError
    ├── InvalidArgument          the request is wrong in itself
    │   └── InvalidManifest      a model.yaml, with the field
    ├── NotFound                 no such model, version, alias, artifact
    ├── AlreadyExists            a version number that is taken
    ├── Conflict                 compare-and-set lost
    ├── InUse                    deletion of what is deployed or named by an alias
    ├── GateFailed               deployment of a version that did not pass its gate
    ├── Unauthenticated          no or unknown credential
    ├── PermissionDenied         known caller, not allowed
    ├── TooLarge                 body, tensor or upload over a limit
    ├── ResourceExhausted        queue or quota is full: retry later
    ├── DeadlineExceeded         too late, or it would have been
    ├── Cancelled                the caller left
    ├── Unavailable              nothing can serve this now: retry later
    ├── Unsupported              the protocol knows it, this server or model does not
    └── Internal                 our fault
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Code:
    """One row of the error table.

    grpc: number of the gRPC status (https://grpc.io/docs/guides/status-codes/); http: status of the REST bridge;
    openai: `type` of an OpenAI error object; retryable: the same call may succeed later, unchanged.
    """

    name: str
    grpc: int
    http: int
    openai: str
    retryable: bool = False


class PenstockError(Exception):
    """An error that a caller may see.

    Args:
        message: public text that says what is wrong and, where possible, what would be right.
        field: path of the offending field, such as `inputs[0].shape`.
        detail: for the log only.
        retry_after: seconds after which a retry makes sense; None where unknown.
    """

    code: ClassVar[Code] = Code("INTERNAL", grpc=13, http=500, openai="server_error")

    def __init__(self, message: str, *, field: str = "", detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.detail = detail
        self.retry_after = retry_after


class InvalidArgument(PenstockError):
    """The request is wrong in itself."""

    code = Code("INVALID_ARGUMENT", grpc=3, http=400, openai="invalid_request_error")


class InvalidManifest(InvalidArgument):
    """A model.yaml is wrong; `field` says where."""

    code = Code("INVALID_MANIFEST", grpc=3, http=400, openai="invalid_request_error")


class NotFound(PenstockError):
    """No such model, version, alias or artifact."""

    code = Code("NOT_FOUND", grpc=5, http=404, openai="invalid_request_error")


class AlreadyExists(PenstockError):
    """A version number that is taken."""

    code = Code("ALREADY_EXISTS", grpc=6, http=409, openai="invalid_request_error")


class Conflict(PenstockError):
    """The state is not what the caller thinks: read again, then decide."""

    code = Code("CONFLICT", grpc=10, http=409, openai="invalid_request_error")


class InUse(PenstockError):
    """What should go is deployed, or an alias names it."""

    code = Code("IN_USE", grpc=9, http=409, openai="invalid_request_error")


class GateFailed(PenstockError):
    """A version did not pass its gate; deploying it needs a reason, which is recorded."""

    code = Code("GATE_FAILED", grpc=9, http=409, openai="invalid_request_error")


class Unauthenticated(PenstockError):
    """No credential, or one that nobody knows."""

    code = Code("UNAUTHENTICATED", grpc=16, http=401, openai="authentication_error")


class PermissionDenied(PenstockError):
    """A known caller who may not do this."""

    code = Code("PERMISSION_DENIED", grpc=7, http=403, openai="permission_error")


class TooLarge(PenstockError):
    """A body, tensor or upload over a limit."""

    code = Code("TOO_LARGE", grpc=3, http=413, openai="invalid_request_error")


class ResourceExhausted(PenstockError):
    """A queue or quota is full."""

    code = Code("RESOURCE_EXHAUSTED", grpc=8, http=429, openai="rate_limit_error", retryable=True)


class DeadlineExceeded(PenstockError):
    """The deadline passed, or would have before an answer."""

    code = Code("DEADLINE_EXCEEDED", grpc=4, http=504, openai="server_error", retryable=True)


class Cancelled(PenstockError):
    """The caller left."""

    code = Code("CANCELLED", grpc=1, http=499, openai="server_error")


class Unavailable(PenstockError):
    """Nothing can serve this now."""

    code = Code("UNAVAILABLE", grpc=14, http=503, openai="server_error", retryable=True)


class Unsupported(PenstockError):
    """The protocol knows it, this server or model does not."""

    code = Code("UNSUPPORTED", grpc=12, http=501, openai="invalid_request_error")


class Internal(PenstockError):
    """Our fault; the log has the detail under the request id."""

    code = Code("INTERNAL", grpc=13, http=500, openai="server_error")


ALL: tuple[type[PenstockError], ...] = (
    InvalidArgument,
    InvalidManifest,
    NotFound,
    AlreadyExists,
    Conflict,
    InUse,
    GateFailed,
    Unauthenticated,
    PermissionDenied,
    TooLarge,
    ResourceExhausted,
    DeadlineExceeded,
    Cancelled,
    Unavailable,
    Unsupported,
    Internal,
)

BY_NAME: dict[str, type[PenstockError]] = {error.code.name: error for error in ALL}

_BY_GRPC: dict[int, type[PenstockError]] = {error.code.grpc: error for error in reversed(ALL)}


def from_code(
    name: str, message: str, *, field: str = "", detail: str = "", retry_after: float | None = None
) -> PenstockError:
    """The error of that code; Internal for a code that this release does not know."""
    return BY_NAME.get(name, Internal)(message, field=field, detail=detail, retry_after=retry_after)


def from_grpc(status: int, message: str) -> PenstockError:
    """The error that fits a gRPC status number when the peer sent no ErrorInfo (a proxy, another server)."""
    return _BY_GRPC.get(status, Internal)(message or f"the server answered with gRPC status {status}")
