from __future__ import annotations

from pathlib import Path

import pytest

from clipette.errors import ConfigError
from clipette.serve.faults import HttpFault
from clipette.serve.security import OPEN, READ, WRITE, Hosts, Keys, scope_of
from clipette.serve.settings import ServeSettings, is_loopback, make_settings, read_keys

R, W = "r" * 20, "w" * 20


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/", OPEN),
        ("GET", "/app.js", OPEN),
        ("GET", "/healthz", OPEN),
        ("GET", "/readyz", OPEN),
        ("GET", "/v1", READ),
        ("GET", "/v1/info", READ),
        ("POST", "/v1/search", READ),
        ("POST", "/v1/clicks", READ),
        ("GET", "/v1/items/a", READ),
        ("GET", "/metrics", READ),
        ("GET", "/openapi.json", READ),
        ("POST", "/v1/items", WRITE),
        ("DELETE", "/v1/items", WRITE),
        ("DELETE", "/v1/items/a/b", WRITE),
        ("PUT", "/v1/items/a", WRITE),
        ("BREW", "/v1/items", WRITE),
    ],
)
def test_what_a_request_needs(method: str, path: str, scope: str) -> None:
    assert scope_of(method, path) == scope


def status(keys: Keys, scope: str, header: str | None) -> int:
    try:
        keys.check(scope, header)
    except HttpFault as fault:
        asks = "WWW-Authenticate" in fault.headers
        return fault.status if asks == (fault.status == 401) else -1
    return 200


@pytest.mark.parametrize(
    ("scope", "header", "expected"),
    [
        (OPEN, None, 200),
        (READ, None, 401),
        (READ, f"Bearer {R}", 200),
        (READ, f"bearer  {R} ", 200),
        (READ, f"Bearer {W}", 200),
        (READ, f"Bearer {R[:-1]}", 401),
        (READ, f"Bearer {R}x", 401),
        (READ, f"Basic {R}", 401),
        (READ, R, 401),
        (READ, "Bearer", 401),
        (READ, "Bearer ", 401),
        (READ, "Bearer \xff\xfe", 401),
        (WRITE, None, 401),
        (WRITE, f"Bearer {R}", 403),
        (WRITE, f"Bearer {W}", 200),
        (WRITE, "Bearer nobody", 401),
    ],
)
def test_keys(scope: str, header: str | None, expected: int) -> None:
    assert status(Keys([R, "another-key-for-read"], [W]), scope, header) == expected


def test_without_keys_everyone_reads_and_nobody_writes() -> None:
    keys = Keys([], [])
    assert status(keys, READ, None) == 200
    assert status(keys, WRITE, None) == 403
    assert status(keys, WRITE, "Bearer ") == 403


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time must not tell which key of the list was met."""
    import hmac

    compared: list[bytes] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append(b)
        assert len(a) == len(b) or not a
        return real(a, b)

    monkeypatch.setattr("clipette.serve.security.hmac.compare_digest", counted)
    keys = Keys([R, "another-key-for-read"], [W])
    for header in (f"Bearer {R}", f"Bearer {W}", "Bearer wrong"):
        compared.clear()
        status(keys, READ, header)
        assert len(compared) == 3


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("localhost", True),
        ("localhost:8400", True),
        ("127.0.0.1:8400", True),
        ("[::1]:8400", True),
        ("LOCALHOST", True),
        ("pictures.lan:1", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil@localhost", True),  # userinfo: the name is still localhost's
        ("localhost@evil.example", False),
        ("", False),
        (None, False),
        ("[::1", False),
    ],
)
def test_on_loopback_only_its_own_names(host: str | None, fine: bool) -> None:
    hosts = Hosts(ServeSettings(allowed_hosts=("pictures.lan",)))
    if fine:
        hosts.check(host)
    else:
        with pytest.raises(HttpFault) as refused:
            hosts.check(host)
        assert refused.value.status == 421


def test_on_a_network_any_name() -> None:
    Hosts(ServeSettings(host="0.0.0.0")).check("whatever.example")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("example.org", False)],
)  # fmt: skip
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


# ---------------------------------------------------------------- settings


def test_a_network_needs_a_key_or_a_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPETTE_READ_KEY", raising=False)
    with pytest.raises(ConfigError, match="--no-read-key"):
        make_settings(host="0.0.0.0")
    assert make_settings(host="0.0.0.0", without_read_key=True).host == "0.0.0.0"
    monkeypatch.setenv("CLIPETTE_READ_KEY", R)
    assert make_settings(host="0.0.0.0").read_keys == (R,)


def test_keys_come_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", W)
    path = tmp_path / "keys"
    path.write_text(f"# mine\n{R}\n\n")
    assert read_keys(path, "K") == (R, W)
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="shorter than 16"):
        read_keys(path, "K")
    path.write_text("# nothing\n")
    monkeypatch.delenv("K")
    with pytest.raises(ConfigError, match="no key"):
        read_keys(path, "K")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "absent", "K")


def test_overrides_are_checked() -> None:
    assert make_settings(["timeout=5", "max_k=7"]).max_k == 7
    with pytest.raises(ConfigError, match="did you mean 'timeout'"):
        make_settings(["timeuot=5"])
    with pytest.raises(ConfigError, match="--set timeout"):
        make_settings(["timeout=-1"])
    with pytest.raises(ConfigError, match="no secret"):
        make_settings([f"write_keys=[{W}]"])
    with pytest.raises(ConfigError, match="exceeds queue_size"):
        make_settings(["max_inputs=600"])
