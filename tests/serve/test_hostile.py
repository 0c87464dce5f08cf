"""A real server on loopback and clients that mean it no good, or have no patience."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from .small import READ_KEY, WRITE_KEY, Colours, Live, live, picture

WRITE = {"Authorization": f"Bearer {WRITE_KEY}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Little patience and small limits."""
    limits: dict[str, Any] = {
        "max_body_bytes": 300_000,
        "max_image_bytes": 100_000,
        "max_image_pixels": 100_000,
        "body_timeout": 0.7,
        "header_timeout": 0.7,
        "max_connections": 64,
    }
    with live(tmp_path_factory.mktemp("hostile"), **limits) as running:
        yield running


def speak(server: Live, *pieces: bytes, pause: float = 0.0, wait: float = 20.0) -> bytes:
    """Send raw bytes, with pauses between; all that comes back until the server closes."""
    with socket.create_connection(server.address, timeout=wait) as connection:
        try:
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(pause)
                connection.sendall(piece)
        except OSError:
            pass  # closed by the server: what it said is still to be read
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except OSError:
            pass
        return received


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode("latin-1")


def alive(server: Live) -> None:
    found = httpx.post(f"{server.url}/v1/search", json={"text": "red", "k": 1}, timeout=30)
    assert found.json()["hits"][0]["key"] == "photos/red"


# ---------------------------------------------------------------- slow


