"""Certificates: what is refused at the start and in which words, what is taken over while running, who is let in."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.kit.tls import LOOK_SECONDS, Certificates, Files
from tests.harness.certs import Certs


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def later(self) -> None:
        self.now += LOOK_SECONDS


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs.make(tmp_path / "certs")


def shake(caller: ssl.SSLContext, server: ssl.SSLContext | None, name: str = "localhost") -> ssl.SSLObject:
    """A handshake in memory; the caller's side, which has heard what the server says to it."""
    assert server is not None
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = caller.wrap_bio(back, there, server_hostname=name)
    answering = server.wrap_bio(there, back, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (asking, answering):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    return asking


def serial(caller: ssl.SSLContext, server: ssl.SSLContext | None) -> str:
    """Of the certificate that the server shows."""
    shown = shake(caller, server).getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


def test_without_files_there_is_no_tls() -> None:
    none = Certificates(Files())
    assert not none.serves
    assert not none.calls
    assert none.server("h2") is None
    assert none.server_credentials() is None
    assert none.channel() is None
    assert none.expires == 0


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_a_listener_agrees_on_its_protocol_alone(certs: Certs, protocol: str) -> None:
    server = Certificates(certs.files()).server(protocol)
    both = certs.caller()
    both.set_alpn_protocols(["h2", "http/1.1"])
    agreed = shake(both, server)
    assert agreed.selected_alpn_protocol() == protocol
    assert agreed.version() == "TLSv1.3"
    other = certs.caller()
    other.set_alpn_protocols(["h2" if protocol != "h2" else "http/1.1"])
    assert shake(other, server).selected_alpn_protocol() is None


def test_old_versions_are_refused(certs: Certs) -> None:
    server = Certificates(certs.files()).server("h2")
    caller = certs.caller()
    caller.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake(caller, server).version() == "TLSv1.2"
    caller.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        caller.minimum_version = caller.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"protocol version|unsupported protocol"):
        shake(caller, server)


def test_what_cannot_be_used_is_named(certs: Certs, tmp_path: Path) -> None:
    good = certs.files()
    other = Certs.make(tmp_path / "other")
    expired = Certs.make(tmp_path / "expired", days=-1)
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate\n")
    client_only = client_certificate(tmp_path / "client", certs)
    for files, said in (
        (replace(good, key=""), "go together"),
        (Files(client_ca=certs.ca), "tls_client_ca .* set tls_cert"),
        (replace(good, cert=str(tmp_path / "away.pem")), "tls_cert: .*away.pem cannot be read: No such file"),
        (replace(good, key=str(tmp_path)), "tls_key: .* cannot be read: Is a directory"),
        (replace(good, key=other.key), "tls_key: .* is not the key"),
        (replace(good, cert=str(nothing)), "must be a certificate and its key"),
        (replace(good, ca=str(nothing)), "tls_ca: .* is not a PEM file"),
        (replace(good, client_ca=str(nothing)), "tls_client_ca: .* is not a PEM file"),
        (expired.files(), "tls_cert: .* certificate has expired"),
        (replace(good, cert=client_only.cert, key=client_only.key), "tls_cert: .* unsuitable certificate purpose"),
    ):
        with pytest.raises(ValueError, match=said):
            Certificates(files)


def test_what_is_shown_to_others_alone_need_be_good_for_clients_alone(certs: Certs, tmp_path: Path) -> None:
    """As the certificates of etcd's clients are; messages name the settings by their prefix."""
    client_only = client_certificate(tmp_path / "client", certs)
    server_only = client_certificate(tmp_path / "server", certs, "serverAuth")
    expired = Certs.make(tmp_path / "expired", days=-1)
    calling = Files(cert=client_only.cert, key=client_only.key, ca=certs.ca, prefix="etcd_", serves=False)
    made = Certificates(calling)
    assert made.calls and not made.serves
    assert made.server("h2") is None and made.server_credentials() is None
    assert made.channel() is not None
    assert 0 < made.expires - time.time() < 3 * 86400
    assert Certificates(replace(calling, cert="", key="")).expires == 0
    for files, said in (
        (replace(calling, key=""), "etcd_cert and etcd_key go together"),
        (replace(calling, ca=""), "set etcd_ca"),
        (replace(calling, key=certs.key), "etcd_key: .* is not the key"),
        (replace(calling, ca=str(tmp_path / "away.pem")), "etcd_ca: .*away.pem cannot be read"),
        (replace(calling, cert=expired.cert, key=expired.key), "etcd_cert: .* certificate has expired"),
        (replace(calling, cert=server_only.cert, key=server_only.key), "etcd_cert: .* purpose"),
    ):
        with pytest.raises(ValueError, match=said):
            Certificates(files)


