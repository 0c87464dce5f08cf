"""Who may ask what: bearer keys, and the names that a loopback server answers to."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from clipette.serve.faults import HttpFault
from clipette.serve.settings import ServeSettings

READ, WRITE, OPEN = "read", "write", "open"
# Everything else under these needs the read key, where there is one.
GUARDED = re.compile(r"^/(v1(/|$)|metrics$|openapi\.json$)")
WRITES = re.compile(r"^/v1/items(/|$)")
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


def scope_of(method: str, path: str) -> str:
    """``open``, ``read`` or ``write``: what a request needs, by its method and path alone."""
    if WRITES.match(path) and method not in SAFE_METHODS:
        return WRITE
    return READ if GUARDED.match(path) else OPEN


class Keys:
    """Bearer keys, compared in constant time: neither a key's content nor its place in the list shows in the time."""

    def __init__(self, read: Sequence[str], write: Sequence[str]) -> None:
        self._read = [_fingerprint(key) for key in read]
        self._write = [_fingerprint(key) for key in write]

    def check(self, scope: str, authorization: str | None) -> None:
        """Raises ``HttpFault``: 401 without a known key, 403 with one that may only read, or where writes are off.

        A write key reads too. Without read keys everyone may read; without write keys nobody may write.
        """
        if scope == OPEN or (scope == READ and not self._read):
            return
        if scope == WRITE and not self._write:
            raise HttpFault(403, "forbidden", "writes are off: start the server with --write-keys FILE to allow them")
        kind, _, presented = (authorization or "").partition(" ")
        given = _fingerprint(presented.strip()) if kind.lower() == "bearer" else b""
        may_read, may_write = _among(given, self._read), _among(given, self._write)
        if may_write or (scope == READ and may_read):
            return
        if may_read:
            raise HttpFault(403, "forbidden", "this key may read, not write")
        message = "a bearer key is needed" if authorization is None else "unknown bearer key"
        raise HttpFault(
            401, "unauthorized", f"{message}: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
        )


def _fingerprint(key: str) -> bytes:
    # Of equal length, so that the comparison says nothing about a key's own.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _among(given: bytes, known: Iterable[bytes]) -> bool:
    found = False
    for key in known:
        found |= hmac.compare_digest(given, key)
    return found


class Hosts:
    """Names that requests may be addressed to. Anything goes on a network interface; on loopback only its own names:
    otherwise any web page could point a name of its own at 127.0.0.1 and read the collection (DNS rebinding).
    """

    def __init__(self, settings: ServeSettings) -> None:
        own = {"localhost", "127.0.0.1", "::1", settings.host.strip("[]"), *settings.allowed_hosts}
        self._names = {name.lower() for name in own} if settings.loopback else None

    def check(self, host: str | None) -> None:
        """Raises ``HttpFault`` (421) for a stranger's name."""
        if self._names is None:
            return
        try:
            name = urlsplit(f"//{host or ''}").hostname
        except ValueError:
            name = None
        if name is None or name.lower() not in self._names:
            raise HttpFault(421, "wrong_host", "this server answers only to its own name (--allow-host adds one)")