def test_a_head_that_does_not_come_ends_the_connection(server: Live) -> None:
    for beginning in (b"", b"POST /v1/se", b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\n"):
        begun = time.monotonic()
        assert speak(server, beginning) == b""
        assert time.monotonic() - begun < 10
    alive(server)


def test_a_head_in_drops_ends_too(server: Live) -> None:
    drops = [bytes([byte]) for byte in head("GET", "/healthz", "x-a: " + "a" * 60)]
    begun = time.monotonic()
    assert speak(server, *drops, pause=0.05) == b""
    assert time.monotonic() - begun < 10
    alive(server)


def test_a_body_in_drops_is_408(server: Live) -> None:
    start = head("POST", "/v1/search", "content-type: application/json", "content-length: 1000")
    answer = speak(server, start, *[b" "] * 40, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer.lower()
    alive(server)


def test_a_body_that_follows_its_refusal_for_ever_is_cut_off(server: Live) -> None:
    start = head("POST", "/v1/search", "content-type: application/json", "content-length: 200000000")
    begun = time.monotonic()
    answer = speak(server, start, *[b"x" * 100] * 400, pause=0.02)
    assert answer.startswith(b"HTTP/1.1 413")
    assert time.monotonic() - begun < 15
    alive(server)


def test_a_client_that_takes_nothing_of_what_it_asked_for_is_cut_off(server: Live) -> None:
    before = len(server.server.server_state.connections)
    with socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.settimeout(0.2)
        greedy.connect(server.address)
        with contextlib.suppress(OSError):
            for _ in range(3000):
                greedy.sendall(head("GET", "/openapi.json"))
        until(lambda: len(server.server.server_state.connections) <= before)
    alive(server)


def test_bodies_that_come_slowly_take_nobodys_place(tmp_path: Path) -> None:
    start = head("POST", "/v1/search", "content-type: application/json", "content-length: 1000")
    with live(tmp_path, Colours(), max_in_flight=2) as running, contextlib.ExitStack() as open_:
        for _ in range(3):
            slow = open_.enter_context(socket.create_connection(running.address))
            slow.sendall(start + b" ")
        time.sleep(0.3)
        alive(running)


def test_answers_that_nobody_takes_are_bounded(tmp_path: Path) -> None:
    """Each would lie in memory until its client's patience ends: not as many as there may be connections."""
    large = picture("blue", (2000, 1500), "BMP")
    with live(tmp_path, Colours(), max_held_bytes=14_000_000, header_timeout=60.0) as running:
        item = {"key": "large", "image": base64.b64encode(large).decode()}
        added = httpx.post(f"{running.url}/v1/items", json={"items": [item]}, headers=WRITE, timeout=60)
        assert added.status_code == 200, added.text
        with contextlib.ExitStack() as open_:
            for _ in range(8):
                greedy = open_.enter_context(socket.socket())
                greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                greedy.connect(running.address)
                greedy.sendall(head("GET", "/v1/items/large/image"))
                with contextlib.suppress(ConnectionError):
                    greedy.recv(1)
            until(lambda: len(running.server.server_state.connections) <= 5)
            alive(running)
        until(lambda: not running.server.server_state.connections)
        assert httpx.get(f"{running.url}/v1/items/large/image", timeout=60).content == large


def test_keep_alive_goes_on_after_pauses_within_patience(server: Live) -> None:
    """The watch over heads must not end good connections."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for _ in range(3):
            assert client.get("/healthz").status_code == 200
            time.sleep(0.5)
        # A request that takes longer than a head may.
        server.search.slow = 1.0
        try:
            assert client.post("/v1/search", json={"text": "red", "k": 5}).status_code == 200
        finally:
            server.search.slow = 0.0


def test_too_many_connections_are_turned_away_and_later_ones_are_not(server: Live) -> None:
    held = [socket.create_connection(server.address, timeout=5) for _ in range(64)]
    time.sleep(0.1)
    turned = speak(server, head("GET", "/healthz"))
    for connection in held:
        connection.close()
    assert turned.startswith(b"HTTP/1.1 429")
    assert json.loads(turned.partition(b"\r\n\r\n")[2])["error"]["type"] == "overloaded"
    time.sleep(0.3)
    alive(server)


# ---------------------------------------------------------------- large


def test_a_stated_length_over_the_cap_is_413_before_the_body(server: Live) -> None:
    start = head("POST", "/v1/search", "content-type: application/json", "content-length: 300001")
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(start)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def chunked(pieces: int, size: int) -> Iterator[bytes]:
    for _ in range(pieces):
        yield f"{size:x}\r\n".encode() + b"a" * size + b"\r\n"


def test_a_chunked_body_is_capped_while_it_comes(server: Live) -> None:
    start = head("POST", "/v1/search", "content-type: application/json", "transfer-encoding: chunked")
    answer = speak(server, start, *chunked(40, 10_000), b"0\r\n\r\n" + head("GET", "/nope", "connection: close"))
    assert answer.startswith(b"HTTP/1.1 413")
    # The rest was thrown away, and the next request on the connection is answered.
    assert b"HTTP/1.1 404" in answer
    alive(server)


def test_a_chunked_body_within_the_cap_is_read(server: Live) -> None:
    body = json.dumps({"text": "red", "k": 1}).encode()
    start = head(
        "POST", "/v1/search", "content-type: application/json", "transfer-encoding: chunked", "connection: close"
    )
    pieces = [f"{1:x}\r\n".encode() + body[n : n + 1] + b"\r\n" for n in range(len(body))]
    assert b'"photos/red"' in speak(server, start + b"".join(pieces) + b"0\r\n\r\n")


@pytest.mark.parametrize(
    "smuggled",
    [
        head("POST", "/v1/search", "content-length: 5", "transfer-encoding: chunked")
        + b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
        head("POST", "/v1/search", "content-length: 5", "content-length: 6") + b"12345",
        head("POST", "/v1/search", "content-length: -1"),
        head("POST", "/v1/search", "content-length: 9999999999999999999999"),
        head("POST", "/v1/search", "transfer-encoding: gzip, chunked"),
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        head("CONNECT", "example.org:443", "connection: close"),
        head("GET", "http://169.254.169.254/", "connection: close"),
        head("GET", "/v1/search", "upgrade: websocket", "connection: upgrade, close", "sec-websocket-key: x"),
        head("GET", "/%", "connection: close"),
        head("GET", "/v1/items/%ff%fe", "connection: close"),
        head("GET", "/v1/items/%", "connection: close"),
        head("GET", "/v1/items/%00/image", "connection: close"),
        head("GET", "/\\..\\..\\etc\\passwd", "connection: close"),
        head("GET", "/..%2f..%2f..%2fetc%2fpasswd", "connection: close"),
        head("GET", "/v1/items/..%2f..%2f..%2fetc%2fpasswd/image", "connection: close"),
        head("GET", "/v1/items//image", "connection: close"),
        head("POST", "/v1/items/%2e%2e/image", "connection: close"),
    ],
)
def test_broken_and_smuggled_requests_get_4xx_or_nothing(server: Live, smuggled: bytes) -> None:
    answer = speak(server, smuggled, wait=10)
    assert b"HTTP/1.1 5" not in answer
    assert b"HTTP/1.1 200" not in answer
    assert b"root:" not in answer
    alive(server)


def test_giant_json_of_every_shape_is_4xx(server: Live) -> None:
    headers = {"content-type": "application/json"}
    for body in (
        b"[" * 290_000,
        b'{"a":' * 50_000,
        b'{"text": "' + b"x" * 290_000 + b'"}',
        b'{"negatives": [' + b'"a",' * 70_000 + b'"a"]}',
        b'{"text": "a", "k": 1' + b"0" * 290_000 + b"}",
        b'{"text": "a", "weights": {' + b",".join(b'"w%d": 1' % n for n in range(20_000)) + b"}}",
        b"{" + b",".join(b'"k%d": 1' % n for n in range(25_000)) + b"}",
    ):
        found = httpx.post(f"{server.url}/v1/search", content=body, headers=headers, timeout=60)
        assert found.status_code in (400, 413, 422), found.status_code
        assert len(found.content) < 2000
    alive(server)


def test_hostile_forms_are_4xx(server: Live) -> None:
    url = f"{server.url}/v1/search"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\nx\r\n'
    for body, headers in (
        (b"nonsense", kind),
        (b"--b\r\n", kind),
        (b"", {"content-type": "multipart/form-data"}),
        (b"x", {"content-type": "multipart/form-data; boundary="}),
        (b"".join(part % (b"f%d" % n) for n in range(2000)) + b"--b--\r\n", kind),
        (part % b"text" + part % b"text" + b"--b--\r\n", kind),
        (part % b"weights" + b"--b--\r\n", kind),
        (b'--b\r\ncontent-disposition: form-data; name="image"; filename="../../x"\r\n\r\n<svg/>\r\n--b--\r\n', kind),
        (b'--b\r\ncontent-disposition: form-data; name="other"; filename="x"\r\n\r\nx\r\n--b--\r\n', kind),
        (
            b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
            + b"x" * 200_000
            + b"\r\n--b--\r\n",
            kind,
        ),
    ):
        found = httpx.post(url, content=body, headers=headers, timeout=60)
        assert 400 <= found.status_code < 500, (found.status_code, body[:80])
        assert found.json()["error"]["message"]
    alive(server)


def test_bombs_svg_and_html_are_refused(server: Live) -> None:
    from .test_pictures import HTML, SVG, bomb

    for data in (bomb(60_000, 60_000), bomb(400, 400), SVG, HTML, b"GIF89a" + HTML, picture("red", (400, 300))):
        for call in (
            lambda data=data: httpx.post(f"{server.url}/v1/search", files={"image": ("a.png", data, "image/png")}),
            lambda data=data: httpx.post(
                f"{server.url}/v1/embeddings",
                json={"input": [base64.b64encode(data).decode()], "modality": "image"},
            ),
            lambda data=data: httpx.post(f"{server.url}/v1/items", files={"image": ("a.png", data)}, headers=WRITE),
        ):
            found = call()
            assert found.status_code in (400, 415), found.text
            assert found.json()["error"]["type"] == "bad_image"
    alive(server)


def test_filters_that_try_to_inject_are_refused(server: Live) -> None:
    for where in (
        "1 = 1",
        "year = 2018 OR 1 = 1",
        "domain = 'x' UNION SELECT * FROM rows",
        "domain = 'photo'; DELETE FROM rows",
        "domain = 'photo' -- ",
        "__import__('os').system('id')",
        "year IN (SELECT year FROM rows)",
        "(" * 3000 + "year = 1" + ")" * 3000,
        "year = 1 AND " * 300 + "year = 1",
        "domain LIKE '%" + "a%" * 1500 + "'",
        "domain = 'x\x00'",
    ):
        found = httpx.post(f"{server.url}/v1/search", json={"text": "red", "where": where}, timeout=60)
        assert found.status_code < 500
        if found.status_code == 200:
            assert found.json()["hits"] == []
    quoted = httpx.post(f"{server.url}/v1/search", json={"text": "red", "where": "domain = 'it''s'"})
    assert quoted.json()["hits"] == []
    alive(server)


# ---------------------------------------------------------------- abandoned, late, too many


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Live]:
    """A server whose model waits for a gate."""
    settings: dict[str, Any] = {"batch_size": 2, "queue_size": 4, "max_inputs": 4, "queue_wait": 30.0, "timeout": 20.0}
    with live(tmp_path, Colours(), **settings) as running:
        running.encoder.gate.clear()
        yield running
        running.encoder.gate.set()


def reading(server: Live, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)]
    return sum(map(float, values))


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_abandoned_requests_leave_the_queue(held: Live) -> None:
    first = ThreadPoolExecutor(1)
    running = first.submit(httpx.post, f"{held.url}/v1/embeddings", json={"input": "red"}, timeout=60)
    until(lambda: reading(held, "clipette_in_flight") == 1)
    before = len(held.encoder.calls)
    for text in ("green", "blue"):
        body = json.dumps({"input": text}).encode()
        start = head("POST", "/v1/embeddings", "content-type: application/json", f"content-length: {len(body)}")
        with socket.create_connection(held.address) as connection:
            connection.sendall(start + body)
            until(lambda: reading(held, 'clipette_queue_items{queue="text"}') == 1)
    # Both clients have gone while the model was busy.
    until(lambda: reading(held, 'clipette_abandoned_total{why="disconnect"}') == 2)
    held.encoder.gate.set()
    assert running.result(30).status_code == 200
    httpx.post(f"{held.url}/v1/embeddings", json={"input": "white"}, timeout=60)
    assert held.encoder.calls[before:] == [1, 1]
    first.shutdown()


def test_an_abandoned_search_leaves_the_queue_too(held: Live) -> None:
    """Its encoding is waited for in a route; with a picture's key in a thread."""
    for body in ({"text": "green"}, {"text": "blue", "stream": True}):
        data = json.dumps(body).encode()
        start = head("POST", "/v1/search", "content-type: application/json", f"content-length: {len(data)}")
        with socket.create_connection(held.address) as connection:
            connection.sendall(start + data)
            until(lambda: reading(held, "clipette_in_flight") == 1)
        until(lambda: reading(held, "clipette_in_flight") == 0)
    assert held.search.calls == 0


def test_a_full_queue_is_429_with_retry_after_and_the_accepted_are_answered(held: Live) -> None:
    def ask(n: int) -> httpx.Response:
        return httpx.post(f"{held.url}/v1/embeddings", json={"input": f"red {n}"}, timeout=60)

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(ask, n) for n in range(12)]
        # In the model: up to 2 (batch_size), or 1 that came alone; waiting: 4. All others must be turned away.
        until(lambda: sum(future.done() for future in futures) >= 6)
        held.encoder.gate.set()
        answers = [future.result() for future in futures]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert 6 <= len(refused) <= 7
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["type"] == "overloaded" for answer in refused)
    assert reading(held, "clipette_refused_total") == len(refused)