def test_an_encrypted_key_is_refused_and_not_asked_for(certs: Certs) -> None:
    subprocess.run(
        ["openssl", "pkey", "-in", certs.key, "-aes256", "-passout", "pass:secret", "-out", certs.key + ".locked"],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    with pytest.raises(ValueError, match="not encrypted"):
        Certificates(replace(certs.files(), key=certs.key + ".locked"))


def client_certificate(folder: Path, authority: Certs, usage: str = "clientAuth") -> Certs:
    """A certificate of the same CA that is good for clients only, or for that usage."""
    made = Certs.make(folder)
    extensions = folder / "extensions"
    extensions.write_text(f"extendedKeyUsage={usage}\n")
    request = folder / "request"
    subprocess.run(
        ["openssl", "req", "-new", "-key", made.key, "-subj", "/CN=client", "-out", request],
        check=True,
        capture_output=True,
    )
    signing = ["-CA", authority.ca, "-CAkey", str(authority.folder / "ca.key"), "-CAcreateserial", "-days", "2"]
    subprocess.run(
        ["openssl", "x509", "-req", "-in", request, *signing, "-extfile", extensions, "-out", made.cert],
        check=True,
        capture_output=True,
    )
    return made


def test_callers_need_a_certificate_where_a_ca_for_them_is_set(certs: Certs, tmp_path: Path) -> None:
    server = Certificates(certs.files(mutual=True)).server("h2")
    shake(certs.caller(shows=True), server)
    with pytest.raises(ssl.SSLError, match="peer did not return a certificate"):
        shake(certs.caller(), server)
    stranger = Certs.make(tmp_path / "other")
    posing = certs.caller()
    posing.load_cert_chain(stranger.cert, stranger.key)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(posing, server)


def test_a_client_verifies_ca_and_name(certs: Certs, tmp_path: Path) -> None:
    server = Certificates(certs.files()).server("h2")
    ours = Certificates(Files(ca=certs.ca)).client()
    shake(ours, server, "127.0.0.1")
    for name in ("elsewhere", "127.0.0.2"):
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            shake(ours, server, name)
    foreign = Certificates(Files(ca=Certs.make(tmp_path / "other").ca)).client()
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(foreign, server)


def test_new_handshakes_show_the_new_certificate(certs: Certs) -> None:
    clock = Clock()
    certificates = Certificates(certs.files(), clock=clock)
    server, channel = certificates.server("h2"), certificates.channel()
    caller = certs.caller()
    before = serial(caller, server)
    certs.renew()
    assert serial(caller, server) == before  # looked at too short a time ago
    assert certificates.channel() is channel
    clock.later()
    after = serial(caller, server)
    assert after != before
    assert certificates.channel() is not channel
    clock.later()
    assert serial(caller, server) == after


def test_what_cannot_be_used_leaves_what_was_there(certs: Certs, tmp_path: Path) -> None:
    clock = Clock()
    certificates = Certificates(certs.files(), clock=clock)
    server, caller = certificates.server("h2"), certs.caller()
    before, expires = serial(caller, server), certificates.expires
    next_one = Certs.make(shutil.copytree(certs.folder, tmp_path / "next"))
    os.replace(next_one.key, certs.key)  # half of the change
    clock.later()
    assert serial(caller, server) == before
    os.unlink(certs.cert)
    clock.later()
    assert serial(caller, server) == before
    assert certificates.expires == expires
    shutil.copy(next_one.cert, certs.cert)  # the other half
    clock.later()
    assert serial(caller, server) != before


def test_a_ca_for_callers_can_be_replaced(certs: Certs, tmp_path: Path) -> None:
    """Both CAs for a while, then the new one alone: a context only ever adds, so that this one must be another."""
    clock = Clock()
    old, new = Certs.make(tmp_path / "old"), Certs.make(tmp_path / "new")
    bundle = tmp_path / "bundle.pem"
    shutil.copy(old.ca, bundle)
    server = Certificates(replace(certs.files(), client_ca=str(bundle)), clock=clock).server("h2")

    def enters(who: Certs) -> bool:
        caller = certs.caller()
        caller.load_cert_chain(who.cert, who.key)
        try:
            shake(caller, server)
        except ssl.SSLCertVerificationError:
            return False
        return True

    assert (enters(old), enters(new)) == (True, False)
    bundle.write_bytes(Path(old.ca).read_bytes() + Path(new.ca).read_bytes())
    clock.later()
    assert (enters(old), enters(new)) == (True, True)
    shutil.copy(new.ca, bundle)
    clock.later()
    assert (enters(old), enters(new)) == (False, True)
