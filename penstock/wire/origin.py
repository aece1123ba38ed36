"""Where a connection comes from: whether the process at its other end runs on this host, as the user that we are.

Of a unix socket the kernel tells the peer's user (SO_PEERCRED, unix(7)). Of a TCP connection over loopback it tells the
user of the other socket (sock_diag(7), INET_DIAG): an address alone would also speak for whoever stands behind a proxy
on this host. Whatever cannot be found out counts as elsewhere.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from typing import Any, Final

RELAYED: Final = frozenset({"forwarded", "via", "x-forwarded-for", "x-real-ip"})
"""Headers by which a proxy says that a request is somebody else's."""

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST: Final = struct.Struct("=BBBBI")  # struct inet_diag_req_v2: family, protocol, extensions, padding, states
_PORTS: Final = struct.Struct("!HH")
_ANY: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # any interface, no cookie
_UID_AT: Final = _HEADER.size + 4 + 48 + 12  # behind struct inet_diag_sockid and three counters of inet_diag_msg
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_TCP_ESTABLISHED: Final = 1


class Origin:
    """The other end of one connection. Asked for when somebody wants to know, once."""

    __slots__ = ("_same_user", "_transport")

    def __init__(self, transport: Any) -> None:
        """transport: an asyncio transport, or anything with its `get_extra_info`; None for no connection."""
        self._transport = transport
        self._same_user: bool | None = None

    @property
    def same_user(self) -> bool:
        """The process at the other end runs on this host as our own user: what we may open, it may open itself."""
        if self._same_user is None:
            self._same_user = self._transport is not None and _peer_uid(self._transport) == os.geteuid()
        return self._same_user


ELSEWHERE: Final = Origin(None)
"""Of a call that no connection is known of."""


def _peer_uid(transport: Any) -> int | None:
    end = transport.get_extra_info("socket")
    try:
        if end.family == socket.AF_UNIX:
            told = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return int(_CREDENTIALS.unpack(told)[1])
        return _uid_of_tcp(transport.get_extra_info("peername"), transport.get_extra_info("sockname"))
    except (OSError, AttributeError, TypeError, ValueError, struct.error):  # closed meanwhile, or no such kernel
        return None


def _uid_of_tcp(peer: tuple[Any, ...], own: tuple[Any, ...]) -> int | None:
    """User of the socket at `peer` that is connected to `own`; None unless both are loopback addresses."""
    there, here = _address(peer[0]), _address(own[0])
    if not (there.is_loopback and here.is_loopback):
        return None
    family = socket.AF_INET if there.version == 4 else socket.AF_INET6
    # Seen from the peer: its own end is the source.
    wanted = _PORTS.pack(peer[1], own[1]) + there.packed.ljust(16, b"\0") + here.packed.ljust(16, b"\0") + _ANY
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + wanted
    head = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(1.0)  # the kernel answers before `send` returns
        diag.send(head + request)
        answer = diag.recv(4096)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    # A socket that is closing has no user any more, and reads as that of root.
    if kind != _SOCK_DIAG_BY_FAMILY or answer[_HEADER.size + 1] != _TCP_ESTABLISHED:
        return None
    return int.from_bytes(answer[_UID_AT : _UID_AT + 4], sys.byteorder)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