def test_the_time_limit_is_504(tmp_path: Path) -> None:
    with live(tmp_path, Colours(), timeout=0.3) as running:
        running.encoder.gate.clear()
        found = httpx.post(f"{running.url}/v1/embeddings", json={"input": "red"}, timeout=30)
        assert found.status_code == 504
        assert found.json()["error"]["type"] == "timeout"
        running.encoder.gate.set()
        assert httpx.post(f"{running.url}/v1/embeddings", json={"input": "red"}, timeout=30).status_code == 200


def test_more_requests_than_may_be_in_flight_are_429_but_health_answers(tmp_path: Path) -> None:
    with live(tmp_path, Colours(), max_in_flight=2, queue_wait=30.0) as running:
        running.encoder.gate.clear()
        with ThreadPoolExecutor(3) as pool:
            futures = [
                pool.submit(httpx.post, f"{running.url}/v1/embeddings", json={"input": f"red {n}"}, timeout=60)
                for n in range(2)
            ]
            # Asking takes no place of its own: neither of the two is turned away.
            until(lambda: reading(running, "clipette_in_flight") == 2)
            third = httpx.post(f"{running.url}/v1/embeddings", json={"input": "blue"}, timeout=30)
            assert third.status_code == 429
            assert httpx.get(f"{running.url}/healthz", timeout=30).status_code == 200
            running.encoder.gate.set()
            assert [future.result().status_code for future in futures] == [200, 200]


def test_more_values_than_anyone_asks_with_are_refused_unparsed(tmp_path: Path) -> None:
    with live(tmp_path, Colours()) as running:
        for body in (b'{"input": [' + b'"a",' * 7_000_000 + b'"a"]}', b"[" * 20_000_000):
            begun = time.monotonic()
            found = httpx.post(
                f"{running.url}/v1/embeddings", content=body, headers={"content-type": "application/json"}, timeout=60
            )
            assert (found.status_code, found.json()["error"]["type"]) == (413, "too_large")
            assert time.monotonic() - begun < 12


def test_bodies_held_at_once_are_bounded(tmp_path: Path) -> None:
    with live(tmp_path, Colours(), max_held_bytes=50_000) as running:
        start = head("POST", "/v1/search", "content-type: application/json", "content-length: 45000")
        with socket.create_connection(running.address) as slow:
            slow.sendall(start + b" " * 40_000)
            time.sleep(0.3)
            found = httpx.post(f"{running.url}/v1/search", content=b" " * 20_000, timeout=30)
            assert found.status_code == 429
        until(lambda: reading(running, "clipette_in_flight") == 0)
        assert httpx.post(f"{running.url}/v1/search", json={"text": "red"}, timeout=30).status_code == 200


def test_keys_under_many_guesses(tmp_path: Path) -> None:
    with live(tmp_path, Colours(), read_keys=(READ_KEY,)) as running, httpx.Client(base_url=running.url) as client:
        for guess in ("x", READ_KEY[:-1], READ_KEY.upper(), f"{READ_KEY} x", f"x {READ_KEY}", f'"{READ_KEY}"'):
            assert client.get("/v1/info", headers={"Authorization": f"Bearer {guess}"}).status_code == 401
        assert client.get("/v1/info", headers={"Authorization": f"Bearer {READ_KEY}"}).status_code == 200
        # Without a key a large body is not even read.
        begun = time.monotonic()
        assert client.post("/v1/search", content=b"x" * 1_000_000).status_code == 401
        assert time.monotonic() - begun < 10


# ---------------------------------------------------------------- stopping


def test_stopping_loses_no_accepted_write_and_no_answer(tmp_path: Path) -> None:
    from clipette.index.opening import open_index

    with live(tmp_path, Colours(seconds=0.15)) as running, ThreadPoolExecutor(8) as pool:

        def add(n: int) -> httpx.Response | None:
            item = {"items": [{"key": f"new {n}", "image": base64.b64encode(picture((n, n, n))).decode()}]}
            try:
                return httpx.post(f"{running.url}/v1/items", json=item, headers=WRITE, timeout=60)
            except httpx.TransportError:
                return None  # came after the stop

        futures = [pool.submit(add, n) for n in range(8)]
        until(lambda: any(future.done() for future in futures))
        running.stop()
        answers = [future.result() for future in futures]
    accepted = [n for n, answer in enumerate(answers) if answer is not None and answer.status_code == 200]
    assert accepted
    with open_index(tmp_path / "my.index", write=True) as after:  # the lock is free again
        there = {n for n in range(8) if f"new {n}" in after}
        assert there >= set(accepted)


def test_threads_end_with_their_server(tmp_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with live(tmp_path, Colours()) as running:
        httpx.post(f"{running.url}/v1/search", json={"text": "red"}, timeout=30)
    until(lambda: not {t.name for t in threading.enumerate() if t.name.startswith("clipette")} - before)
